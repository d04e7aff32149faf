//! Element-wise operators.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{AddN, Binary, Cast, Unary, UnaryKind};
use galvatron_ir::types::DType;

use super::super::weights::ElementType;
use super::{Call, Fault, Lowered, Operator, Results, broadcast_shape, one};

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "Add" => |c| binary(c, Binary::ADD),
        "Sub" => |c| binary(c, Binary::SUB),
        "Mul" => |c| binary(c, Binary::MUL),
        "Div" => |c| binary(c, Binary::DIV),
        "Pow" => pow,
        "Sum" => sum,
        "Neg" => |c| unary(c, UnaryKind::Neg),
        "Exp" => |c| unary(c, UnaryKind::Exp),
        "Log" => |c| unary(c, UnaryKind::Log),
        "Sqrt" => |c| unary(c, UnaryKind::Sqrt),
        "Reciprocal" => |c| unary(c, UnaryKind::Reciprocal),
        "Tanh" => |c| unary(c, UnaryKind::Tanh),
        "Erf" => |c| unary(c, UnaryKind::Erf),
        "Sigmoid" => |c| unary(c, UnaryKind::Sigmoid),
        "Relu" => |c| unary(c, UnaryKind::Relu),
        "Swish" => swish,
        "Gelu" => gelu,
        "Cast" => cast,
        "CastLike" => cast_like,
        _ => return None,
    })
}

fn unary(call: &mut Call<'_, '_>, kind: UnaryKind) -> Results {
    let x = float(call, 0)?;
    one(call.emit(Unary { kind }, &[x])?)
}

/// An operand that must be a float.
fn float(call: &mut Call<'_, '_>, index: usize) -> Result<ValueId, Fault> {
    let value = call.value(index)?;
    match call.ty(value).dtype {
        dtype if dtype.is_float() => Ok(value),
        dtype => Err(Fault::Unsupported(format!("on {dtype} values that depend on the data"))),
    }
}

/// Two operands with NumPy broadcasting; static ones stay as narrow as that allows.
fn operands(call: &mut Call<'_, '_>) -> Result<[ValueId; 2], Fault> {
    let shapes = [call.shape(0)?, call.shape(1)?];
    let result = broadcast_shape(&[&shapes[0], &shapes[1]])?;
    Ok([call.broadcastable(0, &[&shapes[1]], &result)?, call.broadcastable(1, &[&shapes[0]], &result)?])
}

fn binary(call: &mut Call<'_, '_>, op: Binary) -> Results {
    let args = operands(call)?;
    let dtype = call.ty(args[0]).dtype;
    if !dtype.is_float() {
        return Err(Fault::Unsupported(format!("on {dtype} values that depend on the data")));
    }
    one(call.emit(op, &args)?)
}

/// The exponent may be of another type than the base.
fn pow(call: &mut Call<'_, '_>) -> Results {
    let [base, mut exponent] = operands(call)?;
    if !call.ty(exponent).dtype.is_float() {
        exponent = call.emit(Cast { to: DType::F32 }, &[exponent])?;
    }
    one(call.emit(Binary::POW, &[base, exponent])?)
}

/// Any number of operands; one alone is the result.
fn sum(call: &mut Call<'_, '_>) -> Results {
    let args = (0..call.node.inputs.len()).map(|i| float(call, i)).collect::<Result<Vec<_>, _>>()?;
    let same = args.iter().all(|&arg| call.ty(arg) == call.ty(args[0]));
    match args[..] {
        [] => Err("no operands".into()),
        [x] => one(x),
        _ if same && args.len() > 2 => one(call.emit(AddN, &args)?),
        [first, ref rest @ ..] => {
            let add = |x, &y| call.emit(Binary::ADD, &[x, y]);
            one(rest.iter().try_fold(first, add)?)
        }
    }
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
    let (x, alpha) = (float(call, 0)?, call.scalar(alpha)?);
    let scaled = call.emit(Binary::MUL, &[x, alpha])?;
    let gate = call.emit(Unary { kind: UnaryKind::Sigmoid }, &[scaled])?;
    one(call.emit(Binary::MUL, &[x, gate])?)
}

fn cast(call: &mut Call<'_, '_>) -> Results {
    let number = call.attributes().int("to", 0);
    let to = i32::try_from(number).ok().and_then(ElementType::from_number);
    let to = to.ok_or_else(|| format!("there is no numeric element type {number}"))?;
    cast_to(call, to)
}

fn cast_like(call: &mut Call<'_, '_>) -> Results {
    match call.lowered(1)? {
        Lowered::Value(like) => {
            let to = call.ty(*like).dtype;
            converted(call, to)
        }
        Lowered::Static(like) => {
            let to = super::super::lower::dtype(like.dtype())?;
            converted(call, to)
        }
        _ => Err("operand 1 is no tensor".into()),
    }
}

fn cast_to(call: &mut Call<'_, '_>, to: ElementType) -> Results {
    match to {
        ElementType::F32 => converted(call, DType::F32),
        ElementType::I64 | ElementType::I32 => converted(call, DType::I64),
        ElementType::Bool => converted(call, DType::Bool),
        other => Err(Fault::Unsupported(format!("to {}", other.name()))),
    }
}

fn converted(call: &mut Call<'_, '_>, to: DType) -> Results {
    let x = call.value(0)?;
    if call.ty(x).dtype == to {
        return one(x);
    }
    one(call.emit(Cast { to }, &[x])?)
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{Builder, check};

    #[test]
    fn static_operands_stay_narrow() {
        let builder = Builder::new(&["s = Shape x", "ones = ConstantOfShape s", "y = Add x ones"]);
        assert_eq!(builder.ops(), "full<0.0> f32[1, 1]; add f32[2, 4]");
    }

    #[test]
    fn static_operands_that_widen_the_result_are_whole() {
        let builder = Builder::new(&["ones = ConstantOfShape three", "y = Add x ones"]).ints("three", &[3, 2, 4]);
        assert_eq!(builder.ops(), "full<0.0> f32[3, 2, 4]; add f32[3, 2, 4]");
    }

    #[test]
    fn functions_of_one_operand() {
        check(&["a = Gelu{approximate=tanh} x", "y = Gelu a"], "gelu_tanh f32[2, 4]; gelu f32[2, 4]");
        check(&["y = Cast{to=1} x"], "");
        check(&["y = Swish{alpha=2.5} x"], "full<2.5> f32[]; mul f32[2, 4]; sigmoid f32[2, 4]; mul f32[2, 4]");
    }

    #[test]
    fn exponents_may_be_integers() {
        let builder = Builder::new(&["y = Pow x three"]).ints("three", &[3]);
        assert_eq!(builder.ops(), "full<3.0> i64[1]; cast f32[1]; pow f32[2, 4]");
    }

    #[test]
    fn arithmetic_on_integer_inputs_is_refused() {
        let builder = Builder::new(&["y = Add ids ids"]).input("ids", 7, "batch seq");
        assert!(builder.import().unwrap_err().contains("`Add` on i64 values that depend on the data (at `y`)"));
    }
}
