//! How many threads a rank may use, and loops that give the same bits whatever that number is.

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

/// The number of threads a rank may use, at least 1. With more than 1 the caller runs inside `pool.install`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threads(usize);

impl Threads {
    /// One thread: every loop runs on the calling thread and rayon is never entered.
    pub const ONE: Threads = Threads(1);

    /// `n` threads; 0 counts as 1.
    pub fn new(n: usize) -> Self {
        Threads(n.max(1))
    }

    /// The number of threads.
    pub fn get(self) -> usize {
        self.0
    }

    /// The same number as the `gemm` crate wants it.
    pub fn parallelism(self) -> gemm::Parallelism {
        if self.0 == 1 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(self.0) }
    }

    /// Calls `f(i)` for every `i < n`, in any order. The calls must not depend on each other.
    pub fn for_each_chunk(self, n: usize, f: impl Fn(usize) + Send + Sync) {
        if self.0 == 1 || n <= 1 {
            (0..n).for_each(f);
        } else {
            (0..n).into_par_iter().with_max_len(1).for_each(f);
        }
    }

    /// Calls `f(range)` for consecutive ranges of `grain` (the last may be shorter) that cover `0..n`.
    pub fn for_each_range(self, n: usize, grain: usize, f: impl Fn(Range<usize>) + Send + Sync) {
        let grain = grain.max(1);
        self.for_each_chunk(n.div_ceil(grain), |i| f(i * grain..n.min((i + 1) * grain)));
    }

    /// Calls `f(i, chunk)` for the `i`-th chunk of `chunk_len` elements of `data` (the last may be shorter).
    pub fn for_each_chunk_mut<T: Send>(
        self,
        data: &mut [T],
        chunk_len: usize,
        f: impl Fn(usize, &mut [T]) + Send + Sync,
    ) {
        let chunk_len = chunk_len.max(1);
        if self.0 == 1 || data.len() <= chunk_len {
            data.chunks_mut(chunk_len).enumerate().for_each(|(i, chunk)| f(i, chunk));
        } else {
            data.par_chunks_mut(chunk_len).with_max_len(1).enumerate().for_each(|(i, chunk)| f(i, chunk));
        }
    }
}

/// A mutable slice that several tasks write at disjoint places.
pub struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: the only access is `slice`, whose contract forbids overlapping ranges, so no two threads reach one element.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as for `Send`.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Takes the slice over for as long as the result lives.
    pub fn new(data: &'a mut [T]) -> Self {
        Shared { start: data.as_mut_ptr(), len: data.len(), borrow: PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// Ranges handed out and still in use at the same time must not overlap.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "invariant: a range within the shared slice");
        // SAFETY: the range is within the slice, and the caller keeps ranges in use disjoint.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.end - range.start) }
    }

    /// The address of the first element, for kernels that walk with strides.
    #[inline(always)]
    pub fn as_mut_ptr(&self) -> *mut T {
        self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_everything_once() {
        for threads in [1, 3] {
            let mut data = vec![0u32; 1003];
            Threads::new(threads).for_each_chunk_mut(&mut data, 10, |i, chunk| {
                chunk.iter_mut().for_each(|x| *x += i as u32 + 1);
            });
            assert!(data.iter().enumerate().all(|(i, &x)| x == (i / 10) as u32 + 1));
        }
    }

    #[test]
    fn ranges_end_at_the_length() {
        let mut data = vec![0u8; 25];
        let shared = Shared::new(&mut data);
        // SAFETY: the ranges of one call are disjoint.
        Threads::new(2).for_each_range(25, 8, |range| unsafe { shared.slice(range).fill(1) });
        assert_eq!(data, vec![1; 25]);
    }
}
