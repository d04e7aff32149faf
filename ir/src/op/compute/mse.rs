//! `mse`: the sum of squared differences, and its gradient.

use super::broadcasting::elementwise_rule;
use crate::id::ValueId;
use crate::mesh::{Linearity, RuleBuilder, ShardingRule};
use crate::op::{GradCx, NoGradient, OpDef, Sample, Work, expect_args, traffic};
use crate::types::TensorType;

fn same(args: &[&TensorType]) -> Result<(), String> {
    if args[0] == args[1] && args[0].dtype.is_float() {
        return Ok(());
    }
    Err(format!("prediction `{}` and target `{}` differ in type", args[0], args[1]))
}

/// s \[\] = sum of (prediction - target)².
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mse;

impl OpDef for Mse {
    named!("mse");
    pure!();
    no_alias!();
    no_attrs!(Mse);

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 2)?;
        same(args)?;
        Ok(vec![args[0].with_shape([])])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut b = RuleBuilder::new();
        let all: Vec<usize> = args[0].shape.iter().enumerate().map(|(i, &d)| b.factor(format!("d{i}"), d)).collect();
        b.operand(&all).operand(&all).result(&[]).build()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        if cx.needs[1] {
            return Err(NoGradient("the target of `mse` has no gradient".into()));
        }
        let (pred, target, ds) = (cx.args[0], cx.args[1], cx.dy()?);
        Ok(vec![cx.emit_for(0, MseGrad, &[pred, target, ds]), None])
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: 3 * args[0].elements(), bytes: traffic(args, results) }
    }

    fn samples() -> Vec<Sample> {
        vec![Sample::uniform(Mse, &[&[4, 8], &[4, 8]])]
    }
}

/// dprediction = 2 (prediction - target) ds; operands prediction, target, ds [].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MseGrad;

impl OpDef for MseGrad {
    named!("mse_grad");
    pure!();
    no_alias!();
    no_attrs!(MseGrad);
    no_gradient!("second derivatives are not supported");

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 3)?;
        same(args)?;
        if args[2].rank() != 0 {
            return Err("expected prediction, target, ds".into());
        }
        Ok(vec![args[0].clone()])
    }

    fn rule(&self, args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
        elementwise_rule(args, results[0], Linearity::Each(vec![2]))
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: 3 * args[0].elements(), bytes: traffic(args, results) }
    }

    fn samples() -> Vec<Sample> {
        vec![Sample::uniform(MseGrad, &[&[4, 8], &[4, 8], &[]])]
    }
}
