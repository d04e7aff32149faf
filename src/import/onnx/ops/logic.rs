//! Choices and truth values.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{Cast, CausalMask, Full, Unary, UnaryKind, Where};
use galvatron_ir::types::{DType, Scalar, TensorType};

use super::super::statics;
use super::layout::expanded;
use super::{Call, Fault, Operator, Results, broadcast_shape, one};

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "Where" => choice,
        "IsNaN" => is_nan,
        "And" => |c| combined(c, true),
        "Or" => |c| combined(c, false),
        "Not" => not,
        "Trilu" => trilu,
        _ => return None,
    })
}

fn is_nan(call: &mut Call<'_, '_>) -> Results {
    let x = call.value(0)?;
    one(call.emit(Unary { kind: UnaryKind::IsNan }, &[x])?)
}

fn choice(call: &mut Call<'_, '_>) -> Results {
    let shapes = [call.shape(0)?, call.shape(1)?, call.shape(2)?];
    let result = broadcast_shape(&[&shapes[0], &shapes[1], &shapes[2]])?;
    let mut args = Vec::new();
    for index in [1, 2] {
        let others: Vec<&[u64]> = (0..3).filter(|&i| i != index).map(|i| shapes[i].as_slice()).collect();
        args.push(call.broadcastable(index, &others, &result)?);
    }
    if let Some(statics::Scalar::Bool(flag)) = call.known(0).and_then(|t| t.as_splat()) {
        return one(expanded(call, args[usize::from(!flag)], result)?);
    }
    let hidden = call.lowering.causal_mask(&call.node.inputs[0]);
    let condition = match hidden {
        Some(mask) => {
            args.swap(0, 1);
            above(call, &shapes[0], mask.offset)?
        }
        None => call.broadcastable(0, &[&shapes[1], &shapes[2]], &result)?,
    };
    let chosen = call.emit(Where, &[condition, args[0], args[1]])?;
    one(expanded(call, chosen, result)?)
}

/// Whether a place is hidden by a causal mask of that shape: the ones of a mask, as truth values.
fn above(call: &mut Call<'_, '_>, shape: &[u64], offset: i64) -> Result<ValueId, Fault> {
    let n_outer = shape.len() - 2;
    let shape = [&vec![1; n_outer], &shape[n_outer..]].concat();
    let ones = call.emit(CausalMask { shape, offset, fill: Scalar::new(1.0) }, &[])?;
    call.emit(Cast { to: DType::Bool }, &[ones])
}

/// The upper (or, with `upper=0`, the lower) triangle of the last two dimensions, shifted by k columns; 0 elsewhere.
fn trilu(call: &mut Call<'_, '_>) -> Results {
    let x = call.value(0)?;
    let ty = call.ty(x);
    if ty.rank() < 2 {
        return Err(format!("a tensor of rank {}", ty.rank()).into());
    }
    let k = call.ints(1, "")?.and_then(|k| k.first().copied()).unwrap_or(0);
    let upper = call.attributes().int("upper", 1) != 0;
    // Above the diagonal that the triangle begins with, or ends before.
    let is_above = above(call, &ty.shape, if upper { k.saturating_sub(1) } else { k })?;
    let zero = call.number(ty.dtype, 0.0)?;
    one(if upper { call.choose(is_above, x, zero)? } else { call.choose(is_above, zero, x)? })
}

fn flag(call: &mut Call<'_, '_>, value: bool) -> Result<ValueId, Fault> {
    let ty = TensorType::new(DType::Bool, []);
    call.emit(Full { ty, value: Scalar::new(f64::from(u8::from(value))) }, &[])
}

fn not(call: &mut Call<'_, '_>) -> Results {
    let x = call.value(0)?;
    let (no, yes) = (flag(call, false)?, flag(call, true)?);
    one(call.emit(Where, &[x, no, yes])?)
}

/// Both (or at least one) of two truth values; a known one decides, or leaves the other.
fn combined(call: &mut Call<'_, '_>, both: bool) -> Results {
    let shapes = [call.shape(0)?, call.shape(1)?];
    let result = broadcast_shape(&[&shapes[0], &shapes[1]])?;
    for (index, other) in [(0, 1), (1, 0)] {
        if let Some(statics::Scalar::Bool(known)) = call.known(index).and_then(|t| t.as_splat()) {
            let value = if known == both { call.value(other)? } else { flag(call, known)? };
            return one(expanded(call, value, result)?);
        }
    }
    let a = call.broadcastable(0, &[&shapes[1]], &result)?;
    let b = call.broadcastable(1, &[&shapes[0]], &result)?;
    let known = flag(call, !both)?;
    let args = if both { [a, b, known] } else { [a, known, b] };
    let value = call.emit(Where, &args)?;
    one(expanded(call, value, result)?)
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::Builder;

    #[test]
    fn causal_choices_need_no_table() {
        let nodes = ["c = Cast{to=9} tril", "y = Where c x fill"];
        let builder = Builder::new(&nodes).input("x", 1, "batch 6 6").f32("fill", &[]);
        let mask = builder.matrix("tril", 6, |row, column| i64::from(column <= row));
        assert_eq!(mask.ops(), "full<0.5> f32[]; causal_mask f32[6, 6]; cast bool[6, 6]; where f32[2, 6, 6]");
    }

    #[test]
    fn known_conditions_choose() {
        let builder = Builder::new(&["c = Cast{to=9} zero", "y = Where c x z"]).ints("zero", &[0]).f32("z", &[]);
        assert_eq!(builder.ops(), "full<0.5> f32[]; broadcast<[]> f32[2, 4]");
    }

    #[test]
    fn triangles_are_chosen_by_a_mask() {
        let lower = Builder::new(&["y = Trilu{upper=0} x"]);
        assert_eq!(lower.ops(), "causal_mask f32[2, 4]; cast bool[2, 4]; full<0.0> f32[]; where f32[2, 4]");
    }

    #[test]
    fn truth_values_are_combined() {
        let nodes = ["m = Cast{to=9} ids", "n = Not m", "a = And m n", "b = Or a yes", "y = Where b x z"];
        let builder = Builder::new(&nodes).input("ids", 7, "batch 4").f32("z", &[]).ints("one", &[1]);
        let builder = builder.node("yes = Cast{to=9} one");
        let expected = "cast bool[2, 4]; full<0.0> bool[]; full<1.0> bool[]; where bool[2, 4]; full<0.0> bool[]; \
                        where bool[2, 4]; full<1.0> bool[]; broadcast<[]> bool[2, 4]; full<0.5> f32[]; where f32[2, 4]";
        assert_eq!(builder.ops(), expected);
    }
}
