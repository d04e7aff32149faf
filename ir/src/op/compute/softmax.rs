//! `softmax` over the last dimension and its logarithm, and their gradients.

use super::{Binary, ReduceSum, Reshape, Unary, UnaryKind};
use crate::id::ValueId;
use crate::mesh::{FactorKind, Linearity, RuleBuilder, ShardingRule};
use crate::op::{Alias, GradCx, NoGradient, OpDef, Sample, Work, expect_args, traffic};
use crate::types::TensorType;

fn row_rule(args: &[&TensorType], linear: Linearity) -> ShardingRule {
    let mut b = RuleBuilder::new();
    let last = args[0].rank() - 1;
    let kind = |i: usize| if i == last { FactorKind::Whole } else { FactorKind::Plain };
    let all: Vec<usize> =
        args[0].shape.iter().enumerate().map(|(i, &d)| b.factor_of(format!("d{i}"), d, kind(i))).collect();
    for _ in args {
        b = b.operand(&all);
    }
    b.result(&all).linear(linear).build()
}

/// y = exp(x) / sum of exp(x) over the last dimension; a row of -inf gives zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Softmax;

impl OpDef for Softmax {
    named!("softmax");
    pure!();
    no_attrs!(Softmax);

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 1)?;
        if args[0].rank() == 0 || !args[0].dtype.is_float() {
            return Err(format!("`{}` has no last dimension of floats", args[0]));
        }
        Ok(vec![args[0].clone()])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        row_rule(args, Linearity::None)
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        let (y, dy) = (cx.results[0], cx.dy()?);
        Ok(vec![cx.emit_for(0, SoftmaxGrad, &[y, dy])])
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: 8 * args[0].elements(), bytes: traffic(args, results) }
    }

    fn alias(&self) -> Alias {
        Alias::MayReuse(vec![0])
    }

    fn samples() -> Vec<Sample> {
        vec![Sample::uniform(Softmax, &[&[4, 2, 8]])]
    }
}

/// dx = y (dy - sum of y dy over the last dimension); operands y, dy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SoftmaxGrad;

impl OpDef for SoftmaxGrad {
    named!("softmax_grad");
    pure!();
    no_alias!();
    no_attrs!(SoftmaxGrad);
    no_gradient!("second derivatives are not supported");

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 2)?;
        if args[0] != args[1] {
            return Err(format!("operands `{}` and `{}` differ in type", args[0], args[1]));
        }
        Ok(vec![args[0].clone()])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        row_rule(args, Linearity::Each(vec![1]))
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: 4 * args[0].elements(), bytes: traffic(args, results) }
    }

    fn samples() -> Vec<Sample> {
        vec![Sample::uniform(SoftmaxGrad, &[&[4, 2, 8], &[4, 2, 8]])]
    }
}

/// y = x - ln(sum of exp(x)) over the last dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogSoftmax;

impl OpDef for LogSoftmax {
    named!("log_softmax");
    pure!();
    no_attrs!(LogSoftmax);

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        Softmax.infer(args)
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        row_rule(args, Linearity::None)
    }

    /// dx = dy - exp(y) · sum of dy over the last dimension.
    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        let (y, dy) = (cx.results[0], cx.dy()?);
        if !cx.needs[0] {
            return Ok(vec![None]);
        }
        let mut shape = cx.ty(dy).shape;
        let last = shape.len() - 1;
        shape[last] = 1;
        let sum = cx.emit(ReduceSum { dims: vec![last] }, &[dy]);
        let sum = cx.emit(Reshape { shape }, &[sum]);
        let p = cx.emit(Unary { kind: UnaryKind::Exp }, &[y]);
        let pull = cx.emit(Binary::MUL, &[p, sum]);
        Ok(vec![Some(cx.emit(Binary::SUB, &[dy, pull]))])
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: 8 * args[0].elements(), bytes: traffic(args, results) }
    }

    fn alias(&self) -> Alias {
        Alias::MayReuse(vec![0])
    }

    fn samples() -> Vec<Sample> {
        vec![Sample::uniform(LogSoftmax, &[&[4, 2, 8]])]
    }
}
