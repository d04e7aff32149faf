//! Element-wise functions of one operand, and their derivatives from the input.

use super::super::math::{self, simd};
use super::super::threads::{Shared, Threads};
use super::GRAIN;

/// An element-wise function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnaryKind {
    /// -x
    Neg,
    /// e^x
    Exp,
    /// The natural logarithm.
    Log,
    /// The square root.
    Sqrt,
    /// 1 / sqrt x
    Rsqrt,
    /// 1 / x
    Reciprocal,
    /// The hyperbolic tangent.
    Tanh,
    /// The error function.
    Erf,
    /// 1 / (1 + e^-x)
    Sigmoid,
    /// max(x, 0)
    Relu,
    /// x Φ(x), with Φ the normal distribution, by the error function.
    Gelu,
    /// The approximation of `Gelu` by tanh: x/2 (1 + tanh(sqrt(2/π) (x + 0.044715 x³))).
    GeluTanh,
    /// x sigmoid(x)
    Silu,
    /// The sine.
    Sin,
    /// The cosine.
    Cos,
    /// |x|
    Abs,
    /// -1, 0 or 1.
    Sign,
    /// The largest integer not above x.
    Floor,
    /// The smallest integer not below x.
    Ceil,
    /// The nearest integer, halves to the even one.
    Round,
    /// ln(1 + e^x)
    Softplus,
}

/// sqrt(2/π) and the cubic coefficient of the approximation of GELU by tanh (Hendrycks and Gimpel 2016).
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;
/// 1 / sqrt(2π) and 2 / sqrt π.
const NORMAL_PEAK: f32 = 0.398_942_3;
const TWO_OVER_SQRT_PI: f32 = std::f32::consts::FRAC_2_SQRT_PI;

#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    0.5 * (1.0 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// tanh of the inner cubic of the approximation of GELU.
#[inline(always)]
fn gelu_inner(x: f32) -> f32 {
    math::tanh(SQRT_2_OVER_PI * x * (GELU_CUBIC * x).mul_add(x, 1.0))
}

#[inline(always)]
fn gelu_tanh_derivative(x: f32) -> f32 {
    let t = gelu_inner(x);
    let inner_slope = SQRT_2_OVER_PI * (3.0 * GELU_CUBIC * x).mul_add(x, 1.0);
    (0.5 * x * (1.0 - t * t)).mul_add(inner_slope, 0.5 * (1.0 + t))
}

#[inline(always)]
fn silu_derivative(x: f32) -> f32 {
    let s = math::sigmoid(x);
    s * x.mul_add(1.0 - s, 1.0)
}

#[inline(always)]
fn sign(x: f32) -> f32 {
    if x > 0.0 {
        1.0
    } else if x < 0.0 {
        -1.0
    } else {
        x
    }
}

#[inline(always)]
fn softplus(x: f32) -> f32 {
    x.max(0.0) + math::exp(-x.abs()).ln_1p()
}

/// Expands `$body` once per kind with `$f` bound to the function, so that every loop is specialised.
macro_rules! with_function {
    ($kind:expr, $f:ident => $body:expr) => {
        match $kind {
            UnaryKind::Neg => with_function!(@arm $f, x => -x, $body),
            UnaryKind::Exp => with_function!(@arm $f, x => math::exp(x), $body),
            UnaryKind::Log => with_function!(@arm $f, x => x.ln(), $body),
            UnaryKind::Sqrt => with_function!(@arm $f, x => x.sqrt(), $body),
            UnaryKind::Rsqrt => with_function!(@arm $f, x => 1.0 / x.sqrt(), $body),
            UnaryKind::Reciprocal => with_function!(@arm $f, x => 1.0 / x, $body),
            UnaryKind::Tanh => with_function!(@arm $f, x => math::tanh(x), $body),
            UnaryKind::Erf => with_function!(@arm $f, x => math::erf(x), $body),
            UnaryKind::Sigmoid => with_function!(@arm $f, x => math::sigmoid(x), $body),
            UnaryKind::Relu => with_function!(@arm $f, x => if x < 0.0 { 0.0 } else { x }, $body),
            UnaryKind::Gelu => with_function!(@arm $f, x => x * normal_cdf(x), $body),
            UnaryKind::GeluTanh => with_function!(@arm $f, x => 0.5 * x * (1.0 + gelu_inner(x)), $body),
            UnaryKind::Silu => with_function!(@arm $f, x => x * math::sigmoid(x), $body),
            UnaryKind::Sin => with_function!(@arm $f, x => x.sin(), $body),
            UnaryKind::Cos => with_function!(@arm $f, x => x.cos(), $body),
            UnaryKind::Abs => with_function!(@arm $f, x => x.abs(), $body),
            UnaryKind::Sign => with_function!(@arm $f, x => sign(x), $body),
            UnaryKind::Floor => with_function!(@arm $f, x => x.floor(), $body),
            UnaryKind::Ceil => with_function!(@arm $f, x => x.ceil(), $body),
            UnaryKind::Round => with_function!(@arm $f, x => x.round_ties_even(), $body),
            UnaryKind::Softplus => with_function!(@arm $f, x => softplus(x), $body),
        }
    };
    (@arm $f:ident, $x:ident => $value:expr, $body:expr) => {{
        let $f = std::convert::identity(
            #[inline(always)]
            |$x: f32| $value,
        );
        $body
    }};
}

