//! Sums, means and maxima over any axes of a tensor, and the sum of squares.

use super::super::math::{max1, simd, sum1};
use super::super::threads::{Shared, Threads};

/// What a reduction makes of the elements it meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReduceKind {
    /// Their sum.
    Sum,
    /// Their sum over their number.
    Mean,
    /// The largest; -inf of none.
    Max,
}

/// One merged axis: its size and its strides in the operand and the result (0 when it is reduced).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Axis {
    size: usize,
    x: usize,
    out: usize,
}

/// Reduces `x` of `shape` over the axes `dims`; `out` has the remaining ones, row-major.
///
/// Blocks are summed in f32 and their totals in f64, in an order that depends on the shape alone.
///
/// # Panics
/// When an axis does not exist or a slice has the wrong length.
pub fn reduce(kind: ReduceKind, x: &[f32], shape: &[usize], dims: &[usize], out: &mut [f32], threads: Threads) {
    assert!(dims.iter().all(|&d| d < shape.len()), "invariant: reduced axes exist");
    let n_reduced: usize = (0..shape.len()).filter(|i| dims.contains(i)).map(|i| shape[i]).product();
    assert_eq!(x.len(), shape.iter().product::<usize>(), "invariant: the operand has the length of its shape");
    assert_eq!(out.len() * n_reduced, x.len(), "invariant: the result has the axes that remain");
    let axes = merged(shape, dims);
    let (kept, reduced): (Vec<Axis>, Vec<Axis>) = axes.iter().partition(|a| a.out > 0);
    let scale = if kind == ReduceKind::Mean { 1.0 / n_reduced as f64 } else { 1.0 };
    if x.is_empty() {
        out.fill(if kind == ReduceKind::Max { f32::NEG_INFINITY } else { 0.0 * scale as f32 });
    } else if axes.last().is_some_and(|a| a.out > 0) {
        over_columns(kind, x, kept, &reduced, scale, out, threads);
    } else {
        over_rows(kind, x, &kept, reduced, scale, out, threads);
    }
}

/// Neighbouring axes that are all kept or all reduced become one.
fn merged(shape: &[usize], dims: &[usize]) -> Vec<Axis> {
    let mut axes: Vec<Axis> = vec![];
    let (mut x, mut out) = (1, 1);
    for (i, &size) in shape.iter().enumerate().rev() {
        let is_kept = !dims.contains(&i);
        match axes.last_mut() {
            _ if size == 1 => {}
            Some(last) if (last.out > 0) == is_kept => last.size *= size,
            _ => axes.push(Axis { size, x, out: if is_kept { out } else { 0 } }),
        }
        x *= size;
        out *= if is_kept { size } else { 1 };
    }
    axes.reverse();
    axes
}

fn count(axes: &[Axis]) -> usize {
    axes.iter().map(|a| a.size).product()
}

fn offsets(axes: &[Axis], mut i: usize) -> (usize, usize) {
    let mut at = (0, 0);
    for axis in axes.iter().rev() {
        at = (at.0 + i % axis.size * axis.x, at.1 + i % axis.size * axis.out);
        i /= axis.size;
    }
    at
}

/// Elements summed in f32 before they join the total.
const BLOCK: usize = 2048;

/// The innermost axis is reduced: every element of the result is a reduction of contiguous rows.
fn over_rows(
    kind: ReduceKind,
    x: &[f32],
    kept: &[Axis],
    mut reduced: Vec<Axis>,
    scale: f64,
    out: &mut [f32],
    threads: Threads,
) {
    let row = reduced.pop().unwrap_or(Axis { size: 1, x: 1, out: 0 });
    let n_rows = count(&reduced);
    let per_task = (8 * BLOCK).div_ceil(row.size * n_rows);
    threads.for_each_chunk_mut(out, per_task, |task, out| {
        for (i, out) in out.iter_mut().enumerate() {
            let (start, _) = offsets(kept, task * per_task + i);
            let rows = (0..n_rows).map(|r| start + offsets(&reduced, r).0).map(|at| &x[at..at + row.size]);
            *out = match kind {
                ReduceKind::Max => rows.map(max_row).fold(f32::NEG_INFINITY, f32::max),
                _ => (rows.map(sum_row).sum::<f64>() * scale) as f32,
            };
        }
    });
}

fn max_row(row: &[f32]) -> f32 {
    simd!(max1(row))
}

fn sum_row(row: &[f32]) -> f64 {
    let block = |b: &[f32]| simd!(sum1(b, |v| v)) as f64;
    row.chunks(BLOCK).map(block).sum()
}

/// Columns one task reduces at a time.
const STRIP: usize = 128;
/// Rows summed in f32 before they join the total.
const ROWS: usize = 32;

/// The innermost axis is kept: rows are combined element by element, a strip of columns at a time.
fn over_columns(
    kind: ReduceKind,
    x: &[f32],
    mut kept: Vec<Axis>,
    reduced: &[Axis],
    scale: f64,
    out: &mut [f32],
    threads: Threads,
) {
    let row = kept.pop().expect("invariant: the innermost axis is kept");
    let (n_rows, strips) = (count(reduced), row.size.div_ceil(STRIP));
    let out = Shared::new(out);
    threads.for_each_range(count(&kept) * strips, (8 * BLOCK).div_ceil(n_rows * STRIP), |range| {
        for i in range {
            let (x_start, out_start) = offsets(&kept, i / strips);
            let (first, end) = (i % strips * STRIP, row.size.min((i % strips + 1) * STRIP));
            // SAFETY: every step has its own strip of the result.
            let out = unsafe { out.slice(out_start + first..out_start + end) };
            let strip = std::convert::identity(
                #[inline(always)]
                |r: usize| {
                    let at = x_start + offsets(reduced, r).0;
                    &x[at + first..at + end]
                },
            );
            simd!(match kind {
                ReduceKind::Max => max_strips(n_rows, strip, out),
                _ => sum_strips(n_rows, strip, scale, out),
            });
        }
    });
}

