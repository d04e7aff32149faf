//! Optimizer steps: SGD with momentum and AdamW, as PyTorch computes them.

use super::super::math::simd;
use super::super::threads::{Shared, Threads};
use super::GRAIN;

/// The numbers of one SGD step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Learning rate of this step.
    pub lr: f64,
    /// Momentum; 0 leaves the buffer unused.
    pub momentum: f64,
    /// Added to the gradient times the weight.
    pub weight_decay: f64,
    /// Multiplies the gradient first (clipping).
    pub grad_scale: f32,
}

/// The numbers of one AdamW step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the mean of the gradient.
    pub beta1: f64,
    /// Decay of the mean of its square.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled decay: the weight shrinks by lr times this.
    pub weight_decay: f64,
    /// This step's number, from 1.
    pub step: u64,
    /// Multiplies the gradient first (clipping).
    pub grad_scale: f32,
}

/// w -= lr g, with g = grad_scale grad + weight_decay w; all have one length.
pub fn sgd(p: &Sgd, w: &mut [f32], grad: &[f32], threads: Threads) {
    assert_eq!(w.len(), grad.len(), "invariant: weight and gradient have one length");
    let (lr, decay, scale) = (p.lr as f32, p.weight_decay as f32, p.grad_scale);
    threads.for_each_chunk_mut(w, GRAIN, |i, w| {
        let grad = &grad[i * GRAIN..i * GRAIN + w.len()];
        simd!({
            for (w, &g) in w.iter_mut().zip(grad) {
                *w -= lr * (g * scale + decay * *w);
            }
        });
    });
}

/// buf = momentum buf + g; w -= lr buf, with g as in [`sgd`]. `buf` is zeros before the first step.
pub fn sgd_momentum(p: &Sgd, w: &mut [f32], grad: &[f32], buf: &mut [f32], threads: Threads) {
    assert_eq!([grad.len(), buf.len()], [w.len(); 2], "invariant: weight, gradient and buffer have one length");
    let (lr, momentum, decay, scale) = (p.lr as f32, p.momentum as f32, p.weight_decay as f32, p.grad_scale);
    let (buf, n) = (Shared::new(buf), GRAIN);
    threads.for_each_chunk_mut(w, n, |i, w| {
        let at = i * n..i * n + w.len();
        let grad = &grad[at.clone()];
        // SAFETY: tasks have disjoint chunks.
        let buf = unsafe { buf.slice(at) };
        simd!({
            for ((w, &g), buf) in w.iter_mut().zip(grad).zip(buf) {
                *buf = momentum * *buf + (g * scale + decay * *w);
                *w -= lr * *buf;
            }
        });
    });
}

/// One AdamW step (Loshchilov and Hutter 2019) on a weight, with the moments `m` and `v`, zeros before the first step:
/// w *= 1 - lr wd;  m += (1 - b1)(g - m);  v = b2 v + (1 - b2) g²;
/// w -= lr / (1 - b1^t) · m / (sqrt v / sqrt(1 - b2^t) + eps).
pub fn adamw(p: &AdamW, w: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], threads: Threads) {
    assert_eq!([grad.len(), m.len(), v.len()], [w.len(); 3], "invariant: weight, gradient and moments have one length");
    let t = p.step as f64;
    let keep = (1.0 - p.lr * p.weight_decay) as f32;
    let (mix1, beta2, mix2) = ((1.0 - p.beta1) as f32, p.beta2 as f32, (1.0 - p.beta2) as f32);
    let step_size = (p.lr / (1.0 - p.beta1.powf(t))) as f32;
    let (root, eps, scale) = ((1.0 - p.beta2.powf(t)).sqrt() as f32, p.eps as f32, p.grad_scale);
    let (m, v) = (Shared::new(m), Shared::new(v));
    threads.for_each_chunk_mut(w, GRAIN, |i, w| {
        let at = i * GRAIN..i * GRAIN + w.len();
        let grad = &grad[at.clone()];
        // SAFETY: tasks have disjoint chunks.
        let (m, v) = unsafe { (m.slice(at.clone()), v.slice(at)) };
        simd!({
            for (((w, &g), m), v) in w.iter_mut().zip(grad).zip(m).zip(v) {
                let g = g * scale;
                *m += mix1 * (g - *m);
                *v = *v * beta2 + mix2 * g * g;
                *w = *w * keep - step_size * (*m / (v.sqrt() / root + eps));
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, in_pool, random, wide};
    use super::*;

    const N: usize = 40_003;

    #[test]
    fn sgd_steps_match_f64() {
        let p = Sgd { lr: 0.1, momentum: 0.9, weight_decay: 0.01, grad_scale: 0.5 };
        let (mut w, mut plain, mut buf) = (random(N, 1), random(N, 1), vec![0.0; N]);
        let (mut want, mut want_plain, mut want_buf) = (wide(&w), wide(&w), vec![0.0; N]);
        for step in 0..4 {
            let g = random(N, 10 + step);
            in_pool(2, || sgd_momentum(&p, &mut w, &g, &mut buf, Threads::new(2)));
            sgd(&p, &mut plain, &g, Threads::ONE);
            for i in 0..N {
                want_buf[i] = 0.9 * want_buf[i] + 0.5 * g[i] as f64 + 0.01 * want[i];
                want[i] -= 0.1 * want_buf[i];
                want_plain[i] -= 0.1 * (0.5 * g[i] as f64 + 0.01 * want_plain[i]);
            }
        }
        assert_close(&w, &want, 1e-6);
        assert_close(&plain, &want_plain, 1e-6);
    }

    #[test]
    fn adamw_steps_match_f64() {
        let mut p = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 0, grad_scale: 0.5 };
        let (mut w, mut m, mut v) = (random(N, 1), vec![0.0; N], vec![0.0; N]);
        let (mut want, mut want_m, mut want_v) = (wide(&w), vec![0.0; N], vec![0.0; N]);
        for step in 1..=4 {
            p.step = step;
            let g = random(N, 10 + step);
            in_pool(2, || adamw(&p, &mut w, &g, &mut m, &mut v, Threads::new(2)));
            for i in 0..N {
                let g = 0.5 * g[i] as f64;
                want[i] *= 1.0 - 1e-2 * 0.1;
                want_m[i] = 0.9 * want_m[i] + 0.1 * g;
                want_v[i] = 0.95 * want_v[i] + 0.05 * g * g;
                let (m_hat, v_hat) =
                    (want_m[i] / (1.0 - 0.9f64.powf(step as f64)), want_v[i] / (1.0 - 0.95f64.powf(step as f64)));
                want[i] -= 1e-2 * m_hat / (v_hat.sqrt() + 1e-8);
            }
        }
        assert_close(&w, &want, 1e-6);
        assert_close(&m, &want_m, 1e-6);
        assert_close(&v, &want_v, 1e-6);
    }
}
