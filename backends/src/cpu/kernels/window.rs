//! Windows along an axis, cut out of a tensor and added up again.

use super::super::threads::Threads;
use super::GRAIN;
use super::shape::{copy_strided, row_major};

/// Element j of window i is element i · stride + j · dilation of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// How many windows there are.
    pub count: usize,
    /// Elements of a window.
    pub size: usize,
    /// Distance of neighbouring windows.
    pub stride: usize,
    /// Distance of neighbouring elements of a window.
    pub dilation: usize,
}

/// out = the windows of x along axis `dim`.   x: `shape`   out: [.., count, size, ..]
///
/// # Panics
/// When a window reaches beyond the axis.
pub fn unfold<T: Copy + Send + Sync>(
    windows: Windows,
    (x, shape): (&[T], &[usize]),
    dim: usize,
    out: &mut [T],
    threads: Threads,
) {
    let strides = row_major(shape);
    let step = [windows.stride, windows.dilation].map(|n| n as isize * strides[dim]);
    let src = [&strides[..dim], &step, &strides[dim + 1..]].concat();
    let out_shape = [&shape[..dim], &[windows.count, windows.size], &shape[dim + 1..]].concat();
    copy_strided(&out_shape, (x, 0, &src), (out, 0, &row_major(&out_shape)), threads);
}

/// out[o, at, ..] = the sum of the window elements that stand for element `at`, in the order of their place in the window.
/// y: [outer, count, size, inner]   out: [outer, len, inner]
pub fn fold(windows: Windows, y: &[f32], [len, inner]: [usize; 2], out: &mut [f32], threads: Threads) {
    let inner = inner.max(1);
    let per_task = GRAIN.div_ceil(inner);
    threads.for_each_chunk_mut(out, per_task * inner, |task, out| {
        for (i, row) in out.chunks_exact_mut(inner).enumerate() {
            let (block, at) = ((task * per_task + i) / len, (task * per_task + i) % len);
            row.fill(0.0);
            for j in 0..windows.size {
                let Some(start) = at.checked_sub(j * windows.dilation) else { break };
                let window = start / windows.stride;
                if start % windows.stride != 0 || window >= windows.count {
                    continue;
                }
                let from = ((block * windows.count + window) * windows.size + j) * inner;
                row.iter_mut().zip(&y[from..from + inner]).for_each(|(sum, &v)| *sum += v);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_cut_and_added() {
        let windows = Windows { count: 2, size: 2, stride: 1, dilation: 2 };
        let mut out = [0.0; 8];
        unfold(windows, (&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], &[2, 4]), 1, &mut out, Threads::ONE);
        assert_eq!(out, [1.0, 3.0, 2.0, 4.0, 5.0, 7.0, 6.0, 8.0]);
        let overlapping = Windows { count: 3, size: 2, stride: 1, dilation: 1 };
        let mut sum = [9.0; 4];
        fold(overlapping, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [4, 1], &mut sum, Threads::ONE);
        assert_eq!(sum, [1.0, 5.0, 9.0, 6.0]);
        let apart = Windows { count: 2, size: 1, stride: 3, dilation: 1 };
        fold(apart, &[1.0, 2.0], [4, 1], &mut sum, Threads::ONE);
        assert_eq!(sum, [1.0, 0.0, 0.0, 2.0]);
    }
}
