//! Products of dense matrices whose extents are known only when a kernel runs.

use super::super::threads::Threads;

/// Columns of the result that are multiplied at once: they bound the packed copies of the operands, and do not depend on the
/// threads, so that neither do the bits.
const MAX_COLUMNS: usize = 512;

/// A matrix whose rows or columns are contiguous.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    elements: &'a [f32],
    rows: usize,
    columns: usize,
    row_step: usize,
    column_step: usize,
}

impl<'a> Matrix<'a> {
    /// Contiguous rows of `columns` elements.
    pub(super) fn rows(elements: &'a [f32], columns: usize) -> Matrix<'a> {
        let rows = elements.len() / columns.max(1);
        assert_eq!(rows * columns, elements.len(), "invariant: a matrix has whole rows");
        Matrix { elements, rows, columns, row_step: columns, column_step: 1 }
    }

    /// The same elements with rows and columns exchanged.
    pub(super) fn transposed(self) -> Matrix<'a> {
        Matrix {
            rows: self.columns,
            columns: self.rows,
            row_step: self.column_step,
            column_step: self.row_step,
            ..self
        }
    }
}

/// out (+)= a · b, where out has contiguous rows of `columns` elements.
///
/// # Panics
/// When the extents do not fit.
pub(super) fn multiply(
    a: Matrix<'_>,
    b: Matrix<'_>,
    (out, columns): (&mut [f32], usize),
    accumulate: bool,
    threads: Threads,
) {
    let fits = a.columns == b.rows && b.columns == columns && out.len() == a.rows * columns;
    assert!(fits, "invariant: the matrices fit each other");
    if a.columns == 0 && !accumulate {
        out.fill(0.0);
    }
    if out.is_empty() || a.columns == 0 {
        return;
    }
    for first in (0..columns).step_by(MAX_COLUMNS) {
        let n = MAX_COLUMNS.min(columns - first);
        // SAFETY: the asserts above keep every element in its matrix, and `out` is borrowed mutably, so that nothing overlaps it.
        unsafe {
            gemm::gemm(
                a.rows,
                n,
                a.columns,
                out.as_mut_ptr().add(first),
                1,
                columns as isize,
                accumulate,
                a.elements.as_ptr(),
                a.column_step as isize,
                a.row_step as isize,
                b.elements.as_ptr().add(first * b.column_step),
                b.column_step as isize,
                b.row_step as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                threads.parallelism(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, in_pool, random};
    use super::*;

    #[test]
    fn products_of_all_layouts_have_the_same_bits_at_any_thread_count() {
        let (m, n, k) = (70, 1100, 33);
        let (a, b) = (random(m * k, 1), random(k * n, 2));
        let of = |t: bool, x: &'_ [f32], i: usize, j: usize, [rows, columns]: [usize; 2]| {
            f64::from(if t { x[j * rows + i] } else { x[i * columns + j] })
        };
        for (ta, tb) in [(false, false), (true, false), (false, true), (true, true)] {
            let matrix = |x, t: bool, [rows, columns]: [usize; 2]| match t {
                true => Matrix::rows(x, rows).transposed(),
                false => Matrix::rows(x, columns),
            };
            let run = |t: usize| {
                let mut out = vec![1.0; m * n];
                let (a, b) = (matrix(&a, ta, [m, k]), matrix(&b, tb, [k, n]));
                in_pool(t, || multiply(a, b, (&mut out, n), true, Threads::new(t)));
                out
            };
            let sum = |e: usize| {
                let term = |p| of(ta, &a, e / n, p, [m, k]) * of(tb, &b, p, e % n, [k, n]);
                1.0 + (0..k).map(term).sum::<f64>()
            };
            assert_close(&run(1), &(0..m * n).map(sum).collect::<Vec<f64>>(), 1e-5);
            assert_eq!(run(1), run(3));
        }
    }
}
