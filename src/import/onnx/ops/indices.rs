//! `GatherND`: what exporters make of indexing with ranges only repeats and permutes the data; all else is looked up.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{Binary, Broadcast, Embedding, Iota};
use galvatron_ir::types::{DType, element_count};

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
    let value = call.value(0)?;
    let data = call.ty(value).shape;
    let shape = call.shape(1)?;
    let n_batch = usize::try_from(call.attributes().int("batch_dims", 0)).unwrap_or(usize::MAX);
    let &n_components = shape.last().ok_or("no indices")?;
    let n_components = n_components as usize;
    let fits = n_batch < shape.len() && data.get(..n_batch) == shape.get(..n_batch);
    if !fits || n_batch + n_components > data.len() {
        return Err(format!("index tuples of shape {shape:?} into a tensor of shape {data:?}").into());
    }
    if let Some(indices) = call.known(1).cloned().filter(|_| n_batch == 0) {
        let components = data.iter().enumerate().take(n_components).map(|(d, &extent)| component(&indices, d, extent));
        let components: Option<Vec<Component>> = components.collect::<Result<_, _>>()?;
        if let Some(components) = components
            && let Some(value) = ranges(call, value, &components, &indices)?
        {
            return one(value);
        }
        if n_components == 1 {
            return rows(call, value, &indices);
        }
    }
    let tuples = call.value(1)?;
    let places = places(call, tuples, &data, n_batch)?;
    let depth = n_batch + n_components;
    let table = call.reshape(value, &[&[element_count(&data[..depth])], &data[depth..]].concat())?;
    one(call.emit(Embedding, &[table, places])?)
}

/// The place of each index tuple [.., components] in the dimensions that it and its batch name, counted row by row.
pub(super) fn places(call: &mut Call<'_, '_>, tuples: ValueId, data: &[u64], n_batch: usize) -> Result<ValueId, Fault> {
    let shape = call.ty(tuples).shape;
    if call.ty(tuples).dtype != DType::I64 {
        return Err("indices that are not integers".into());
    }
    let (last, outer) = (shape.len() - 1, &shape[..shape.len() - 1]);
    let depth = n_batch + shape[last] as usize;
    let mut place = call.number(DType::I64, 0.0)?;
    for d in 0..depth {
        let step = call.number(DType::I64, element_count(&data[d + 1..depth]) as f64)?;
        let index = if d < n_batch {
            let mut line = vec![1; outer.len()];
            line[d] = data[d];
            call.emit(Iota { shape: line, dim: d, start: 0, step: 1 }, &[])?
        } else {
            let part = sliced(call, tuples, last, (d - n_batch) as u64, 1)?;
            let part = call.reshape(part, outer)?;
            super::gather::from_front_of_data(call, part, data[d])?
        };
        let offset = call.emit(Binary::MUL, &[index, step])?;
        place = call.emit(Binary::ADD, &[place, offset])?;
    }
    Ok(place)
}

/// The data permuted and repeated; none if two of its dimensions run along the same one of the result.
fn ranges(
    call: &mut Call<'_, '_>,
    mut value: ValueId,
    components: &[Component],
    indices: &StaticTensor,
) -> Result<Option<ValueId>, Fault> {
    let data = call.ty(value).shape;
    let (index_dims, rest) = (&indices.shape()[..indices.shape().len() - 1], &data[components.len()..]);
    let (mut dims, mut kept) = (Vec::new(), Vec::new());
    for (d, component) in components.iter().enumerate() {
        match *component {
            Component::Along(dim) => {
                dims.push(dim);
                kept.push(data[d]);
            }
            Component::At(at) => value = sliced(call, value, d, at, 1)?,
        }
    }
    dims.extend(index_dims.len()..index_dims.len() + rest.len());
    kept.extend(rest);
    let mut order: Vec<usize> = (0..dims.len()).collect();
    order.sort_by_key(|&i| dims[i]);
    dims.sort();
    if dims.windows(2).any(|pair| pair[0] == pair[1]) {
        return Ok(None);
    }
    let value = call.reshape(value, &kept)?;
    let value = transposed(call, value, order)?;
    let shape: Vec<u64> = index_dims.iter().map(|&d| d as u64).chain(rest.iter().copied()).collect();
    if call.ty(value).elements() == element_count(&shape) {
        return call.reshape(value, &shape).map(Some);
    }
    call.emit(Broadcast { shape, dims }, &[value]).map(Some)
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

#[cfg(test)]
mod tests {
    use super::super::super::tests::Builder;

    #[test]
    fn ranges_repeat_the_data() {
        let nodes = ["r = Range zero n one", "c = Reshape r column", "all = Expand c shape", "y = GatherND x all"];
        let builder = Builder::new(&nodes).ints("column", &[1, 2, 1]).ints("shape", &[3, 2, 1]);
        let scalars = ["zero", "n", "one"].into_iter().zip([0, 2, 1]);
        let builder = scalars.fold(builder, |builder, (name, value)| builder.int(name, value));
        assert_eq!(builder.ops(), "broadcast<[1, 2]> f32[3, 2, 4]");
    }

    #[test]
    fn tuples_that_depend_on_the_data_are_places_in_a_table() {
        let builder = Builder::new(&["y = GatherND x ids"]).input("ids", 7, "batch 3 2");
        let ops = builder.ops();
        assert!(ops.ends_with("add i64[2, 3]; reshape f32[8]; embedding f32[2, 3]"), "{ops}");
        let batched = Builder::new(&["y = GatherND{batch_dims=1} x ids"]).input("ids", 7, "batch 1").ops();
        assert!(batched.contains("iota i64[2]") && batched.ends_with("embedding f32[2]"), "{batched}");
    }

    #[test]
    fn single_components_are_rows() {
        let nodes = ["at = Unsqueeze rows last", "y = GatherND x at"];
        let builder = Builder::new(&nodes).ints("rows", &[1, 1, 0]).ints("last", &[1]);
        assert_eq!(builder.ops(), "constant i64[3]; embedding f32[3, 4]");
    }
}
