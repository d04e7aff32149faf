//! Attention between queries and keys that are split into heads.

use galvatron_ir::diagnostic::Diagnostic;
use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{Attention, CausalMask, Einsum, Softmax};
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

/// How queries and keys become weights.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Scores {
    /// Factor on the products.
    pub scale: f64,
    /// Whether a query sees no later keys.
    pub causal: bool,
    /// What is added to the scores: [1 or b, 1 or h, n, m].
    pub mask: Option<ValueId>,
    /// Rate at which weights are dropped.
    pub dropout: f64,
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

    /// dropout(softmax(scale q k + mask)) v for q [b, n, h, d], k and v [b, m, g, d]: [b, n, h, d].
    pub fn attention(&mut self, [q, k, v]: [ValueId; 3], scores: Scores) -> Built {
        let Scores { scale, causal, mask, dropout } = scores;
        if dropout == 0.0 {
            let args: Vec<ValueId> = [q, k, v].into_iter().chain(mask).collect();
            return self.emit(Attention { scale: Scalar::new(scale), causal }, &args);
        }
        let mut masks: Vec<ValueId> = mask.into_iter().collect();
        if causal {
            let shape = vec![1, 1, self.shape(q)[1], self.shape(k)[1]];
            masks.push(self.emit(CausalMask { shape, offset: 0, fill: Scalar::new(f64::NEG_INFINITY) }, &[])?);
        }
        self.literal_attention([q, k, v], scale, &masks, dropout)
    }

    /// The same with a bias that may be trained, [1 or b, h, n, m], on the scores.
    pub fn biased_attention(&mut self, qkv: [ValueId; 3], scale: f64, bias: ValueId, dropout: f64) -> Built {
        self.literal_attention(qkv, scale, &[bias], dropout)
    }

    /// Attention by products, with what is added to the scores.
    fn literal_attention(&mut self, [q, k, v]: [ValueId; 3], scale: f64, masks: &[ValueId], dropout: f64) -> Built {
        let contraction =
            |lhs: &str, rhs: &str, out: &str| Einsum { lhs: lhs.into(), rhs: rhs.into(), out: out.into() };
        let ([b, n, h, d], [_, m, g, _]) = (self.extents(q), self.extents(k));
        let is_grouped = g != h;
        let mut scores = if is_grouped {
            let q = self.reshape(q, &[b, n, g, h / g.max(1), d])?;
            let scores = self.emit(contraction("bqgrd", "bkgd", "bgrqk"), &[q, k])?;
            self.reshape(scores, &[b, h, n, m])?
        } else {
            self.emit(contraction("bqhd", "bkhd", "bhqk"), &[q, k])?
        };
        scores = self.scaled(scores, scale)?;
        for &mask in masks {
            scores = self.add(scores, mask)?;
        }
        let weights = self.emit(Softmax, &[scores])?;
        let weights = self.dropout(weights, dropout)?;
        if !is_grouped {
            return self.emit(contraction("bhqk", "bkhd", "bqhd"), &[weights, v]);
        }
        let weights = self.reshape(weights, &[b, g, h / g.max(1), n, m])?;
        let mixed = self.emit(contraction("bgrqk", "bkgd", "bqgrd"), &[weights, v])?;
        self.reshape(mixed, &[b, n, h, d])
    }

    fn extents(&self, x: ValueId) -> [u64; 4] {
        self.shape(x).try_into().expect("invariant: queries and keys are split into heads")
    }
}
