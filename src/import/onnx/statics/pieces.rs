//! Operators that cut tensors up, join them, repeat them or mask triangles out.

use super::evaluate::{Call, Results, axis_index, extents};
use super::tensor::{Element, StaticTensor, Values, check_stored, map_values};
use super::walk::{gather, steps, strides};

/// Takes the given indices along one dimension.
fn pick(x: &StaticTensor, dim: usize, indices: impl ExactSizeIterator<Item = usize>) -> Result<StaticTensor, String> {
    let mut shape = x.shape().to_vec();
    shape[dim] = indices.len();
    if x.stored()[dim] == 1 && indices.len() > 0 {
        return x.with_shape(shape, x.stored().to_vec());
    }
    let mut stored = x.stored().to_vec();
    stored[dim] = indices.len();
    check_stored(&stored)?;
    let strides = strides(x.stored());
    let table = |d: usize| steps(x.stored()[d], strides[d]);
    let mut tables: Vec<_> = (0..x.rank()).map(table).collect();
    tables[dim] = indices.map(|i| i * strides[dim]).collect();
    let values = map_values!(x.values(), v => gather(v, &tables));
    StaticTensor::new(shape, stored, values)
}

pub(super) fn tile(call: &Call) -> Results {
    let mut result = call.input(0)?.clone();
    let repeats = extents(&call.ints(1)?)?;
    if repeats.len() != result.rank() {
        return Err(format!("{} repeats for rank {}", repeats.len(), result.rank()));
    }
    for (dim, n) in repeats.into_iter().enumerate() {
        let extent = result.shape()[dim];
        let total = extent.checked_mul(n).filter(|&t| u32::try_from(t).is_ok()).ok_or("the result is too large")?;
        result = pick(&result, dim, (0..total as u32).map(|i| i as usize % extent))?;
    }
    Ok(vec![result])
}

pub(super) fn concat(call: &Call) -> Results {
    let parts = (0..call.inputs.len()).map(|i| call.input(i)).collect::<Result<Vec<_>, _>>()?;
    let &first = parts.first().ok_or("no operands")?;
    let axis = call.axis(0, first.rank())?;
    let mut shape = first.shape().to_vec();
    shape[axis] = 0;
    let mut stored = vec![1; shape.len()];
    for part in &parts {
        let fits = part.rank() == shape.len() && (0..shape.len()).all(|d| d == axis || part.shape()[d] == shape[d]);
        if !fits || part.dtype() != first.dtype() {
            return Err(format!("{:?} of {:?} beside {:?}", part.dtype(), part.shape(), first.shape()));
        }
        shape[axis] += part.shape()[axis];
        (0..shape.len()).for_each(|d| stored[d] = stored[d].max(part.stored()[d]));
    }
    if shape.contains(&0) {
        return Ok(vec![first.with_shape(shape, stored)?]);
    }
    stored[axis] = shape[axis];
    check_stored(&stored)?;
    let full: Vec<bool> = (0..shape.len()).map(|d| d == axis || stored[d] > 1).collect();
    let parts = parts.into_iter().filter(|p| !p.shape().contains(&0)).map(|p| p.materialize(&full));
    let parts = parts.collect::<Result<Vec<_>, _>>()?;
    let values = match first.values() {
        Values::I64(_) => joined::<i64>(&parts, axis),
        Values::Bool(_) => joined::<bool>(&parts, axis),
        Values::F32(_) => joined::<f32>(&parts, axis),
        Values::F64(_) => joined::<f64>(&parts, axis),
    };
    Ok(vec![StaticTensor::new(shape, stored, values)?])
}

/// Joins parts whose stored extents agree except along the axis.
fn joined<T: Element>(parts: &[StaticTensor], axis: usize) -> Values {
    let n_outer = parts.first().map_or(0, |p| p.stored()[..axis].iter().product());
    let slices: Vec<(&[T], usize)> =
        parts.iter().filter_map(|p| Some((T::view(p.values())?, p.stored()[axis..].iter().product()))).collect();
    let mut values = Vec::with_capacity(slices.iter().map(|(v, _)| v.len()).sum());
    for outer in 0..n_outer {
        for (v, n) in &slices {
            // Index tuples are joined from single elements, millions of them.
            match n {
                1 => values.push(v[outer]),
                _ => values.extend_from_slice(&v[outer * n..(outer + 1) * n]),
            }
        }
    }
    T::wrap(values)
}

