//! Tensors known when compiling: one value, a ramp, a causal mask, or a short list.

use crate::id::ValueId;
use crate::mesh::{FactorKind, RuleBuilder, ShardingRule};
use crate::op::attrs::to_ints;
use crate::op::{AttrReader, AttrValue, Attrs, GradCx, NoGradient, OpDef, Sample, Work, expect_args, traffic};
use crate::types::{DType, Scalar, TensorType};
use std::sync::Arc;

fn no_operands(args: &[&TensorType], ty: TensorType) -> Result<Vec<TensorType>, String> {
    expect_args(args, 0)?;
    Ok(vec![ty])
}

/// Rule of a source whose dimensions from `whole_from` on must be whole.
fn source_rule(result: &TensorType, is_whole: impl Fn(usize) -> bool) -> ShardingRule {
    let mut b = RuleBuilder::new();
    let kind = |i| if is_whole(i) { FactorKind::Whole } else { FactorKind::Plain };
    let dims: Vec<usize> =
        result.shape.iter().enumerate().map(|(i, &d)| b.factor_of(format!("d{i}"), d, kind(i))).collect();
    b.result(&dims).build()
}

fn writing(results: &[&TensorType]) -> Work {
    Work { matmul_flops: 0, flops: 0, bytes: traffic(&[], results) }
}

macro_rules! constant_gradient {
    () => {
        fn gradient(&self, _cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
            Ok(Vec::new())
        }

        fn work(&self, _args: &[&TensorType], results: &[&TensorType]) -> Work {
            writing(results)
        }
    };
}

/// Every element is `value`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Full {
    /// Type of the result.
    pub ty: TensorType,
    /// The value; exact for the integers that occur.
    pub value: Scalar,
}

impl Full {
    /// An f32 scalar.
    pub fn f32(value: f64) -> Full {
        Full { ty: TensorType::f32([]), value: Scalar::new(value) }
    }
}

impl OpDef for Full {
    named!("full");
    pure!();
    no_alias!();
    constant_gradient!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        no_operands(args, self.ty.clone())
    }

    fn rule(&self, _args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
        source_rule(results[0], |_| false)
    }

    fn attrs(&self) -> Attrs {
        vec![
            ("dtype", AttrValue::Word(self.ty.dtype.to_string())),
            ("shape", to_ints(&self.ty.shape)),
            ("value", AttrValue::Float(self.value)),
        ]
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        let ty = TensorType::new(attrs.dtype("dtype")?, attrs.uints("shape")?);
        Ok(Full { ty, value: attrs.float("value")? })
    }

    fn samples() -> Vec<Sample> {
        let full = |dtype| Full { ty: TensorType::new(dtype, [4, 4]), value: Scalar::new(3.0) };
        vec![Sample::new(full(DType::F32), vec![]), Sample::new(full(DType::I64), vec![])]
    }
}

/// i64: start + step * index along dimension `dim`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Iota {
    /// Global shape of the result.
    pub shape: Vec<u64>,
    /// The dimension that counts.
    pub dim: usize,
    /// Value at index 0.
    pub start: i64,
    /// Difference of neighbours.
    pub step: i64,
}

impl OpDef for Iota {
    named!("iota");
    pure!();
    no_alias!();
    constant_gradient!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        if self.dim >= self.shape.len() {
            return Err(format!("shape {:?} has no dimension {}", self.shape, self.dim));
        }
        no_operands(args, TensorType::i64(self.shape.clone()))
    }

    fn rule(&self, _args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
        source_rule(results[0], |i| i == self.dim)
    }

    fn attrs(&self) -> Attrs {
        vec![
            ("shape", to_ints(&self.shape)),
            ("dim", AttrValue::Int(self.dim as i64)),
            ("start", AttrValue::Int(self.start)),
            ("step", AttrValue::Int(self.step)),
        ]
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(Iota {
            shape: attrs.uints("shape")?,
            dim: attrs.uint("dim")? as usize,
            start: attrs.int("start")?,
            step: attrs.int("step")?,
        })
    }

    fn samples() -> Vec<Sample> {
        vec![Sample::new(Iota { shape: vec![4, 3], dim: 1, start: 2, step: -1 }, vec![])]
    }
}

/// f32 [.., q, k]: 0 where key <= query + offset, `fill` elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CausalMask {
    /// Global shape of the result.
    pub shape: Vec<u64>,
    /// How many keys beyond its own index a query sees.
    pub offset: i64,
    /// Value of the hidden places.
    pub fill: Scalar,
}

impl OpDef for CausalMask {
    named!("causal_mask");
    pure!();
    no_alias!();
    constant_gradient!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        if self.shape.len() < 2 {
            return Err(format!("a mask has queries and keys, not shape {:?}", self.shape));
        }
        no_operands(args, TensorType::f32(self.shape.clone()))
    }

    fn rule(&self, _args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
        let rank = results[0].rank();
        source_rule(results[0], |i| i + 2 >= rank)
    }

    fn attrs(&self) -> Attrs {
        vec![
            ("shape", to_ints(&self.shape)),
            ("offset", AttrValue::Int(self.offset)),
            ("fill", AttrValue::Float(self.fill)),
        ]
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(CausalMask { shape: attrs.uints("shape")?, offset: attrs.int("offset")?, fill: attrs.float("fill")? })
    }

    fn samples() -> Vec<Sample> {
        vec![Sample::new(CausalMask { shape: vec![2, 4, 4], offset: 0, fill: Scalar::new(-1e9) }, vec![])]
    }
}

/// A short list of elements in row-major order; floats, integers and bools are all written as floats.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Constant {
    /// Type of the result.
    pub ty: TensorType,
    /// The elements; integers up to 2^53 are exact. Copies of the op share them.
    pub values: Arc<[Scalar]>,
}

impl OpDef for Constant {
    named!("constant");
    pure!();
    no_alias!();
    constant_gradient!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        if self.ty.elements() != self.values.len() as u64 {
            return Err(format!("`{}` does not have {} elements", self.ty, self.values.len()));
        }
        no_operands(args, self.ty.clone())
    }

    fn rule(&self, _args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
        source_rule(results[0], |_| true)
    }

    fn attrs(&self) -> Attrs {
        vec![
            ("dtype", AttrValue::Word(self.ty.dtype.to_string())),
            ("shape", to_ints(&self.ty.shape)),
            ("values", AttrValue::Numbers(self.values.clone())),
        ]
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        let ty = TensorType::new(attrs.dtype("dtype")?, attrs.uints("shape")?);
        Ok(Constant { ty, values: attrs.numbers("values")? })
    }

    fn samples() -> Vec<Sample> {
        let values = [0.5, -1.0, 2.0, 0.0].map(Scalar::new).into();
        vec![Sample::new(Constant { ty: TensorType::f32([2, 2]), values }, vec![])]
    }
}
