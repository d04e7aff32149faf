//! Operators that make tensors from attributes, shapes and counts.

use super::super::attributes::{Attribute, Attributes};
use super::arithmetic::map2;
use super::compare::choose;
use super::evaluate::{Call, Results, axis_index, extents};
use super::tensor::{Element, MAX_STORED, Scalar, StaticTensor, Values, check_stored, map_values};
use super::walk::{advance, gather, steps, strides};

/// What `Shape` with these attributes gives for a value of extents `dims`; the value itself need not be known.
pub fn shape_of(dims: &[u64], attributes: &Attributes) -> StaticTensor {
    let rank = dims.len() as i64;
    let bound = |value: i64| if value < 0 { value.saturating_add(rank) } else { value }.clamp(0, rank) as usize;
    let (start, end) = (bound(attributes.int("start", 0)), bound(attributes.int("end", rank)));
    let values: Vec<i64> = dims[start..end.max(start)].iter().map(|&d| d as i64).collect();
    StaticTensor::from_ints(&values)
}

pub(super) fn shape(call: &Call) -> Results {
    let dims: Vec<u64> = call.input(0)?.shape().iter().map(|&d| d as u64).collect();
    Ok(vec![shape_of(&dims, call.attributes)])
}

pub(super) fn size(call: &Call) -> Results {
    let n: usize = call.input(0)?.shape().iter().product();
    Ok(vec![StaticTensor::splat(vec![], Scalar::I64(n as i64))?])
}

pub(super) fn constant(call: &Call) -> Results {
    let attributes = call.attributes;
    if let Some(record) = attributes.tensor("value") {
        let tensor = StaticTensor::from_record(record);
        return Ok(vec![tensor.ok_or_else(|| format!("a constant of type {}", record.dtype.name()))??]);
    }
    let tensor = match (attributes.get("value_int"), attributes.get("value_float")) {
        (Some(&Attribute::Int(value)), _) => StaticTensor::splat(vec![], Scalar::I64(value))?,
        (_, Some(&Attribute::Float(value))) => StaticTensor::splat(vec![], Scalar::F32(value))?,
        _ => match (attributes.ints("value_ints"), attributes.floats("value_floats")) {
            (Some(values), _) => StaticTensor::from_ints(values),
            (_, Some(values)) => StaticTensor::from_elements(vec![values.len()], vec![values.len()], values.to_vec())?,
            _ => return Err("a constant that is neither a number nor a numeric tensor".into()),
        },
    };
    Ok(vec![tensor])
}

pub(super) fn constant_of_shape(call: &Call) -> Results {
    let shape = extents(&call.ints(0)?)?;
    let value = match call.attributes.tensor("value") {
        None => Scalar::F32(0.0),
        Some(record) => {
            let value = StaticTensor::from_record(record).ok_or("a fill value of a type not computed with")??;
            value.first().ok_or("an empty fill value")?
        }
    };
    Ok(vec![StaticTensor::splat(shape, value)?])
}

/// `start, start + delta, …` below (above, for a negative `delta`) `limit`.
pub(super) fn range(call: &Call) -> Results {
    let scalar = |index: usize| call.input(index)?.first().ok_or_else(|| format!("operand {index} is empty"));
    let tensor = match (scalar(0)?, scalar(1)?, scalar(2)?) {
        (Scalar::I64(start), Scalar::I64(limit), Scalar::I64(delta)) => {
            let span = i128::from(limit) - i128::from(start);
            let n = span.checked_div(i128::from(delta)).ok_or("a step of 0")?;
            let n = n + i128::from(n * i128::from(delta) != span && (span < 0) == (delta < 0));
            vector(n as f64, |i| start.wrapping_add((i as i64).wrapping_mul(delta)))?
        }
        (Scalar::F32(start), Scalar::F32(limit), Scalar::F32(delta)) => {
            let n = ((f64::from(limit) - f64::from(start)) / f64::from(delta)).ceil();
            vector(n, |i| start + i as f32 * delta)?
        }
        (Scalar::F64(start), Scalar::F64(limit), Scalar::F64(delta)) => {
            vector(((limit - start) / delta).ceil(), |i| start + i as f64 * delta)?
        }
        _ => return Err("operands of different types".into()),
    };
    Ok(vec![tensor])
}

