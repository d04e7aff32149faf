//! Root-mean-square normalisation over the last axis (Zhang and Sennrich 2019) and its gradients.

use super::super::math::{simd, sum1, sum2};
use super::super::threads::{Shared, Threads};
use super::layer_norm::{rows_per_task, strip, sum_rows};

/// y = x rstd gamma per row, with rstd = 1 / sqrt(mean(x²) + eps).
///
/// x, y: [rows, h]   gamma: [h]   rstd: [rows]
pub fn rms_norm(x: &[f32], gamma: &[f32], eps: f32, (y, rstd): (&mut [f32], &mut [f32]), threads: Threads) {
    let h = gamma.len();
    let (y, rstd) = (Shared::new(y), Shared::new(rstd));
    threads.for_each_range(x.len() / h, rows_per_task(h), |rows| {
        // SAFETY: tasks have disjoint rows.
        let (y, rstd) = unsafe { (y.slice(rows.start * h..rows.end * h), rstd.slice(rows.clone())) };
        let x = &x[rows.start * h..rows.end * h];
        simd!({
            for ((x, y), rstd) in x.chunks_exact(h).zip(y.chunks_exact_mut(h)).zip(rstd) {
                *rstd = 1.0 / (sum1(x, |v| v * v) / h as f32 + eps).sqrt();
                for ((y, &x), &g) in y.iter_mut().zip(x).zip(gamma) {
                    *y = x * *rstd * g;
                }
            }
        });
    });
}

/// The gradient of the input: dx = rstd (g - n mean(g n)), with g = dy gamma and n = x rstd.
///
/// x, dy, dx: [rows, h]   gamma: [h]   rstd: [rows]
pub fn rms_norm_grad(x: &[f32], gamma: &[f32], rstd: &[f32], dy: &[f32], dx: &mut [f32], threads: Threads) {
    let h = gamma.len();
    let per_task = rows_per_task(h);
    threads.for_each_chunk_mut(dx, per_task * h, |task, dx| {
        simd!({
            for (i, dx) in dx.chunks_exact_mut(h).enumerate() {
                let row = task * per_task + i;
                let at = row * h..(row + 1) * h;
                grad_row(&x[at.clone()], gamma, rstd[row], &dy[at], dx);
            }
        });
    });
}

#[inline(always)]
fn grad_row(x: &[f32], gamma: &[f32], rstd: f32, dy: &[f32], dx: &mut [f32]) {
    // dx holds g until the second pass.
    for ((dx, &dy), &g) in dx.iter_mut().zip(dy).zip(gamma) {
        *dx = dy * g;
    }
    let mean_gn = sum2(dx, x, |g, x| g * (x * rstd)) / x.len() as f32;
    for (dx, &x) in dx.iter_mut().zip(x) {
        *dx = (*dx - x * rstd * mean_gn) * rstd;
    }
}

/// The gradient of gamma: the sum of dy x rstd over all rows.
///
/// x, dy: [rows, h]   rstd: [rows]   dgamma: [h]
pub fn rms_norm_param_grad(x: &[f32], rstd: &[f32], dy: &[f32], dgamma: &mut [f32], threads: Threads) {
    let h = dgamma.len();
    threads.for_each_chunk_mut(dgamma, strip(), |i, dgamma| {
        let (first, width) = (i * strip(), dgamma.len());
        let term = std::convert::identity(
            #[inline(always)]
            |row: usize, gamma: &mut [f32], _: &mut [f32]| {
                let at = row * h + first..row * h + first + width;
                for ((gamma, &x), &dy) in gamma.iter_mut().zip(&x[at.clone()]).zip(&dy[at]) {
                    *gamma = dy.mul_add(x * rstd[row], *gamma);
                }
            },
        );
        simd!(sum_rows(rstd.len(), dgamma, &mut [], term));
    });
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, in_pool, random, wide};
    use super::*;

    const EPS: f32 = 1e-6;

    fn run(x: &[f32], gamma: &[f32], dy: &[f32], threads: Threads) -> [Vec<f32>; 4] {
        let h = gamma.len();
        let (mut y, mut rstd) = (vec![0.0; x.len()], vec![0.0; x.len() / h]);
        let (mut dx, mut dgamma) = (vec![0.0; x.len()], vec![0.0; h]);
        rms_norm(x, gamma, EPS, (&mut y, &mut rstd), threads);
        rms_norm_grad(x, gamma, &rstd, dy, &mut dx, threads);
        rms_norm_param_grad(x, &rstd, dy, &mut dgamma, threads);
        [y, rstd, dx, dgamma]
    }

    fn check(rows: usize, h: usize) {
        let (x, gamma, dy) = (random(rows * h, 1), random(h, 2), random(rows * h, 3));
        let got = run(&x, &gamma, &dy, Threads::ONE);
        assert_eq!(got, in_pool(3, || run(&x, &gamma, &dy, Threads::new(3))));
        let (mut y, mut dx, mut dgamma) = (vec![], vec![], vec![0.0; h]);
        for r in 0..rows {
            let (x, dy, w) = (wide(&x[r * h..(r + 1) * h]), wide(&dy[r * h..(r + 1) * h]), wide(&gamma));
            let rstd = 1.0 / (x.iter().map(|v| v * v).sum::<f64>() / h as f64 + EPS as f64).sqrt();
            let mean_gn = (0..h).map(|i| dy[i] * w[i] * x[i] * rstd).sum::<f64>() / h as f64;
            y.extend((0..h).map(|i| x[i] * rstd * w[i]));
            dx.extend((0..h).map(|i| rstd * (dy[i] * w[i] - x[i] * rstd * mean_gn)));
            (0..h).for_each(|i| dgamma[i] += dy[i] * x[i] * rstd);
        }
        assert_close(&got[0], &y, 2e-6);
        assert_close(&got[2], &dx, 3e-6);
        assert_close(&got[3], &dgamma, 1e-5);
    }

    #[test]
    fn rows_are_normalised_and_gradients_match_f64() {
        check(1, 5);
        check(7, 96);
        check(150, 131);
        check(300, 257);
    }
}
