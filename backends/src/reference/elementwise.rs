//! Element-wise ops with NumPy broadcasting.

use super::Tensor;
use super::special::erf;
use galvatron_ir::op::compute::{BinaryKind, CompareKind, UnaryKind};
use galvatron_ir::types::{DType, TensorType};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// Factor of x³ in the tanh approximation of GELU (Hendrycks and Gimpel, 2016).
const GELU_CUBIC: f64 = 0.044715;

/// A function of two operands; of integers it is cut towards zero, and 0 where it has no value.
pub fn binary(kind: BinaryKind, args: &[&Tensor], ty: &TensorType) -> Tensor {
    let is_integer = ty.dtype == DType::I64;
    zip(args, &ty.shape, |x| {
        let value = match kind {
            BinaryKind::Add => x[0] + x[1],
            BinaryKind::Sub => x[0] - x[1],
            BinaryKind::Mul => x[0] * x[1],
            BinaryKind::Div => x[0] / x[1],
            BinaryKind::Pow => x[0].powf(x[1]),
            BinaryKind::Max if x[0].is_nan() || x[0] > x[1] => x[0],
            BinaryKind::Min if x[0].is_nan() || x[0] < x[1] => x[0],
            BinaryKind::Max | BinaryKind::Min => x[1],
            BinaryKind::Mod => modulo(x[0], x[1]),
            BinaryKind::Rem => x[0] % x[1],
        };
        match is_integer {
            true if value.is_finite() => value.trunc(),
            true => 0.0,
            false => value,
        }
    })
}

/// The remainder of a division that rounds down.
fn modulo(a: f64, b: f64) -> f64 {
    let rest = a % b;
    if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest.abs().copysign(b) }
}

/// 1 where the comparison holds.
pub fn compare(kind: CompareKind, args: &[&Tensor], shape: &[u64]) -> Tensor {
    zip(args, shape, |x| {
        f64::from(match kind {
            CompareKind::Equal => x[0] == x[1],
            CompareKind::Less => x[0] < x[1],
            CompareKind::LessEqual => x[0] <= x[1],
        })
    })
}

/// The sum of the operands, from left to right.
pub fn add_n(args: &[&Tensor], shape: &[u64]) -> Tensor {
    zip(args, shape, |x| x.iter().sum())
}

/// Operand 1 where operand 0 holds, otherwise operand 2.
pub fn choose(args: &[&Tensor], shape: &[u64]) -> Tensor {
    zip(args, shape, |x| if x[0] != 0.0 { x[1] } else { x[2] })
}

/// f(x).
pub fn unary(kind: UnaryKind, x: &Tensor) -> Tensor {
    x.map(|x| match kind {
        UnaryKind::Neg => -x,
        UnaryKind::Exp => x.exp(),
        UnaryKind::Log => x.ln(),
        UnaryKind::Sqrt => x.sqrt(),
        UnaryKind::Reciprocal => 1.0 / x,
        UnaryKind::Tanh => x.tanh(),
        UnaryKind::Erf => erf(x),
        UnaryKind::Sigmoid => sigmoid(x),
        UnaryKind::Relu => x.max(0.0),
        UnaryKind::Gelu => x * normal_cdf(x),
        UnaryKind::GeluTanh => 0.5 * x * (1.0 + gelu_inner(x).tanh()),
        UnaryKind::Silu => x * sigmoid(x),
        UnaryKind::Abs => x.abs(),
        UnaryKind::Sign => sign(x),
        UnaryKind::Sin => x.sin(),
        UnaryKind::Cos => x.cos(),
        UnaryKind::Floor => x.floor(),
        UnaryKind::Ceil => x.ceil(),
        UnaryKind::Round => x.round_ties_even(),
        UnaryKind::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        UnaryKind::IsNan => f64::from(x.is_nan()),
    })
}

/// f'(x) dy.
pub fn unary_grad(kind: UnaryKind, x: &Tensor, dy: &Tensor) -> Tensor {
    zip(&[x, dy], &x.shape, |x| slope(kind, x[0]) * x[1])
}

/// The elements under another type: integers are cut towards zero, bools are 0 or 1.
pub fn cast(to: DType, x: &Tensor) -> Tensor {
    x.map(|x| match to {
        DType::F32 | DType::Bf16 => x,
        DType::I64 => x.trunc(),
        DType::Bool => f64::from(x != 0.0),
    })
}

