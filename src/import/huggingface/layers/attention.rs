//! Attention between queries and keys that are split into heads.

use galvatron_ir::diagnostic::Diagnostic;
use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{Attention, Einsum, Softmax};
use galvatron_ir::types::Scalar;

use super::super::builder::{Builder, Built};

/// Heads of queries, and those of keys and values, of which each serves an equal number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Heads {
    /// Heads of the queries.
    pub n_heads: u64,
    /// Heads of keys and values.
    pub n_groups: u64,
    /// Width of a head.
    pub width: u64,
}

impl Builder {
    /// [b, s, heads · width] as [b, s, heads, width].
    pub fn split_heads(&mut self, x: ValueId, n_heads: u64) -> Built {
        let mut shape = self.shape(x);
        let width = shape.pop().unwrap_or(1) / n_heads.max(1);
        shape.extend([n_heads, width]);
        self.reshape(x, &shape)
    }

    /// [b, s, heads, width] as [b, s, heads · width].
    pub fn merge_heads(&mut self, x: ValueId) -> Built {
        let mut shape = self.shape(x);
        let width = shape.pop().unwrap_or(1) * shape.pop().unwrap_or(1);
        shape.push(width);
        self.reshape(x, &shape)
    }

    /// Queries, keys and values, each [b, s, heads, width], by `NAME.q_proj`, `NAME.k_proj` and `NAME.v_proj`.
    pub fn projections(
        &mut self,
        name: &str,
        x: ValueId,
        heads: Heads,
        has_bias: bool,
        std: f64,
    ) -> Result<[ValueId; 3], Diagnostic> {
        let mut project = |part: &str, n| {
            let y = self.linear(&format!("{name}.{part}"), x, n * heads.width, has_bias, std)?;
            self.split_heads(y, n)
        };
        Ok([project("q_proj", heads.n_heads)?, project("k_proj", heads.n_groups)?, project("v_proj", heads.n_groups)?])
    }

    /// softmax(scale q k + mask) v for q [b, n, h, d], k and v [b, m, g, d]: [b, n, h, d].
    pub fn attention(&mut self, [q, k, v]: [ValueId; 3], scale: f64, causal: bool, mask: Option<ValueId>) -> Built {
        let args: Vec<ValueId> = [q, k, v].into_iter().chain(mask).collect();
        self.emit(Attention { scale: Scalar::new(scale), causal }, &args)
    }

    /// The same with a bias that may be trained, [1 or b, h, n, m], on the scores.
    pub fn biased_attention(&mut self, [q, k, v]: [ValueId; 3], scale: f64, bias: ValueId) -> Built {
        let contraction =
            |lhs: &str, rhs: &str, out: &str| Einsum { lhs: lhs.into(), rhs: rhs.into(), out: out.into() };
        let scores = self.emit(contraction("bqhd", "bkhd", "bhqk"), &[q, k])?;
        let scaled = self.scaled(scores, scale)?;
        let biased = self.add(scaled, bias)?;
        let weights = self.emit(Softmax, &[biased])?;
        self.emit(contraction("bhqk", "bkhd", "bqhd"), &[weights, v])
    }
}