/// As `with_function`, with `$f` bound to the derivative at x.
macro_rules! with_derivative {
    ($kind:expr, $f:ident => $body:expr) => {
        match $kind {
            UnaryKind::Neg => with_function!(@arm $f, _x => -1.0, $body),
            UnaryKind::Exp => with_function!(@arm $f, x => math::exp(x), $body),
            UnaryKind::Log => with_function!(@arm $f, x => 1.0 / x, $body),
            UnaryKind::Sqrt => with_function!(@arm $f, x => 0.5 / x.sqrt(), $body),
            UnaryKind::Rsqrt => with_function!(@arm $f, x => -0.5 / (x * x.sqrt()), $body),
            UnaryKind::Reciprocal => with_function!(@arm $f, x => -1.0 / (x * x), $body),
            UnaryKind::Tanh => with_function!(@arm $f, x => 1.0 - math::tanh(x) * math::tanh(x), $body),
            UnaryKind::Erf => with_function!(@arm $f, x => TWO_OVER_SQRT_PI * math::exp(-x * x), $body),
            UnaryKind::Sigmoid => with_function!(@arm $f, x => math::sigmoid(x) * (1.0 - math::sigmoid(x)), $body),
            UnaryKind::Relu => with_function!(@arm $f, x => if x > 0.0 { 1.0 } else { 0.0 }, $body),
            UnaryKind::Gelu => {
                with_function!(@arm $f, x => normal_cdf(x) + x * NORMAL_PEAK * math::exp(-0.5 * x * x), $body)
            }
            UnaryKind::GeluTanh => with_function!(@arm $f, x => gelu_tanh_derivative(x), $body),
            UnaryKind::Silu => with_function!(@arm $f, x => silu_derivative(x), $body),
            UnaryKind::Sin => with_function!(@arm $f, x => x.cos(), $body),
            UnaryKind::Cos => with_function!(@arm $f, x => -x.sin(), $body),
            UnaryKind::Abs => with_function!(@arm $f, x => sign(x), $body),
            UnaryKind::Sign | UnaryKind::Floor | UnaryKind::Ceil | UnaryKind::Round => {
                with_function!(@arm $f, _x => 0.0, $body)
            }
            UnaryKind::Softplus => with_function!(@arm $f, x => math::sigmoid(x), $body),
        }
    };
}

/// out = f(x); both have one length.
pub fn unary(kind: UnaryKind, x: &[f32], out: &mut [f32], threads: Threads) {
    assert_eq!(x.len(), out.len(), "invariant: operand and result have one length");
    with_function!(kind, f => map(x, out, threads, f));
}

/// x = f(x).
pub fn unary_inplace(kind: UnaryKind, x: &mut [f32], threads: Threads) {
    with_function!(kind, f => map_inplace(x, threads, f));
}

/// dx = f'(x) dy; all have one length.
pub fn unary_grad(kind: UnaryKind, x: &[f32], dy: &[f32], dx: &mut [f32], threads: Threads) {
    assert_eq!([x.len(), dy.len()], [dx.len(); 2], "invariant: operands and result have one length");
    with_derivative!(kind, f => map2(x, dy, dx, threads, f));
}

/// dy = f'(x) dy; both have one length.
pub fn unary_grad_inplace(kind: UnaryKind, x: &[f32], dy: &mut [f32], threads: Threads) {
    assert_eq!(x.len(), dy.len(), "invariant: operands have one length");
    with_derivative!(kind, f => scale_by(x, dy, threads, f));
}

fn map(x: &[f32], out: &mut [f32], threads: Threads, f: impl Fn(f32) -> f32 + Copy + Send + Sync) {
    threads.for_each_chunk_mut(out, GRAIN, |i, out| {
        let x = &x[i * GRAIN..i * GRAIN + out.len()];
        simd!({
            for (o, &x) in out.iter_mut().zip(x) {
                *o = f(x);
            }
        });
    });
}

fn map_inplace(x: &mut [f32], threads: Threads, f: impl Fn(f32) -> f32 + Copy + Send + Sync) {
    threads.for_each_chunk_mut(x, GRAIN, |_, x| {
        simd!({
            for x in x.iter_mut() {
                *x = f(*x);
            }
        });
    });
}

