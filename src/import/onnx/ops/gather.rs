//! Elements by index: rows of a table, parts of an activation, or single elements along an axis.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{Binary, Compare, Embedding, TakeAlong};
use galvatron_ir::types::DType;

use super::super::attributes::Attributes;
use super::super::statics::{Scalar, StaticTensor, evaluate};
use super::layout::{expanded, transposed};
use super::pieces::sliced;
use super::{Call, Fault, Operator, Results, one};

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "Gather" => gather,
        "GatherElements" => gather_elements,
        "GatherND" => super::indices::gather_nd,
        _ => return None,
    })
}

/// The parts of the data at the indices along one axis, which the dimensions of the indices replace.
fn gather(call: &mut Call<'_, '_>) -> Results {
    let data = call.value(0)?;
    let axis = call.axis(0, call.ty(data).rank())?;
    if let Some(indices) = call.known(1).cloned()
        && let Some(value) = contiguous(call, data, axis, &indices)?
    {
        return one(value);
    }
    let indices = places(call, 1, data, axis)?;
    one(looked_up(call, data, axis, indices)?)
}

/// One element of the data for each index, along one axis; along the others the indices may be shorter.
fn gather_elements(call: &mut Call<'_, '_>) -> Results {
    let data = call.value(0)?;
    let axis = call.axis(0, call.ty(data).rank())?;
    let ids = places(call, 1, data, axis)?;
    let data = shortened(call, data, ids, axis)?;
    one(call.emit(TakeAlong { dim: axis }, &[data, ids])?)
}

/// The leading part of a value that has the extents of the indices except along the axis.
pub(super) fn shortened(
    call: &mut Call<'_, '_>,
    mut value: ValueId,
    ids: ValueId,
    axis: usize,
) -> Result<ValueId, Fault> {
    let extents = call.ty(ids).shape;
    if extents.len() != call.ty(value).rank() {
        return Err(format!("indices of shape {extents:?} for a tensor of shape {:?}", call.ty(value).shape).into());
    }
    for (dim, &extent) in extents.iter().enumerate().filter(|(dim, _)| *dim != axis) {
        value = sliced(call, value, dim, 0, extent)?;
    }
    Ok(value)
}

/// Indices that follow one another are a slice, repeated where they repeat; a table that is trained is looked up, however.
fn contiguous(
    call: &mut Call<'_, '_>,
    data: ValueId,
    axis: usize,
    indices: &StaticTensor,
) -> Result<Option<ValueId>, Fault> {
    let shape = call.ty(data).shape;
    let stored = indices.stored_ints().unwrap_or_default();
    let Some(&start) = stored.first() else { return Ok(None) };
    let in_order = stored.iter().zip(0..).all(|(&found, i)| start.checked_add(i) == Some(found));
    let single = indices.shape().iter().all(|&d| d == 1);
    if !in_order || (is_table(call, data, axis) && !single) {
        return Ok(None);
    }
    let (extent, n) = (shape[axis] as i64, stored.len() as i64);
    let first = if start < 0 { start + extent } else { start };
    if first < 0 || first > extent - n || (start < 0 && n > 1) {
        return Err(format!("indices from {start} in a dimension of {extent}").into());
    }
    let around = |extents: &[usize]| {
        let middle: Vec<u64> = extents.iter().map(|&d| d as u64).collect();
        [&shape[..axis], &middle, &shape[axis + 1..]].concat()
    };
    let part = sliced(call, data, axis, first as u64, n as u64)?;
    let part = call.reshape(part, &around(indices.stored()))?;
    expanded(call, part, around(indices.shape())).map(Some)
}

/// The indices as a value, counted from the front.
pub(super) fn places(call: &mut Call<'_, '_>, index: usize, data: ValueId, axis: usize) -> Result<ValueId, Fault> {
    let extent = call.ty(data).shape[axis];
    if let Some(indices) = call.known(index).cloned() {
        let name = call.node.inputs[index].clone();
        return from_front(call, &name, &indices, extent);
    }
    let indices = call.value(index)?;
    if call.ty(indices).dtype != DType::I64 {
        return Err("indices that are not integers".into());
    }
    let is_weight = call.lowering.module.program.weight_of(data).is_some();
    if is_weight && axis == 0 { Ok(indices) } else { from_front_of_data(call, indices, extent) }
}

/// Indices that depend on the data, counted from the front where they are negative. Rows of stored tables need no such
/// care: no framework lets them be counted from the end.
pub(super) fn from_front_of_data(call: &mut Call<'_, '_>, indices: ValueId, extent: u64) -> Result<ValueId, Fault> {
    let (zero, extent) = (call.number(DType::I64, 0.0)?, call.number(DType::I64, extent as f64)?);
    let from_end = call.emit(Compare::LESS, &[indices, zero])?;
    let shifted = call.emit(Binary::ADD, &[indices, extent])?;
    call.choose(from_end, shifted, indices)
}

