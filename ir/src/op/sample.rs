//! Small instances of ops, from which tests are generated.

use super::Op;
use crate::types::TensorType;

/// What the elements of a sample's operand look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Uniform in [-1, 1].
    Uniform,
    /// Uniform in [0.5, 1.5].
    Positive,
    /// Integers in [0, n).
    Index(i64),
    /// 0 or 1.
    Bool,
}

/// One instance of an op.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The op.
    pub op: Op,
    /// Types and contents of the operands.
    pub args: Vec<(TensorType, Fill)>,
}

impl Sample {
    /// A sample whose operands are all uniform floats.
    pub fn uniform(op: impl Into<Op>, shapes: &[&[u64]]) -> Sample {
        let args = shapes.iter().map(|s| (TensorType::f32(s.to_vec()), Fill::Uniform)).collect();
        Sample { op: op.into(), args }
    }

    /// A sample with given operands.
    pub fn new(op: impl Into<Op>, args: Vec<(TensorType, Fill)>) -> Sample {
        Sample { op: op.into(), args }
    }
}
