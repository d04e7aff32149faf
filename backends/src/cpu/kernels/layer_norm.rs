//! Layer normalisation over the last axis (Ba, Kiros and Hinton 2016) and its gradients.

use super::super::math::{simd, sum1, sum2};
use super::super::threads::{Shared, Threads};
use super::GRAIN;

/// y = (x - mean) rstd gamma + beta per row, with rstd = 1 / sqrt(var + eps) and the biased variance.
///
/// x, y: [rows, h]   gamma, beta: [h], no beta counts as zeros   mean, rstd: [rows]
pub fn layer_norm(
    x: &[f32],
    gamma: &[f32],
    beta: Option<&[f32]>,
    eps: f32,
    (y, mean, rstd): (&mut [f32], &mut [f32], &mut [f32]),
    threads: Threads,
) {
    let h = gamma.len();
    let (y, mean, rstd) = (Shared::new(y), Shared::new(mean), Shared::new(rstd));
    threads.for_each_range(x.len() / h, rows_per_task(h), |rows| {
        // SAFETY: tasks have disjoint rows.
        let (y, mean, rstd) =
            unsafe { (y.slice(rows.start * h..rows.end * h), mean.slice(rows.clone()), rstd.slice(rows.clone())) };
        let x = &x[rows.start * h..rows.end * h];
        simd!({
            for (i, (x, y)) in x.chunks_exact(h).zip(y.chunks_exact_mut(h)).enumerate() {
                (mean[i], rstd[i]) = moments(x, eps);
                normalize_row(x, (mean[i], rstd[i]), gamma, beta, y);
            }
        });
    });
}

/// The rows one task handles.
pub(super) fn rows_per_task(h: usize) -> usize {
    (GRAIN / h.max(1)).clamp(1, 256)
}

/// The mean and 1 / sqrt(variance + eps) of a row, in two passes over it.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = sum1(x, |v| v) / n;
    let var = sum1(x, |v| (v - mean) * (v - mean)) / n;
    (mean, 1.0 / (var + eps).sqrt())
}

#[inline(always)]
fn normalize_row(x: &[f32], (mean, rstd): (f32, f32), gamma: &[f32], beta: Option<&[f32]>, y: &mut [f32]) {
    match beta {
        Some(beta) => {
            for (((y, &x), &g), &b) in y.iter_mut().zip(x).zip(gamma).zip(beta) {
                *y = ((x - mean) * rstd).mul_add(g, b);
            }
        }
        None => {
            for ((y, &x), &g) in y.iter_mut().zip(x).zip(gamma) {
                *y = (x - mean) * rstd * g;
            }
        }
    }
}

/// The gradient of the input: dx = rstd (g - mean(g) - n mean(g n)), with g = dy gamma and n = (x - mean) rstd.
///
/// x, dy, dx: [rows, h]   gamma: [h]   mean, rstd: [rows]
pub fn layer_norm_grad(
    x: &[f32],
    gamma: &[f32],
    (mean, rstd): (&[f32], &[f32]),
    dy: &[f32],
    dx: &mut [f32],
    threads: Threads,
) {
    let h = gamma.len();
    let per_task = rows_per_task(h);
    threads.for_each_chunk_mut(dx, per_task * h, |task, dx| {
        simd!({
            for (i, dx) in dx.chunks_exact_mut(h).enumerate() {
                let row = task * per_task + i;
                let at = row * h..(row + 1) * h;
                grad_row(&x[at.clone()], gamma, (mean[row], rstd[row]), &dy[at], dx);
            }
        });
    });
}

#[inline(always)]
fn grad_row(x: &[f32], gamma: &[f32], (mean, rstd): (f32, f32), dy: &[f32], dx: &mut [f32]) {
    let n = x.len() as f32;
    let mean_g = sum2(dy, gamma, |dy, g| dy * g) / n;
    // dx holds g until the second pass.
    for ((dx, &dy), &g) in dx.iter_mut().zip(dy).zip(gamma) {
        *dx = dy * g;
    }
    let mean_gn = sum2(dx, x, |g, x| g * ((x - mean) * rstd)) / n;
    for (dx, &x) in dx.iter_mut().zip(x) {
        let normal = (x - mean) * rstd;
        *dx = (*dx - normal.mul_add(mean_gn, mean_g)) * rstd;
    }
}

/// Columns one task of a parameter gradient sums.
const STRIP: usize = 128;
/// Rows summed in one go before they join the total; fixed, so that the order does not depend on the threads.
const BLOCK: usize = 64;

/// The gradients of the parameters, sums over all rows: dgamma of dy (x - mean) rstd, dbeta of dy.
///
/// x, dy: [rows, h]   mean, rstd: [rows]   dgamma, dbeta: [h]
pub fn layer_norm_param_grad(
    x: &[f32],
    (mean, rstd): (&[f32], &[f32]),
    dy: &[f32],
    (dgamma, dbeta): (&mut [f32], &mut [f32]),
    threads: Threads,
) {
    let h = dgamma.len();
    let (dgamma, dbeta) = (Shared::new(dgamma), Shared::new(dbeta));
    threads.for_each_range(h, STRIP, |columns| {
        let width = columns.len();
        // SAFETY: tasks have disjoint columns.
        let (dgamma, dbeta) = unsafe { (dgamma.slice(columns.clone()), dbeta.slice(columns.clone())) };
        let term = std::convert::identity(
            #[inline(always)]
            |row: usize, gamma: &mut [f32], beta: &mut [f32]| {
                let at = row * h + columns.start..row * h + columns.start + width;
                let (mean, rstd) = (mean[row], rstd[row]);
                for (((gamma, beta), &x), &dy) in gamma.iter_mut().zip(beta).zip(&x[at.clone()]).zip(&dy[at]) {
                    *gamma = dy.mul_add((x - mean) * rstd, *gamma);
                    *beta += dy;
                }
            },
        );
        simd!(sum_rows(mean.len(), dgamma, dbeta, term));
    });
}