fn zip(args: &[&Tensor], shape: &[u64], f: impl Fn(&[f64]) -> f64) -> Tensor {
    Tensor::from_fn(shape, |i| f(&args.iter().map(|a| a.at_broadcast(&i)).collect::<Vec<_>>()))
}

fn slope(kind: UnaryKind, x: f64) -> f64 {
    match kind {
        UnaryKind::Neg => -1.0,
        UnaryKind::Exp => x.exp(),
        UnaryKind::Log => 1.0 / x,
        UnaryKind::Sqrt => 0.5 / x.sqrt(),
        UnaryKind::Reciprocal => -1.0 / (x * x),
        UnaryKind::Tanh => 1.0 - x.tanh().powi(2),
        UnaryKind::Erf => 2.0 / PI.sqrt() * (-x * x).exp(),
        UnaryKind::Sigmoid => sigmoid(x) * (1.0 - sigmoid(x)),
        UnaryKind::Relu => f64::from(x > 0.0),
        UnaryKind::Gelu => normal_cdf(x) + x * (-0.5 * x * x).exp() / (2.0 * PI).sqrt(),
        UnaryKind::GeluTanh => gelu_tanh_slope(x),
        UnaryKind::Silu => sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x))),
        UnaryKind::Abs => sign(x),
        UnaryKind::Sin => x.cos(),
        UnaryKind::Cos => -x.sin(),
        UnaryKind::Softplus => sigmoid(x),
        UnaryKind::Sign | UnaryKind::Floor | UnaryKind::Ceil | UnaryKind::Round | UnaryKind::IsNan => 0.0,
    }
}

/// -1, 0 or 1; NaN of NaN.
fn sign(x: f64) -> f64 {
    if x == 0.0 || x.is_nan() { x } else { x.signum() }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Φ(x).
fn normal_cdf(x: f64) -> f64 {
    0.5 * (1.0 + erf(x * FRAC_1_SQRT_2))
}

fn gelu_inner(x: f64) -> f64 {
    (2.0 / PI).sqrt() * (x + GELU_CUBIC * x.powi(3))
}

fn gelu_tanh_slope(x: f64) -> f64 {
    let t = gelu_inner(x).tanh();
    let inner_slope = (2.0 / PI).sqrt() * (1.0 + 3.0 * GELU_CUBIC * x * x);
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner_slope
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_at_points_that_are_known() {
        let at = |kind, x| unary(kind, &Tensor::scalar(x)).data[0];
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        close(at(UnaryKind::Gelu, 1.0), 0.841_344_746_068_542_9);
        close(at(UnaryKind::GeluTanh, 1.0), 0.841_191_990_607_477);
        close(at(UnaryKind::Silu, 1.0), 0.731_058_578_630_004_9);
        assert_eq!((at(UnaryKind::Relu, -2.0), at(UnaryKind::IsNan, f64::NAN)), (0.0, 1.0));
    }

    #[test]
    fn integers_are_cut_and_remainders_have_a_sign() {
        let (a, b) = (Tensor::new([3], vec![-7.0, 7.0, 5.0]), Tensor::new([3], vec![2.0, -2.0, 0.0]));
        let of = |kind, ty| binary(kind, &[&a, &b], &ty).data;
        assert_eq!(of(BinaryKind::Div, TensorType::i64([3])), [-3.0, -3.0, 0.0]);
        assert_eq!(of(BinaryKind::Mod, TensorType::i64([3])), [1.0, -1.0, 0.0]);
        assert_eq!(of(BinaryKind::Rem, TensorType::i64([3])), [-1.0, 1.0, 0.0]);
        assert_eq!(compare(CompareKind::Less, &[&a, &b], &[3]).data, [1.0, 0.0, 0.0]);
    }

    #[test]
    fn operands_are_aligned_from_the_right() {
        let (a, b) = (Tensor::new([2, 1], vec![10.0, 20.0]), Tensor::new([2], vec![1.0, 2.0]));
        assert_eq!(binary(BinaryKind::Sub, &[&a, &b], &TensorType::f32([2, 2])).data, [9.0, 8.0, 19.0, 18.0]);
        assert_eq!(choose(&[&b, &a, &b], &[2, 2]).data, [10.0, 10.0, 20.0, 20.0]);
    }
}
