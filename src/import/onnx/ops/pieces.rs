//! Operators that cut tensors up, join them or repeat them.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{Broadcast, Concat, Full, Slice};
use galvatron_ir::types::Scalar;

use super::super::lower::as_f64;
use super::{Call, Fault, Lowered, Operator, Results, axis_index, one};

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "Split" => split,
        "Slice" => slice,
        "Concat" => concat,
        "Tile" => tile,
        "Pad" => pad,
        _ => return None,
    })
}

/// Part of one dimension; the value itself if the part is the whole.
pub(super) fn sliced(
    call: &mut Call<'_, '_>,
    value: ValueId,
    dim: usize,
    start: u64,
    len: u64,
) -> Result<ValueId, Fault> {
    if call.ty(value).shape.get(dim) == Some(&len) {
        return Ok(value);
    }
    call.emit(Slice { dim, start, len }, &[value])
}

/// Lengths are an operand or (before operator set 13) an attribute; otherwise the parts are equal, the last the rest.
fn split(call: &mut Call<'_, '_>) -> Results {
    let x = call.value(0)?;
    let shape = call.ty(x).shape;
    let dim = call.axis(0, shape.len())?;
    let lengths = match call.ints(1, "split")? {
        Some(lengths) => {
            lengths.iter().map(|&n| u64::try_from(n)).collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?
        }
        None => equal_lengths(shape[dim], call.attributes().int("num_outputs", call.node.outputs.len() as i64))?,
    };
    if lengths.iter().try_fold(0u64, |sum, &n| sum.checked_add(n)) != Some(shape[dim]) {
        return Err(format!("parts {lengths:?} of an extent of {}", shape[dim]).into());
    }
    let (mut start, mut parts) = (0, Vec::with_capacity(lengths.len()));
    for len in lengths {
        parts.push(Lowered::Value(sliced(call, x, dim, start, len)?));
        start += len;
    }
    Ok(parts)
}

fn equal_lengths(extent: u64, n_parts: i64) -> Result<Vec<u64>, Fault> {
    let n_parts = u64::try_from(n_parts).ok().filter(|n| (1..=1 << 16).contains(n));
    let n_parts = n_parts.ok_or("a number of parts that is not positive, or absurd")?;
    let length = extent.div_ceil(n_parts);
    Ok((0..n_parts).map(|i| extent.saturating_sub(i * length).min(length)).collect())
}

/// Bounds are operands or (before operator set 10) attributes; each may be negative or beyond the end. Steps are 1.
fn slice(call: &mut Call<'_, '_>) -> Results {
    let mut value = call.value(0)?;
    let shape = call.ty(value).shape;
    let starts = call.ints(1, "starts")?.ok_or("no starts")?;
    let ends = call.ints(2, "ends")?.ok_or("no ends")?;
    let axes = call.ints(3, "axes")?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = call.ints(4, "steps")?.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return Err("starts, ends, axes and steps of different lengths".into());
    }
    for (i, &axis) in axes.iter().enumerate() {
        let dim = axis_index(axis, shape.len())?;
        let extent = shape[dim] as i64;
        let bound = |b: i64| if b < 0 { b.saturating_add(extent) } else { b }.clamp(0, extent);
        let (start, end) = (bound(starts[i]), bound(ends[i]));
        let len = (end - start).max(0) as u64;
        value = match steps[i] {
            1 if len > 0 => sliced(call, value, dim, start as u64, len)?,
            1 => return Err(Fault::Unsupported("without any element".into())),
            step => strided(call, value, dim, [start, end, step])?,
        };
    }
    one(value)
}

/// Every `step`-th element: whole steps become a dimension of their own.
fn strided(
    call: &mut Call<'_, '_>,
    value: ValueId,
    dim: usize,
    [start, end, step]: [i64; 3],
) -> Result<ValueId, Fault> {
    let shape = call.ty(value).shape;
    let (extent, signed) = (shape[dim], step);
    let step = u64::try_from(step).unwrap_or(0);
    if step == 0 || !extent.is_multiple_of(step) || end as u64 != extent || start as u64 >= step {
        return Err(Fault::Unsupported(format!("with a step of {signed} over an extent of {extent}")));
    }
    let (mut split, mut kept) = (shape.clone(), shape);
    (split[dim], kept[dim]) = (extent / step, extent / step);
    split.insert(dim + 1, step);
    let rows = call.reshape(value, &split)?;
    let column = sliced(call, rows, dim + 1, start as u64, 1)?;
    call.reshape(column, &kept)
}

/// Empty parts are left out.
fn concat(call: &mut Call<'_, '_>) -> Results {
    let mut parts = Vec::new();
    for index in 0..call.node.inputs.len() {
        if !call.shape(index)?.contains(&0) {
            parts.push(call.value(index)?);
        }
    }
    let &first = parts.first().ok_or("no operand has an element")?;
    let dim = call.axis(0, call.ty(first).rank())?;
    match parts[..] {
        [x] => one(x),
        _ => one(call.emit(Concat { dim }, &parts)?),
    }
}

