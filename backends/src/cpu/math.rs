//! Elementary f32 functions that the compiler vectorises, and the one place where the vector instructions are chosen.

/// Evaluates an expression compiled for the widest vector instructions of this machine, with FMA where there is one.
///
/// Only what is inlined is compiled so: `for` loops and calls of `#[inline(always)]` functions. Not `for_each`, `map` or
/// `fold` with large closures, which the compiler may leave outside, in the baseline instructions.
macro_rules! simd {
    ($body:expr) => {
        $crate::cpu::math::run_simd(
            #[inline(always)]
            || $body,
        )
    };
}
pub(crate) use simd;

/// What `simd!` expands to.
#[inline(always)]
pub(crate) fn run_simd<R>(f: impl FnOnce() -> R) -> R {
    struct Op<F>(F);
    impl<R, F: FnOnce() -> R> pulp::NullaryFnOnce for Op<F> {
        type Output = R;
        #[inline(always)]
        fn call(self) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Op(f))
}

/// Adding and subtracting it rounds an f32 below 2^22 to the nearest integer.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts; a product of the first with an integer below 2^9 is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// e^x. Range reduction to |r| <= ln 2 / 2 (Cody and Waite), then a minimax polynomial; about 1 ulp, subnormals kept.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let x = x.clamp(-104.0, 89.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let exponent = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let p = 0.001_381_440_2_f32
        .mul_add(r, 0.008_368_786)
        .mul_add(r, 0.041_668_396)
        .mul_add(r, 0.166_665_2)
        .mul_add(r, 0.499_999_93);
    let e = p.mul_add(r * r, r) + 1.0;
    // 2^n in two factors, since n reaches beyond the exponents of f32 at both ends.
    let half = exponent >> 1;
    e * power_of_two(half) * power_of_two(exponent.wrapping_sub(half))
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) << 23) as u32)
}

/// tanh x: an odd polynomial near 0, else 1 - 2 / (e^2|x| + 1); within 2 ulp.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let s = x * x;
    let p = (-0.005_660_780_5_f32)
        .mul_add(s, 0.020_601_999)
        .mul_add(s, -0.053_729_23)
        .mul_add(s, 0.133_313_29)
        .mul_add(s, -0.333_332_78);
    let near = (p * s).mul_add(x, x);
    let far = 1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0);
    if x.abs() < 0.625 { near } else { far.copysign(x) }
}

/// The error function: an odd polynomial near 0, else 1 - exp of a polynomial fitted to ln erfc; within 2 ulp.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let s = x * x;
    let p = 8.298_782_5e-5_f32
        .mul_add(s, -8.125_679_6e-4)
        .mul_add(s, 0.005_199_518)
        .mul_add(s, -0.026_858_782)
        .mul_add(s, 0.112_836_845)
        .mul_add(s, -0.376_126_32)
        .mul_add(s, 0.128_379_17);
    let near = p.mul_add(x, x);
    let t = x.abs().min(4.0);
    let q = (-2.116_264_7e-5_f32)
        .mul_add(t, 4.352_279e-4)
        .mul_add(t, -0.004_174_689_5)
        .mul_add(t, 0.025_128_755)
        .mul_add(t, -0.108_294_16)
        .mul_add(t, -0.633_334_46)
        .mul_add(t, -1.129_521)
        .mul_add(t, 1.758_99e-4);
    let far = (1.0 - exp(q)).copysign(x);
    // The comparison is false for NaN, which `min` above would hide.
    if x.abs() > 0.925 { far } else { near }
}

/// 1 / (1 + e^-x), without overflow at either end.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The number of independent partial sums of a row; fixed, so that sums have the same bits at any vector width.
const LANES: usize = 32;

/// The sum of `f(a[i], b[i])` in a fixed order of `LANES` interleaved partial sums. `a` and `b` have one length.
#[inline(always)]
pub fn sum2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let mut tail = 0.0;
    for (&x, &y) in a_chunks.remainder().iter().zip(b_chunks.remainder()) {
        tail += f(x, y);
    }
    for (x, y) in a_chunks.zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] += f(x[i], y[i]);
        }
    }
    fold(lanes, |x, y| x + y) + tail
}

/// The sum of `f(x)` over a row, in a fixed order of `LANES` interleaved partial sums.
#[inline(always)]
pub fn sum1(a: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let chunks = a.chunks_exact(LANES);
    for (lane, &x) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = f(x);
    }
    for x in chunks {
        for i in 0..LANES {
            lanes[i] += f(x[i]);
        }
    }
    fold(lanes, |x, y| x + y)
}

/// The largest element of a row; -inf when it is empty. NaN is ignored.
#[inline(always)]
pub fn max1(a: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = a.chunks_exact(LANES);
    let mut tail = f32::NEG_INFINITY;
    for &x in chunks.remainder() {
        tail = if x > tail { x } else { tail };
    }
    for x in chunks {
        for i in 0..LANES {
            lanes[i] = if x[i] > lanes[i] { x[i] } else { lanes[i] };
        }
    }
    let max = fold(lanes, |x, y| if x > y { x } else { y });
    if tail > max { tail } else { max }
}

/// Combines the lanes pairwise: each half with the other, down to one.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest relative error against `reference` on a grid over `range`.
    fn error(f: impl Fn(f32) -> f32, reference: impl Fn(f64) -> f64, range: (f32, f32)) -> f64 {
        let n = 400_000;
        let step = (range.1 - range.0) / n as f32;
        let at = |i: i32| range.0 + step * i as f32;
        let relative = |x: f32| {
            let want = reference(x as f64);
            (f(x) as f64 - want).abs() / want.abs().max(1e-37)
        };
        (0..=n).map(at).map(relative).fold(0.0, f64::max)
    }

    /// erf by its Maclaurin series; enough below 4.
    fn erf_series(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn exp_is_within_two_ulp() {
        assert!(error(exp, f64::exp, (-86.0, 88.7)) < 1.5e-7);
        assert_eq!((exp(f32::NEG_INFINITY), exp(f32::INFINITY), exp(0.0)), (0.0, f32::INFINITY, 1.0));
        assert!(exp(f32::NAN).is_nan() && exp(-100.0) > 0.0);
    }

    #[test]
    fn tanh_is_within_two_ulp() {
        assert!(error(tanh, f64::tanh, (-12.0, 12.0)) < 2.4e-7);
        assert_eq!((tanh(f32::INFINITY), tanh(-100.0)), (1.0, -1.0));
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn erf_is_within_two_ulp() {
        assert!(error(erf, erf_series, (-3.9, 3.9)) < 2e-7);
        assert_eq!((erf(f32::INFINITY), erf(-9.0), erf(0.0)), (1.0, -1.0, 0.0));
        assert!(erf(f32::NAN).is_nan());
    }

    #[test]
    fn sigmoid_saturates() {
        assert!(error(sigmoid, |x| 1.0 / (1.0 + (-x).exp()), (-80.0, 80.0)) < 3e-7);
        assert_eq!((sigmoid(-200.0), sigmoid(200.0)), (0.0, 1.0));
    }

    #[test]
    fn row_sums_and_maxima_take_every_element() {
        let row: Vec<f32> = (0..77).map(|i| (i % 13) as f32).collect();
        assert_eq!(sum1(&row, |x| x), row.iter().sum::<f32>());
        assert_eq!(sum2(&row, &row, |x, y| x * y), row.iter().map(|x| x * x).sum::<f32>());
        assert_eq!((max1(&row), max1(&row[..5])), (12.0, 4.0));
        assert_eq!(max1(&[]), f32::NEG_INFINITY);
    }
}
