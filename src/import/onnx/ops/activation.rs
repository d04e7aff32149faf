//! Activation functions, and bounds.
//!
//! Where a function is made of two pieces, a condition chooses between them, so that its derivative at the joint is that of
//! the piece which PyTorch takes there.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{Binary, Compare, Unary, UnaryKind};
use galvatron_ir::types::DType;

use super::super::lower::as_f64;
use super::elementwise::unary;
use super::{Call, Fault, Operator, Results, one};

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "Gelu" => gelu,
        "Swish" => swish,
        "Mish" => mish,
        "Softplus" => |c| unary(c, UnaryKind::Softplus),
        "Softsign" => softsign,
        "Elu" => |c| exponential(c, 1.0, 1.0, false),
        "Selu" => |c| exponential(c, 1.673_263_2, 1.050_701, false),
        "Celu" => |c| exponential(c, 1.0, 1.0, true),
        "LeakyRelu" => leaky_relu,
        "PRelu" => p_relu,
        "ThresholdedRelu" => thresholded_relu,
        "HardSigmoid" => hard_sigmoid,
        "HardSwish" => hard_swish,
        "Clip" => clip,
        _ => return None,
    })
}

fn gelu(call: &mut Call<'_, '_>) -> Results {
    let kind = match call.attributes().string("approximate", "none") {
        "none" => UnaryKind::Gelu,
        "tanh" => UnaryKind::GeluTanh,
        other => return Err(format!("the approximation `{other}` is not one of `none` and `tanh`").into()),
    };
    unary(call, kind)
}

/// x sigmoid(alpha x)
fn swish(call: &mut Call<'_, '_>) -> Results {
    let alpha = f64::from(call.attributes().float("alpha", 1.0));
    if alpha == 1.0 {
        return unary(call, UnaryKind::Silu);
    }
    let (x, alpha) = (call.float(0)?, call.scalar(alpha)?);
    let scaled = call.emit(Binary::MUL, &[x, alpha])?;
    let gate = call.emit(Unary { kind: UnaryKind::Sigmoid }, &[scaled])?;
    one(call.emit(Binary::MUL, &[x, gate])?)
}

/// x tanh(ln(1 + e^x))
fn mish(call: &mut Call<'_, '_>) -> Results {
    let x = call.float(0)?;
    let soft = call.emit(Unary { kind: UnaryKind::Softplus }, &[x])?;
    let gate = call.emit(Unary { kind: UnaryKind::Tanh }, &[soft])?;
    one(call.emit(Binary::MUL, &[x, gate])?)
}

/// x / (1 + |x|)
fn softsign(call: &mut Call<'_, '_>) -> Results {
    let (x, unit) = (call.float(0)?, call.scalar(1.0)?);
    let size = call.emit(Unary { kind: UnaryKind::Abs }, &[x])?;
    let size = call.emit(Binary::ADD, &[size, unit])?;
    one(call.emit(Binary::DIV, &[x, size])?)
}

/// `above` where x > bound, otherwise `below`.
fn pieces(
    call: &mut Call<'_, '_>,
    x: ValueId,
    bound: ValueId,
    above: ValueId,
    below: ValueId,
) -> Result<ValueId, Fault> {
    let is_above = call.emit(Compare::LESS, &[bound, x])?;
    call.choose(is_above, above, below)
}

/// gamma x where x > 0, otherwise gamma alpha (e^x - 1), or e^(x / alpha) if `stretched`.
fn exponential(call: &mut Call<'_, '_>, alpha: f32, gamma: f32, stretched: bool) -> Results {
    let alpha = f64::from(call.attributes().float("alpha", alpha));
    let gamma = f64::from(call.attributes().float("gamma", gamma));
    let (x, zero, unit) = (call.float(0)?, call.scalar(0.0)?, call.scalar(1.0)?);
    // The exponential of a large x, which is not chosen, must not overflow: its derivative would be no number.
    let negative = pieces(call, x, zero, zero, x)?;
    let factor = call.scalar(if stretched { 1.0 / alpha } else { 1.0 })?;
    let exponent = if stretched { call.emit(Binary::MUL, &[negative, factor])? } else { negative };
    let power = call.emit(Unary { kind: UnaryKind::Exp }, &[exponent])?;
    let less = call.emit(Binary::SUB, &[power, unit])?;
    let slope = call.scalar(alpha)?;
    let below = call.emit(Binary::MUL, &[less, slope])?;
    let value = pieces(call, x, zero, x, below)?;
    if gamma == 1.0 {
        return one(value);
    }
    let gamma = call.scalar(gamma)?;
    one(call.emit(Binary::MUL, &[value, gamma])?)
}

/// x where x > 0, otherwise alpha x.
fn leaky_relu(call: &mut Call<'_, '_>) -> Results {
    let alpha = f64::from(call.attributes().float("alpha", 0.01));
    let (x, alpha, zero) = (call.float(0)?, call.scalar(alpha)?, call.scalar(0.0)?);
    let below = call.emit(Binary::MUL, &[x, alpha])?;
    one(pieces(call, x, zero, x, below)?)
}

