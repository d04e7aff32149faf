//! Recognises tensors of a known form: one element everywhere, an arithmetic progression, a causal mask.

use super::tensor::{Element, Scalar, StaticTensor, Values};

/// An arithmetic progression along one dimension: position ids, for example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Iota {
    /// The dimension along which the elements change.
    pub dim: usize,
    /// The element at index 0.
    pub start: i64,
    /// The difference between neighbours; never 0.
    pub step: i64,
}

/// A mask over `[…, query, key]` that keeps the keys up to `query + offset` and is the same for all other indices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CausalMask {
    /// The element at masked places: a negative number, often -inf, or `false`. Kept places hold 0 or `true`.
    pub fill: Scalar,
    /// How far beyond the diagonal keys are kept; 0 for self-attention over one sequence.
    pub offset: i64,
}

impl StaticTensor {
    /// The element that stands everywhere, if there is one; an empty tensor has none.
    pub fn as_splat(&self) -> Option<Scalar> {
        if self.n_stored() == 1 { self.first() } else { None }
    }

    /// The progression, if the elements are integers that change along exactly one dimension by equal steps.
    pub fn as_iota(&self) -> Option<Iota> {
        let mut varying = (0..self.rank()).filter(|&d| self.stored()[d] > 1);
        let (dim, values) = (varying.next()?, self.stored_ints()?);
        let (&start, step) = (values.first()?, values.get(1)?.checked_sub(values[0])?);
        let is_even = values.windows(2).all(|pair| pair[1].checked_sub(pair[0]) == Some(step));
        (varying.next().is_none() && is_even).then_some(Iota { dim, start, step })
    }

    /// The causal mask, if the tensor is one. A mask that keeps everything, or nothing, is a splat and none.
    pub fn as_causal_mask(&self) -> Option<CausalMask> {
        let n_outer = self.rank().checked_sub(2)?;
        if self.stored()[..n_outer].iter().any(|&n| n != 1) || self.n_stored() <= 1 {
            return None;
        }
        let (full, extents) = ([self.shape()[n_outer], self.shape()[n_outer + 1]], &self.stored()[n_outer..]);
        match self.values() {
            Values::Bool(v) => {
                Some(CausalMask { fill: Scalar::Bool(false), offset: offset(v, extents, full, true, false)? })
            }
            Values::F32(v) => {
                let fill = v.iter().copied().find(|&x| x < 0.0)?;
                Some(CausalMask { fill: Scalar::F32(fill), offset: offset(v, extents, full, 0.0, fill)? })
            }
            Values::F64(v) => {
                let fill = v.iter().copied().find(|&x| x < 0.0)?;
                Some(CausalMask { fill: Scalar::F64(fill), offset: offset(v, extents, full, 0.0, fill)? })
            }
            Values::I64(_) => None,
        }
    }
}

/// The offset, if every row keeps its first `row + offset + 1` keys (as far as there are so many) and masks the rest.
fn offset<T: Element + PartialEq>(
    values: &[T],
    extents: &[usize],
    [n_rows, n_keys]: [usize; 2],
    keep: T,
    fill: T,
) -> Option<i64> {
    let &[_, n_stored_keys] = extents else { return None };
    let kept = |keys: &[T]| {
        let n = keys.iter().take_while(|&&k| k == keep).count();
        // A row that is stored with one element keeps all of its keys or none.
        keys[n..].iter().all(|&k| k == fill).then_some(if n_stored_keys == 1 { n * n_keys } else { n } as i64)
    };
    let n_kept = values.chunks_exact(n_stored_keys).map(kept).collect::<Option<Vec<i64>>>()?;
    let (first, &n_first) = n_kept.iter().enumerate().find(|(_, n)| **n > 0)?;
    let offset = n_first - first as i64 - 1;
    let expected = |row: usize| (row as i64 + offset + 1).clamp(0, n_keys as i64);
    // All rows are alike where one is stored; there may be more of them than fit the memory.
    let n_stored = |row: usize| *n_kept.get(row).unwrap_or(&n_first);
    (0..n_rows).all(|row| n_stored(row) == expected(row)).then_some(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(n_rows: usize, n_keys: usize, offset: i64, fill: f32) -> StaticTensor {
        let element = |i: usize| if (i % n_keys) as i64 <= (i / n_keys) as i64 + offset { 0.0 } else { fill };
        let shape = vec![1, 1, n_rows, n_keys];
        let values = (0..n_rows * n_keys).map(element).collect();
        StaticTensor::from_elements(shape.clone(), shape, values).unwrap()
    }

    #[test]
    fn causal_masks_are_recognised_with_their_offset() {
        for (n_rows, n_keys, offset) in [(4, 4, 0), (2, 6, 4), (4, 4, -2), (1, 5, 2), (3, 1, -2), (5, 3, 0)] {
            let expected = Some(CausalMask { fill: Scalar::F32(-1e9), offset });
            assert_eq!(mask(n_rows, n_keys, offset, -1e9).as_causal_mask(), expected, "{n_rows} {n_keys} {offset}");
        }
    }

    #[test]
    fn other_masks_are_not() {
        assert!(mask(4, 4, 3, -1e9).as_causal_mask().is_none(), "keeps everything");
        assert!(mask(4, 4, -4, -1e9).as_causal_mask().is_none(), "keeps nothing");
        assert!(mask(4, 4, 0, 1.0).as_causal_mask().is_none(), "the fill is positive");
        let padding = |n| StaticTensor::from_elements(vec![n, 3], vec![1, 3], vec![true, true, false]).unwrap();
        assert!(padding(3).as_causal_mask().is_none(), "all rows are the same");
        assert!(padding(1 << 40).as_causal_mask().is_none(), "more rows than memory");
    }

    #[test]
    fn progressions_are_recognised_along_one_dimension() {
        let ids = StaticTensor::from_elements(vec![4, 3], vec![1, 3], vec![5i64, 3, 1]).unwrap();
        assert_eq!(ids.as_iota(), Some(Iota { dim: 1, start: 5, step: -2 }));
        assert!(StaticTensor::from_ints(&[0, 1, 3]).as_iota().is_none());
        assert!(StaticTensor::from_ints(&[2, 2]).as_iota().is_none());
        assert_eq!(StaticTensor::from_ints(&[2, 2]).as_splat(), Some(Scalar::I64(2)));
    }
}
