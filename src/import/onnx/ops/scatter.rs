//! Elements written by index.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{Broadcast, PutAlong};
use galvatron_ir::types::element_count;

use super::gather::places;
use super::{Call, Fault, Operator, Results, one};

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "ScatterElements" => scatter_elements,
        "ScatterND" => scatter_nd,
        _ => return None,
    })
}

/// Whether elements are added to what is there.
fn adds(call: &Call<'_, '_>) -> Result<bool, Fault> {
    match call.attributes().string("reduction", "none") {
        "none" => Ok(false),
        "add" => Ok(true),
        other => Err(Fault::Unsupported(format!("with the reduction `{other}`"))),
    }
}

/// Data, indices and updates of one rank; an update for each index, along one axis.
fn scatter_elements(call: &mut Call<'_, '_>) -> Results {
    let (data, updates, adds) = (call.value(0)?, call.value(2)?, adds(call)?);
    let axis = call.axis(0, call.ty(data).rank())?;
    let ids = places(call, 1, data, axis)?;
    let (whole, part) = (call.ty(data).shape, call.ty(ids).shape);
    if part.len() != whole.len() {
        return Err(format!("indices of shape {part:?} for a tensor of shape {whole:?}").into());
    }
    if (0..whole.len()).any(|d| d != axis && whole[d] != part[d]) {
        return Err(Fault::Unsupported("whose indices are shorter than the data along other axes".into()));
    }
    one(call.emit(PutAlong { dim: axis, adds }, &[data, ids, updates])?)
}

/// Index tuples [.., components] name parts of the data, which the updates replace: rows of a table.
fn scatter_nd(call: &mut Call<'_, '_>) -> Results {
    let (data, tuples, updates, adds) = (call.value(0)?, call.value(1)?, call.value(2)?, adds(call)?);
    let (whole, shape) = (call.ty(data).shape, call.ty(tuples).shape);
    let depth = shape.last().map_or(usize::MAX, |&n| n as usize);
    if depth > whole.len() {
        return Err(format!("index tuples of shape {shape:?} into a tensor of shape {whole:?}").into());
    }
    let rows = super::indices::places(call, tuples, &whole, 0)?;
    let n_rows = element_count(&shape[..shape.len() - 1]);
    let width = element_count(&whole[depth..]);
    let rows = call.reshape(rows, &[n_rows])?;
    let ids = spread(call, rows, [n_rows, width])?;
    let table = call.reshape(data, &[element_count(&whole[..depth]), width])?;
    let updates = call.reshape(updates, &[n_rows, width])?;
    let written = call.emit(PutAlong { dim: 0, adds }, &[table, ids, updates])?;
    one(call.reshape(written, &whole)?)
}

/// A vector repeated along a second dimension.
fn spread(call: &mut Call<'_, '_>, rows: ValueId, shape: [u64; 2]) -> Result<ValueId, Fault> {
    if shape[1] == 1 {
        return call.reshape(rows, &shape);
    }
    call.emit(Broadcast { shape: shape.to_vec(), dims: vec![0] }, &[rows])
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::Builder;

    #[test]
    fn elements_are_put_along_an_axis() {
        let builder = |attributes: &str| {
            let node = format!("y = ScatterElements{{{attributes}}} x at u");
            Builder::new(&[&node]).matrix("at", 2, |row, column| row + 2 * column).input("u", 1, "batch 2")
        };
        assert_eq!(builder("axis=1").ops(), "constant i64[2, 2]; put_along f32[2, 4]");
        assert_eq!(builder("axis=1, reduction=add").ops(), "constant i64[2, 2]; add_along f32[2, 4]");
        assert!(builder("axis=1, reduction=mul").import().unwrap_err().contains("with the reduction `mul`"));
    }

    #[test]
    fn tuples_name_rows() {
        let builder = Builder::new(&["y = ScatterND x ids u"]).input("ids", 7, "batch 1").input("u", 1, "batch 4");
        let ops = builder.ops();
        assert!(ops.ends_with("broadcast<[0]> i64[2, 4]; put_along f32[2, 4]"), "{ops}");
    }
}
