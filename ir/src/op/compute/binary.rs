//! Element-wise ops of two operands with NumPy broadcasting, and the sum of many operands.

use super::broadcasting::{broadcast_shape, elementwise_rule, unbroadcast};
use super::{Compare, Full, Unary, UnaryKind, Where};
use crate::id::ValueId;
use crate::mesh::{Linearity, ShardingRule};
use crate::op::{Alias, AttrReader, Attrs, Fill, GradCx, NoGradient, Op, OpDef, Sample, Work, expect_args, traffic};
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
    /// a to the power b
    Pow,
    /// The larger one, NaN if one is; where both are the same, each gets half of the gradient.
    Max,
    /// The smaller one, NaN if one is; where both are the same, each gets half of the gradient.
    Min,
    /// a - b floor(a / b): the remainder that has the sign of b.
    Mod,
    /// a - b trunc(a / b): the remainder that has the sign of a.
    Rem,
}

const KINDS: [(BinaryKind, &str); 9] = [
    (BinaryKind::Add, "add"),
    (BinaryKind::Sub, "sub"),
    (BinaryKind::Mul, "mul"),
    (BinaryKind::Div, "div"),
    (BinaryKind::Pow, "pow"),
    (BinaryKind::Max, "max"),
    (BinaryKind::Min, "min"),
    (BinaryKind::Mod, "mod"),
    (BinaryKind::Rem, "rem"),
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
    /// The larger of a and b
    pub const MAX: Binary = Binary { kind: BinaryKind::Max };
    /// The smaller of a and b
    pub const MIN: Binary = Binary { kind: BinaryKind::Min };
    /// The remainder that has the sign of b
    pub const MOD: Binary = Binary { kind: BinaryKind::Mod };
    /// The remainder that has the sign of a
    pub const REM: Binary = Binary { kind: BinaryKind::Rem };

    /// d out / d a * dy, before undoing the broadcast.
    fn grad_lhs(self, cx: &mut GradCx<'_>, dy: ValueId) -> ValueId {
        let (a, b) = (cx.args[0], cx.args[1]);
        match self.kind {
            BinaryKind::Add | BinaryKind::Sub | BinaryKind::Mod | BinaryKind::Rem => dy,
            BinaryKind::Mul => cx.emit(Binary::MUL, &[dy, b]),
            BinaryKind::Div => cx.emit(Binary::DIV, &[dy, b]),
            BinaryKind::Pow => grad_base(cx, dy),
            BinaryKind::Max => shared(cx, dy, [a, b]),
            BinaryKind::Min => shared(cx, dy, [b, a]),
        }
    }

    /// d out / d b * dy, before undoing the broadcast.
    fn grad_rhs(self, cx: &mut GradCx<'_>, dy: ValueId) -> ValueId {
        let (a, b, y) = (cx.args[0], cx.args[1], cx.results[0]);
        match self.kind {
            BinaryKind::Add => dy,
            BinaryKind::Sub => cx.emit(Unary { kind: UnaryKind::Neg }, &[dy]),
            BinaryKind::Mul => cx.emit(Binary::MUL, &[dy, a]),
            BinaryKind::Div => {
                let scaled = cx.emit(Binary::MUL, &[dy, y]);
                let ratio = cx.emit(Binary::DIV, &[scaled, b]);
                cx.emit(Unary { kind: UnaryKind::Neg }, &[ratio])
            }
            BinaryKind::Pow => grad_exponent(cx, dy),
            BinaryKind::Max => shared(cx, dy, [b, a]),
            BinaryKind::Min => shared(cx, dy, [a, b]),
            BinaryKind::Mod | BinaryKind::Rem => {
                let rest = cx.emit(Binary::SUB, &[y, a]);
                let quotient = cx.emit(Binary::DIV, &[rest, b]);
                cx.emit(Binary::MUL, &[dy, quotient])
            }
        }
    }
}

/// A scalar of the element type of a value.
fn scalar(cx: &mut GradCx<'_>, like: ValueId, value: f64) -> ValueId {
    let ty = cx.ty(like).with_shape([]);
    cx.emit(Full { ty, value: Scalar::new(value) }, &[])
}

/// b a^(b - 1) dy; 0 where b is 0, whatever a is.
fn grad_base(cx: &mut GradCx<'_>, dy: ValueId) -> ValueId {
    let (a, b) = (cx.args[0], cx.args[1]);
    let one = scalar(cx, b, 1.0);
    let less = cx.emit(Binary::SUB, &[b, one]);
    let power = cx.emit(Binary::POW, &[a, less]);
    let slope = cx.emit(Binary::MUL, &[power, b]);
    let da = cx.emit(Binary::MUL, &[dy, slope]);
    let known = cx.graph.producer(b).map(|node| &cx.graph.node(node).op);
    if matches!(known, Some(Op::Full(full)) if full.value.get() != 0.0) {
        return da;
    }
    let zero = scalar(cx, b, 0.0);
    let flat = cx.emit(Compare::EQUAL, &[b, zero]);
    cx.emit(Where, &[flat, zero, da])
}

/// a^b ln(a) dy; 0 where a is 0 and b is not negative.
fn grad_exponent(cx: &mut GradCx<'_>, dy: ValueId) -> ValueId {
    let (a, b, y) = (cx.args[0], cx.args[1], cx.results[0]);
    let log = cx.emit(Unary { kind: UnaryKind::Log }, &[a]);
    let slope = cx.emit(Binary::MUL, &[y, log]);
    let db = cx.emit(Binary::MUL, &[dy, slope]);
    let zero = scalar(cx, b, 0.0);
    let defined = cx.emit(Compare::LESS_EQUAL, &[zero, b]);
    let at_zero = cx.emit(Where, &[defined, zero, db]);
    let vanishes = cx.emit(Compare::EQUAL, &[a, zero]);
    cx.emit(Where, &[vanishes, at_zero, db])
}

/// dy, half of it where two operands are the same, 0 where the first is the smaller one.
fn shared(cx: &mut GradCx<'_>, dy: ValueId, pair: [ValueId; 2]) -> ValueId {
    let (half, zero) = (scalar(cx, dy, 0.5), scalar(cx, dy, 0.0));
    let half = cx.emit(Binary::MUL, &[dy, half]);
    let same = cx.emit(Compare::EQUAL, &pair);
    let most = cx.emit(Where, &[same, half, dy]);
    let loses = cx.emit(Compare::LESS, &pair);
    cx.emit(Where, &[loses, zero, most])
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
            _ => Linearity::None,
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
            let db = self.grad_rhs(cx, dy);
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
