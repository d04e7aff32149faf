//! What a rank does with tokens that travel to the ranks of their experts.
//!
//! A *row* is what a message has of one token. A message holds, tensor by tensor, all of its rows one after the other; how many they are is
//! known while a step runs only, and stands in the arena as an i64.

use std::ops::Range;

use galvatron_ir::op::Op;
use galvatron_ir::types::DType;

use super::{BufferSpec, Span};

/// A part of a mixture of experts whose tokens travel.
#[derive(Clone, Debug)]
pub enum Routing<'a> {
    /// Counts for each rank the tokens of which some choice is one of its experts.
    Count {
        /// The choices, i64 [.., k].
        choices: &'a BufferSpec,
        /// The experts of each rank; none of the own ones.
        experts: &'a [Range<u64>],
        /// The numbers, one for each rank.
        counts: Span,
    },
    /// Packs the rows of the tokens of which some choice is one of a rank's experts.
    Pack {
        /// The choices, i64 [.., k].
        choices: &'a BufferSpec,
        /// The experts of the rank.
        experts: Range<u64>,
        /// The tensors of which rows travel.
        tensors: &'a [BufferSpec],
        /// The numbers of these tokens, u32.
        rows: Span,
        /// The message.
        to: Span,
    },
    /// Computes experts on the rows of another rank.
    Compute(RowBlock<'a>),
    /// Adds the rows of a message to those of the tokens that were sent.
    Add {
        /// How many they are.
        count: Span,
        /// The numbers of the tokens, u32.
        rows: Span,
        /// The message.
        from: Span,
        /// The element type of the message.
        dtype: DType,
        /// The tensors to which rows are added, of f32.
        to: &'a [BufferSpec],
    },
}

/// The experts of a rank on the rows of another rank: choices i64 [rows, k], then w [rows, k], x [rows, h], and in a gradient dy [rows, h].
#[derive(Clone, Copy, Debug)]
pub struct RowBlock<'a> {
    /// The mixture or its gradient.
    pub op: &'a Op,
    /// The choices of the rank's own tokens, as many as which a message may hold.
    pub choices: &'a BufferSpec,
    /// How many rows there are.
    pub count: Span,
    /// The message that came.
    pub from: Span,
    /// The message that goes back: y [rows, h], or dx [rows, h] and dw [rows, k].
    pub to: Span,
    /// Element type of floats in messages.
    pub dtype: DType,
    /// gate, up and down, of f32.
    pub experts: &'a [BufferSpec],
    /// Their gradients, of f32, to which those by these rows are added; none in a forward op.
    pub gradients: &'a [BufferSpec],
    /// f32 copies of the floats of both messages, where these are of bf16.
    pub copies: &'a [BufferSpec],
    /// Scratch memory of the op's `workspace` bytes.
    pub scratch: Span,
}
