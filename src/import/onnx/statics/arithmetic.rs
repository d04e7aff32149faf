//! Arithmetic, element by element: `Add` to `Clip`, and the functions of one real variable.
//!
//! Single precision is computed in single precision where the operation is exactly rounded; transcendental functions are
//! computed in double precision and rounded, so that machines agree.

use super::evaluate::{Call, Results};
use super::special::erf;
use super::tensor::{Element, StaticTensor, Values};
use super::walk::Broadcast;

pub(super) fn operator(op_type: &str) -> Option<fn(&Call) -> Results> {
    Some(match op_type {
        "Add" => |c| binary(c, i64::wrapping_add, |a, b| a + b, |a, b| a + b),
        "Sub" => |c| binary(c, i64::wrapping_sub, |a, b| a - b, |a, b| a - b),
        "Mul" => |c| binary(c, i64::wrapping_mul, |a, b| a * b, |a, b| a * b),
        "Div" => |c| refuse_zero(c).and_then(|()| binary(c, i64::wrapping_div, |a, b| a / b, |a, b| a / b)),
        "Mod" => modulo,
        "Pow" => power,
        "Max" => |c| fold(c, maximum),
        "Min" => |c| fold(c, minimum),
        "Clip" => clip,
        "Neg" => |c| unary(c, i64::wrapping_neg, |x| -x),
        "Abs" => |c| unary(c, i64::wrapping_abs, f64::abs),
        "Sign" => |c| unary(c, i64::signum, |x| if x == 0.0 || x.is_nan() { x } else { x.signum() }),
        "Sqrt" => |c| unary_float(c, f64::sqrt),
        "Exp" => |c| unary_float(c, f64::exp),
        "Log" => |c| unary_float(c, f64::ln),
        "Sin" => |c| unary_float(c, f64::sin),
        "Cos" => |c| unary_float(c, f64::cos),
        "Tanh" => |c| unary_float(c, f64::tanh),
        "Sigmoid" => |c| unary_float(c, |x| 1.0 / (1.0 + (-x).exp())),
        "Erf" => |c| unary_float(c, erf),
        "Reciprocal" => |c| unary_float(c, |x| 1.0 / x),
        "Floor" => |c| unary_float(c, f64::floor),
        "Ceil" => |c| unary_float(c, f64::ceil),
        "Round" => |c| unary_float(c, f64::round_ties_even),
        _ => return None,
    })
}

/// Applies a function to the elements of two tensors that are broadcast together.
pub(super) fn map2<A: Element, B: Element, R: Element>(
    (a, a_values): (&StaticTensor, &[A]),
    (b, b_values): (&StaticTensor, &[B]),
    f: impl Fn(A, B) -> R,
) -> Result<StaticTensor, String> {
    let broadcast = Broadcast::new([a, b])?;
    let mut result = Vec::with_capacity(broadcast.stored.iter().product());
    broadcast.for_each_row(|[i, j], n, [di, dj]| {
        result.extend((0..n).map(|k| f(a_values[i + k * di], b_values[j + k * dj])));
    });
    StaticTensor::from_elements(broadcast.shape, broadcast.stored, result)
}

/// Applies a function to each element of a tensor.
pub(super) fn map1<A: Element, R: Element>(
    x: &StaticTensor,
    values: &[A],
    f: impl Fn(A) -> R,
) -> Result<StaticTensor, String> {
    let result = values.iter().map(|&v| f(v)).collect();
    StaticTensor::from_elements(x.shape().to_vec(), x.stored().to_vec(), result)
}

fn binary(
    call: &Call,
    int: impl Fn(i64, i64) -> i64,
    single: impl Fn(f32, f32) -> f32,
    double: impl Fn(f64, f64) -> f64,
) -> Results {
    Ok(vec![numeric(call.input(0)?, call.input(1)?, int, single, double)?])
}

fn numeric(
    a: &StaticTensor,
    b: &StaticTensor,
    int: impl Fn(i64, i64) -> i64,
    single: impl Fn(f32, f32) -> f32,
    double: impl Fn(f64, f64) -> f64,
) -> Result<StaticTensor, String> {
    match (a.values(), b.values()) {
        (Values::I64(x), Values::I64(y)) => map2((a, x), (b, y), int),
        (Values::F32(x), Values::F32(y)) => map2((a, x), (b, y), single),
        (Values::F64(x), Values::F64(y)) => map2((a, x), (b, y), double),
        _ => Err(format!("operands of types {:?} and {:?}", a.dtype(), b.dtype())),
    }
}

fn unary(call: &Call, int: impl Fn(i64) -> i64, float: impl Fn(f64) -> f64) -> Results {
    let x = call.input(0)?;
    match x.values() {
        Values::I64(v) => Ok(vec![map1(x, v, int)?]),
        _ => unary_float(call, float),
    }
}

