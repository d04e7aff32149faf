//! `reduce_sum`: the sum over some dimensions, which disappear.

use super::Broadcast;
use crate::id::ValueId;
use crate::mesh::{Linearity, RuleBuilder, ShardingRule};
use crate::op::{AttrReader, AttrValue, Attrs, GradCx, NoGradient, OpDef, Sample, Work, expect_args, traffic};
use crate::types::{DType, TensorType};

/// Sum over `dims`, of floats or integers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReduceSum {
    /// The summed dimensions, ascending.
    pub dims: Vec<usize>,
}

impl ReduceSum {
    fn kept(&self, rank: usize) -> Vec<usize> {
        (0..rank).filter(|d| !self.dims.contains(d)).collect()
    }
}

impl OpDef for ReduceSum {
    named!("reduce_sum");
    pure!();
    no_alias!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 1)?;
        if args[0].dtype == DType::Bool || !self.dims.is_sorted() || self.dims.iter().any(|&d| d >= args[0].rank()) {
            return Err(format!("dimensions {:?} of `{}` cannot be summed", self.dims, args[0]));
        }
        let shape: Vec<u64> = self.kept(args[0].rank()).iter().map(|&d| args[0].shape[d]).collect();
        Ok(vec![args[0].with_shape(shape)])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut builder = RuleBuilder::new();
        let all: Vec<usize> =
            args[0].shape.iter().enumerate().map(|(i, &d)| builder.factor(format!("d{i}"), d)).collect();
        builder.operand(&all).result(&self.kept(all.len())).linear(Linearity::Joint(vec![0])).build()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        let dy = cx.dy()?;
        let shape = cx.ty(cx.args[0]).shape;
        let kept = self.kept(shape.len());
        Ok(vec![cx.emit_for(0, Broadcast { shape, dims: kept }, &[dy])])
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: args[0].elements(), bytes: traffic(args, results) }
    }

    fn attrs(&self) -> Attrs {
        vec![("dims", AttrValue::Ints(self.dims.iter().map(|&d| d as i64).collect()))]
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(ReduceSum { dims: attrs.uints("dims")?.into_iter().map(|d| d as usize).collect() })
    }

    fn samples() -> Vec<Sample> {
        let sample = |dims: &[usize]| Sample::uniform(ReduceSum { dims: dims.to_vec() }, &[&[4, 2, 4]]);
        vec![sample(&[0, 1]), sample(&[2]), sample(&[1]), sample(&[0, 1, 2])]
    }
}