/// Sums `term(row, a, b)`, which adds one row to a and b, over all rows: blocks first, then their totals.
#[inline(always)]
pub(super) fn sum_rows(n_rows: usize, a: &mut [f32], b: &mut [f32], term: impl Fn(usize, &mut [f32], &mut [f32])) {
    a.fill(0.0);
    b.fill(0.0);
    let (mut a_block, mut b_block) = ([0.0f32; STRIP], [0.0f32; STRIP]);
    let width = a.len();
    for start in (0..n_rows).step_by(BLOCK) {
        a_block.fill(0.0);
        b_block.fill(0.0);
        for row in start..n_rows.min(start + BLOCK) {
            term(row, &mut a_block[..width], &mut b_block[..b.len()]);
        }
        {
            for (a, &v) in a.iter_mut().zip(&a_block) {
                *a += v;
            }
        }
        {
            for (b, &v) in b.iter_mut().zip(&b_block) {
                *b += v;
            }
        }
    }
}

/// The columns one task of a parameter gradient sums.
pub(super) const fn strip() -> usize {
    STRIP
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, in_pool, random, wide};
    use super::*;

    const EPS: f32 = 1e-5;

    struct Case {
        rows: usize,
        h: usize,
        x: Vec<f32>,
        gamma: Vec<f32>,
        beta: Vec<f32>,
        dy: Vec<f32>,
    }

    fn case(rows: usize, h: usize) -> Case {
        let x = random(rows * h, 1).iter().map(|v| 3.0 * v + 0.5).collect();
        Case { rows, h, x, gamma: random(h, 2), beta: random(h, 3), dy: random(rows * h, 4) }
    }

    /// (normal, rstd) of row `r` in f64.
    fn normal(c: &Case, r: usize) -> (Vec<f64>, f64) {
        let x = wide(&c.x[r * c.h..(r + 1) * c.h]);
        let mean = x.iter().sum::<f64>() / c.h as f64;
        let var = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / c.h as f64;
        let rstd = 1.0 / (var + EPS as f64).sqrt();
        (x.iter().map(|v| (v - mean) * rstd).collect(), rstd)
    }

    fn run(c: &Case, threads: Threads) -> [Vec<f32>; 6] {
        let (mut y, mut mean, mut rstd) = (vec![0.0; c.rows * c.h], vec![0.0; c.rows], vec![0.0; c.rows]);
        let (mut dx, mut dgamma, mut dbeta) = (vec![0.0; c.rows * c.h], vec![0.0; c.h], vec![0.0; c.h]);
        layer_norm(&c.x, &c.gamma, Some(&c.beta), EPS, (&mut y, &mut mean, &mut rstd), threads);
        layer_norm_grad(&c.x, &c.gamma, (&mean, &rstd), &c.dy, &mut dx, threads);
        layer_norm_param_grad(&c.x, (&mean, &rstd), &c.dy, (&mut dgamma, &mut dbeta), threads);
        [y, mean, rstd, dx, dgamma, dbeta]
    }

    fn check(rows: usize, h: usize) {
        let c = case(rows, h);
        let got = run(&c, Threads::ONE);
        assert_eq!(got, in_pool(3, || run(&c, Threads::new(3))));
        let (mut y, mut dx, mut dgamma, mut dbeta) = (vec![], vec![], vec![0.0; h], vec![0.0; h]);
        for r in 0..rows {
            let (n, rstd) = normal(&c, r);
            let dy = wide(&c.dy[r * h..(r + 1) * h]);
            let g: Vec<f64> = dy.iter().zip(&c.gamma).map(|(d, &w)| d * w as f64).collect();
            let mean_g = g.iter().sum::<f64>() / h as f64;
            let mean_gn = g.iter().zip(&n).map(|(g, n)| g * n).sum::<f64>() / h as f64;
            y.extend((0..h).map(|i| n[i] * c.gamma[i] as f64 + c.beta[i] as f64));
            dx.extend((0..h).map(|i| rstd * (g[i] - mean_g - n[i] * mean_gn)));
            (0..h).for_each(|i| dgamma[i] += dy[i] * n[i]);
            (0..h).for_each(|i| dbeta[i] += dy[i]);
        }
        assert_close(&got[0], &y, 3e-6);
        assert_close(&got[3], &dx, 3e-6);
        assert_close(&got[4], &dgamma, 1e-5);
        assert_close(&got[5], &dbeta, 1e-5);
    }

    #[test]
    fn rows_are_normalised_and_gradients_match_f64() {
        check(1, 5);
        check(7, 96);
        check(150, 131);
        check(300, 257);
    }

    #[test]
    fn no_beta_counts_as_zeros() {
        let c = case(3, 10);
        let (mut y, mut z) = (vec![0.0; 30], vec![0.0; 30]);
        let (mut mean, mut rstd) = (vec![0.0; 3], vec![0.0; 3]);
        layer_norm(&c.x, &c.gamma, None, EPS, (&mut y, &mut mean, &mut rstd), Threads::ONE);
        layer_norm(&c.x, &c.gamma, Some(&[0.0; 10]), EPS, (&mut z, &mut mean, &mut rstd), Threads::ONE);
        assert_eq!(y, z);
    }
}
