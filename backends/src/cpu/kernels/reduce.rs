//! Sums, products and extremes over any axes of a tensor, and the sum of squares.

use super::super::math::{simd, sum1};
use super::super::threads::{Shared, Threads};

/// What a reduction makes of the elements it meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReduceKind {
    /// Their sum.
    Sum,
    /// Their product.
    Prod,
    /// The largest, NaN if there is one; -inf of none.
    Max,
    /// The smallest, NaN if there is one; inf of none.
    Min,
}

impl ReduceKind {
    /// What no elements give.
    fn neutral(self) -> f32 {
        match self {
            ReduceKind::Sum => 0.0,
            ReduceKind::Prod => 1.0,
            ReduceKind::Max => f32::NEG_INFINITY,
            ReduceKind::Min => f32::INFINITY,
        }
    }
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
    if x.is_empty() {
        out.fill(kind.neutral());
    } else if axes.last().is_some_and(|a| a.out > 0) {
        over_columns(kind, x, kept, &reduced, out, threads);
    } else {
        over_rows(kind, x, &kept, reduced, out, threads);
    }
}

/// As [`reduce`] of integers, which wrap around, on one thread.
///
/// # Panics
/// As [`reduce`].
pub fn reduce_integers(kind: ReduceKind, x: &[i64], shape: &[usize], dims: &[usize], out: &mut [i64]) {
    assert_eq!(x.len(), shape.iter().product::<usize>(), "invariant: the operand has the length of its shape");
    let (neutral, join): (i64, fn(i64, i64) -> i64) = match kind {
        ReduceKind::Sum => (0, i64::wrapping_add),
        ReduceKind::Prod => (1, i64::wrapping_mul),
        ReduceKind::Max => (i64::MIN, i64::max),
        ReduceKind::Min => (i64::MAX, i64::min),
    };
    let axes = merged(shape, dims);
    out.fill(neutral);
    for (i, &value) in x.iter().enumerate() {
        let (_, at) = offsets(&axes, i);
        out[at] = join(out[at], value);
    }
}

/// Calls a generic function with the operation of a kind that is no sum, so that every loop is specialised.
macro_rules! with_join {
    ($kind:expr, $f:ident => $body:expr) => {
        match $kind {
            ReduceKind::Sum | ReduceKind::Prod => with_join!(@arm $f, a, b => a * b, $body),
            ReduceKind::Max => with_join!(@arm $f, a, b => if a > b || a.is_nan() { a } else { b }, $body),
            ReduceKind::Min => with_join!(@arm $f, a, b => if a < b || a.is_nan() { a } else { b }, $body),
        }
    };
    (@arm $f:ident, $a:ident, $b:ident => $value:expr, $body:expr) => {{
        let $f = std::convert::identity(
            #[inline(always)]
            |$a: f32, $b: f32| $value,
        );
        $body
    }};
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
fn over_rows(kind: ReduceKind, x: &[f32], kept: &[Axis], mut reduced: Vec<Axis>, out: &mut [f32], threads: Threads) {
    let row = reduced.pop().unwrap_or(Axis { size: 1, x: 1, out: 0 });
    let n_rows = count(&reduced);
    let per_task = (8 * BLOCK).div_ceil(row.size * n_rows);
    threads.for_each_chunk_mut(out, per_task, |task, out| {
        for (i, out) in out.iter_mut().enumerate() {
            let (start, _) = offsets(kept, task * per_task + i);
            let rows = (0..n_rows).map(|r| start + offsets(&reduced, r).0).map(|at| &x[at..at + row.size]);
            *out = match kind {
                ReduceKind::Sum => rows.map(sum_row).sum::<f64>() as f32,
                _ => with_join!(kind, join => rows.flatten().fold(kind.neutral(), |total, &v| join(total, v))),
            };
        }
    });
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
fn over_columns(kind: ReduceKind, x: &[f32], mut kept: Vec<Axis>, reduced: &[Axis], out: &mut [f32], threads: Threads) {
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
                ReduceKind::Sum => sum_strips(n_rows, strip, out),
                _ => with_join!(kind, join => join_strips(n_rows, strip, out, kind.neutral(), join)),
            });
        }
    });
}

#[inline(always)]
fn join_strips<'a>(
    n_rows: usize,
    strip: impl Fn(usize) -> &'a [f32],
    out: &mut [f32],
    neutral: f32,
    join: impl Fn(f32, f32) -> f32,
) {
    out.fill(neutral);
    for r in 0..n_rows {
        for (o, &v) in out.iter_mut().zip(strip(r)) {
            *o = join(*o, v);
        }
    }
}

#[inline(always)]
fn sum_strips<'a>(n_rows: usize, strip: impl Fn(usize) -> &'a [f32], out: &mut [f32]) {
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
            *o = t as f32;
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
        let mut out = vec![f64::from(kind.neutral()); kept];
        for (mut i, &v) in x.iter().enumerate() {
            let (mut at, mut step) = (0, 1);
            for (axis, &n) in shape.iter().enumerate().rev() {
                if !dims.contains(&axis) {
                    at += i % n * step;
                    step *= n;
                }
                i /= n;
            }
            out[at] = match kind {
                ReduceKind::Sum => out[at] + v,
                ReduceKind::Prod => out[at] * v,
                ReduceKind::Max => out[at].max(v),
                ReduceKind::Min => out[at].min(v),
            };
        }
        out
    }

    fn check(shape: &[usize], dims: &[usize]) {
        let x = random(shape.iter().product(), 1);
        let integers: Vec<i64> = x.iter().map(|&v| (9.0 * v) as i64).collect();
        for kind in [ReduceKind::Sum, ReduceKind::Prod, ReduceKind::Max, ReduceKind::Min] {
            let want = naive(kind, &wide(&x), shape, dims);
            let mut out = vec![0.0; want.len()];
            reduce(kind, &x, shape, dims, &mut out, Threads::ONE);
            assert_close(&out, &want, 2e-6);
            let mut threaded = vec![0.0; want.len()];
            in_pool(3, || reduce(kind, &x, shape, dims, &mut threaded, Threads::new(3)));
            assert_eq!(out, threaded);
            let mut whole = vec![0; want.len()];
            reduce_integers(kind, &integers, shape, dims, &mut whole);
            let as_floats: Vec<f64> = integers.iter().map(|&v| v as f64).collect();
            if kind != ReduceKind::Prod {
                let want: Vec<i64> = naive(kind, &as_floats, shape, dims).iter().map(|&v| v as i64).collect();
                assert_eq!(whole, want);
            }
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
        for (kind, neutral) in [(ReduceKind::Sum, 0.0), (ReduceKind::Prod, 1.0), (ReduceKind::Max, f32::NEG_INFINITY)] {
            reduce(kind, &[], &[0, 2], &[0], &mut out, Threads::ONE);
            assert_eq!(out, [neutral; 2]);
        }
    }

    #[test]
    fn extremes_of_nan_are_nan() {
        for (shape, dims) in [([2, 3], [0]), ([3, 2], [1])] {
            let mut out = [0.0; 3];
            reduce(ReduceKind::Max, &[f32::NAN, 1.0, 2.0, 3.0, 1.0, f32::NAN], &shape, &dims, &mut out, Threads::ONE);
            assert_eq!(out.iter().filter(|v| v.is_nan()).count(), 2);
        }
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
