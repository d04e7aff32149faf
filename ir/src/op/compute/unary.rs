//! Element-wise functions of one operand, and their derivatives.

use super::broadcasting::elementwise_rule;
use crate::id::ValueId;
use crate::mesh::{Linearity, ShardingRule};
use crate::op::{Alias, AttrReader, Attrs, Fill, GradCx, NoGradient, OpDef, Sample, Work, expect_args, traffic};
use crate::types::{DType, TensorType};

/// Which function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UnaryKind {
    /// -x
    Neg,
    /// e to the power x
    Exp,
    /// Natural logarithm.
    Log,
    /// Square root.
    Sqrt,
    /// 1 / x
    Reciprocal,
    /// Hyperbolic tangent.
    Tanh,
    /// Error function.
    Erf,
    /// 1 / (1 + e^-x)
    Sigmoid,
    /// max(x, 0)
    Relu,
    /// x Φ(x), by the error function.
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// x sigmoid(x)
    Silu,
    /// |x|
    Abs,
    /// -1, 0 or 1.
    Sign,
    /// Sine of radians.
    Sin,
    /// Cosine of radians.
    Cos,
    /// The largest integer that is not above x.
    Floor,
    /// The smallest integer that is not below x.
    Ceil,
    /// The nearest integer; halves to the even one.
    Round,
    /// ln(1 + e^x)
    Softplus,
    /// Whether x is not a number; a bool.
    IsNan,
}

/// Function, mnemonic, and mnemonic of the derivative; a function that is flat almost everywhere has none.
const KINDS: [(UnaryKind, &str, &str); 21] = [
    (UnaryKind::Neg, "neg", "neg_grad"),
    (UnaryKind::Exp, "exp", "exp_grad"),
    (UnaryKind::Log, "log", "log_grad"),
    (UnaryKind::Sqrt, "sqrt", "sqrt_grad"),
    (UnaryKind::Reciprocal, "reciprocal", "reciprocal_grad"),
    (UnaryKind::Tanh, "tanh", "tanh_grad"),
    (UnaryKind::Erf, "erf", "erf_grad"),
    (UnaryKind::Sigmoid, "sigmoid", "sigmoid_grad"),
    (UnaryKind::Relu, "relu", "relu_grad"),
    (UnaryKind::Gelu, "gelu", "gelu_grad"),
    (UnaryKind::GeluTanh, "gelu_tanh", "gelu_tanh_grad"),
    (UnaryKind::Silu, "silu", "silu_grad"),
    (UnaryKind::Abs, "abs", "abs_grad"),
    (UnaryKind::Sign, "sign", ""),
    (UnaryKind::Sin, "sin", "sin_grad"),
    (UnaryKind::Cos, "cos", "cos_grad"),
    (UnaryKind::Floor, "floor", ""),
    (UnaryKind::Ceil, "ceil", ""),
    (UnaryKind::Round, "round", ""),
    (UnaryKind::Softplus, "softplus", "softplus_grad"),
    (UnaryKind::IsNan, "is_nan", ""),
];

impl UnaryKind {
    /// Whether the derivative is 0 wherever there is one.
    pub fn is_flat(self) -> bool {
        use UnaryKind::{Ceil, Floor, IsNan, Round, Sign};
        matches!(self, Ceil | Floor | IsNan | Round | Sign)
    }
}

/// An element-wise function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unary {
    /// Which one.
    pub kind: UnaryKind,
}

impl OpDef for Unary {
    pure!();

    fn mnemonics() -> Vec<&'static str> {
        KINDS.iter().map(|(_, n, _)| *n).collect()
    }

    fn mnemonic(&self) -> &'static str {
        KINDS.iter().find(|(k, ..)| *k == self.kind).map_or("unary", |(_, n, _)| n)
    }

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 1)?;
        if !args[0].dtype.is_float() {
            return Err(format!("operand `{}` must be a float", args[0]));
        }
        let dtype = if self.kind == UnaryKind::IsNan { DType::Bool } else { args[0].dtype };
        Ok(vec![TensorType::new(dtype, args[0].shape.clone())])
    }

    fn rule(&self, args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
        let linear = if self.kind == UnaryKind::Neg { Linearity::Joint(vec![0]) } else { Linearity::None };
        elementwise_rule(args, results[0], linear)
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        let (x, dy) = (cx.args[0], cx.dy()?);
        Ok(vec![match self.kind {
            kind if kind.is_flat() => None,
            UnaryKind::Neg => cx.emit_for(0, Unary { kind: UnaryKind::Neg }, &[dy]),
            kind => cx.emit_for(0, UnaryGrad { kind }, &[x, dy]),
        }])
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: 8 * results[0].elements(), bytes: traffic(args, results) }
    }

    fn alias(&self) -> Alias {
        Alias::MayReuse(vec![0])
    }

    fn attrs(&self) -> Attrs {
        Vec::new()
    }

    fn parse(mnemonic: &str, _attrs: &mut AttrReader) -> Result<Self, String> {
        let kind = KINDS.iter().find(|(_, n, _)| *n == mnemonic).map(|(k, ..)| *k);
        kind.map(|kind| Unary { kind }).ok_or_else(|| format!("`{mnemonic}` is no element-wise function"))
    }

    fn samples() -> Vec<Sample> {
        let fill = |kind| match kind {
            UnaryKind::Log | UnaryKind::Sqrt | UnaryKind::Reciprocal => Fill::Positive,
            _ => Fill::Uniform,
        };
        KINDS
            .iter()
            .map(|&(kind, ..)| Sample::new(Unary { kind }, vec![(TensorType::f32([4, 2, 4]), fill(kind))]))
            .collect()
    }
}

/// dx = f'(x) dy for an element-wise function f; operands x, dy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnaryGrad {
    /// The function f.
    pub kind: UnaryKind,
}

impl OpDef for UnaryGrad {
    pure!();
    no_gradient!("second derivatives are not supported");

    fn mnemonics() -> Vec<&'static str> {
        KINDS.iter().map(|(.., n)| *n).filter(|n| !n.is_empty()).collect()
    }

    fn mnemonic(&self) -> &'static str {
        KINDS.iter().find(|(k, ..)| *k == self.kind).map_or("unary_grad", |(.., n)| n)
    }

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 2)?;
        if args[0] != args[1] {
            return Err(format!("operands `{}` and `{}` differ in type", args[0], args[1]));
        }
        Ok(vec![args[0].clone()])
    }

    fn rule(&self, args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
        elementwise_rule(args, results[0], Linearity::Each(vec![1]))
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: 12 * results[0].elements(), bytes: traffic(args, results) }
    }

    fn alias(&self) -> Alias {
        Alias::MayReuse(vec![0, 1])
    }

    fn attrs(&self) -> Attrs {
        Vec::new()
    }

    fn parse(mnemonic: &str, _attrs: &mut AttrReader) -> Result<Self, String> {
        let kind = KINDS.iter().find(|(.., n)| *n == mnemonic).map(|(k, ..)| *k);
        kind.map(|kind| UnaryGrad { kind }).ok_or_else(|| format!("`{mnemonic}` is no derivative"))
    }

    fn samples() -> Vec<Sample> {
        let t = TensorType::f32([4, 2, 4]);
        let with_grad = KINDS.iter().filter(|(.., n)| !n.is_empty());
        with_grad
            .map(|&(kind, ..)| {
                Sample::new(UnaryGrad { kind }, vec![(t.clone(), Fill::Positive), (t.clone(), Fill::Uniform)])
            })
            .collect()
    }
}