/// As [`leaky_relu`], with slopes that are an operand.
fn p_relu(call: &mut Call<'_, '_>) -> Results {
    let (x, slope, zero) = (call.float(0)?, call.value(1)?, call.scalar(0.0)?);
    let below = call.emit(Binary::MUL, &[x, slope])?;
    one(pieces(call, x, zero, x, below)?)
}

/// x where x > alpha, otherwise 0.
fn thresholded_relu(call: &mut Call<'_, '_>) -> Results {
    let alpha = f64::from(call.attributes().float("alpha", 1.0));
    let (x, alpha, zero) = (call.float(0)?, call.scalar(alpha)?, call.scalar(0.0)?);
    one(pieces(call, x, alpha, x, zero)?)
}

/// alpha x + beta between 0 and 1; flat at these ends.
fn hard_sigmoid(call: &mut Call<'_, '_>) -> Results {
    let alpha = f64::from(call.attributes().float("alpha", 0.2));
    let beta = f64::from(call.attributes().float("beta", 0.5));
    let x = call.float(0)?;
    one(ramp(call, x, alpha, beta)?)
}

fn ramp(call: &mut Call<'_, '_>, x: ValueId, alpha: f64, beta: f64) -> Result<ValueId, Fault> {
    let (alpha, beta) = (call.scalar(alpha)?, call.scalar(beta)?);
    let (zero, unit) = (call.scalar(0.0)?, call.scalar(1.0)?);
    let scaled = call.emit(Binary::MUL, &[x, alpha])?;
    let line = call.emit(Binary::ADD, &[scaled, beta])?;
    let above = pieces(call, line, zero, line, zero)?;
    let is_below = call.emit(Compare::LESS, &[line, unit])?;
    call.choose(is_below, above, unit)
}

/// x times the ramp of slope 1/6 around 1/2.
fn hard_swish(call: &mut Call<'_, '_>) -> Results {
    let x = call.float(0)?;
    let gate = ramp(call, x, 1.0 / 6.0, 0.5)?;
    one(call.emit(Binary::MUL, &[x, gate])?)
}

/// Between two bounds, of which each may be absent; before operator set 11 they are attributes. The slope at a bound is 1.
fn clip(call: &mut Call<'_, '_>) -> Results {
    let mut value = call.value(0)?;
    for (index, name, is_upper) in [(1, "min", false), (2, "max", true)] {
        let attribute = call.attributes().get(name).map(|_| f64::from(call.attributes().float(name, 0.0)));
        let bound = match attribute {
            Some(bound) => call.scalar(bound)?,
            None if call.has(index) => bound(call, index)?,
            None => continue,
        };
        value = match call.ty(value).dtype {
            DType::I64 => call.emit(if is_upper { Binary::MIN } else { Binary::MAX }, &[value, bound])?,
            _ => {
                let pair = if is_upper { [bound, value] } else { [value, bound] };
                let is_outside = call.emit(Compare::LESS, &pair)?;
                call.choose(is_outside, bound, value)?
            }
        };
    }
    one(value)
}

/// A bound as a scalar.
fn bound(call: &mut Call<'_, '_>, index: usize) -> Result<ValueId, Fault> {
    if let Some(known) = call.known(index).and_then(|t| t.as_splat()) {
        let dtype = super::super::lower::dtype(
            call.known(index).map_or(super::super::statics::StaticType::F32, |t| t.dtype()),
        )?;
        return call.number(dtype, as_f64(known));
    }
    let value = call.value(index)?;
    call.reshape(value, &[])
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{Builder, check};

    #[test]
    fn known_functions_are_one_op() {
        check(&["a = Gelu{approximate=tanh} x", "y = Gelu a"], "gelu_tanh f32[2, 4]; gelu f32[2, 4]");
        check(&["a = Softplus x", "y = Swish a"], "softplus f32[2, 4]; silu f32[2, 4]");
    }

    #[test]
    fn others_are_made_of_their_parts() {
        check(&["y = Swish{alpha=2.5} x"], "full<2.5> f32[]; mul f32[2, 4]; sigmoid f32[2, 4]; mul f32[2, 4]");
        check(&["y = Mish x"], "softplus f32[2, 4]; tanh f32[2, 4]; mul f32[2, 4]");
        let leaky = "full<0.5> f32[]; full<0.0> f32[]; mul f32[2, 4]; less bool[2, 4]; where f32[2, 4]";
        check(&["y = LeakyRelu{alpha=0.5} x"], leaky);
    }

    #[test]
    fn bounds_may_be_absent() {
        let one_sided = Builder::new(&["y = Clip x _ top"]).f32("top", &[]);
        assert_eq!(one_sided.ops(), "full<0.5> f32[]; less bool[2, 4]; where f32[2, 4]");
        check(&["y = Clip x"], "");
        let old = Builder::new(&["y = Clip{min=0.25} x"]).opset(6);
        assert_eq!(old.ops(), "full<0.25> f32[]; less bool[2, 4]; where f32[2, 4]");
        let integers = Builder::new(&["y = Clip ids low"]).input("ids", 7, "batch 4").int("low", 2);
        assert_eq!(integers.ops(), "full<2.0> i64[]; max i64[2, 4]");
    }
}
