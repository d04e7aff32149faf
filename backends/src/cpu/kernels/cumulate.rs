//! Running sums along an axis.

use std::ops::Add;

use super::super::threads::Threads;
use super::GRAIN;

/// Which elements a running sum takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Whether an element leaves itself out.
    pub exclusive: bool,
    /// Whether the sums begin at the end.
    pub reverse: bool,
}

/// out[o, i, ..] = the sum of x[o, j, ..] over the j up to i, one after the other.   x, out: [outer, n, inner]
pub fn cum_sum<T>(order: Order, x: &[T], [n, inner]: [usize; 2], out: &mut [T], threads: Threads)
where
    T: Copy + Default + Add<Output = T> + Send + Sync,
{
    assert_eq!(x.len(), out.len(), "invariant: operand and result have one length");
    let block = (n * inner).max(1);
    let per_task = GRAIN.div_ceil(block);
    threads.for_each_chunk_mut(out, per_task * block, |task, out| {
        let x = &x[task * per_task * block..][..out.len()];
        for (x, out) in x.chunks_exact(block).zip(out.chunks_exact_mut(block)) {
            for i in 0..n {
                let row = |i: usize| if order.reverse { n - 1 - i } else { i } * inner;
                for column in 0..inner {
                    let before = if i == 0 { T::default() } else { out[row(i - 1) + column] };
                    let next = match (order.exclusive, i) {
                        (true, 0) => T::default(),
                        (true, _) => x[row(i - 1) + column],
                        (false, _) => x[row(i) + column],
                    };
                    out[row(i) + column] = before + next;
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_run_in_each_direction() {
        let sum = |exclusive, reverse, extents: [usize; 2]| {
            let mut out = [0i64; 4];
            cum_sum(Order { exclusive, reverse }, &[1, 2, 3, 4], extents, &mut out, Threads::ONE);
            out
        };
        assert_eq!(sum(false, false, [4, 1]), [1, 3, 6, 10]);
        assert_eq!(sum(true, false, [4, 1]), [0, 1, 3, 6]);
        assert_eq!(sum(false, true, [4, 1]), [10, 9, 7, 4]);
        assert_eq!(sum(true, true, [4, 1]), [9, 7, 4, 0]);
        assert_eq!(sum(false, false, [2, 2]), [1, 2, 4, 6]);
        assert_eq!(sum(false, false, [2, 1]), [1, 3, 3, 7]);
    }
}