fn map2(x: &[f32], dy: &[f32], dx: &mut [f32], threads: Threads, f: impl Fn(f32) -> f32 + Copy + Send + Sync) {
    let dx = Shared::new(dx);
    threads.for_each_range(x.len(), GRAIN, |range| {
        let (x, dy) = (&x[range.clone()], &dy[range.clone()]);
        // SAFETY: the ranges are disjoint.
        let dx = unsafe { dx.slice(range) };
        simd!({
            for ((o, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
                *o = f(x) * dy;
            }
        });
    });
}

fn scale_by(x: &[f32], dy: &mut [f32], threads: Threads, f: impl Fn(f32) -> f32 + Copy + Send + Sync) {
    threads.for_each_chunk_mut(dy, GRAIN, |i, dy| {
        let x = &x[i * GRAIN..i * GRAIN + dy.len()];
        simd!({
            for (dy, &x) in dy.iter_mut().zip(x) {
                *dy *= f(x);
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, in_pool, random};
    use super::*;

    /// erf by its Maclaurin series.
    fn erf(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..120 {
            term *= -x * x / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    fn reference(kind: UnaryKind, x: f64) -> f64 {
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        match kind {
            UnaryKind::Neg => -x,
            UnaryKind::Exp => x.exp(),
            UnaryKind::Log => x.ln(),
            UnaryKind::Sqrt => x.sqrt(),
            UnaryKind::Rsqrt => 1.0 / x.sqrt(),
            UnaryKind::Reciprocal => 1.0 / x,
            UnaryKind::Tanh => x.tanh(),
            UnaryKind::Erf => erf(x),
            UnaryKind::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            UnaryKind::Relu => x.max(0.0),
            UnaryKind::Gelu => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
            UnaryKind::GeluTanh => 0.5 * x * (1.0 + inner.tanh()),
            UnaryKind::Silu => x / (1.0 + (-x).exp()),
            UnaryKind::Sin => x.sin(),
            UnaryKind::Cos => x.cos(),
            UnaryKind::Abs => x.abs(),
            UnaryKind::Sign => x.signum(),
            UnaryKind::Floor => x.floor(),
            UnaryKind::Ceil => x.ceil(),
            UnaryKind::Round => x.round_ties_even(),
            UnaryKind::Softplus => x.exp().ln_1p(),
        }
    }

    const STEPS: [UnaryKind; 4] = [UnaryKind::Sign, UnaryKind::Floor, UnaryKind::Ceil, UnaryKind::Round];
    const ANY: [UnaryKind; 13] = [
        UnaryKind::Neg,
        UnaryKind::Exp,
        UnaryKind::Tanh,
        UnaryKind::Erf,
        UnaryKind::Sigmoid,
        UnaryKind::Relu,
        UnaryKind::Gelu,
        UnaryKind::GeluTanh,
        UnaryKind::Silu,
        UnaryKind::Sin,
        UnaryKind::Cos,
        UnaryKind::Abs,
        UnaryKind::Softplus,
    ];
    const POSITIVE: [UnaryKind; 4] = [UnaryKind::Log, UnaryKind::Sqrt, UnaryKind::Rsqrt, UnaryKind::Reciprocal];

    fn check(kind: UnaryKind, x: &[f32]) {
        let want: Vec<f64> = x.iter().map(|&x| reference(kind, x as f64)).collect();
        let mut out = vec![0.0; x.len()];
        in_pool(2, || unary(kind, x, &mut out, Threads::new(2)));
        assert_close(&out, &want, 5e-7);
        let mut in_place = x.to_vec();
        unary_inplace(kind, &mut in_place, Threads::ONE);
        assert_eq!(in_place, out, "{kind:?}");
    }

    fn check_grad(kind: UnaryKind, x: &[f32]) {
        let dy = random(x.len(), 9);
        let step = 1e-5;
        let slope = |x: f64| (reference(kind, x + step) - reference(kind, x - step)) / (2.0 * step);
        let want: Vec<f64> = x.iter().zip(&dy).map(|(&x, &dy)| slope(x as f64) * dy as f64).collect();
        let mut dx = vec![0.0; x.len()];
        in_pool(2, || unary_grad(kind, x, &dy, &mut dx, Threads::new(2)));
        assert_close(&dx, &want, 2e-6);
        let mut in_place = dy;
        unary_grad_inplace(kind, x, &mut in_place, Threads::ONE);
        assert_eq!(in_place, dx, "{kind:?}");
    }

    #[test]
    fn functions_and_derivatives_match_f64() {
        let x: Vec<f32> = random(20_011, 4).iter().map(|x| 3.0 * x).filter(|x| x.abs() > 1e-3).collect();
        let positive: Vec<f32> = x.iter().map(|x| x.abs() + 0.1).collect();
        for kind in ANY {
            check(kind, &x);
            check_grad(kind, &x);
        }
        for kind in STEPS {
            check(kind, &x);
        }
        for kind in POSITIVE {
            check(kind, &positive);
            check_grad(kind, &positive);
        }
    }
}
