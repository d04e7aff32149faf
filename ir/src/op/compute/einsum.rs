//! `einsum`: the contraction of two operands; every matrix product of the IR, transposes folded into its labels.

use crate::id::ValueId;
use crate::mesh::{Linearity, RuleBuilder, ShardingRule};
use crate::op::{AttrReader, AttrValue, Attrs, GradCx, NoGradient, OpDef, Sample, Work, traffic};
use crate::types::TensorType;
use std::collections::BTreeMap;

/// out[labels] = sum over the labels that `out` lacks of lhs[labels] * rhs[labels]; one letter a dimension, none twice in one operand.
///
/// `bsk,khd->bshd` is a projection onto heads, `bshd,hdn->bsn` the one back, `bsk,bsn->kn` a weight gradient.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Einsum {
    /// Labels of the first operand.
    pub lhs: String,
    /// Labels of the second operand.
    pub rhs: String,
    /// Labels of the result.
    pub out: String,
}

impl Einsum {
    /// Reads `lhs,rhs->out`.
    pub fn new(spec: &str) -> Result<Einsum, String> {
        let bad = || format!("`{spec}` is no contraction of the form `ab,bc->ac`");
        let (inputs, out) = spec.split_once("->").ok_or_else(bad)?;
        let (lhs, rhs) = inputs.split_once(',').ok_or_else(bad)?;
        let einsum = Einsum { lhs: lhs.into(), rhs: rhs.into(), out: out.into() };
        einsum.check_labels()?;
        Ok(einsum)
    }

    /// `lhs,rhs->out`.
    pub fn spec(&self) -> String {
        format!("{},{}->{}", self.lhs, self.rhs, self.out)
    }

    fn check_labels(&self) -> Result<(), String> {
        for part in [&self.lhs, &self.rhs, &self.out] {
            if !part.chars().all(|c| c.is_ascii_alphabetic()) {
                return Err(format!("labels `{part}` are not letters"));
            }
            if part.chars().enumerate().any(|(i, c)| part[i + 1..].contains(c)) {
                return Err(format!("a label occurs twice in `{part}`"));
            }
        }
        if let Some(c) = self.out.chars().find(|&c| !self.lhs.contains(c) && !self.rhs.contains(c)) {
            return Err(format!("label `{c}` of the result is in no operand"));
        }
        let alone = |a: &str, b: &str| a.chars().find(|&c| !b.contains(c) && !self.out.contains(c));
        match alone(&self.lhs, &self.rhs).or_else(|| alone(&self.rhs, &self.lhs)) {
            Some(c) => Err(format!("label `{c}` is in one operand only")),
            None => Ok(()),
        }
    }

    /// Labels in order of first appearance, with their extents on these operand types.
    fn extents(&self, args: &[&TensorType]) -> Result<(Vec<char>, BTreeMap<char, u64>), String> {
        let (mut order, mut sizes) = (Vec::new(), BTreeMap::new());
        for (labels, arg) in [&self.lhs, &self.rhs].into_iter().zip(args) {
            if labels.len() != arg.rank() {
                return Err(format!("labels `{labels}` do not fit `{arg}`"));
            }
            for (c, &d) in labels.chars().zip(&arg.shape) {
                if *sizes.entry(c).or_insert(d) != d {
                    return Err(format!("label `{c}` has extents {} and {d}", sizes[&c]));
                }
                if !order.contains(&c) {
                    order.push(c);
                }
            }
        }
        Ok((order, sizes))
    }
}

impl OpDef for Einsum {
    named!("einsum");
    pure!();
    no_alias!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        crate::op::expect_args(args, 2)?;
        if args[0].dtype != args[1].dtype || !args[0].dtype.is_float() {
            return Err(format!("operands `{}` and `{}` must be floats of one type", args[0], args[1]));
        }
        let (_, sizes) = self.extents(args)?;
        let shape: Vec<u64> = self.out.chars().map(|c| sizes[&c]).collect();
        Ok(vec![args[0].with_shape(shape)])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let (order, sizes) = self.extents(args).expect("invariant: types were inferred");
        let mut builder = RuleBuilder::new();
        for c in &order {
            builder.factor(c.to_string(), sizes[c]);
        }
        let dims = |labels: &str| -> Vec<usize> {
            labels.chars().filter_map(|c| order.iter().position(|o| *o == c)).collect()
        };
        builder
            .operand(&dims(&self.lhs))
            .operand(&dims(&self.rhs))
            .result(&dims(&self.out))
            .linear(Linearity::Each(vec![0, 1]))
            .build()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        let dy = cx.dy()?;
        let (lhs, rhs) = (cx.args[0], cx.args[1]);
        let dlhs = Einsum { lhs: self.out.clone(), rhs: self.rhs.clone(), out: self.lhs.clone() };
        let drhs = Einsum { lhs: self.lhs.clone(), rhs: self.out.clone(), out: self.rhs.clone() };
        Ok(vec![cx.emit_for(0, dlhs, &[dy, rhs]), cx.emit_for(1, drhs, &[lhs, dy])])
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        let (_, sizes) = self.extents(args).expect("invariant: types were inferred");
        let flops = 2 * sizes.values().product::<u64>();
        Work { matmul_flops: flops, flops: 0, bytes: traffic(args, results) }
    }

    fn attrs(&self) -> Attrs {
        vec![("spec", AttrValue::Str(self.spec()))]
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Einsum::new(&attrs.string("spec")?)
    }

    fn samples() -> Vec<Sample> {
        let sample = |spec: &str, shapes: &[&[u64]]| {
            Sample::uniform(Einsum::new(spec).expect("invariant: samples are well formed"), shapes)
        };
        vec![
            sample("bsk,kn->bsn", &[&[4, 2, 4], &[4, 8]]),
            sample("bsk,khd->bshd", &[&[2, 2, 4], &[4, 4, 2]]),
            sample("bshd,hdn->bsn", &[&[2, 2, 4, 2], &[4, 2, 4]]),
            sample("bhqd,bhkd->bhqk", &[&[2, 4, 2, 2], &[2, 4, 4, 2]]),
            sample("mk,nk->mn", &[&[4, 4], &[8, 4]]),
        ]
    }
}