/// Known indices into a dimension as a value, counted from the front.
pub(super) fn from_front(
    call: &mut Call<'_, '_>,
    name: &str,
    indices: &StaticTensor,
    extent: u64,
) -> Result<ValueId, Fault> {
    let stored = indices.stored_ints().ok_or("indices that are not integers")?;
    let extent = extent as i64;
    if let Some(outside) = stored.iter().find(|i| !(-extent..extent).contains(i)) {
        return Err(format!("index {outside} in a dimension of {extent}").into());
    }
    if stored.iter().all(|&i| i >= 0) {
        return call.lowering.materialize(name, indices);
    }
    let divisor = StaticTensor::splat(Vec::new(), Scalar::I64(extent))?;
    let front = evaluate("Mod", 13, &Attributes::default(), &[Some(indices), Some(&divisor)], 1);
    let front = front.expect("invariant: remainders are evaluated")?.remove(0);
    call.lowering.materialize(&format!("{name}.from_front"), &front)
}

fn is_table(call: &Call<'_, '_>, data: ValueId, axis: usize) -> bool {
    axis == 0 && call.lowering.module.program.weight_of(data).is_some_and(|weight| weight.trainable)
}

/// Brings the axis to the front, looks rows up, and brings the dimensions of the indices to the place of the axis.
pub(super) fn looked_up(
    call: &mut Call<'_, '_>,
    data: ValueId,
    axis: usize,
    indices: ValueId,
) -> Result<ValueId, Fault> {
    let (rank, n_index) = (call.ty(data).rank(), call.ty(indices).rank());
    let front: Vec<usize> = [axis].into_iter().chain((0..rank).filter(|&d| d != axis)).collect();
    let table = transposed(call, data, front)?;
    let rows = call.emit(Embedding, &[table, indices])?;
    let back = (n_index..n_index + axis).chain(0..n_index).chain(n_index + axis..n_index + rank - 1).collect();
    transposed(call, rows, back)
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::Builder;

    #[test]
    fn tables_are_looked_up() {
        let builder = Builder::new(&["y = Gather w ids"]).input("ids", 7, "batch seq").f32("w", &[9, 4]);
        assert_eq!(builder.ops(), "embedding f32[2, 6, 4]");
        let known = Builder::new(&["p = Gather w at", "y = Add p x"]).ints("at", &[0, -1]).f32("w", &[9, 4]);
        assert_eq!(known.ops(), "iota i64[2]; embedding f32[2, 4]; add f32[2, 4]");
    }

    #[test]
    fn trained_tables_are_looked_up_even_in_order() {
        let builder = Builder::new(&["p = Gather w at", "y = Add p x"]).ints("at", &[0, 1]).f32("w", &[9, 4]);
        assert_eq!(builder.ops(), "iota i64[2]; embedding f32[2, 4]; add f32[2, 4]");
    }

    #[test]
    fn indices_in_order_are_slices() {
        let builder = |at: &[i64]| Builder::new(&["y = Gather{axis=1} x at"]).ints("at", at).ops();
        assert_eq!(builder(&[1, 2]), "slice<1: 1, 2> f32[2, 2]");
        assert_eq!(builder(&[-1]), "slice<1: 3, 1> f32[2, 1]");
        let scattered = "transpose<[1, 0]> f32[4, 2]; embedding f32[2, 2]; transpose<[1, 0]> f32[2, 2]";
        assert_eq!(builder(&[2, 0]), format!("iota i64[2]; {scattered}"));
    }

    #[test]
    fn elements_are_taken_along_an_axis() {
        let known = Builder::new(&["y = GatherElements{axis=1} x at"]).matrix("at", 2, |row, column| row + column - 1);
        assert_eq!(known.ops(), "constant i64[2, 2]; take_along f32[2, 2]");
        let data = Builder::new(&["y = GatherElements{axis=1} x ids"]).input("ids", 7, "batch 3");
        let front = "full<0.0> i64[]; full<4.0> i64[]; less bool[2, 3]; add i64[2, 3]; where i64[2, 3]; ";
        assert_eq!(data.ops(), format!("{front}take_along f32[2, 3]"));
    }

    #[test]
    fn indices_outside_are_refused() {
        let builder = Builder::new(&["y = Gather{axis=1} x at"]).ints("at", &[4]);
        assert!(builder.import().unwrap_err().contains("indices from 4 in a dimension of 4"));
    }
}