fn vector<T: Element>(n: f64, element: impl Fn(usize) -> T) -> Result<StaticTensor, String> {
    if n.is_nan() || n > MAX_STORED as f64 {
        return Err(format!("a range of {n} elements is too large"));
    }
    let n = n.max(0.0) as usize;
    StaticTensor::from_elements(vec![n], vec![n], (0..n).map(element).collect())
}

/// Operands: indices, depth, `[off, on]`; the new dimension goes to `axis`.
pub(super) fn one_hot(call: &Call) -> Results {
    let (indices, depth, choice) = (call.input(0)?, call.ints(1)?, call.input(2)?);
    let &[depth] = &depth[..] else { return Err("a depth that is not one integer".into()) };
    let axis = axis_index(call.attributes.int("axis", -1), indices.rank() + 1)?;
    let positions = vector(depth as f64, |i| i as i64)?;
    let positions = insert_ones(&positions, 1, indices.rank() - axis)?;
    let indices = insert_ones(indices, axis, 1)?;
    let (Some(i), Some(p)) = (indices.stored_ints(), positions.stored_ints()) else {
        return Err("indices that are not integers".into());
    };
    let hot = map2((&indices, i), (&positions, p), |i, p| i == p || i.wrapping_add(depth) == p)?;
    let flags = hot.stored_bools().expect("invariant: a comparison gives truth values");
    let [off, on] = [0, 1].map(|k| choice_element(choice, k));
    let (off, on) = (off?, on?);
    let pick = |on: &StaticTensor, off: &StaticTensor| match (on.values(), off.values()) {
        (Values::I64(x), Values::I64(y)) => choose((&hot, flags), (on, x), (off, y)),
        (Values::F32(x), Values::F32(y)) => choose((&hot, flags), (on, x), (off, y)),
        (Values::F64(x), Values::F64(y)) => choose((&hot, flags), (on, x), (off, y)),
        (Values::Bool(x), Values::Bool(y)) => choose((&hot, flags), (on, x), (off, y)),
        _ => Err("values of different types".into()),
    };
    Ok(vec![pick(&on, &off)?])
}

/// The same tensor with `n` dimensions of extent 1 before dimension `at`.
fn insert_ones(x: &StaticTensor, at: usize, n: usize) -> Result<StaticTensor, String> {
    let insert = |extents: &[usize]| [&extents[..at], &vec![1; n][..], &extents[at..]].concat();
    x.with_shape(insert(x.shape()), insert(x.stored()))
}

fn choice_element(choice: &StaticTensor, index: usize) -> Result<StaticTensor, String> {
    if choice.shape() != [2] {
        return Err(format!("values of shape {:?} where [2] was expected", choice.shape()));
    }
    let full = choice.materialize(&[true])?;
    StaticTensor::new(vec![], vec![], map_values!(full.values(), v => vec![v[index]]))
}

/// The indices of all elements that are not zero, as a matrix with one column for each.
pub(super) fn non_zero(call: &Call) -> Results {
    let x = call.input(0)?.materialize(&vec![true; call.input(0)?.rank()])?;
    let is_set: Vec<bool> = match x.values() {
        Values::I64(v) => v.iter().map(|&a| a != 0).collect(),
        Values::Bool(v) => v.to_vec(),
        Values::F32(v) => v.iter().map(|&a| a != 0.0).collect(),
        Values::F64(v) => v.iter().map(|&a| a != 0.0).collect(),
    };
    let mut found = Vec::new();
    let mut index = vec![0; x.rank()];
    for set in is_set {
        if set {
            found.extend(index.iter().map(|&i| i as i64));
        }
        advance(&mut index, x.shape());
    }
    let (rank, n) = (x.rank(), if x.rank() == 0 { 0 } else { found.len() / x.rank() });
    check_stored(&[rank, n])?;
    let columns =
        if found.is_empty() { found } else { gather(&found, &[steps(rank, 1), steps(n, strides(&[n, rank])[0])]) };
    Ok(vec![StaticTensor::from_elements(vec![rank, n], vec![rank, n], columns)?])
}
