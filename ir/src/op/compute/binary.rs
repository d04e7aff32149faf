//! Element-wise ops of two operands with NumPy broadcasting, and the sum of many operands.

use super::broadcasting::{broadcast_shape, elementwise_rule, unbroadcast};
use super::{Unary, UnaryKind};
use crate::id::ValueId;
use crate::mesh::{Linearity, ShardingRule};
use crate::op::{Alias, AttrReader, Attrs, Fill, GradCx, NoGradient, OpDef, Sample, Work, expect_args, traffic};
use crate::types::{Scalar, TensorType};

/// Which element-wise op.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BinaryKind {
    /// a + b
    Add,
    /// a - b
    Sub,
    /// a * b
    Mul,
    /// a / b
    Div,
    /// a to the power b; no gradient flows into b.
    Pow,
}

const KINDS: [(BinaryKind, &str); 5] = [
    (BinaryKind::Add, "add"),
    (BinaryKind::Sub, "sub"),
    (BinaryKind::Mul, "mul"),
    (BinaryKind::Div, "div"),
    (BinaryKind::Pow, "pow"),
];

/// An element-wise op of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Binary {
    /// Which one.
    pub kind: BinaryKind,
}

impl Binary {
    /// a + b
    pub const ADD: Binary = Binary { kind: BinaryKind::Add };
    /// a - b
    pub const SUB: Binary = Binary { kind: BinaryKind::Sub };
    /// a * b
    pub const MUL: Binary = Binary { kind: BinaryKind::Mul };
    /// a / b
    pub const DIV: Binary = Binary { kind: BinaryKind::Div };
    /// a to the power b
    pub const POW: Binary = Binary { kind: BinaryKind::Pow };

    /// d out / d a * dy, before undoing the broadcast.
    fn grad_lhs(self, cx: &mut GradCx<'_>, dy: ValueId) -> ValueId {
        let (a, b) = (cx.args[0], cx.args[1]);
        match self.kind {
            BinaryKind::Add | BinaryKind::Sub => dy,
            BinaryKind::Mul => cx.emit(Binary::MUL, &[dy, b]),
            BinaryKind::Div => cx.emit(Binary::DIV, &[dy, b]),
            BinaryKind::Pow => {
                let scalar = cx.ty(b).with_shape([]);
                let one = cx.emit(super::Full { ty: scalar, value: Scalar::new(1.0) }, &[]);
                let less = cx.emit(Binary::SUB, &[b, one]);
                let power = cx.emit(Binary::POW, &[a, less]);
                let slope = cx.emit(Binary::MUL, &[power, b]);
                cx.emit(Binary::MUL, &[dy, slope])
            }
        }
    }

    /// d out / d b * dy, before undoing the broadcast.
    fn grad_rhs(self, cx: &mut GradCx<'_>, dy: ValueId) -> Result<ValueId, NoGradient> {
        let (a, b, y) = (cx.args[0], cx.args[1], cx.results[0]);
        Ok(match self.kind {
            BinaryKind::Add => dy,
            BinaryKind::Sub => cx.emit(Unary { kind: UnaryKind::Neg }, &[dy]),
            BinaryKind::Mul => cx.emit(Binary::MUL, &[dy, a]),
            BinaryKind::Div => {
                let scaled = cx.emit(Binary::MUL, &[dy, y]);
                let ratio = cx.emit(Binary::DIV, &[scaled, b]);
                cx.emit(Unary { kind: UnaryKind::Neg }, &[ratio])
            }
            BinaryKind::Pow => return Err(NoGradient("the exponent of `pow` has no gradient".into())),
        })
    }
}

impl OpDef for Binary {
    fn mnemonics() -> Vec<&'static str> {
        KINDS.iter().map(|(_, n)| *n).collect()
    }

    fn mnemonic(&self) -> &'static str {
        KINDS.iter().find(|(k, _)| *k == self.kind).map_or("binary", |(_, n)| n)
    }

    pure!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 2)?;
        if args[0].dtype != args[1].dtype {
            return Err(format!("operands `{}` and `{}` differ in element type", args[0], args[1]));
        }
        Ok(vec![args[0].with_shape(broadcast_shape(&[&args[0].shape, &args[1].shape])?)])
    }

    fn rule(&self, args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
        let linear = match self.kind {
            BinaryKind::Add | BinaryKind::Sub => Linearity::Joint(vec![0, 1]),
            BinaryKind::Mul => Linearity::Each(vec![0, 1]),
            BinaryKind::Div => Linearity::Each(vec![0]),
            BinaryKind::Pow => Linearity::None,
        };
        elementwise_rule(args, results[0], linear)
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        let dy = cx.dy()?;
        let (ta, tb) = (cx.ty(cx.args[0]), cx.ty(cx.args[1]));
        let mut grads = vec![None, None];
        if cx.needs[0] {
            let da = self.grad_lhs(cx, dy);
            grads[0] = Some(unbroadcast(cx, da, &ta));
        }
        if cx.needs[1] {
            let db = self.grad_rhs(cx, dy)?;
            grads[1] = Some(unbroadcast(cx, db, &tb));
        }
        Ok(grads)
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: results[0].elements(), bytes: traffic(args, results) }
    }

    fn alias(&self) -> Alias {
        Alias::MayReuse(vec![0, 1])
    }

    fn attrs(&self) -> Attrs {
        Vec::new()
    }

    fn parse(mnemonic: &str, _attrs: &mut AttrReader) -> Result<Self, String> {
        let kind = KINDS.iter().find(|(_, n)| *n == mnemonic).map(|(k, _)| *k);
        kind.map(|kind| Binary { kind }).ok_or_else(|| format!("`{mnemonic}` is no element-wise op"))
    }

    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        for (kind, _) in KINDS {
            let shapes: [(&[u64], &[u64]); 4] =
                [(&[4, 2, 4], &[4, 2, 4]), (&[4, 2, 4], &[4]), (&[4, 2, 4], &[]), (&[1, 2, 4], &[4, 1, 4])];
            for (a, b) in shapes {
                let arg = |s: &[u64]| (TensorType::f32(s.to_vec()), Fill::Positive);
                samples.push(Sample::new(Binary { kind }, vec![arg(a), arg(b)]));
            }
        }
        samples
    }
}

/// The sum of one or more operands of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddN;

impl OpDef for AddN {
    named!("add_n");
    pure!();
    no_attrs!(AddN);

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let first = args.first().ok_or("expected at least one operand")?;
        match args.iter().find(|t| t != &first) {
            Some(other) => Err(format!("operands `{first}` and `{other}` differ in type")),
            None => Ok(vec![(*first).clone()]),
        }
    }

    fn rule(&self, args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
        elementwise_rule(args, results[0], Linearity::Joint((0..args.len()).collect()))
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        let dy = cx.dy()?;
        Ok(cx.needs.iter().map(|&needed| needed.then_some(dy)).collect())
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        let flops = results[0].elements() * (args.len() as u64 - 1);
        Work { matmul_flops: 0, flops, bytes: traffic(args, results) }
    }

    fn alias(&self) -> Alias {
        Alias::MayReuse(vec![0])
    }

    fn samples() -> Vec<Sample> {
        vec![Sample::uniform(AddN, &[&[4, 4], &[4, 4], &[4, 4]])]
    }
}