#[inline(always)]
fn max_strips<'a>(n_rows: usize, strip: impl Fn(usize) -> &'a [f32], out: &mut [f32]) {
    out.fill(f32::NEG_INFINITY);
    for r in 0..n_rows {
        {
            for (o, &v) in out.iter_mut().zip(strip(r)) {
                *o = if v > *o { v } else { *o };
            }
        }
    }
}

#[inline(always)]
fn sum_strips<'a>(n_rows: usize, strip: impl Fn(usize) -> &'a [f32], scale: f64, out: &mut [f32]) {
    let mut total = [0.0f64; STRIP];
    for start in (0..n_rows).step_by(ROWS) {
        out.fill(0.0);
        for r in start..n_rows.min(start + ROWS) {
            {
                for (o, &v) in out.iter_mut().zip(strip(r)) {
                    *o += v;
                }
            }
        }
        {
            for (t, &v) in total.iter_mut().zip(out.iter()) {
                *t += v as f64;
            }
        }
    }
    {
        for (o, &t) in out.iter_mut().zip(&total) {
            *o = (t * scale) as f32;
        }
    }
}

/// Parts of a sum over a whole tensor; fixed, so that the order does not depend on the threads.
const PARTS: usize = 64;

/// The sum of x² over all elements, e.g. for the norm of a gradient.
pub fn sum_of_squares(x: &[f32], threads: Threads) -> f64 {
    let mut parts = [0.0f64; PARTS];
    let len = x.len().div_ceil(PARTS).max(BLOCK);
    let block = |b: &[f32]| simd!(sum1(b, |v| v * v)) as f64;
    threads.for_each_chunk_mut(&mut parts, 1, |i, part| {
        let chunk = &x[x.len().min(i * len)..x.len().min((i + 1) * len)];
        part[0] = chunk.chunks(BLOCK).map(block).sum();
    });
    parts.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, in_pool, random, wide};
    use super::*;

    fn naive(kind: ReduceKind, x: &[f64], shape: &[usize], dims: &[usize]) -> Vec<f64> {
        let kept: usize = (0..shape.len()).filter(|i| !dims.contains(i)).map(|i| shape[i]).product();
        let mut out = vec![if kind == ReduceKind::Max { f64::NEG_INFINITY } else { 0.0 }; kept];
        for (mut i, &v) in x.iter().enumerate() {
            let (mut at, mut step) = (0, 1);
            for (axis, &n) in shape.iter().enumerate().rev() {
                if !dims.contains(&axis) {
                    at += i % n * step;
                    step *= n;
                }
                i /= n;
            }
            out[at] = if kind == ReduceKind::Max { out[at].max(v) } else { out[at] + v };
        }
        let n = (x.len() / kept) as f64;
        out.iter().map(|v| if kind == ReduceKind::Mean { v / n } else { *v }).collect()
    }

    fn check(shape: &[usize], dims: &[usize]) {
        let x = random(shape.iter().product(), 1);
        for kind in [ReduceKind::Sum, ReduceKind::Mean, ReduceKind::Max] {
            let want = naive(kind, &wide(&x), shape, dims);
            let mut out = vec![0.0; want.len()];
            reduce(kind, &x, shape, dims, &mut out, Threads::ONE);
            assert_close(&out, &want, 2e-6);
            let mut threaded = vec![0.0; want.len()];
            in_pool(3, || reduce(kind, &x, shape, dims, &mut threaded, Threads::new(3)));
            assert_eq!(out, threaded);
        }
    }

    #[test]
    fn any_axes_reduce() {
        check(&[300, 200], &[0]);
        check(&[300, 200], &[1]);
        check(&[7, 5, 131], &[0, 1]);
        check(&[7, 5, 131], &[1]);
        check(&[7, 5, 131], &[0, 2]);
        check(&[7, 5, 131], &[]);
        check(&[7, 5, 131], &[0, 1, 2]);
        check(&[3, 4, 1, 5, 6], &[1, 3]);
        check(&[3, 4, 1, 5, 6], &[0, 2, 4]);
        check(&[], &[]);
        check(&[50_000], &[0]);
    }

    #[test]
    fn reducing_nothing_gives_the_neutral_element() {
        let mut out = [1.0; 2];
        reduce(ReduceKind::Sum, &[], &[0, 2], &[0], &mut out, Threads::ONE);
        assert_eq!(out, [0.0; 2]);
    }

    #[test]
    fn squares_sum_up() {
        for n in [0, 1, 5000, 300_001] {
            let x = random(n, 1);
            let want = wide(&x).iter().map(|v| v * v).sum::<f64>();
            let got = sum_of_squares(&x, Threads::ONE);
            assert!((got - want).abs() <= 1e-6 * want.max(1.0));
            assert_eq!(got, in_pool(2, || sum_of_squares(&x, Threads::new(2))));
        }
    }
}
