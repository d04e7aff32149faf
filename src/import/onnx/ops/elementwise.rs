//! Element-wise operators.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{AddN, Binary, Cast, Unary, UnaryKind};
use galvatron_ir::types::DType;

use super::super::weights::ElementType;
use super::{Call, Fault, Lowered, Operator, Results, broadcast_shape, one, unsupported_type};

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "Add" => |c| binary(c, Binary::ADD),
        "Sub" => |c| binary(c, Binary::SUB),
        "Mul" => |c| binary(c, Binary::MUL),
        "Div" => |c| binary(c, Binary::DIV),
        "Mod" => |c| binary(c, if c.attributes().int("fmod", 0) == 0 { Binary::MOD } else { Binary::REM }),
        "Pow" => pow,
        "Sum" => sum,
        "Mean" => mean,
        "Max" => |c| joined(c, Binary::MAX),
        "Min" => |c| joined(c, Binary::MIN),
        "Neg" => |c| unary(c, UnaryKind::Neg),
        "Abs" => |c| unary(c, UnaryKind::Abs),
        "Sign" => |c| unary(c, UnaryKind::Sign),
        "Floor" => |c| unary(c, UnaryKind::Floor),
        "Ceil" => |c| unary(c, UnaryKind::Ceil),
        "Round" => |c| unary(c, UnaryKind::Round),
        "Exp" => |c| unary(c, UnaryKind::Exp),
        "Log" => |c| unary(c, UnaryKind::Log),
        "Sqrt" => |c| unary(c, UnaryKind::Sqrt),
        "Reciprocal" => |c| unary(c, UnaryKind::Reciprocal),
        "Sin" => |c| unary(c, UnaryKind::Sin),
        "Cos" => |c| unary(c, UnaryKind::Cos),
        "Tanh" => |c| unary(c, UnaryKind::Tanh),
        "Erf" => |c| unary(c, UnaryKind::Erf),
        "Sigmoid" => |c| unary(c, UnaryKind::Sigmoid),
        "Relu" => |c| unary(c, UnaryKind::Relu),
        "Cast" => cast,
        "CastLike" => cast_like,
        _ => return None,
    })
}

pub(super) fn unary(call: &mut Call<'_, '_>, kind: UnaryKind) -> Results {
    let x = call.value(0)?;
    match call.ty(x).dtype {
        DType::I64 => unary_of_integers(call, kind, x),
        _ => {
            let x = call.float(0)?;
            one(call.emit(Unary { kind }, &[x])?)
        }
    }
}

/// The functions that give integers for integers.
fn unary_of_integers(call: &mut Call<'_, '_>, kind: UnaryKind, x: ValueId) -> Results {
    let zero = call.number(DType::I64, 0.0)?;
    one(match kind {
        UnaryKind::Neg => call.emit(Binary::SUB, &[zero, x])?,
        UnaryKind::Relu => call.emit(Binary::MAX, &[x, zero])?,
        UnaryKind::Abs => {
            let negative = call.emit(Binary::SUB, &[zero, x])?;
            call.emit(Binary::MAX, &[x, negative])?
        }
        UnaryKind::Sign => {
            let (below, above) = (call.number(DType::I64, -1.0)?, call.number(DType::I64, 1.0)?);
            let bounded = call.emit(Binary::MAX, &[x, below])?;
            call.emit(Binary::MIN, &[bounded, above])?
        }
        _ => return Err(unsupported_type(DType::I64)),
    })
}

/// Two operands with NumPy broadcasting; static ones stay as narrow as that allows.
pub(super) fn operands(call: &mut Call<'_, '_>) -> Result<[ValueId; 2], Fault> {
    let shapes = [call.shape(0)?, call.shape(1)?];
    let result = broadcast_shape(&[&shapes[0], &shapes[1]])?;
    Ok([call.broadcastable(0, &[&shapes[1]], &result)?, call.broadcastable(1, &[&shapes[0]], &result)?])
}

/// An op of two floats or two integers.
fn binary(call: &mut Call<'_, '_>, op: Binary) -> Results {
    let args = operands(call)?;
    one(arithmetic(call, op, args)?)
}

