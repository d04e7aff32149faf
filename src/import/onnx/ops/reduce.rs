//! Sums and means over dimensions.

use galvatron_ir::op::compute::{Binary, ReduceSum};

use super::{Call, Fault, Operator, Results, axis_index, one};

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "ReduceSum" => |c| reduce(c, false),
        "ReduceMean" => |c| reduce(c, true),
        "GlobalAveragePool" => pool,
        _ => return None,
    })
}

/// Axes are an operand or an attribute; without axes all dimensions, or none if the node says so.
fn reduce(call: &mut Call<'_, '_>, mean: bool) -> Results {
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
    let keep = call.attributes().int("keepdims", 1) != 0;
    reduced(call, dims, mean, keep)
}

/// The mean over all dimensions after the second.
fn pool(call: &mut Call<'_, '_>) -> Results {
    let rank = call.shape(0)?.len();
    reduced(call, (2..rank).collect(), true, true)
}

fn reduced(call: &mut Call<'_, '_>, mut dims: Vec<usize>, mean: bool, keep: bool) -> Results {
    let x = call.value(0)?;
    let ty = call.ty(x);
    if !ty.dtype.is_float() {
        return Err(Fault::Unsupported(format!("on {} values that depend on the data", ty.dtype)));
    }
    dims.sort();
    dims.dedup();
    let n: u64 = dims.iter().map(|&d| ty.shape[d]).product();
    let kept: Vec<u64> = (0..ty.rank()).map(|d| if dims.contains(&d) { 1 } else { ty.shape[d] }).collect();
    let mut value = call.emit(ReduceSum { dims }, &[x])?;
    if mean {
        let per_element = call.scalar(1.0 / n as f64)?;
        value = call.emit(Binary::MUL, &[value, per_element])?;
    }
    if keep {
        value = call.reshape(value, &kept)?;
    }
    one(value)
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::check;

    #[test]
    fn means_are_sums_over_a_count() {
        let mean = "reduce_sum f32[2]; full<0.25> f32[]; mul f32[2]; reshape f32[2, 1]";
        check(&["y = ReduceMean{axes=[-1]} x"], mean);
        check(&["y = ReduceSum{keepdims=0} x"], "reduce_sum f32[]");
        check(&["y = ReduceSum{noop_with_empty_axes=1} x"], "");
    }
}
