//! `cross_entropy` over the last dimension as a *sum*, its gradient, and the count of the labels that matter.

use crate::id::ValueId;
use crate::mesh::{FactorKind, Linearity, RuleBuilder, ShardingRule};
use crate::op::{AttrReader, AttrValue, Attrs, Fill, GradCx, NoGradient, OpDef, Sample, Work, expect_args, traffic};
use crate::types::{DType, TensorType};

fn check(logits: &TensorType, labels: &TensorType) -> Result<(), String> {
    let fits = labels.dtype == DType::I64
        && logits.dtype.is_float()
        && logits.rank() == labels.rank() + 1
        && logits.shape[..labels.rank()] == labels.shape[..];
    if fits { Ok(()) } else { Err(format!("labels `{labels}` do not fit logits `{logits}`")) }
}

fn factors(b: &mut RuleBuilder, labels: &TensorType, classes: u64) -> (Vec<usize>, Vec<usize>) {
    let rows: Vec<usize> = labels.shape.iter().enumerate().map(|(i, &d)| b.factor(format!("d{i}"), d)).collect();
    let mut full = rows.clone();
    full.push(b.factor_of("v", classes, FactorKind::Whole));
    (rows, full)
}

fn ignore_attr(ignore: i64) -> Attrs {
    vec![("ignore", AttrValue::Int(ignore))]
}

/// (s [], lse [..]) = cross_entropy(logits [.., v], labels [..]): s sums lse - logit\[label\] over the labels that are not `ignore`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CrossEntropy {
    /// The label that counts for nothing.
    pub ignore: i64,
}

impl OpDef for CrossEntropy {
    named!("cross_entropy");
    pure!();
    no_alias!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 2)?;
        check(args[0], args[1])?;
        Ok(vec![TensorType::f32([]), TensorType::f32(args[1].shape.clone())])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut b = RuleBuilder::new();
        let classes = *args[0].shape.last().expect("invariant: logits have classes");
        let (rows, full) = factors(&mut b, args[1], classes);
        b.operand(&full).operand(&rows).result(&[]).result(&rows).build()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        let (logits, labels, lse, ds) = (cx.args[0], cx.args[1], cx.results[1], cx.dy()?);
        let op = CrossEntropyGrad { ignore: self.ignore };
        Ok(vec![cx.emit_for(0, op, &[logits, labels, lse, ds]), None])
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: 6 * args[0].elements(), bytes: traffic(args, results) }
    }

    fn attrs(&self) -> Attrs {
        ignore_attr(self.ignore)
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(CrossEntropy { ignore: attrs.int("ignore")? })
    }

    fn samples() -> Vec<Sample> {
        let args = vec![(TensorType::f32([4, 2, 8]), Fill::Uniform), (TensorType::i64([4, 2]), Fill::Index(8))];
        vec![Sample::new(CrossEntropy { ignore: 3 }, args)]
    }
}

/// dlogits = (softmax(logits) - one_hot(labels)) ds, zero where the label is ignored; operands logits, labels, lse, ds [].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CrossEntropyGrad {
    /// The label that counts for nothing.
    pub ignore: i64,
}

impl OpDef for CrossEntropyGrad {
    named!("cross_entropy_grad");
    pure!();
    no_gradient!("second derivatives are not supported");

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 4)?;
        check(args[0], args[1])?;
        if args[2].shape != args[1].shape || args[3].rank() != 0 {
            return Err("expected logits, labels, lse, ds".into());
        }
        Ok(vec![args[0].clone()])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut b = RuleBuilder::new();
        let classes = *args[0].shape.last().expect("invariant: logits have classes");
        let (rows, full) = factors(&mut b, args[1], classes);
        let b = b.operand(&full).operand(&rows).operand(&rows).operand(&[]);
        b.result(&full).linear(Linearity::Each(vec![3])).build()
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: 6 * args[0].elements(), bytes: traffic(args, results) }
    }

    fn alias(&self) -> crate::op::Alias {
        crate::op::Alias::MayReuse(vec![0])
    }

    fn attrs(&self) -> Attrs {
        ignore_attr(self.ignore)
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(CrossEntropyGrad { ignore: attrs.int("ignore")? })
    }

    fn samples() -> Vec<Sample> {
        let args = vec![
            (TensorType::f32([4, 2, 8]), Fill::Uniform),
            (TensorType::i64([4, 2]), Fill::Index(8)),
            (TensorType::f32([4, 2]), Fill::Positive),
            (TensorType::f32([]), Fill::Positive),
        ];
        vec![Sample::new(CrossEntropyGrad { ignore: 3 }, args)]
    }
}

/// n \[\] = the number of labels that are not `ignore`, as f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CountLabels {
    /// The label that counts for nothing.
    pub ignore: i64,
}

impl OpDef for CountLabels {
    named!("count_labels");
    pure!();
    no_alias!();
    no_gradient!("a count has no gradient");

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 1)?;
        if args[0].dtype != DType::I64 {
            return Err(format!("labels `{}` are not i64", args[0]));
        }
        Ok(vec![TensorType::f32([])])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut b = RuleBuilder::new();
        let all: Vec<usize> = args[0].shape.iter().enumerate().map(|(i, &d)| b.factor(format!("d{i}"), d)).collect();
        b.operand(&all).result(&[]).build()
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: args[0].elements(), bytes: traffic(args, results) }
    }

    fn attrs(&self) -> Attrs {
        ignore_attr(self.ignore)
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(CountLabels { ignore: attrs.int("ignore")? })
    }

    fn samples() -> Vec<Sample> {
        vec![Sample::new(CountLabels { ignore: 3 }, vec![(TensorType::i64([4, 2]), Fill::Index(8))])]
    }
}
