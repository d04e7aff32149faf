//! The global gradient norm: sums of squares, and the scale that clipping applies.

use crate::mesh::{RuleBuilder, ShardingRule};
use crate::op::{AttrReader, AttrValue, Attrs, OpDef, Sample, Work, expect_args, traffic};
use crate::types::{Scalar, TensorType};

/// s \[\] = sum of x².
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SumSquares;

impl OpDef for SumSquares {
    named!("sum_squares");
    pure!();
    no_alias!();
    no_attrs!(SumSquares);
    no_gradient!("the gradient norm is not differentiated");

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 1)?;
        Ok(vec![args[0].with_shape([])])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut b = RuleBuilder::new();
        let all: Vec<usize> = args[0].shape.iter().enumerate().map(|(i, &d)| b.factor(format!("d{i}"), d)).collect();
        b.operand(&all).result(&[]).build()
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: 2 * args[0].elements(), bytes: traffic(args, results) }
    }

    fn samples() -> Vec<Sample> {
        vec![Sample::uniform(SumSquares, &[&[4, 8]])]
    }
}

/// c \[\] = min(1, max_norm / (norm + 1e-6)), as PyTorch's `clip_grad_norm_`; operand norm \[\].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClipScale {
    /// Largest norm that is left alone.
    pub max_norm: Scalar,
}

impl OpDef for ClipScale {
    named!("clip_scale");
    pure!();
    no_alias!();
    no_gradient!("the gradient norm is not differentiated");

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 1)?;
        if args[0].rank() != 0 {
            return Err(format!("norm `{}` is no scalar", args[0]));
        }
        Ok(vec![args[0].clone()])
    }

    fn rule(&self, _args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        RuleBuilder::new().operand(&[]).result(&[]).build()
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: 2, bytes: traffic(args, results) }
    }

    fn attrs(&self) -> Attrs {
        vec![("max_norm", AttrValue::Float(self.max_norm))]
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(ClipScale { max_norm: attrs.float("max_norm")? })
    }

    fn samples() -> Vec<Sample> {
        vec![Sample::uniform(ClipScale { max_norm: Scalar::new(1.0) }, &[&[]])]
    }
}