/// Repeats the tensor along each dimension.
fn tile(call: &mut Call<'_, '_>) -> Results {
    let x = call.value(0)?;
    let shape = call.ty(x).shape;
    let repeats = call.ints(1, "repeats")?.ok_or("no repeats")?;
    if repeats.len() != shape.len() || repeats.iter().any(|&n| n < 1) {
        return Err(format!("repeats {repeats:?} of a tensor of shape {shape:?}").into());
    }
    if repeats.iter().all(|&n| n == 1) {
        return one(x);
    }
    let pairs = || repeats.iter().map(|&n| n as u64).zip(shape.iter().copied());
    let wide: Vec<u64> = pairs().flat_map(|(n, d)| [n, d]).collect();
    let dims = (0..shape.len()).map(|d| 2 * d + 1).collect();
    let repeated = call.emit(Broadcast { shape: wide, dims }, &[x])?;
    let shape: Vec<u64> = pairs().map(|(n, d)| n * d).collect();
    one(call.reshape(repeated, &shape)?)
}

/// Constant padding, and negative padding, which cuts.
fn pad(call: &mut Call<'_, '_>) -> Results {
    let mut value = call.value(0)?;
    if call.attributes().string("mode", "constant") != "constant" {
        return Err(Fault::Unsupported("other than with a constant".into()));
    }
    let pads = call.ints(1, "pads")?.ok_or("no pads")?;
    let fill = match call.known(2).map(|t| t.as_splat()) {
        Some(Some(fill)) => as_f64(fill),
        None if !call.has(2) => f64::from(call.attributes().float("value", 0.0)),
        _ => return Err(Fault::Unsupported("with a value that depends on the data".into())),
    };
    let rank = call.ty(value).rank();
    let axes = call.ints(3, "")?.unwrap_or_else(|| (0..rank as i64).collect());
    if pads.len() != 2 * axes.len() {
        return Err(format!("{} pads for {} dimensions", pads.len(), axes.len()).into());
    }
    for (i, &axis) in axes.iter().enumerate() {
        value = padded(call, value, axis_index(axis, rank)?, [pads[i], pads[i + axes.len()]], fill)?;
    }
    one(value)
}

fn padded(
    call: &mut Call<'_, '_>,
    value: ValueId,
    dim: usize,
    [before, after]: [i64; 2],
    fill: f64,
) -> Result<ValueId, Fault> {
    let extent = call.ty(value).shape[dim] as i64;
    let cut = |pad: i64| (-pad).max(0);
    let len = extent - cut(before) - cut(after);
    if len <= 0 {
        return Err(Fault::Unsupported("without any element".into()));
    }
    let value = sliced(call, value, dim, cut(before) as u64, len as u64)?;
    let mut parts = vec![value];
    for (pad, at) in [(before, 0), (after, 1)] {
        if pad > 0 {
            let mut ty = call.ty(value);
            ty.shape[dim] = pad as u64;
            let filled = call.emit(Full { ty, value: Scalar::new(fill) }, &[])?;
            parts.insert(if at == 0 { 0 } else { parts.len() }, filled);
        }
    }
    if parts.len() == 1 { Ok(value) } else { call.emit(Concat { dim }, &parts) }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{Builder, check};

    #[test]
    fn split_gives_slices() {
        check(&["a y = Split{axis=1, num_outputs=2} x"], "slice<1: 0, 2> f32[2, 2]; slice<1: 2, 2> f32[2, 2]");
        let uneven = Builder::new(&["a y = Split{axis=-1} x n"]).ints("n", &[1, 3]);
        assert_eq!(uneven.ops(), "slice<1: 0, 1> f32[2, 1]; slice<1: 1, 3> f32[2, 3]");
    }

    #[test]
    fn slices_clamp_their_bounds() {
        let slice = |start, end| {
            let bounds = Builder::new(&["y = Slice x a b axis"]).ints("a", &[start]).ints("b", &[end]);
            bounds.ints("axis", &[1])
        };
        assert_eq!(slice(-3, i64::MAX).ops(), "slice<1: 1, 3> f32[2, 3]");
        assert_eq!(slice(0, 9).ops(), "");
        assert!(slice(4, 9).import().unwrap_err().contains("without any element"));
    }

    #[test]
    fn steps_that_divide_are_a_dimension() {
        let nodes = Builder::new(&["y = Slice x a b axis step"]).ints("a", &[1]).ints("b", &[4]);
        let expected = "reshape f32[2, 2, 2]; slice<2: 1, 1> f32[2, 2, 1]; reshape f32[2, 2]";
        assert_eq!(nodes.ints("axis", &[1]).ints("step", &[2]).ops(), expected);
    }

    #[test]
    fn parts_are_joined_repeated_and_padded() {
        check(&["y = Concat{axis=-1} x x"], "concat f32[2, 8]");
        let tiled = Builder::new(&["y = Tile x n"]).ints("n", &[3, 1]);
        assert_eq!(tiled.ops(), "broadcast<[1, 3]> f32[3, 2, 1, 4]; reshape f32[6, 4]");
        let padded = Builder::new(&["y = Pad x n"]).ints("n", &[0, 1, 0, -1]);
        assert_eq!(padded.ops(), "slice<1: 0, 3> f32[2, 3]; full<0.0> f32[2, 1]; concat f32[2, 4]");
    }
}
