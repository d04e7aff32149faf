//! Sums, products, extremes and norms over dimensions.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{Binary, Compare, Reduce, ReduceKind, ReduceSum, Unary, UnaryKind};
use galvatron_ir::types::DType;

use super::{Call, Fault, Operator, Results, axis_index, one, unsupported_type};

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "ReduceSum" => |c| reduced(c, sum),
        "ReduceMean" => |c| reduced(c, mean),
        "ReduceMax" => |c| reduced(c, |c, x, dims| extreme(c, x, dims, ReduceKind::Max)),
        "ReduceMin" => |c| reduced(c, |c, x, dims| extreme(c, x, dims, ReduceKind::Min)),
        "ReduceProd" => |c| reduced(c, |c, x, dims| extreme(c, x, dims, ReduceKind::Prod)),
        "ReduceL1" => |c| reduced(c, l1),
        "ReduceL2" => |c| reduced(c, l2),
        "ReduceSumSquare" => |c| reduced(c, sum_square),
        "ReduceLogSum" => |c| reduced(c, log_sum),
        "ReduceLogSumExp" => |c| reduced(c, log_sum_exp),
        "GlobalAveragePool" => pool,
        _ => return None,
    })
}

/// What a reduction makes of a value and the dimensions (ascending), which disappear.
type Reduction = fn(&mut Call<'_, '_>, ValueId, &[usize]) -> Result<ValueId, Fault>;

/// Axes are an operand or an attribute; without axes all dimensions, or none if the node says so.
fn reduced(call: &mut Call<'_, '_>, reduction: Reduction) -> Results {
    let x = call.value(0)?;
    let rank = call.ty(x).rank();
    let axes = call.ints(1, "axes")?.unwrap_or_default();
    if axes.is_empty() && call.attributes().int("noop_with_empty_axes", 0) != 0 {
        return one(x);
    }
    let mut dims = axes.iter().map(|&axis| axis_index(axis, rank)).collect::<Result<Vec<_>, _>>()?;
    if dims.is_empty() {
        dims = (0..rank).collect();
    }
    dims.sort();
    dims.dedup();
    let value = reduction(call, x, &dims)?;
    if call.attributes().int("keepdims", 1) == 0 { one(value) } else { one(kept(call, value, x, &dims)?) }
}

/// A result with extents of 1 where the dimensions of the operand were.
pub(super) fn kept(
    call: &mut Call<'_, '_>,
    value: ValueId,
    operand: ValueId,
    dims: &[usize],
) -> Result<ValueId, Fault> {
    let mut shape = call.ty(operand).shape;
    dims.iter().for_each(|&d| shape[d] = 1);
    call.reshape(value, &shape)
}

/// The mean over all dimensions after the second.
fn pool(call: &mut Call<'_, '_>) -> Results {
    let x = call.value(0)?;
    let dims: Vec<usize> = (2..call.ty(x).rank()).collect();
    let value = mean(call, x, &dims)?;
    one(kept(call, value, x, &dims)?)
}

fn sum(call: &mut Call<'_, '_>, x: ValueId, dims: &[usize]) -> Result<ValueId, Fault> {
    over(call, ReduceSum { dims: dims.to_vec() }, x)
}

fn extreme(call: &mut Call<'_, '_>, x: ValueId, dims: &[usize], kind: ReduceKind) -> Result<ValueId, Fault> {
    over(call, Reduce { kind, dims: dims.to_vec() }, x)
}

fn over(call: &mut Call<'_, '_>, op: impl Into<Op>, x: ValueId) -> Result<ValueId, Fault> {
    match call.ty(x).dtype {
        DType::Bool => Err(unsupported_type(DType::Bool)),
        _ => call.emit(op, &[x]),
    }
}

