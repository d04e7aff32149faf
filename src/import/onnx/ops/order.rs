//! Operators that order the elements along an axis, or run along it.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{Binary, Cast, Compare, CumSum, Iota, LogSoftmax, TopK};
use galvatron_ir::types::DType;

use super::layout::transposed;
use super::pieces::reversed;
use super::{Call, Fault, Lowered, Operator, Results, axis_index, one};

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "TopK" => top_k,
        "ArgMax" => |c| extreme_place(c, true),
        "ArgMin" => |c| extreme_place(c, false),
        "CumSum" => cum_sum,
        "LogSoftmax" => log_softmax,
        "Hardmax" => hardmax,
        _ => return None,
    })
}

/// The permutation that swaps an axis and the last one.
fn swap(rank: usize, axis: usize) -> Vec<usize> {
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(axis, rank - 1);
    perm
}

/// Values and indices of the k best along an axis; k is known, or (before operator set 10) an attribute.
fn top_k(call: &mut Call<'_, '_>) -> Results {
    let x = call.value(0)?;
    let rank = call.ty(x).rank();
    let axis = call.axis(-1, rank)?;
    let k = match call.attributes().int("k", 0) {
        0 => call.known_ints(1, "k")?.first().copied().unwrap_or(0),
        k => k,
    };
    let k = u64::try_from(k).map_err(|_| format!("k is {k}"))?;
    let largest = call.attributes().int("largest", 1) != 0;
    let rows = transposed(call, x, swap(rank, axis))?;
    let results = call.emit_all(TopK { k, largest }, &[rows])?;
    let back = |result: ValueId, call: &mut Call<'_, '_>| transposed(call, result, swap(rank, axis));
    Ok(vec![Lowered::Value(back(results[0], call)?), Lowered::Value(back(results[1], call)?)])
}

/// Where the first (or last) of the largest or smallest elements along an axis stands: the best one of each row.
fn extreme_place(call: &mut Call<'_, '_>, largest: bool) -> Results {
    let mut x = call.value(0)?;
    let shape = call.ty(x).shape;
    let axis = axis_index(call.attributes().int("axis", 0), shape.len())?;
    let last = call.attributes().int("select_last_index", 0) != 0;
    if last {
        x = reversed(call, x, axis)?;
    }
    let rows = transposed(call, x, swap(shape.len(), axis))?;
    let mut place = call.emit_all(TopK { k: 1, largest }, &[rows])?[1];
    if last {
        let end = call.number(DType::I64, shape[axis] as f64 - 1.0)?;
        place = call.emit(Binary::SUB, &[end, place])?;
    }
    let place = transposed(call, place, swap(shape.len(), axis))?;
    if call.attributes().int("keepdims", 1) != 0 {
        return one(place);
    }
    let mut kept = shape;
    kept.remove(axis);
    one(call.reshape(place, &kept)?)
}

fn cum_sum(call: &mut Call<'_, '_>) -> Results {
    let x = call.value(0)?;
    let axis = call.known_ints(1, "axis")?.first().copied().ok_or("no axis")?;
    let dim = axis_index(axis, call.ty(x).rank())?;
    let exclusive = call.attributes().int("exclusive", 0) != 0;
    let reverse = call.attributes().int("reverse", 0) != 0;
    one(call.emit(CumSum { dim, exclusive, reverse }, &[x])?)
}

/// Over one axis; before operator set 13 over all dimensions from the axis on, by default from the second.
fn log_softmax(call: &mut Call<'_, '_>) -> Results {
    super::norm::over_rows(call, |call, rows| call.emit(LogSoftmax, &[rows]))
}

/// 1 at the first of the largest elements, 0 elsewhere; along the axes of [`log_softmax`].
fn hardmax(call: &mut Call<'_, '_>) -> Results {
    super::norm::over_rows(call, |call, rows| {
        let ty = call.ty(rows);
        let n = ty.shape[ty.rank() - 1];
        let place = call.emit_all(TopK { k: 1, largest: true }, &[rows])?[1];
        let all = call.emit(Iota { shape: vec![n], dim: 0, start: 0, step: 1 }, &[])?;
        let is_it = call.emit(Compare::EQUAL, &[all, place])?;
        call.emit(Cast { to: ty.dtype }, &[is_it])
    })
}

/// Elements [.., n] with one of each row, where `place` [..] (i64) says.
pub(super) fn picked(call: &mut Call<'_, '_>, rows: ValueId, place: ValueId) -> Result<ValueId, Fault> {
    let shape = call.ty(place).shape;
    let column = call.reshape(place, &[&shape[..], &[1]].concat())?;
    let dim = shape.len();
    let value = call.emit(galvatron_ir::op::compute::TakeAlong { dim }, &[rows, column])?;
    call.reshape(value, &shape)
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{Builder, check};

    #[test]
    fn the_place_of_the_largest_is_the_best_one_of_a_row() {
        check(&["y = ArgMax{axis=-1, keepdims=0} x"], "top_k f32[2, 1]; reshape i64[2]");
        check(&["y = ArgMin x"], "transpose<[1, 0]> f32[4, 2]; top_k f32[4, 1]; transpose<[1, 0]> i64[1, 4]");
    }

    #[test]
    fn the_hard_maximum_marks_the_best_one_of_a_row() {
        check(&["y = Hardmax x"], "top_k f32[2, 1]; iota i64[4]; equal bool[2, 4]; cast f32[2, 4]");
    }

    #[test]
    fn running_sums_and_logarithms_are_one_op() {
        let sums = Builder::new(&["y = CumSum{reverse=1} ids axis"]).input("ids", 7, "batch 4").int("axis", 1);
        assert_eq!(sums.ops(), "cum_sum i64[2, 4]");
        check(&["y = LogSoftmax x"], "log_softmax f32[2, 4]");
    }
}
