//! `cum_sum`: running sums along a dimension.

use crate::id::ValueId;
use crate::mesh::{FactorKind, Linearity, RuleBuilder, ShardingRule};
use crate::op::{AttrReader, AttrValue, Attrs, Fill, GradCx, NoGradient, OpDef, Sample, Work, expect_args, traffic};
use crate::types::{DType, TensorType};

/// Element i along `dim` is the sum of the elements up to i: with `reverse` from i on, with `exclusive` without i itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CumSum {
    /// The dimension.
    pub dim: usize,
    /// Whether an element leaves itself out.
    pub exclusive: bool,
    /// Whether the sums begin at the end.
    pub reverse: bool,
}

impl OpDef for CumSum {
    named!("cum_sum");
    pure!();
    no_alias!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 1)?;
        if self.dim >= args[0].rank() || args[0].dtype == DType::Bool {
            return Err(format!("`{}` has no running sums along dimension {}", args[0], self.dim));
        }
        Ok(vec![args[0].clone()])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut b = RuleBuilder::new();
        let kind = |i| if i == self.dim { FactorKind::Whole } else { FactorKind::Plain };
        let all: Vec<usize> =
            args[0].shape.iter().enumerate().map(|(i, &d)| b.factor_of(format!("d{i}"), d, kind(i))).collect();
        b.operand(&all).result(&all).linear(Linearity::Joint(vec![0])).build()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        let dy = cx.dy()?;
        Ok(vec![cx.emit_for(0, CumSum { reverse: !self.reverse, ..*self }, &[dy])])
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: args[0].elements(), bytes: traffic(args, results) }
    }

    fn attrs(&self) -> Attrs {
        let flag = |name, on: bool| on.then_some((name, AttrValue::Flag));
        let flags = [flag("exclusive", self.exclusive), flag("reverse", self.reverse)];
        [("dim", AttrValue::Int(self.dim as i64))].into_iter().chain(flags.into_iter().flatten()).collect()
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        let dim = attrs.uint("dim")? as usize;
        Ok(CumSum { dim, exclusive: attrs.flag("exclusive"), reverse: attrs.flag("reverse") })
    }

    fn samples() -> Vec<Sample> {
        let op = |dim, exclusive, reverse| CumSum { dim, exclusive, reverse };
        let integers = (TensorType::i64([4, 5]), Fill::Index(2));
        vec![
            Sample::uniform(op(1, false, false), &[&[4, 5, 2]]),
            Sample::uniform(op(2, true, false), &[&[4, 2, 5]]),
            Sample::uniform(op(0, false, true), &[&[4, 4]]),
            Sample::uniform(op(1, true, true), &[&[4, 4]]),
            Sample::new(op(1, false, false), vec![integers]),
        ]
    }
}
