//! `where`: element-wise choice.

use super::broadcasting::{broadcast_shape, elementwise_rule, unbroadcast};
use super::{Binary, Full};
use crate::id::ValueId;
use crate::mesh::{Linearity, ShardingRule};
use crate::op::{Fill, GradCx, NoGradient, OpDef, Sample, Work, expect_args, traffic};
use crate::types::{DType, Scalar, TensorType};

/// Operand 1 where operand 0 (bool) holds, otherwise operand 2; NumPy broadcasting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Where;

impl OpDef for Where {
    named!("where");
    pure!();
    no_attrs!(Where);
    no_alias!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 3)?;
        if args[0].dtype != DType::Bool || args[1].dtype != args[2].dtype {
            return Err(format!("operands `{}`, `{}`, `{}` must be bool, T, T", args[0], args[1], args[2]));
        }
        Ok(vec![args[1].with_shape(broadcast_shape(&[&args[0].shape, &args[1].shape, &args[2].shape])?)])
    }

    fn rule(&self, args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
        elementwise_rule(args, results[0], Linearity::Joint(vec![1, 2]))
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        let (cond, dy) = (cx.args[0], cx.dy()?);
        let mut grads = vec![None; 3];
        for i in [1, 2] {
            if cx.needs[i] {
                // A product is linear in dy alone: a sum over micro-batches passes through it.
                let scalar = cx.ty(dy).with_shape([]);
                let [zero, one] = [0.0, 1.0].map(|v| cx.emit(Full { ty: scalar.clone(), value: Scalar::new(v) }, &[]));
                let args = if i == 1 { [cond, one, zero] } else { [cond, zero, one] };
                let is_taken = cx.emit(Where, &args);
                let chosen = cx.emit(Binary::MUL, &[dy, is_taken]);
                let ty = cx.ty(cx.args[i]);
                grads[i] = Some(unbroadcast(cx, chosen, &ty));
            }
        }
        Ok(grads)
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: results[0].elements(), bytes: traffic(args, results) }
    }

    fn samples() -> Vec<Sample> {
        let cond = (TensorType::new(DType::Bool, [4, 4]), Fill::Bool);
        let float = |s: &[u64]| (TensorType::f32(s.to_vec()), Fill::Uniform);
        vec![
            Sample::new(Where, vec![cond.clone(), float(&[4, 4]), float(&[4, 4])]),
            Sample::new(Where, vec![cond, float(&[]), float(&[4, 4])]),
        ]
    }
}
