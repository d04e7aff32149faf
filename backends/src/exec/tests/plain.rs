//! The training of the test network in f64, without any plan.

use super::plan::{Samples, initial};

/// Samples of a step.
pub(super) const BATCH: u64 = 8;
/// Features.
pub(super) const K: u64 = 4;
/// Hidden units.
pub(super) const H: u64 = 6;
/// Classes.
pub(super) const C: u64 = 4;
pub(super) const DATA: Samples = Samples { features: K as usize, classes: C as i64 };

/// Weights and momenta of the network gelu(x w1) w2.
pub(super) struct Reference {
    /// [K, H] and [H, C].
    pub(super) w: [Vec<f64>; 2],
    pub(super) m: [Vec<f64>; 2],
}

fn matmul(a: &[f64], b: &[f64], (m, k, n): (usize, usize, usize)) -> Vec<f64> {
    let mut out = vec![0.0; m * n];
    for (i, j, l) in (0..m).flat_map(|i| (0..n).flat_map(move |j| (0..k).map(move |l| (i, j, l)))) {
        out[i * n + j] += a[i * k + l] * b[l * n + j];
    }
    out
}

/// The transpose of a matrix with rows of n.
pub(super) fn turned(a: &[f64], n: usize) -> Vec<f64> {
    let m = a.len() / n;
    (0..a.len()).map(|i| a[i % m * n + i / m]).collect()
}

/// The error function by its series.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..60 {
        term *= -x * x / n as f64;
        sum += term / (2 * n + 1) as f64;
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

fn cdf(x: f64) -> f64 {
    0.5 * (1.0 + erf(x / 2f64.sqrt()))
}

fn gelu_slope(x: f64) -> f64 {
    cdf(x) + x * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

impl Reference {
    pub(super) fn new() -> Reference {
        let wide = |w: Vec<f32>| w.into_iter().map(f64::from).collect::<Vec<_>>();
        let w1 = turned(&wide(initial((K * H) as usize)), K as usize);
        Reference { m: [vec![0.0; w1.len()], vec![0.0; (H * C) as usize]], w: [w1, wide(initial((H * C) as usize))] }
    }

    /// Loss, and the gradients of both weights.
    pub(super) fn gradients(&self, step: u64) -> (f64, [Vec<f64>; 2]) {
        let (b, k, h, c) = (BATCH as usize, K as usize, H as usize, C as usize);
        let samples = || (step - 1) * BATCH..step * BATCH;
        let x: Vec<f64> = samples().flat_map(|s| DATA.x(s)).map(f64::from).collect();
        let labels: Vec<i64> = samples().map(|s| DATA.label(s)).collect();
        let count = labels.iter().filter(|&&l| l != -100).count() as f64;
        let pre = matmul(&x, &self.w[0], (b, k, h));
        let act: Vec<f64> = pre.iter().map(|&v| v * cdf(v)).collect();
        let y = matmul(&act, &self.w[1], (b, h, c));
        let (mut loss, mut dy) = (0.0, vec![0.0; b * c]);
        for (row, &label) in labels.iter().enumerate().filter(|(_, l)| **l != -100) {
            let sum: f64 = y[row * c..][..c].iter().map(|v| v.exp()).sum();
            loss += (sum.ln() - y[row * c + label as usize]) / count;
            for j in 0..c {
                let hit = if j == label as usize { 1.0 } else { 0.0 };
                dy[row * c + j] = (y[row * c + j].exp() / sum - hit) / count;
            }
        }
        let da = matmul(&dy, &turned(&self.w[1], c), (b, c, h));
        let dh: Vec<f64> = da.iter().zip(&pre).map(|(d, &v)| d * gelu_slope(v)).collect();
        (loss, [matmul(&turned(&x, k), &dh, (k, b, h)), matmul(&turned(&act, h), &dy, (h, b, c))])
    }

    /// Loss and norm of the gradient.
    pub(super) fn step(&mut self, step: u64) -> (f64, f64) {
        let (loss, gradients) = self.gradients(step);
        let lr = if step == 1 { 0.05 } else { 0.1 };
        for ((w, m), g) in self.w.iter_mut().zip(&mut self.m).zip(&gradients) {
            for ((w, m), g) in w.iter_mut().zip(m).zip(g) {
                *m = 0.9 * *m + g + 0.01 * *w;
                *w -= lr * *m;
            }
        }
        (loss, gradients.iter().flatten().map(|g| g * g).sum::<f64>().sqrt())
    }
}
