//! `broadcast`: repeats a tensor along new or unit dimensions.

use super::{ReduceSum, Reshape};
use crate::id::ValueId;
use crate::mesh::{Linearity, RuleBuilder, ShardingRule};
use crate::op::attrs::to_ints;
use crate::op::{AttrReader, AttrValue, Attrs, GradCx, NoGradient, OpDef, Sample, Work, expect_args, traffic};
use crate::types::TensorType;

/// Result of shape `shape`; dimension i of the operand is dimension `dims[i]` of the result, repeated if its extent is 1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Broadcast {
    /// Global shape of the result.
    pub shape: Vec<u64>,
    /// Where each dimension of the operand goes, ascending.
    pub dims: Vec<usize>,
}

impl OpDef for Broadcast {
    named!("broadcast");
    pure!();
    no_alias!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 1)?;
        let fits = |(&d, &to): (&u64, &usize)| self.shape.get(to).is_some_and(|&s| d == s || d == 1);
        let ok = args[0].rank() == self.dims.len()
            && self.dims.windows(2).all(|w| w[0] < w[1])
            && args[0].shape.iter().zip(&self.dims).all(fits);
        if ok {
            Ok(vec![args[0].with_shape(self.shape.clone())])
        } else {
            Err(format!("`{}` does not broadcast to {:?} at dimensions {:?}", args[0], self.shape, self.dims))
        }
    }

    fn rule(&self, args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
        let mut builder = RuleBuilder::new();
        let all: Vec<usize> =
            results[0].shape.iter().enumerate().map(|(i, &d)| builder.factor(format!("d{i}"), d)).collect();
        let dims = args[0].shape.iter().zip(&self.dims);
        let operand = dims.map(|(&d, &to)| if d == self.shape[to] { vec![all[to]] } else { Vec::new() }).collect();
        builder.operand_dims(operand).result(&all).linear(Linearity::Joint(vec![0])).build()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        let dy = cx.dy()?;
        if !cx.needs[0] {
            return Ok(vec![None]);
        }
        let target = cx.ty(cx.args[0]);
        let repeated = |d: &usize| match self.dims.iter().position(|to| to == d) {
            Some(i) => target.shape[i] != self.shape[*d],
            None => true,
        };
        let summed: Vec<usize> = (0..self.shape.len()).filter(repeated).collect();
        let reduced = if summed.is_empty() { dy } else { cx.emit(ReduceSum { dims: summed }, &[dy]) };
        if cx.ty(reduced) == target {
            return Ok(vec![Some(reduced)]);
        }
        Ok(vec![Some(cx.emit(Reshape { shape: target.shape }, &[reduced]))])
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: 0, bytes: traffic(args, results) }
    }

    fn attrs(&self) -> Attrs {
        let dims = self.dims.iter().map(|&d| d as i64).collect();
        vec![("shape", to_ints(&self.shape)), ("dims", AttrValue::Ints(dims))]
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        let dims = attrs.uints("dims")?.into_iter().map(|d| d as usize).collect();
        Ok(Broadcast { shape: attrs.uints("shape")?, dims })
    }

    fn samples() -> Vec<Sample> {
        let to = |dims: &[usize]| Broadcast { shape: vec![4, 2, 4], dims: dims.to_vec() };
        vec![
            Sample::uniform(to(&[0, 2]), &[&[4, 4]]),
            Sample::uniform(to(&[0, 1, 2]), &[&[4, 1, 4]]),
            Sample::uniform(to(&[]), &[&[]]),
        ]
    }
}
