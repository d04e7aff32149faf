//! Arithmetic is in f32: operands and results of bf16 pass through f32 copies, which lie in the workspace of the node on
//! devices without kernels for bf16, which are CPUs. Ops that only move elements take bf16 as it is.

use super::Op;
use crate::types::{DType, TensorType};

/// Copies begin at multiples of this many bytes.
const ALIGNMENT: u64 = 64;

/// Bytes of the f32 copy of a tensor; 0 for what is not bf16.
pub fn widened_bytes(ty: &TensorType) -> u64 {
    let is_half = ty.dtype == DType::Bf16;
    if is_half { (4 * ty.elements()).next_multiple_of(ALIGNMENT) } else { 0 }
}

impl Op {
    /// Whether the op computes in f32 on copies of its bf16 operands and results; what ranks compute together has its own copies.
    pub fn is_widened(&self, args: &[&TensorType], results: &[&TensorType]) -> bool {
        let has_half = args.iter().chain(results).any(|t| t.dtype == DType::Bf16);
        has_half && !matches!(self, Op::Cast(_)) && self.undistributed().is_none() && {
            let work = self.work(args, results);
            work.flops + work.matmul_flops > 0
        }
    }

    /// Bytes of the f32 copies of the op's bf16 operands and results; the op's own workspace comes after them.
    pub fn widening_bytes(&self, args: &[&TensorType], results: &[&TensorType]) -> u64 {
        if !self.is_widened(args, results) {
            return 0;
        }
        args.iter().chain(results).map(|t| widened_bytes(t)).sum()
    }
}
