//! Small matrix products on tiles that fit the cache, blocked over registers.

use pulp::Simd;

/// Rows of the tiles that are multiplied are padded to a multiple of this many elements.
pub(super) const PAD: usize = 16;

/// `n` rounded up to whole vectors.
pub(super) const fn padded(n: usize) -> usize {
    n.next_multiple_of(PAD)
}

/// A read-only matrix: element (i, j) is at `start + i * row + j * column`.
#[derive(Clone, Copy)]
pub(super) struct View {
    /// The first element.
    pub(super) start: *const f32,
    /// The step from row to row, in elements.
    pub(super) row: usize,
    /// The step from column to column.
    pub(super) column: usize,
}

/// Rows of contiguous elements to write.
#[derive(Clone, Copy)]
pub(super) struct Target {
    /// The first element.
    pub(super) start: *mut f32,
    /// The step from row to row, in elements.
    pub(super) row: usize,
}

/// Rows of a register block and vectors in one of its rows: 12 sums, 2 vectors of b and one of a fill 15 of 16 registers.
const ROWS: usize = 6;
const VECTORS: usize = 2;

/// The largest number of elements in a row of a register block.
const MAX_COLUMNS: usize = 64;

/// c = a · b, or c += a · b when `ADD`, for a: [m, k], b: [k, n] with contiguous rows, c: [m, n].
///
/// # Safety
/// All of `a` and of `b` with n rounded up to [`PAD`] is readable, all of `c` is writable, and nothing overlaps `c`.
#[inline(always)]
pub(super) unsafe fn product<S: Simd, const ADD: bool>(
    simd: S,
    (m, n, k): (usize, usize, usize),
    a: View,
    b: View,
    c: Target,
) {
    let wide = VECTORS * S::F32_LANES;
    let mut j = 0;
    while j < n {
        // SAFETY: columns j.. of b and c exist, by the loop's condition and the caller's promise.
        unsafe {
            let (b, c) = (View { start: b.start.add(j), ..b }, Target { start: c.start.add(j), ..c });
            let left = n - j;
            if left >= wide {
                columns::<S, VECTORS, ADD>(simd, (m, wide, k), a, b, c);
                j += wide;
            } else {
                columns::<S, 1, ADD>(simd, (m, left.min(S::F32_LANES), k), a, b, c);
                j += S::F32_LANES;
            }
        }
    }
}

/// All rows of one block of columns.
///
/// # Safety
/// As [`product`].
#[inline(always)]
unsafe fn columns<S: Simd, const V: usize, const ADD: bool>(
    simd: S,
    (m, n, k): (usize, usize, usize),
    a: View,
    b: View,
    c: Target,
) {
    let mut i = 0;
    while i < m {
        // SAFETY: rows i.. of a and c exist; at most m - i of them are touched.
        unsafe {
            let (a, c) = (View { start: a.start.add(i * a.row), ..a }, Target { start: c.start.add(i * c.row), ..c });
            match m - i {
                1 => block::<S, 1, V, ADD>(simd, n, k, a, b, c),
                2 => block::<S, 2, V, ADD>(simd, n, k, a, b, c),
                3 => block::<S, 3, V, ADD>(simd, n, k, a, b, c),
                4 => block::<S, 4, V, ADD>(simd, n, k, a, b, c),
                5 => block::<S, 5, V, ADD>(simd, n, k, a, b, c),
                _ => block::<S, ROWS, V, ADD>(simd, n, k, a, b, c),
            }
        }
        i += ROWS;
    }
}

/// One register block; an incomplete row goes through a buffer.
///
/// # Safety
/// As [`product`], with `n` at most V vectors.
#[inline(always)]
unsafe fn block<S: Simd, const R: usize, const V: usize, const ADD: bool>(
    simd: S,
    n: usize,
    k: usize,
    a: View,
    b: View,
    c: Target,
) {
    if n == V * S::F32_LANES {
        // SAFETY: the caller's promise.
        return unsafe { registers::<S, R, V, ADD>(simd, k, a, b, c) };
    }
    let mut buffer = [[0.0f32; MAX_COLUMNS]; R];
    // SAFETY: the buffer holds R rows of V vectors; the n elements of each row of c are writable.
    unsafe {
        registers::<S, R, V, false>(simd, k, a, b, Target { start: buffer.as_mut_ptr().cast(), row: MAX_COLUMNS });
        for (i, row) in buffer.iter().enumerate() {
            for (j, &value) in row[..n].iter().enumerate() {
                let at = c.start.add(i * c.row + j);
                *at = if ADD { *at + value } else { value };
            }
        }
    }
}

/// # Safety
/// As [`product`], for exactly R rows and V vectors.
#[inline(always)]
unsafe fn registers<S: Simd, const R: usize, const V: usize, const ADD: bool>(
    simd: S,
    k: usize,
    a: View,
    b: View,
    c: Target,
) {
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    // SAFETY: the caller's promise; vectors are read and written unaligned.
    unsafe {
        for p in 0..k {
            let row = b.start.add(p * b.row);
            let vectors: [S::f32s; V] = std::array::from_fn(
                #[inline(always)]
                |v| row.add(v * S::F32_LANES).cast::<S::f32s>().read_unaligned(),
            );
            for (i, sums) in sums.iter_mut().enumerate() {
                let factor = simd.splat_f32s(*a.start.add(i * a.row + p * a.column));
                for v in 0..V {
                    sums[v] = simd.mul_add_e_f32s(factor, vectors[v], sums[v]);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                let at = c.start.add(i * c.row + v * S::F32_LANES).cast::<S::f32s>();
                at.write_unaligned(if ADD { simd.add_f32s(at.read_unaligned(), sum) } else { sum });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, random};
    use super::*;

    struct Op<'a> {
        dims: (usize, usize, usize),
        a: View,
        b: View,
        c: &'a mut [f32],
    }

    impl pulp::WithSimd for Op<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let c = Target { start: self.c.as_mut_ptr(), row: self.dims.1 };
            // SAFETY: the test gives operands of these sizes.
            unsafe {
                product::<S, false>(simd, self.dims, self.a, self.b, c);
                product::<S, true>(simd, self.dims, self.a, self.b, c);
            }
        }
    }

    #[test]
    fn any_size_and_either_orientation_of_a() {
        for (m, n, k) in [(1, 1, 1), (6, 16, 8), (13, 33, 7), (32, 64, 31), (5, 15, 3), (4, 40, 0)] {
            let (a, b) = (random(m * k, 1), random(k * padded(n), 2));
            for (row, column) in [(k, 1), (1, m)] {
                let mut c = vec![9.0; m * n];
                let (left, right) =
                    (View { start: a.as_ptr(), row, column }, View { start: b.as_ptr(), row: padded(n), column: 1 });
                pulp::Arch::new().dispatch(Op { dims: (m, n, k), a: left, b: right, c: &mut c });
                let term = |i: usize, j: usize, p: usize| a[i * row + p * column] as f64 * b[p * padded(n) + j] as f64;
                let element = |e: usize| (0..k).map(|p| 2.0 * term(e / n, e % n, p)).sum();
                assert_close(&c, &(0..m * n).map(element).collect::<Vec<f64>>(), 1e-5);
            }
        }
    }
}
