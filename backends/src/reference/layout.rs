//! Ops that move, repeat or sum elements, and those that make them from their indices.

use super::{Tensor, indices};
use galvatron_ir::op::compute::{CausalMask, Iota, Reduce, ReduceKind, Slice};

/// The sum over `dims`; x has any shape, the result the extents of its other dimensions.
pub fn reduce_sum(dims: &[usize], x: &Tensor, shape: &[u64]) -> Tensor {
    reduced(dims, x, shape, 0.0, |a, b| a + b)
}

/// Largest, smallest or product over `dims`.
pub fn reduce(op: &Reduce, x: &Tensor, shape: &[u64]) -> Tensor {
    match op.kind {
        ReduceKind::Prod => reduced(&op.dims, x, shape, 1.0, |a, b| a * b),
        ReduceKind::Max => reduced(&op.dims, x, shape, f64::NEG_INFINITY, |a, b| if a.is_nan() { a } else { b.max(a) }),
        ReduceKind::Min => reduced(&op.dims, x, shape, f64::INFINITY, |a, b| if a.is_nan() { a } else { b.min(a) }),
    }
}

/// Joins the elements over `dims`, in their order.
fn reduced(dims: &[usize], x: &Tensor, shape: &[u64], neutral: f64, join: impl Fn(f64, f64) -> f64) -> Tensor {
    let mut y = Tensor::filled(shape, neutral);
    for index in indices(&x.shape) {
        let kept: Vec<u64> = (0..index.len()).filter(|d| !dims.contains(d)).map(|d| index[d]).collect();
        let (position, next) = (y.position(&kept), x.at(&index));
        y.data[position] = if next.is_nan() { next } else { join(y.data[position], next) };
    }
    y
}

/// Dimension i of x becomes dimension `dims[i]` of the result, repeated if its extent is 1.
pub fn broadcast(dims: &[usize], x: &Tensor, shape: &[u64]) -> Tensor {
    Tensor::from_fn(shape, |index| {
        let own: Vec<u64> = dims.iter().zip(&x.shape).map(|(&d, &n)| if n == 1 { 0 } else { index[d] }).collect();
        x.at(&own)
    })
}

/// Dimension i of the result is dimension `perm[i]` of x.
pub fn transpose(perm: &[usize], x: &Tensor, shape: &[u64]) -> Tensor {
    Tensor::from_fn(shape, |index| {
        let mut own = vec![0; index.len()];
        for (&p, &i) in perm.iter().zip(&index) {
            own[p] = i;
        }
        x.at(&own)
    })
}

/// Some elements of one dimension.
pub fn slice(op: &Slice, x: &Tensor, shape: &[u64]) -> Tensor {
    Tensor::from_fn(shape, |mut index| {
        index[op.dim] += op.start;
        x.at(&index)
    })
}

/// The operands one after the other along a dimension.
pub fn concat(dim: usize, args: &[&Tensor], shape: &[u64]) -> Tensor {
    Tensor::from_fn(shape, |mut index| {
        let mut part = 0;
        while index[dim] >= args[part].shape[dim] {
            index[dim] -= args[part].shape[dim];
            part += 1;
        }
        args[part].at(&index)
    })
}

/// start + step * index along one dimension, which is never sharded.
pub fn iota(op: &Iota, shape: &[u64]) -> Tensor {
    Tensor::from_fn(shape, |index| op.start as f64 + op.step as f64 * index[op.dim] as f64)
}

/// [.., q, k]: 0 where key <= query + offset, `fill` elsewhere; queries and keys are never sharded.
pub fn causal_mask(op: &CausalMask, shape: &[u64]) -> Tensor {
    Tensor::from_fn(shape, |index| {
        let (query, key) = (index[index.len() - 2] as i64, index[index.len() - 1] as i64);
        if key <= query + op.offset { 0.0 } else { op.fill.get() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use galvatron_ir::types::Scalar;

    fn ramp(shape: &[u64]) -> Tensor {
        let mut next = -1.0;
        Tensor::from_fn(shape, |_| {
            next += 1.0;
            next
        })
    }

    #[test]
    fn elements_go_where_the_attributes_say() {
        let x = ramp(&[2, 3]);
        assert_eq!(transpose(&[1, 0], &x, &[3, 2]).data, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(slice(&Slice { dim: 1, start: 1, len: 2 }, &x, &[2, 2]).data, [1.0, 2.0, 4.0, 5.0]);
        assert_eq!(concat(0, &[&x, &ramp(&[1, 3])], &[3, 3]).data[6..], [0.0, 1.0, 2.0]);
        assert_eq!(reduce_sum(&[0], &x, &[3]).data, [3.0, 5.0, 7.0]);
        assert_eq!(broadcast(&[1], &ramp(&[3]), &[2, 3]).data, [0.0, 1.0, 2.0, 0.0, 1.0, 2.0]);
    }

    #[test]
    fn sources_count_their_indices() {
        let iota_op = Iota { shape: vec![2, 3], dim: 1, start: 5, step: -2 };
        assert_eq!(iota(&iota_op, &[2, 3]).data, [5.0, 3.0, 1.0, 5.0, 3.0, 1.0]);
        let mask = CausalMask { shape: vec![2, 3], offset: 1, fill: Scalar::new(-9.0) };
        assert_eq!(causal_mask(&mask, &[2, 3]).data, [0.0, 0.0, -9.0, 0.0, 0.0, 0.0]);
    }
}
