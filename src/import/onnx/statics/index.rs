//! Operators that read or write at computed indices.

use super::arithmetic::map2;
use super::evaluate::{Call, Results, axis_index};
use super::tensor::{Element, Scalar, StaticTensor, Values, check_stored, map_values};
use super::walk::{advance, gather, steps, strides};

/// An index, possibly counted from the end, below `extent`.
fn checked_index(index: i64, extent: usize) -> Result<usize, String> {
    axis_index(index, extent).map_err(|_| format!("index {index} of an extent of {extent}"))
}

fn index_values(indices: &StaticTensor) -> Result<&[i64], String> {
    indices.stored_ints().ok_or_else(|| "indices that are not integers".into())
}

/// `Gather`: replaces dimension `axis` of the data by the dimensions of the indices.
pub(super) fn gather_axis(call: &Call) -> Results {
    let (data, indices) = (call.input(0)?, call.input(1)?);
    let axis = call.axis(0, data.rank())?;
    let extent = data.shape()[axis];
    let table = index_values(indices)?.iter().map(|&i| checked_index(i, extent)).collect::<Result<Vec<_>, _>>()?;
    let insert = |own: &[usize], new: &[usize]| [&own[..axis], new, &own[axis + 1..]].concat();
    let shape = insert(data.shape(), indices.shape());
    if data.stored()[axis] == 1 && !shape.contains(&0) {
        return Ok(vec![data.with_shape(shape, insert(data.stored(), &vec![1; indices.rank()]))?]);
    }
    let stored = insert(data.stored(), indices.stored());
    check_stored(&stored)?;
    let strides = strides(data.stored());
    let mut tables: Vec<_> = (0..data.rank()).map(|d| steps(data.stored()[d], strides[d])).collect();
    tables[axis] = table.into_iter().map(|i| i * strides[axis]).collect();
    let values = map_values!(data.values(), v => gather(v, &tables));
    Ok(vec![StaticTensor::new(shape, stored, values)?])
}

/// Element `[i, j, …]` of the result is the data at `[i, j, …]` with the index along `axis` read from the indices.
pub(super) fn gather_elements(call: &Call) -> Results {
    let (data, indices) = (call.input(0)?, call.input(1)?);
    let axis = call.axis(0, data.rank())?;
    let fits = |d: usize| d == axis || indices.shape()[d] <= data.shape()[d];
    if indices.rank() != data.rank() || !(0..data.rank()).all(fits) {
        return Err(format!("indices of shape {:?} into {:?}", indices.shape(), data.shape()));
    }
    let indices = indices.materialize(&vec![true; indices.rank()])?;
    let strides: Vec<usize> = effective_strides(data);
    let mut offsets = Vec::with_capacity(indices.n_stored());
    let mut at = vec![0; data.rank()];
    for &index in index_values(&indices)? {
        let outer: usize = (0..at.len()).filter(|&d| d != axis).map(|d| at[d] * strides[d]).sum();
        offsets.push(outer + checked_index(index, data.shape()[axis])? * strides[axis]);
        advance(&mut at, indices.shape());
    }
    let values = map_values!(data.values(), v => offsets.iter().map(|&o| v[o]).collect());
    Ok(vec![StaticTensor::new(indices.shape().to_vec(), indices.shape().to_vec(), values)?])
}

/// Strides of the stored values, 0 along dimensions that are not stored.
fn effective_strides(x: &StaticTensor) -> Vec<usize> {
    strides(x.stored()).into_iter().zip(x.stored()).map(|(stride, &n)| if n > 1 { stride } else { 0 }).collect()
}

/// `GatherND`: the last dimension of the indices holds index tuples into the data behind `batch_dims` dimensions.
pub(super) fn gather_nd(call: &Call) -> Results {
    let (data, indices) = (call.input(0)?, call.input(1)?);
    let n_batch = usize::try_from(call.attributes.int("batch_dims", 0)).map_err(|_| "negative `batch_dims`")?;
    let (Some((&tuple, prefix)), shape) = (indices.shape().split_last(), data.shape()) else {
        return Err("indices of rank 0".into());
    };
    let n_indexed = n_batch + tuple;
    if n_batch > prefix.len() || n_indexed > shape.len() || prefix[..n_batch] != shape[..n_batch] {
        return Err(format!("indices of shape {:?} into {shape:?} behind {n_batch} dimensions", indices.shape()));
    }
    let result_shape = [prefix, &shape[n_indexed..]].concat();
    let offsets = nd_offsets(data, indices, n_batch)?;
    let stored = [offsets.stored(), &data.stored()[n_indexed..]].concat();
    check_stored(&stored)?;
    let strides = strides(data.stored());
    let mut tables = vec![index_values(&offsets)?.iter().map(|&offset| offset as usize).collect()];
    tables.extend((n_indexed..data.rank()).map(|d| steps(data.stored()[d], strides[d])));
    let values = map_values!(data.values(), v => gather(v, &tables));
    Ok(vec![StaticTensor::new(result_shape, stored, values)?])
}