fn arithmetic(call: &mut Call<'_, '_>, op: Binary, args: [ValueId; 2]) -> Result<ValueId, Fault> {
    match call.ty(args[0]).dtype {
        DType::Bool => Err(unsupported_type(DType::Bool)),
        _ => call.emit(op, &args),
    }
}

/// The exponent may be of another type than the base, whose type the result has.
fn pow(call: &mut Call<'_, '_>) -> Results {
    let [base, exponent] = operands(call)?;
    let to = call.ty(base).dtype;
    match (to, call.ty(exponent).dtype) {
        (a, b) if a == b => one(arithmetic(call, Binary::POW, [base, exponent])?),
        (DType::Bool, _) => Err(unsupported_type(DType::Bool)),
        (DType::I64, _) => {
            let base = call.emit(Cast { to: DType::F32 }, &[base])?;
            let power = call.emit(Binary::POW, &[base, exponent])?;
            one(call.emit(Cast { to }, &[power])?)
        }
        _ => {
            let exponent = call.emit(Cast { to }, &[exponent])?;
            one(call.emit(Binary::POW, &[base, exponent])?)
        }
    }
}

/// Any number of operands, joined one after the other; one alone is the result.
fn joined(call: &mut Call<'_, '_>, op: Binary) -> Results {
    if call.node.inputs.len() == 2 {
        return binary(call, op);
    }
    let args = (0..call.node.inputs.len()).map(|i| call.value(i)).collect::<Result<Vec<_>, _>>()?;
    let &first = args.first().ok_or("no operands")?;
    one(args[1..].iter().try_fold(first, |x, &y| arithmetic(call, op, [x, y]))?)
}

/// As [`joined`]; more than two operands of one type are one op.
fn sum(call: &mut Call<'_, '_>) -> Results {
    let args = (0..call.node.inputs.len()).map(|i| call.value(i)).collect::<Result<Vec<_>, _>>()?;
    let same = args.iter().all(|&arg| call.ty(arg) == call.ty(args[0]) && call.ty(arg).dtype.is_float());
    if same && args.len() > 2 { one(call.emit(AddN, &args)?) } else { joined(call, Binary::ADD) }
}

fn mean(call: &mut Call<'_, '_>) -> Results {
    let n = call.node.inputs.len();
    let Some(Lowered::Value(total)) = sum(call)?.pop() else { return Err("no operands".into()) };
    if !call.ty(total).dtype.is_float() {
        return Err(unsupported_type(call.ty(total).dtype));
    }
    let share = call.scalar(1.0 / n as f64)?;
    one(call.emit(Binary::MUL, &[total, share])?)
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
        check(&["a = Round x", "y = Softplus a"], "round f32[2, 4]; softplus f32[2, 4]");
        check(&["y = Cast{to=1} x"], "");
    }

    #[test]
    fn many_operands_are_joined() {
        check(&["y = Max x x x"], "max f32[2, 4]; max f32[2, 4]");
        check(&["y = Mean x x x"], "add_n f32[2, 4]; full<0.3333333333333333> f32[]; mul f32[2, 4]");
        check(&["y = Min x"], "");
    }

    #[test]
    fn exponents_may_be_integers() {
        let builder = Builder::new(&["y = Pow x three"]).ints("three", &[3]);
        assert_eq!(builder.ops(), "full<3.0> i64[1]; cast f32[1]; pow f32[2, 4]");
    }

    #[test]
    fn integers_are_computed_with() {
        let nodes = ["a = Neg ids", "b = Mod{fmod=1} a ids", "y = Pow b x"];
        let builder = Builder::new(&nodes).input("ids", 7, "batch 4");
        let expected = "full<0.0> i64[]; sub i64[2, 4]; rem i64[2, 4]; cast f32[2, 4]; pow f32[2, 4]; cast i64[2, 4]";
        assert_eq!(builder.ops(), expected);
        let truth = Builder::new(&["m = Cast{to=9} x", "y = Add m m"]).import().unwrap_err();
        assert!(truth.contains("`Add` on bool values that depend on the data (at `y`)"), "{truth}");
    }
}
