//! Softmax over the last axis, its logarithm, and its gradient.

use super::super::math::{exp, max1, simd, sum1, sum2};
use super::super::threads::Threads;
use super::layer_norm::rows_per_task;

/// y = e^(x - max) / sum per row of `n` elements; a row of -inf gives zeros. x, y: [rows, n]
pub fn softmax(x: &[f32], n: usize, y: &mut [f32], threads: Threads) {
    assert_eq!(x.len(), y.len(), "invariant: operand and result have one length");
    let per_task = rows_per_task(n) * n;
    threads.for_each_chunk_mut(y, per_task, |task, y| {
        y.copy_from_slice(&x[task * per_task..task * per_task + y.len()]);
        simd!({
            for row in y.chunks_exact_mut(n) {
                softmax_row(row);
            }
        });
    });
}

/// As [`softmax`], with the result in place of the operand.
pub fn softmax_inplace(x: &mut [f32], n: usize, threads: Threads) {
    threads.for_each_chunk_mut(x, rows_per_task(n) * n, |_, x| {
        simd!({
            for row in x.chunks_exact_mut(n) {
                softmax_row(row);
            }
        });
    });
}

#[inline(always)]
fn softmax_row(row: &mut [f32]) {
    let max = max1(row);
    let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
    for v in row.iter_mut() {
        *v = exp(*v - base);
    }
    let sum = sum1(row, |v| v);
    let scale = if sum == 0.0 { 0.0 } else { 1.0 / sum };
    for v in row.iter_mut() {
        *v *= scale;
    }
}

/// x = x - ln(sum of e^x) per row of `n` elements, in place. x: [rows, n]
pub fn log_softmax_inplace(x: &mut [f32], n: usize, threads: Threads) {
    threads.for_each_chunk_mut(x, rows_per_task(n) * n, |_, x| {
        simd!({
            for row in x.chunks_exact_mut(n) {
                log_softmax_row(row);
            }
        });
    });
}

#[inline(always)]
fn log_softmax_row(row: &mut [f32]) {
    let max = max1(row);
    let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
    let log_sum = sum1(row, |v| exp(v - base)).ln();
    for v in row.iter_mut() {
        *v = *v - base - log_sum;
    }
}

/// dx = y (dy - sum(dy y)) per row of `n` elements. y, dy, dx: [rows, n]
pub fn softmax_grad(y: &[f32], dy: &[f32], n: usize, dx: &mut [f32], threads: Threads) {
    assert_eq!([y.len(), dy.len()], [dx.len(); 2], "invariant: operands and result have one length");
    let per_task = rows_per_task(n) * n;
    threads.for_each_chunk_mut(dx, per_task, |task, dx| {
        let at = task * per_task..task * per_task + dx.len();
        let (y, dy) = (&y[at.clone()], &dy[at]);
        simd!({
            for ((dx, y), dy) in dx.chunks_exact_mut(n).zip(y.chunks_exact(n)).zip(dy.chunks_exact(n)) {
                let dot = sum2(y, dy, |y, dy| y * dy);
                for ((dx, &y), &dy) in dx.iter_mut().zip(y).zip(dy) {
                    *dx = y * (dy - dot);
                }
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, random, wide};
    use super::*;

    fn check(rows: usize, n: usize) {
        let x: Vec<f32> = random(rows * n, 1).iter().map(|v| 20.0 * v).collect();
        let dy = random(rows * n, 2);
        let (mut y, mut dx, mut in_place) = (vec![0.0; x.len()], vec![0.0; x.len()], x.clone());
        softmax(&x, n, &mut y, Threads::ONE);
        softmax_inplace(&mut in_place, n, Threads::ONE);
        assert_eq!(y, in_place);
        softmax_grad(&y, &dy, n, &mut dx, Threads::ONE);
        let mut logs = x.clone();
        log_softmax_inplace(&mut logs, n, Threads::ONE);
        let mut want_logs = vec![];
        let (mut want_y, mut want_dx) = (vec![], vec![]);
        for (x, dy) in wide(&x).chunks(n).zip(wide(&dy).chunks(n)) {
            let sum: f64 = x.iter().map(|v| v.exp()).sum();
            let y: Vec<f64> = x.iter().map(|v| v.exp() / sum).collect();
            want_logs.extend(x.iter().map(|v| v - sum.ln()));
            let dot: f64 = y.iter().zip(dy).map(|(y, d)| y * d).sum();
            want_dx.extend(y.iter().zip(dy).map(|(y, d)| y * (d - dot)));
            want_y.extend(y);
        }
        assert_close(&y, &want_y, 2e-6);
        assert_close(&logs, &want_logs, 2e-6);
        assert_close(&dx, &want_dx, 2e-6);
    }

    #[test]
    fn rows_sum_to_one_and_gradients_match_f64() {
        check(1, 1);
        check(9, 67);
        check(200, 130);
    }

    #[test]
    fn a_row_of_minus_infinity_gives_zeros() {
        let mut x = [f32::NEG_INFINITY; 5];
        softmax_inplace(&mut x, 5, Threads::ONE);
        assert_eq!(x, [0.0; 5]);
    }
}
