//! Ops that read what the run supplies, write what outlives a phase, and copy between memories.

use crate::mesh::{Linearity, RuleBuilder, ShardingRule};
use crate::op::{AttrReader, AttrValue, Attrs, Effects, OpDef, Sample, Work, expect_args, traffic};
use crate::types::{DType, TensorType};

macro_rules! memory_op {
    ($name:literal, $effects:expr) => {
        named!($name);
        no_alias!();
        no_gradient!("memory ops appear after differentiation");

        fn effects(&self) -> Effects {
            $effects
        }

        fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
            Work { matmul_flops: 0, flops: 0, bytes: traffic(args, results) }
        }

        fn workspace(&self, _args: &[&TensorType], _results: &[&TensorType], _mesh: &crate::mesh::Mesh) -> u64 {
            0
        }

        fn samples() -> Vec<Sample> {
            Vec::new()
        }
    };
}

mod host;

pub use host::{ToDevice, ToHost};

fn plain_rule(shape: &[u64], n_operands: usize, n_results: usize, linear: Linearity) -> ShardingRule {
    let mut b = RuleBuilder::new();
    let all: Vec<usize> = shape.iter().enumerate().map(|(i, &d)| b.factor(format!("d{i}"), d)).collect();
    for _ in 0..n_operands {
        b = b.operand(&all);
    }
    for _ in 0..n_results {
        b = b.result(&all);
    }
    b.linear(linear).build()
}

/// The rank's part of an array of the data: of the current micro-batch, or of the whole step outside of micro-batches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Load {
    /// Name of the array: a model input or the labels.
    pub input: String,
    /// Global type, the batch of the whole step first.
    pub ty: TensorType,
}

impl OpDef for Load {
    memory_op!("load", Effects::Reads);

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 0)?;
        Ok(vec![self.ty.clone()])
    }

    fn rule(&self, _args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
        plain_rule(&results[0].shape, 0, 1, Linearity::None)
    }

    fn attrs(&self) -> Attrs {
        vec![
            ("input", AttrValue::Str(self.input.clone())),
            ("dtype", AttrValue::Word(self.ty.dtype.to_string())),
            ("shape", crate::op::attrs::to_ints(&self.ty.shape)),
        ]
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        let input = attrs.string("input")?;
        Ok(Load { input, ty: TensorType::new(attrs.dtype("dtype")?, attrs.uints("shape")?) })
    }
}

/// A scalar that changes while training: the learning rate (`lr`) or the number of the step from 1 (`step`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunScalar {
    /// Its name.
    pub name: String,
}

impl OpDef for RunScalar {
    memory_op!("run_scalar", Effects::Reads);

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 0)?;
        match self.name.as_str() {
            "lr" | "step" => Ok(vec![TensorType::new(DType::F32, [])]),
            other => Err(format!("`{other}` is neither `lr` nor `step`")),
        }
    }

    fn rule(&self, _args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
        plain_rule(&results[0].shape, 0, 1, Linearity::None)
    }

    fn attrs(&self) -> Attrs {
        vec![("name", AttrValue::Str(self.name.clone()))]
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(RunScalar { name: attrs.string("name")? })
    }
}

/// Adds operand 1 to the resident operand 0; the first micro-batch of a step overwrites it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Accumulate;

impl OpDef for Accumulate {
    memory_op!("accumulate", Effects::Writes);
    no_attrs!(Accumulate);

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 2)?;
        if args[0] == args[1] { Ok(vec![]) } else { Err(format!("`{}` does not fit `{}`", args[1], args[0])) }
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        plain_rule(&args[0].shape, 2, 0, Linearity::Each(vec![0, 1]))
    }
}

/// Writes operand 1 to the resident operand 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Update;

impl OpDef for Update {
    memory_op!("update", Effects::Writes);
    no_attrs!(Update);

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 2)?;
        if args[0] == args[1] { Ok(vec![]) } else { Err(format!("`{}` does not fit `{}`", args[1], args[0])) }
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        plain_rule(&args[0].shape, 2, 0, Linearity::None)
    }
}
