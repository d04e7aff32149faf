//! `GatherND` on values that depend on the data: what exporters make of indexing with ranges.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{Broadcast, Embedding};

use super::super::attributes::{Attribute, Attributes};
use super::super::statics::{Scalar, StaticTensor, evaluate};
use super::gather::from_front;
use super::layout::transposed;
use super::pieces::sliced;
use super::{Call, Fault, Results, one};

/// How one dimension of the data is indexed.
enum Component {
    /// In order, by one dimension of the result.
    Along(usize),
    /// At one place.
    At(u64),
}

/// Index tuples that run through the data along dimensions of their own only repeat and permute it.
pub(super) fn gather_nd(call: &mut Call<'_, '_>) -> Results {
    let unsupported = || Fault::Unsupported("on values that depend on the data, other than by ranges".into());
    let mut value = call.value(0)?;
    let data = call.ty(value).shape;
    let indices = call.known(1).cloned().ok_or_else(unsupported)?;
    let Some((&n_components, index_dims)) = indices.shape().split_last() else { return Err("no indices".into()) };
    if call.attributes().int("batch_dims", 0) != 0 || n_components > data.len() {
        return Err(unsupported());
    }
    if let ([_], Some(extent)) = (&data[..n_components], data.first())
        && call.ty(value).dtype.is_float()
        && component(&indices, 0, *extent)?.is_none()
    {
        return rows(call, value, &indices);
    }
    let (mut dims, mut kept) = (Vec::new(), Vec::new());
    for (d, &extent) in data.iter().enumerate().take(n_components) {
        match component(&indices, d, extent)?.ok_or_else(unsupported)? {
            Component::Along(dim) => {
                dims.push(dim);
                kept.push(extent);
            }
            Component::At(at) => value = sliced(call, value, d, at, 1)?,
        }
    }
    let rest = &data[n_components..];
    dims.extend(index_dims.len()..index_dims.len() + rest.len());
    kept.extend(rest);
    let value = call.reshape(value, &kept)?;
    let mut order: Vec<usize> = (0..dims.len()).collect();
    order.sort_by_key(|&i| dims[i]);
    let value = transposed(call, value, order)?;
    dims.sort();
    if dims.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(unsupported());
    }
    let shape: Vec<u64> = index_dims.iter().map(|&d| d as u64).chain(rest.iter().copied()).collect();
    if call.ty(value).elements() == shape.iter().product::<u64>() {
        return one(call.reshape(value, &shape)?);
    }
    one(call.emit(Broadcast { shape, dims }, &[value])?)
}

/// Rows of a table, at places in any order.
fn rows(call: &mut Call<'_, '_>, table: ValueId, indices: &StaticTensor) -> Results {
    let places = along_last(indices, 0)?;
    let name = format!("{}.rows", call.node.inputs[1]);
    let extent = call.ty(table).shape[0];
    let places = from_front(call, &name, &places, extent)?;
    one(call.emit(Embedding, &[table, places])?)
}

/// What the tuples say about dimension `d` of the data.
fn component(indices: &StaticTensor, d: usize, extent: u64) -> Result<Option<Component>, Fault> {
    let picked = along_last(indices, d)?;
    if let Some(Scalar::I64(at)) = picked.as_splat() {
        let at = if at < 0 { at + extent as i64 } else { at };
        return Ok(u64::try_from(at).ok().filter(|&at| at < extent).map(Component::At));
    }
    let runs = picked.as_iota().filter(|i| i.start == 0 && i.step == 1 && picked.shape()[i.dim] as u64 == extent);
    Ok(runs.map(|iota| Component::Along(iota.dim)))
}

/// Component `d` of each tuple.
fn along_last(indices: &StaticTensor, d: usize) -> Result<StaticTensor, Fault> {
    let place = StaticTensor::splat(Vec::new(), Scalar::I64(d as i64))?;
    let axis = Attributes::default().with("axis", Attribute::Int(-1));
    let picked = evaluate("Gather", 13, &axis, &[Some(indices), Some(&place)], 1);
    Ok(picked.expect("invariant: gathering is evaluated")?.remove(0))
}
