//! Comparisons, logic and selection, element by element.

use super::arithmetic::{map1, map2};
use super::evaluate::{Call, Results};
use super::tensor::{Element, StaticTensor, Values};
use super::walk::Broadcast;

pub(super) fn operator(op_type: &str) -> Option<fn(&Call) -> Results> {
    Some(match op_type {
        "Equal" => equal,
        "Less" => |c| order(c, |a, b| a < b, |a, b| a < b),
        "LessOrEqual" => |c| order(c, |a, b| a <= b, |a, b| a <= b),
        "Greater" => |c| order(c, |a, b| a > b, |a, b| a > b),
        "GreaterOrEqual" => |c| order(c, |a, b| a >= b, |a, b| a >= b),
        "And" => |c| logic(c, |a, b| a & b),
        "Or" => |c| logic(c, |a, b| a | b),
        "Xor" => |c| logic(c, |a, b| a ^ b),
        "Not" => not,
        "IsNaN" => |c| classify(c, f64::is_nan),
        "IsInf" => is_inf,
        "Where" => select,
        _ => return None,
    })
}

fn mixed(a: &StaticTensor, b: &StaticTensor) -> String {
    format!("operands of types {:?} and {:?}", a.dtype(), b.dtype())
}

fn equal(call: &Call) -> Results {
    let (a, b) = (call.input(0)?, call.input(1)?);
    match (a.values(), b.values()) {
        (Values::Bool(x), Values::Bool(y)) => Ok(vec![map2((a, x), (b, y), |x, y| x == y)?]),
        _ => order(call, |x, y| x == y, |x, y| x == y),
    }
}

/// Single precision is compared in double precision, which changes no outcome.
fn order(call: &Call, int: impl Fn(i64, i64) -> bool, float: impl Fn(f64, f64) -> bool) -> Results {
    let (a, b) = (call.input(0)?, call.input(1)?);
    Ok(vec![match (a.values(), b.values()) {
        (Values::I64(x), Values::I64(y)) => map2((a, x), (b, y), int)?,
        (Values::F32(x), Values::F32(y)) => map2((a, x), (b, y), |x, y| float(f64::from(x), f64::from(y)))?,
        (Values::F64(x), Values::F64(y)) => map2((a, x), (b, y), float)?,
        _ => return Err(mixed(a, b)),
    }])
}

fn logic(call: &Call, f: impl Fn(bool, bool) -> bool) -> Results {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let (Some(x), Some(y)) = (a.stored_bools(), b.stored_bools()) else { return Err(mixed(a, b)) };
    Ok(vec![map2((a, x), (b, y), f)?])
}

fn not(call: &Call) -> Results {
    let x = call.input(0)?;
    let values = x.stored_bools().ok_or("an operand that is not of truth values")?;
    Ok(vec![map1(x, values, |v: bool| !v)?])
}

fn classify(call: &Call, f: impl Fn(f64) -> bool) -> Results {
    let x = call.input(0)?;
    Ok(vec![match x.values() {
        Values::F32(v) => map1(x, v, |a| f(f64::from(a)))?,
        Values::F64(v) => map1(x, v, f)?,
        _ => return Err(format!("an operand of type {:?}", x.dtype())),
    }])
}

fn is_inf(call: &Call) -> Results {
    let positive = call.attributes.int("detect_positive", 1) != 0;
    let negative = call.attributes.int("detect_negative", 1) != 0;
    classify(call, |x| x.is_infinite() && if x > 0.0 { positive } else { negative })
}

/// `Where`: the second operand where the first is true, else the third.
fn select(call: &Call) -> Results {
    let (condition, a, b) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let flags = condition.stored_bools().ok_or("a condition that is not of truth values")?;
    Ok(vec![match (a.values(), b.values()) {
        (Values::I64(x), Values::I64(y)) => choose((condition, flags), (a, x), (b, y))?,
        (Values::Bool(x), Values::Bool(y)) => choose((condition, flags), (a, x), (b, y))?,
        (Values::F32(x), Values::F32(y)) => choose((condition, flags), (a, x), (b, y))?,
        (Values::F64(x), Values::F64(y)) => choose((condition, flags), (a, x), (b, y))?,
        _ => return Err(mixed(a, b)),
    }])
}

/// Chooses between elements of two tensors of one type.
pub(super) fn choose<T: Element>(
    (condition, flags): (&StaticTensor, &[bool]),
    (a, a_values): (&StaticTensor, &[T]),
    (b, b_values): (&StaticTensor, &[T]),
) -> Result<StaticTensor, String> {
    let broadcast = Broadcast::new([condition, a, b])?;
    let mut result = Vec::with_capacity(broadcast.stored.iter().product());
    broadcast.for_each_row(|[c, i, j], n, [dc, di, dj]| {
        let pick = |k: usize| if flags[c + k * dc] { a_values[i + k * di] } else { b_values[j + k * dj] };
        result.extend((0..n).map(pick));
    });
    StaticTensor::from_elements(broadcast.shape, broadcast.stored, result)
}
