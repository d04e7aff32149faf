//! NumPy broadcasting: shapes, factor rules and gradients that all element-wise ops share.

use super::{ReduceSum, Reshape};
use crate::id::ValueId;
use crate::mesh::{Linearity, RuleBuilder, ShardingRule};
use crate::op::GradCx;
use crate::types::TensorType;

/// Shape of an element-wise result, or the dimension (from the right) that does not fit.
pub fn broadcast_shape(shapes: &[&[u64]]) -> Result<Vec<u64>, String> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut out = vec![1; rank];
    for shape in shapes {
        for (i, &d) in shape.iter().enumerate() {
            let o = &mut out[rank - shape.len() + i];
            if *o == 1 {
                *o = d;
            } else if d != 1 && d != *o {
                return Err(format!("shapes {shapes:?} do not broadcast: extents {d} and {o}"));
            }
        }
    }
    Ok(out)
}

/// Rule of an element-wise op: one factor per result dimension, aligned from the right.
pub fn elementwise_rule(args: &[&TensorType], result: &TensorType, linear: Linearity) -> ShardingRule {
    let mut builder = RuleBuilder::new();
    let factors: Vec<usize> =
        result.shape.iter().enumerate().map(|(i, &d)| builder.factor(format!("d{i}"), d)).collect();
    for arg in args {
        let skip = result.rank() - arg.rank();
        let dims = arg.shape.iter().enumerate().map(|(i, &d)| {
            let broadcast = d == 1 && result.shape[skip + i] != 1;
            if broadcast { Vec::new() } else { vec![factors[skip + i]] }
        });
        builder = builder.operand_dims(dims.collect());
    }
    builder.result(&factors).linear(linear).build()
}

/// Sums a gradient over the dimensions along which `target` was broadcast.
pub fn unbroadcast(cx: &mut GradCx<'_>, grad: ValueId, target: &TensorType) -> ValueId {
    let have = cx.ty(grad).shape;
    let skip = have.len() - target.rank();
    let summed: Vec<usize> =
        (0..have.len()).filter(|&i| i < skip || (target.shape[i - skip] == 1 && have[i] != 1)).collect();
    if summed.is_empty() {
        return grad;
    }
    let reduced = cx.emit(ReduceSum { dims: summed }, &[grad]);
    if cx.ty(reduced).shape == target.shape {
        return reduced;
    }
    cx.emit(Reshape { shape: target.shape.clone() }, &[reduced])
}