/// The sum over the number of elements.
pub(super) fn mean(call: &mut Call<'_, '_>, x: ValueId, dims: &[usize]) -> Result<ValueId, Fault> {
    let ty = call.ty(x);
    if !ty.dtype.is_float() {
        return Err(unsupported_type(ty.dtype));
    }
    let n: u64 = dims.iter().map(|&d| ty.shape[d]).product();
    let total = sum(call, x, dims)?;
    let per_element = call.scalar(1.0 / n as f64)?;
    call.emit(Binary::MUL, &[total, per_element])
}

fn l1(call: &mut Call<'_, '_>, x: ValueId, dims: &[usize]) -> Result<ValueId, Fault> {
    let x = float_unary(call, UnaryKind::Abs, x)?;
    sum(call, x, dims)
}

fn sum_square(call: &mut Call<'_, '_>, x: ValueId, dims: &[usize]) -> Result<ValueId, Fault> {
    let square = call.emit(Binary::MUL, &[x, x])?;
    sum(call, square, dims)
}

/// The root of the sum of squares; where that is 0 its slope is 0 too.
pub(super) fn l2(call: &mut Call<'_, '_>, x: ValueId, dims: &[usize]) -> Result<ValueId, Fault> {
    let square = sum_square(call, x, dims)?;
    let (zero, unit) = (call.scalar(0.0)?, call.scalar(1.0)?);
    let vanishes = call.emit(Compare::EQUAL, &[square, zero])?;
    let safe = call.choose(vanishes, unit, square)?;
    let root = float_unary(call, UnaryKind::Sqrt, safe)?;
    call.choose(vanishes, zero, root)
}

fn log_sum(call: &mut Call<'_, '_>, x: ValueId, dims: &[usize]) -> Result<ValueId, Fault> {
    let total = sum(call, x, dims)?;
    float_unary(call, UnaryKind::Log, total)
}

/// m + ln(sum of e^(x - m)), where m is the largest element if that is finite, and otherwise 0.
fn log_sum_exp(call: &mut Call<'_, '_>, x: ValueId, dims: &[usize]) -> Result<ValueId, Fault> {
    let largest = extreme(call, x, dims, ReduceKind::Max)?;
    let size = float_unary(call, UnaryKind::Abs, largest)?;
    let (zero, infinity) = (call.scalar(0.0)?, call.scalar(f64::INFINITY)?);
    let is_finite = call.emit(Compare::LESS, &[size, infinity])?;
    let base = call.choose(is_finite, largest, zero)?;
    let spread = kept(call, base, x, dims)?;
    let shifted = call.emit(Binary::SUB, &[x, spread])?;
    let powers = float_unary(call, UnaryKind::Exp, shifted)?;
    let log = log_sum(call, powers, dims)?;
    call.emit(Binary::ADD, &[log, base])
}

fn float_unary(call: &mut Call<'_, '_>, kind: UnaryKind, x: ValueId) -> Result<ValueId, Fault> {
    match call.ty(x).dtype {
        dtype if dtype.is_float() => call.emit(Unary { kind }, &[x]),
        dtype => Err(unsupported_type(dtype)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{Builder, check};

    #[test]
    fn means_are_sums_over_a_count() {
        let mean = "reduce_sum f32[2]; full<0.25> f32[]; mul f32[2]; reshape f32[2, 1]";
        check(&["y = ReduceMean{axes=[-1]} x"], mean);
        check(&["y = ReduceSum{keepdims=0} x"], "reduce_sum f32[]");
        check(&["y = ReduceSum{noop_with_empty_axes=1} x"], "");
    }

    #[test]
    fn extremes_and_norms_are_made_of_few_ops() {
        check(&["y = ReduceMax{axes=[0], keepdims=0} x"], "reduce_max f32[4]");
        check(&["y = ReduceL1{keepdims=0} x"], "abs f32[2, 4]; reduce_sum f32[]");
        let integers = Builder::new(&["y = ReduceProd{keepdims=0} ids"]).input("ids", 7, "batch 4");
        assert_eq!(integers.ops(), "reduce_prod i64[]");
    }
}
