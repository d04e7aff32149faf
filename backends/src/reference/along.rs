//! Ops along one dimension: elements by index, the best of each row, running sums, windows.

use super::{Tensor, indices};
use galvatron_ir::op::compute::{CumSum, PutAlong, TopK, Windows};
use std::cmp::Ordering;

/// Element i along the dimension is the sum of those up to i, or from i on.
pub fn cum_sum(op: &CumSum, x: &Tensor) -> Tensor {
    let takes = |j: u64, i: u64| match (op.reverse, op.exclusive) {
        (false, false) => j <= i,
        (false, true) => j < i,
        (true, false) => j >= i,
        (true, true) => j > i,
    };
    Tensor::from_fn(x.shape.clone(), |index| {
        let at = |j: u64| x.at(&replaced(&index, op.dim, j));
        (0..x.shape[op.dim]).filter(|&j| takes(j, index[op.dim])).map(at).sum()
    })
}

/// (values, indices): each row sorted, the best first, and cut; equal elements keep their order.
pub fn top_k(op: &TopK, x: &Tensor) -> Vec<Tensor> {
    let (mut values, mut places) = (Vec::new(), Vec::new());
    for row in x.rows() {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|&a, &b| if op.largest { by_size(row[b], row[a]) } else { by_size(row[a], row[b]) });
        order.truncate(op.k as usize);
        values.extend(order.iter().map(|&i| row[i]));
        places.extend(order.iter().map(|&i| i as f64));
    }
    let mut shape = x.shape.clone();
    if let Some(last) = shape.last_mut() {
        *last = op.k;
    }
    vec![Tensor::new(shape.clone(), values), Tensor::new(shape, places)]
}

/// The order of floats in which NaN is the largest and zeros are equal.
fn by_size(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// x[.., ids[.., i, ..], ..] along a dimension.
pub fn take(dim: usize, x: &Tensor, ids: &Tensor) -> Result<Tensor, String> {
    check(dim, x, ids)?;
    Ok(Tensor::from_fn(ids.shape.clone(), |index| x.at(&replaced(&index, dim, ids.at(&index) as u64))))
}

/// x with y written or added at the places ids along a dimension; operands x, ids, y.
pub fn put(op: &PutAlong, args: &[&Tensor]) -> Result<Tensor, String> {
    let [x, ids, y] = [args[0], args[1], args[2]];
    check(op.dim, x, ids)?;
    let mut out = x.clone();
    for index in indices(&ids.shape) {
        let position = out.position(&replaced(&index, op.dim, ids.at(&index) as u64));
        out.data[position] = if op.adds { out.data[position] } else { 0.0 } + y.at(&index);
    }
    Ok(out)
}

fn check(dim: usize, x: &Tensor, ids: &Tensor) -> Result<(), String> {
    match ids.data.iter().find(|&&id| id < 0.0 || id >= x.shape[dim] as f64) {
        Some(id) => Err(format!("index {id} in a dimension of {}", x.shape[dim])),
        None => Ok(()),
    }
}

/// Element [.., i, j, ..] is element i · stride + j · dilation of the dimension.
pub fn unfold(windows: &Windows, x: &Tensor, shape: &[u64]) -> Tensor {
    Tensor::from_fn(shape, |index| x.at(&source(windows, &index)))
}

/// The sum of the window elements that stand for each element.
pub fn fold(windows: &Windows, y: &Tensor, shape: &[u64]) -> Tensor {
    let mut x = Tensor::filled(shape, 0.0);
    for index in indices(&y.shape) {
        let position = x.position(&source(windows, &index));
        x.data[position] += y.at(&index);
    }
    x
}

/// The element that a window element stands for.
fn source(windows: &Windows, index: &[u64]) -> Vec<u64> {
    let dim = windows.dim;
    let mut own = replaced(index, dim, index[dim] * windows.stride + index[dim + 1] * windows.dilation);
    own.remove(dim + 1);
    own
}

fn replaced(index: &[u64], dim: usize, by: u64) -> Vec<u64> {
    let mut index = index.to_vec();
    index[dim] = by;
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_found_along_a_dimension() {
        let x = Tensor::new([2, 3], vec![1.0, 3.0, 3.0, 6.0, 5.0, 4.0]);
        let best = top_k(&TopK { k: 2, largest: true }, &x);
        assert_eq!((&best[0].data[..], &best[1].data[..]), (&[3.0, 3.0, 6.0, 5.0][..], &[1.0, 2.0, 0.0, 1.0][..]));
        let ids = Tensor::new([2, 2], vec![2.0, 2.0, 0.0, 1.0]);
        assert_eq!(take(1, &x, &ids).unwrap().data, [3.0, 3.0, 6.0, 5.0]);
        assert!(take(1, &x, &Tensor::filled([2, 1], 3.0)).is_err());
        let put = |adds| put(&PutAlong { dim: 1, adds }, &[&x, &ids, &Tensor::filled([2, 2], 1.0)]).unwrap().data;
        assert_eq!(put(false), [1.0, 3.0, 1.0, 1.0, 1.0, 4.0]);
        assert_eq!(put(true), [1.0, 3.0, 5.0, 7.0, 6.0, 4.0]);
    }

    #[test]
    fn sums_run_and_windows_add_up() {
        let x = Tensor::new([3], vec![1.0, 2.0, 4.0]);
        let sum = |exclusive, reverse| cum_sum(&CumSum { dim: 0, exclusive, reverse }, &x).data;
        assert_eq!((sum(false, false), sum(true, true)), (vec![1.0, 3.0, 7.0], vec![6.0, 4.0, 0.0]));
        let windows = Windows { dim: 0, size: 2, stride: 1, dilation: 1 };
        let cut = unfold(&windows, &x, &[2, 2]);
        assert_eq!(cut.data, [1.0, 2.0, 2.0, 4.0]);
        assert_eq!(fold(&windows, &cut, &[3]).data, [1.0, 4.0, 4.0]);
    }
}