/// Bounds are operands; before operator set 10 they are attributes. Each may be negative or beyond the end.
pub(super) fn slice(call: &Call) -> Results {
    let mut result = call.input(0)?.clone();
    let starts = call.ints_either(1, "starts")?.ok_or("no starts")?;
    let ends = call.ints_either(2, "ends")?.ok_or("no ends")?;
    let axes = call.ints_either(3, "axes")?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = call.optional_ints(4)?.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return Err("starts, ends, axes and steps of different lengths".into());
    }
    for (i, &axis) in axes.iter().enumerate() {
        let dim = axis_index(axis, result.rank())?;
        let (first, n) = slice_range(result.shape()[dim] as i64, starts[i], ends[i], steps[i])?;
        let step = steps[i];
        let n = u32::try_from(n).map_err(|_| "the result is too large")?;
        if i64::from(n) != result.shape()[dim] as i64 || step != 1 {
            result = pick(&result, dim, (0..n).map(|k| (first + i64::from(k) * step) as usize))?;
        }
    }
    Ok(vec![result])
}

/// First index and number of indices of a slice of `extent` elements.
///
/// # Errors
/// If the step is 0.
pub fn slice_range(extent: i64, start: i64, end: i64, step: i64) -> Result<(i64, i64), String> {
    let from_front = |bound: i64| if bound < 0 { bound.saturating_add(extent) } else { bound };
    let (start, end) = (from_front(start), from_front(end));
    match step {
        0 => Err("a step of 0".into()),
        1.. => {
            let (start, end) = (start.clamp(0, extent), end.clamp(0, extent));
            let span = (end - start).max(0);
            Ok((start, span / step + i64::from(span % step != 0)))
        }
        _ => {
            let (start, end) = (start.clamp(-1, extent - 1), end.clamp(-1, extent - 1));
            let span = (start - end).max(0);
            let stride = step.checked_neg().unwrap_or(i64::MAX);
            Ok((start, span / stride + i64::from(span % stride != 0)))
        }
    }
}

/// Lengths are an operand or (before operator set 13) an attribute; otherwise the parts are equal, the last the rest.
pub(super) fn split(call: &Call) -> Results {
    let x = call.input(0)?;
    let dim = call.axis(0, x.rank())?;
    let extent = x.shape()[dim];
    let lengths = match call.ints_either(1, "split")? {
        Some(lengths) => extents(&lengths)?,
        None => equal_lengths(extent, call.attributes.int("num_outputs", call.n_outputs as i64))?,
    };
    let total = lengths.iter().try_fold(0usize, |sum, &n| sum.checked_add(n));
    if total != Some(extent) {
        return Err(format!("parts {lengths:?} of an extent of {extent}"));
    }
    let mut start = 0;
    let mut parts = Vec::with_capacity(lengths.len());
    for n in lengths {
        let range = start..start + n;
        parts.push(pick(x, dim, range)?);
        start += n;
    }
    Ok(parts)
}

fn equal_lengths(extent: usize, n_parts: i64) -> Result<Vec<usize>, String> {
    let n_parts = usize::try_from(n_parts).ok().filter(|n| (1..=1 << 16).contains(n));
    let n_parts = n_parts.ok_or("a number of parts that is not positive, or absurd")?;
    let length = extent.div_ceil(n_parts);
    Ok((0..n_parts).map(|i| extent.saturating_sub(i * length).min(length)).collect())
}

/// Keeps the upper (or, with `upper=0`, the lower) triangle of the last two dimensions, shifted by `k` columns.
pub(super) fn trilu(call: &Call) -> Results {
    let x = call.input(0)?;
    let k = call.optional_ints(1)?.and_then(|k| k.first().copied()).unwrap_or(0);
    let upper = call.attributes.int("upper", 1) != 0;
    let rank = x.rank();
    if rank < 2 {
        return Err(format!("a tensor of rank {rank}"));
    }
    if x.shape().contains(&0) {
        return Ok(vec![x.clone()]);
    }
    let full: Vec<bool> = (0..rank).map(|d| d + 2 >= rank).collect();
    let x = x.materialize(&full)?;
    let extents = [x.shape()[rank - 2], x.shape()[rank - 1]];
    let values = match x.values() {
        Values::I64(v) => i64::wrap(triangle(v, extents, k, upper, 0)),
        Values::Bool(v) => bool::wrap(triangle(v, extents, k, upper, false)),
        Values::F32(v) => f32::wrap(triangle(v, extents, k, upper, 0.0)),
        Values::F64(v) => f64::wrap(triangle(v, extents, k, upper, 0.0)),
    };
    Ok(vec![StaticTensor::new(x.shape().to_vec(), x.stored().to_vec(), values)?])
}

fn triangle<T: Element>(values: &[T], [n_rows, n_columns]: [usize; 2], k: i64, upper: bool, zero: T) -> Vec<T> {
    let mut result = values.to_vec();
    for (index, row) in result.chunks_exact_mut(n_columns).enumerate() {
        let diagonal = ((index % n_rows) as i64).saturating_add(k);
        for (column, value) in row.iter_mut().enumerate() {
            let column = column as i64;
            if if upper { column < diagonal } else { column > diagonal } {
                *value = zero;
            }
        }
    }
    result
}