/// For each index tuple the offset that it means in the stored data, compressed like any tensor: indices into
/// dimensions that the data do not vary along have no effect.
fn nd_offsets(data: &StaticTensor, indices: &StaticTensor, n_batch: usize) -> Result<StaticTensor, String> {
    let n_prefix = indices.rank() - 1;
    let (prefix, stored) = (&indices.shape()[..n_prefix], &indices.stored()[..n_prefix]);
    let strides = effective_strides(data);
    let add =
        |a: &StaticTensor, b: &StaticTensor| map2((a, index_values(a)?), (b, index_values(b)?), |a: i64, b| a + b);
    let mut offsets = StaticTensor::splat(prefix.to_vec(), Scalar::I64(0))?;
    for d in (0..n_batch).filter(|&d| strides[d] > 0) {
        let mut along = vec![1; n_prefix];
        along[d] = prefix[d];
        let values = (0..prefix[d]).map(|i| (i * strides[d]) as i64).collect();
        offsets = add(&offsets, &StaticTensor::from_elements(prefix.to_vec(), along, values)?)?;
    }
    for k in 0..indices.shape()[n_prefix] {
        let offset = tuple_component(indices, k, data.shape()[n_batch + k], strides[n_batch + k])?;
        if let Some(values) = offset {
            offsets = add(&offsets, &StaticTensor::from_elements(prefix.to_vec(), stored.to_vec(), values)?)?;
        }
    }
    Ok(offsets)
}

/// What component `k` of each index tuple adds to the offset, none if nothing; checks the indices either way.
fn tuple_component(indices: &StaticTensor, k: usize, extent: usize, stride: usize) -> Result<Option<Vec<i64>>, String> {
    let n_stored = indices.stored()[indices.rank() - 1].max(1);
    let tuples = index_values(indices)?.chunks_exact(n_stored);
    let is_inside = |index: i64| (0..extent as i64).contains(&index);
    if stride == 0 {
        let mut unusual = tuples.map(|tuple| tuple[k % n_stored]).filter(|&index| !is_inside(index));
        return unusual.try_for_each(|index| checked_index(index, extent).map(|_| ())).map(|()| None);
    }
    let mut offsets = Vec::with_capacity(tuples.len());
    for tuple in tuples {
        let index = tuple[k % n_stored];
        let index = if is_inside(index) { index } else { checked_index(index, extent)? as i64 };
        offsets.push(index * stride as i64);
    }
    Ok(Some(offsets))
}

/// `ScatterND`: a copy of the data with slices replaced by (or, with `reduction="add"`, increased by) the updates.
pub(super) fn scatter_nd(call: &Call) -> Results {
    let [data, indices, updates] = [0, 1, 2].map(|i| call.input(i));
    let (data, indices, updates) = (data?, indices?, updates?);
    let [data, indices, updates] = [data, indices, updates].map(|t| t.materialize(&vec![true; t.rank()]));
    let (data, indices, updates) = (data?, indices?, updates?);
    let Some((&tuple, prefix)) = indices.shape().split_last() else { return Err("indices of rank 0".into()) };
    if tuple > data.rank() || updates.shape() != [prefix, &data.shape()[tuple..]].concat() {
        return Err(format!("updates of shape {:?} for indices {:?}", updates.shape(), indices.shape()));
    }
    let offsets = nd_offsets(&data, &indices, 0)?.ints().ok_or("too many indices")?;
    let values = match (call.attributes.string("reduction", "none"), data.values(), updates.values()) {
        ("none", Values::I64(d), Values::I64(u)) => scattered(d, u, &offsets, |_, new| new),
        ("none", Values::Bool(d), Values::Bool(u)) => scattered(d, u, &offsets, |_, new| new),
        ("none", Values::F32(d), Values::F32(u)) => scattered(d, u, &offsets, |_, new| new),
        ("none", Values::F64(d), Values::F64(u)) => scattered(d, u, &offsets, |_, new| new),
        ("add", Values::I64(d), Values::I64(u)) => scattered(d, u, &offsets, i64::wrapping_add),
        ("add", Values::F32(d), Values::F32(u)) => scattered(d, u, &offsets, |old, new| old + new),
        ("add", Values::F64(d), Values::F64(u)) => scattered(d, u, &offsets, |old, new| old + new),
        (reduction, ..) => {
            return Err(format!("reduction `{reduction}` of {:?} and {:?}", data.dtype(), updates.dtype()));
        }
    };
    Ok(vec![StaticTensor::new(data.shape().to_vec(), data.shape().to_vec(), values)?])
}

fn scattered<T: Element>(data: &[T], updates: &[T], offsets: &[i64], combine: impl Fn(T, T) -> T) -> Values {
    let mut result = data.to_vec();
    let n = updates.len().checked_div(offsets.len()).unwrap_or(0);
    for (&offset, slice) in offsets.iter().zip(updates.chunks(n.max(1))) {
        for (old, &new) in result[offset as usize..].iter_mut().zip(slice) {
            *old = combine(*old, new);
        }
    }
    T::wrap(result)
}