/// Applies a real function, computed in double precision, to a tensor of floats.
fn unary_float(call: &Call, f: impl Fn(f64) -> f64) -> Results {
    let x = call.input(0)?;
    Ok(vec![match x.values() {
        Values::F32(v) => map1(x, v, |a| f(f64::from(a)) as f32)?,
        Values::F64(v) => map1(x, v, f)?,
        _ => return Err(format!("an operand of type {:?}", x.dtype())),
    }])
}

fn refuse_zero(call: &Call) -> Result<(), String> {
    match call.input(1)?.stored_ints() {
        Some(divisors) if divisors.contains(&0) => Err("integer division by zero".into()),
        _ => Ok(()),
    }
}

/// `Mod` takes the sign of the divisor, or of the dividend with `fmod=1`.
fn modulo(call: &Call) -> Results {
    refuse_zero(call)?;
    if call.attributes.int("fmod", 0) == 1 {
        return binary(call, i64::wrapping_rem, |a, b| a % b, |a, b| a % b);
    }
    let floor_mod = |a: f64, b: f64| match a % b {
        0.0 => 0f64.copysign(b),
        r if (r < 0.0) != (b < 0.0) => r + b,
        r => r,
    };
    let int = |a: i64, b: i64| a.wrapping_rem(b).wrapping_add(b).wrapping_rem(b);
    binary(call, int, |a, b| floor_mod(f64::from(a), f64::from(b)) as f32, floor_mod)
}

/// The result has the type of the base, whatever the type of the exponent.
fn power(call: &Call) -> Results {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let int = |x: i64, y: i64| match u32::try_from(y) {
        Ok(y) => x.wrapping_pow(y),
        Err(_) => (x as f64).powf(y as f64) as i64,
    };
    let single = |x: f32, y: f64| f64::from(x).powf(y) as f32;
    Ok(vec![match (a.values(), b.values()) {
        (Values::I64(x), Values::I64(y)) => map2((a, x), (b, y), int)?,
        (Values::I64(x), Values::F32(y)) => map2((a, x), (b, y), |x, y| (x as f64).powf(f64::from(y)) as i64)?,
        (Values::I64(x), Values::F64(y)) => map2((a, x), (b, y), |x, y| (x as f64).powf(y) as i64)?,
        (Values::F32(x), Values::I64(y)) => map2((a, x), (b, y), |x, y| single(x, y as f64))?,
        (Values::F32(x), Values::F32(y)) => map2((a, x), (b, y), |x, y| single(x, f64::from(y)))?,
        (Values::F32(x), Values::F64(y)) => map2((a, x), (b, y), single)?,
        (Values::F64(x), Values::I64(y)) => map2((a, x), (b, y), |x, y| x.powf(y as f64))?,
        (Values::F64(x), Values::F32(y)) => map2((a, x), (b, y), |x, y| x.powf(f64::from(y)))?,
        (Values::F64(x), Values::F64(y)) => map2((a, x), (b, y), f64::powf)?,
        _ => return Err("an operand of truth values".into()),
    }])
}

fn fold(call: &Call, f: fn(&StaticTensor, &StaticTensor) -> Result<StaticTensor, String>) -> Results {
    let mut result = call.input(0)?.clone();
    for index in 1..call.inputs.len() {
        result = f(&result, call.input(index)?)?;
    }
    Ok(vec![result])
}

/// The greater of each pair; NaN if either is.
fn maximum(a: &StaticTensor, b: &StaticTensor) -> Result<StaticTensor, String> {
    numeric(
        a,
        b,
        i64::max,
        |x, y| if x > y || x.is_nan() { x } else { y },
        |x, y| if x > y || x.is_nan() { x } else { y },
    )
}

/// The smaller of each pair; NaN if either is.
fn minimum(a: &StaticTensor, b: &StaticTensor) -> Result<StaticTensor, String> {
    numeric(
        a,
        b,
        i64::min,
        |x, y| if x < y || x.is_nan() { x } else { y },
        |x, y| if x < y || x.is_nan() { x } else { y },
    )
}

/// The bounds are operands; before operator set 11 they are attributes.
fn clip(call: &Call) -> Results {
    let mut result = call.input(0)?.clone();
    if call.opset < 11 {
        let bounds = [("min", f32::MIN), ("max", f32::MAX)].map(|(name, default)| call.attributes.float(name, default));
        let values = result.stored_floats().ok_or("an operand that is not a float")?;
        return Ok(vec![map1(&result, values, |x| x.max(bounds[0]).min(bounds[1]))?]);
    }
    if let Some(low) = call.optional(1) {
        result = maximum(&result, low)?;
    }
    if let Some(high) = call.optional(2) {
        result = minimum(&result, high)?;
    }
    Ok(vec![result])
}
