//! `top_k`: the largest or smallest elements of each row, and where they stand.

use super::{Full, PutAlong};
use crate::id::ValueId;
use crate::mesh::{FactorKind, Linearity, RuleBuilder, ShardingRule};
use crate::op::{AttrReader, AttrValue, Attrs, Fill, GradCx, NoGradient, OpDef, Sample, Work, expect_args, traffic};
use crate::types::{DType, Scalar, TensorType};

/// (values, indices) [.., k] of the k largest (or smallest) elements of each row of x [.., n], best first; indices are i64.
///
/// Of equal elements the one with the lower index comes first; NaN counts as the largest. The gradient goes to the elements
/// that were chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopK {
    /// How many.
    pub k: u64,
    /// Whether the largest are chosen.
    pub largest: bool,
}

impl OpDef for TopK {
    named!("top_k");
    pure!();
    no_alias!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 1)?;
        let mut shape = args[0].shape.clone();
        match shape.last_mut() {
            Some(last) if (1..=*last).contains(&self.k) && args[0].dtype != DType::Bool => *last = self.k,
            _ => return Err(format!("the rows of `{}` have no {} elements to choose", args[0], self.k)),
        }
        Ok(vec![args[0].with_shape(shape.clone()), TensorType::i64(shape)])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut b = RuleBuilder::new();
        let last = args[0].rank() - 1;
        let kind = |i| if i == last { FactorKind::Whole } else { FactorKind::Plain };
        let all: Vec<usize> =
            args[0].shape.iter().enumerate().map(|(i, &d)| b.factor_of(format!("d{i}"), d, kind(i))).collect();
        let mut chosen = all.clone();
        chosen[last] = b.factor_of("k", self.k, FactorKind::Whole);
        b.operand(&all).result(&chosen).result(&chosen).linear(Linearity::None).build()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        let (indices, dy) = (cx.results[1], cx.dy()?);
        if !cx.needs[0] {
            return Ok(vec![None]);
        }
        let ty = cx.ty(cx.args[0]);
        let dim = ty.rank() - 1;
        let zeros = cx.emit(Full { ty, value: Scalar::new(0.0) }, &[]);
        Ok(vec![Some(cx.emit(PutAlong { dim, adds: true }, &[zeros, indices, dy]))])
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: args[0].elements() * self.k.min(8), bytes: traffic(args, results) }
    }

    fn attrs(&self) -> Attrs {
        let mut attrs = vec![("k", AttrValue::Int(self.k as i64))];
        if !self.largest {
            attrs.push(("smallest", AttrValue::Flag));
        }
        attrs
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(TopK { k: attrs.uint("k")?, largest: !attrs.flag("smallest") })
    }

    fn samples() -> Vec<Sample> {
        let op = |k, largest| TopK { k, largest };
        let integers = (TensorType::i64([4, 6]), Fill::Index(3));
        vec![
            Sample::uniform(op(2, true), &[&[4, 2, 5]]),
            Sample::uniform(op(1, true), &[&[4, 5]]),
            Sample::uniform(op(4, false), &[&[4, 4]]),
            Sample::new(op(3, true), vec![integers]),
        ]
    }
}
