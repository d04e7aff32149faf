//! The arithmetic of reductions: one peer's block folded into an accumulator, in loops the compiler vectorises; and who of a
//! group reduces what.

use std::ops::Range;

use crate::comm::ReduceOp;

/// Elements folded at a time: an accumulator of 4 KiB stays in the first-level cache.
pub(super) const BLOCK: usize = 1024;

/// Folds `x` into `acc`, element by element; both have the same length.
pub(super) fn fold(acc: &mut [f32], x: &[f32], op: ReduceOp) {
    debug_assert_eq!(acc.len(), x.len());
    match op {
        ReduceOp::Sum => acc.iter_mut().zip(x).for_each(|(a, &b)| *a += b),
        ReduceOp::Max => acc.iter_mut().zip(x).for_each(|(a, &b)| *a = max(*a, b)),
    }
}

/// The elements of a buffer of `len` that member `index` of `n` reduces. The chunks cover the buffer, do not overlap and
/// start at multiples of 16 elements, so that members rarely share a cache line.
pub(super) fn chunk(len: usize, n: usize, index: usize) -> Range<usize> {
    let stride = len.div_ceil(n).next_multiple_of(16);
    (index * stride).min(len)..((index + 1) * stride).min(len)
}

/// The larger value, NaN if either is.
fn max(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_keeps_nan() {
        let mut acc = [1.0, f32::NAN, 3.0, -1.0];
        fold(&mut acc, &[2.0, 5.0, f32::NAN, -2.0], ReduceOp::Max);
        assert_eq!((acc[0], acc[3]), (2.0, -1.0));
        assert!(acc[1].is_nan() && acc[2].is_nan());
    }
}
