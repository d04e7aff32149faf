//! Operators that cut tensors up, join them or repeat them.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{Broadcast, Concat, Iota, Slice, Unfold, Windows};

use super::super::statics::slice_range;
use super::gather::looked_up;
use super::layout::transposed;
use super::{Call, Fault, Lowered, Operator, Results, axis_index, empty, one};

/// No block of places has as many rows.
const MAX_BLOCK: u64 = 1 << 16;

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "Split" => split,
        "Slice" => slice,
        "Concat" => concat,
        "Tile" => tile,
        "DepthToSpace" => depth_to_space,
        "SpaceToDepth" => space_to_depth,
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
        parts.push(match len {
            0 => {
                let mut none = shape.clone();
                none[dim] = 0;
                empty(call.ty(x).dtype, &none)?
            }
            _ => Lowered::Value(sliced(call, x, dim, start, len)?),
        });
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

/// Bounds are operands or (before operator set 10) attributes; each may be negative or beyond the end.
fn slice(call: &mut Call<'_, '_>) -> Results {
    let mut value = call.value(0)?;
    let mut shape = call.ty(value).shape;
    let starts = call.ints(1, "starts")?.ok_or("no starts")?;
    let ends = call.ints(2, "ends")?.ok_or("no ends")?;
    let axes = call.ints(3, "axes")?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = call.ints(4, "steps")?.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return Err("starts, ends, axes and steps of different lengths".into());
    }
    let mut ranges = Vec::new();
    for (i, &axis) in axes.iter().enumerate() {
        let dim = axis_index(axis, shape.len())?;
        let (start, len) = slice_range(shape[dim] as i64, starts[i], ends[i], steps[i])?;
        ranges.push((dim, start, len as u64, steps[i]));
        shape[dim] = len as u64;
    }
    if shape.contains(&0) {
        return Ok(vec![empty(call.ty(value).dtype, &shape)?]);
    }
    for (dim, start, len, step) in ranges {
        value = match step {
            1 => sliced(call, value, dim, start as u64, len)?,
            2.. => strided(call, value, dim, [start as u64, len, step as u64])?,
            _ => picked(call, value, dim, start, len, step)?,
        };
    }
    one(value)
}

/// Every `step`-th of `len` elements from `start` on: windows of one element.
fn strided(
    call: &mut Call<'_, '_>,
    value: ValueId,
    dim: usize,
    [start, len, step]: [u64; 3],
) -> Result<ValueId, Fault> {
    let part = sliced(call, value, dim, start, (len - 1) * step + 1)?;
    let windows = Windows { dim, size: 1, stride: step, dilation: 1 };
    let cut = call.emit(Unfold { windows }, &[part])?;
    let mut shape = call.ty(part).shape;
    shape[dim] = len;
    call.reshape(cut, &shape)
}

/// Elements that go backwards are looked up.
fn picked(
    call: &mut Call<'_, '_>,
    value: ValueId,
    dim: usize,
    start: i64,
    len: u64,
    step: i64,
) -> Result<ValueId, Fault> {
    let places = call.emit(Iota { shape: vec![len], dim: 0, start, step }, &[])?;
    looked_up(call, value, dim, places)
}

/// A dimension from its end to its start.
pub(super) fn reversed(call: &mut Call<'_, '_>, value: ValueId, dim: usize) -> Result<ValueId, Fault> {
    let len = call.ty(value).shape[dim];
    picked(call, value, dim, len as i64 - 1, len, -1)
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

fn block(call: &Call<'_, '_>) -> Result<u64, Fault> {
    let block = call.attributes().int("blocksize", 0);
    let credible = u64::try_from(block).ok().filter(|b| (1..MAX_BLOCK).contains(b));
    credible.ok_or_else(|| format!("`blocksize` is {block}").into())
}

/// [n, c, h, w] to [n, c / b², h b, w b]: channels become blocks of places.
fn depth_to_space(call: &mut Call<'_, '_>) -> Results {
    let (x, b) = (call.value(0)?, block(call)?);
    let [n, c, h, w] = call.ty(x).shape[..] else { return Err("no image".into()) };
    if !c.is_multiple_of(b * b) {
        return Err(format!("{c} channels in blocks of {b}").into());
    }
    let d = c / (b * b);
    let columns_first = call.attributes().string("mode", "DCR") == "CRD";
    let (split, perm) = match columns_first {
        true => ([n, d, b, b, h, w], vec![0, 1, 4, 2, 5, 3]),
        false => ([n, b, b, d, h, w], vec![0, 3, 4, 1, 5, 2]),
    };
    let split = call.reshape(x, &split)?;
    let moved = transposed(call, split, perm)?;
    one(call.reshape(moved, &[n, d, h * b, w * b])?)
}

/// [n, c, h, w] to [n, c b², h / b, w / b]: blocks of places become channels.
fn space_to_depth(call: &mut Call<'_, '_>) -> Results {
    let (x, b) = (call.value(0)?, block(call)?);
    let [n, c, h, w] = call.ty(x).shape[..] else { return Err("no image".into()) };
    if !h.is_multiple_of(b) || !w.is_multiple_of(b) {
        return Err(format!("an image of {h} by {w} in blocks of {b}").into());
    }
    let split = call.reshape(x, &[n, c, h / b, b, w / b, b])?;
    let moved = transposed(call, split, vec![0, 3, 5, 1, 2, 4])?;
    one(call.reshape(moved, &[n, c * b * b, h / b, w / b])?)
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
        assert_eq!(slice(4, 9).ops(), "full<0.0> f32[2, 0]");
    }

    #[test]
    fn steps_are_windows_of_one_element_or_looked_up() {
        let slice = |from, to, step| {
            let builder = Builder::new(&["y = Slice x a b axis step"]).ints("a", &[from]).ints("b", &[to]);
            builder.ints("axis", &[1]).ints("step", &[step]).ops()
        };
        assert_eq!(slice(1, 4, 2), "slice<1: 1, 3> f32[2, 3]; unfold f32[2, 2, 1]; reshape f32[2, 2]");
        let backwards = "iota i64[2]; transpose<[1, 0]> f32[4, 2]; embedding f32[2, 2]; transpose<[1, 0]> f32[2, 2]";
        assert_eq!(slice(-1, 0, -2), backwards);
    }

    #[test]
    fn blocks_move_between_places_and_channels() {
        let builder = |node: &str, x: &str| Builder::new(&[node]).input("x", 1, x).ops();
        let out = builder("y = DepthToSpace{blocksize=2} x", "batch 8 3 5");
        assert!(
            out.ends_with("transpose<[0, 3, 4, 1, 5, 2]> f32[2, 2, 3, 2, 5, 2]; reshape f32[2, 2, 6, 10]"),
            "{out}"
        );
        let back = builder("y = SpaceToDepth{blocksize=2} x", "batch 2 6 10");
        assert!(back.ends_with("reshape f32[2, 8, 3, 5]"), "{back}");
    }

    #[test]
    fn parts_are_joined_and_repeated() {
        check(&["y = Concat{axis=-1} x x"], "concat f32[2, 8]");
        let tiled = Builder::new(&["y = Tile x n"]).ints("n", &[3, 1]);
        assert_eq!(tiled.ops(), "broadcast<[1, 3]> f32[3, 2, 1, 4]; reshape f32[6, 4]");
    }
}
