//! Element-wise comparisons, which give truth values.

use super::broadcasting::{broadcast_shape, elementwise_rule};
use crate::id::ValueId;
use crate::mesh::{Linearity, ShardingRule};
use crate::op::{AttrReader, Attrs, Fill, GradCx, NoGradient, OpDef, Sample, Work, expect_args, traffic};
use crate::types::{DType, TensorType};

/// Which comparison; none holds where an operand is NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CompareKind {
    /// a = b; also of truth values.
    Equal,
    /// a < b
    Less,
    /// a <= b
    LessEqual,
}

const KINDS: [(CompareKind, &str); 3] =
    [(CompareKind::Equal, "equal"), (CompareKind::Less, "less"), (CompareKind::LessEqual, "less_equal")];

/// Whether two operands of one type stand in an order (bool); NumPy broadcasting. No gradient flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Compare {
    /// Which comparison.
    pub kind: CompareKind,
}

impl Compare {
    /// a = b
    pub const EQUAL: Compare = Compare { kind: CompareKind::Equal };
    /// a < b
    pub const LESS: Compare = Compare { kind: CompareKind::Less };
    /// a <= b
    pub const LESS_EQUAL: Compare = Compare { kind: CompareKind::LessEqual };
}

impl OpDef for Compare {
    pure!();
    no_alias!();

    fn mnemonics() -> Vec<&'static str> {
        KINDS.iter().map(|(_, n)| *n).collect()
    }

    fn mnemonic(&self) -> &'static str {
        KINDS.iter().find(|(k, _)| *k == self.kind).map_or("compare", |(_, n)| n)
    }

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 2)?;
        let ordered = args[0].dtype != DType::Bool || self.kind == CompareKind::Equal;
        if args[0].dtype != args[1].dtype || !ordered {
            return Err(format!("operands `{}` and `{}` cannot be compared", args[0], args[1]));
        }
        Ok(vec![TensorType::new(DType::Bool, broadcast_shape(&[&args[0].shape, &args[1].shape])?)])
    }

    fn rule(&self, args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
        elementwise_rule(args, results[0], Linearity::None)
    }

    fn gradient(&self, _cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        Ok(vec![None, None])
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: results[0].elements(), bytes: traffic(args, results) }
    }

    fn attrs(&self) -> Attrs {
        Vec::new()
    }

    fn parse(mnemonic: &str, _attrs: &mut AttrReader) -> Result<Self, String> {
        let kind = KINDS.iter().find(|(_, n)| *n == mnemonic).map(|(k, _)| *k);
        kind.map(|kind| Compare { kind }).ok_or_else(|| format!("`{mnemonic}` is no comparison"))
    }

    fn samples() -> Vec<Sample> {
        let int = |s: &[u64]| (TensorType::i64(s.to_vec()), Fill::Index(3));
        let bool = |s: &[u64]| (TensorType::new(DType::Bool, s.to_vec()), Fill::Bool);
        let mut samples = vec![Sample::new(Compare::EQUAL, vec![bool(&[4, 4]), bool(&[4, 1])])];
        for (kind, _) in KINDS {
            samples.push(Sample::uniform(Compare { kind }, &[&[4, 2, 4], &[4, 2, 4]]));
            samples.push(Sample::uniform(Compare { kind }, &[&[4, 4], &[]]));
            samples.push(Sample::new(Compare { kind }, vec![int(&[4, 4]), int(&[4])]));
        }
        samples
    }
}
