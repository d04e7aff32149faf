//! Attention whose keys and values travel around a ring of ranks (Ring Attention, Liu et al., 2023): queries, keys and values all lie
//! over the same axes along the sequence, and no rank ever holds more of keys and values than its own block and two of others.
//!
//! One node stands for the whole ring, with its axes, as one node stands for the rounds of any collective: a plan does not grow with
//! the number of its ranks. For a ring of n ranks each rank
//!
//! 1. begins with its own block, passes the block in hand to the next rank and takes one from the rank before, n - 1 times;
//! 2. lets its queries see each block, and carries the running maximum and sum of the softmax on in output and log-sum-exp (online
//!    softmax, Milakov and Gimelshein, 2018); blocks that a causal rule hides as a whole are passed on unseen;
//! 3. in the gradient passes the gradients of a block's keys and values on behind it, which come home after n rounds.
//!
//! Under a causal rule the rank with the last queries sees all blocks and the first one only its own. A *zigzag* ring (as in the
//! training of Llama 3, 2024) evens this out: the sequence is cut into 2 n chunks, of which rank i computes numbers i and 2 n - 1 - i, and
//! every rank has half of each foreign block to do. Operands come, and results go, in the order of the sequence; the ring exchanges
//! their chunks before and after.
//!
//! On devices that compute in f32 only, blocks of bf16 travel as bf16, and what is summed over blocks is f32.

use crate::cluster::DeviceKind;
use crate::id::AxisId;
use crate::mesh::{Mesh, RuleBuilder, ShardingRule};
use crate::op::compute::{Attention, AttentionGrad};
use crate::op::{AttrReader, AttrValue, Attrs, Effects, Op, OpDef, Sample, Work};
use crate::types::{DType, TensorType};

/// Scratch tensors begin at multiples of this many bytes.
pub const SCRATCH_ALIGNMENT: u64 = 64;

/// (o, lse) = ring_attention(q, k, v, mask?): what [`Attention`] gives for as many keys as queries.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RingAttention {
    /// The attention that all ranks compute together.
    pub attention: Attention,
    /// Axes of the ring, major first: those of the sequence.
    pub axes: Vec<AxisId>,
    /// Whether each rank computes a chunk of the front and one of the back.
    pub zigzag: bool,
}

/// (dq, dk, dv) = ring_attention_grad(q, k, v, o, lse, do, mask?): what [`AttentionGrad`] gives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RingAttentionGrad {
    /// The gradient that all ranks compute together.
    pub attention: AttentionGrad,
    /// Axes of the ring, major first: those of the sequence.
    pub axes: Vec<AxisId>,
    /// Whether each rank computes a chunk of the front and one of the back.
    pub zigzag: bool,
}

/// The ring over `axes` that computes an attention, or its gradient, on these global types. Under a causal rule there must be as many
/// keys as queries; only there a zigzag is of use.
pub fn ring_of(op: &Op, args: &[&TensorType], axes: &[AxisId], zigzag: bool) -> Option<Op> {
    let axes = axes.to_vec();
    match op {
        Op::Attention(attention) if can_be_ring(attention.causal, zigzag, args) => {
            Some(RingAttention { attention: *attention, axes, zigzag }.into())
        }
        Op::AttentionGrad(attention) if can_be_ring(attention.causal, zigzag, args) => {
            Some(RingAttentionGrad { attention: *attention, axes, zigzag }.into())
        }
        _ => None,
    }
}

impl Op {
    /// The op of a program that an op of a plan computes, and the axes over whose ranks it does so together.
    pub fn undistributed(&self) -> Option<(Op, &[AxisId])> {
        match self {
            Op::RingAttention(ring) => Some((ring.attention.into(), &ring.axes)),
            Op::RingAttentionGrad(ring) => Some((ring.attention.into(), &ring.axes)),
            Op::RoutedMoe(routed) => Some((routed.mixture.into(), &routed.axes)),
            Op::RoutedMoeGrad(routed) => Some((routed.mixture.into(), &routed.axes)),
            _ => None,
        }
    }
}

impl Op {
    /// Whether an op is a ring whose ranks compute a chunk of the front and one of the back of the sequence.
    pub fn is_zigzag(&self) -> bool {
        match self {
            Op::RingAttention(ring) => ring.zigzag,
            Op::RingAttentionGrad(ring) => ring.zigzag,
            _ => false,
        }
    }
}

fn can_be_ring(causal: bool, zigzag: bool, args: &[&TensorType]) -> bool {
    let fits = args.len() >= 3 && args[0].rank() == 4 && args[1].rank() == 4;
    fits && (if causal { args[0].shape[1] == args[1].shape[1] } else { !zigzag })
}

fn check(causal: bool, zigzag: bool, args: &[&TensorType]) -> Result<(), String> {
    match can_be_ring(causal, zigzag, args) {
        true => Ok(()),
        false if zigzag && !causal => Err("a zigzag is of use under a causal rule only".into()),
        false => Err("a causal ring has as many keys as queries".into()),
    }
}

/// The rule of an attention in which the sequence of keys and values is cut with that of the queries. Where they differ in length, the
/// factor's extent is what both are multiples of.
fn rule(dense: ShardingRule, (queries, keys): (u64, u64)) -> ShardingRule {
    let sequence = dense.operands[0][1].clone();
    let (mut operands, mut results) = (dense.operands, dense.results);
    for keys in &mut operands[1..3] {
        keys[1].clone_from(&sequence);
    }
    if results.len() == 3 {
        for keys in &mut results[1..3] {
            keys[1].clone_from(&sequence);
        }
    }
    let mut builder = RuleBuilder::new().linear(dense.linear);
    for (index, factor) in dense.factors.iter().enumerate() {
        let size = if sequence.contains(&index) { common_divisor(queries, keys) } else { factor.size };
        builder.factor_of(factor.label.clone(), size, factor.kind);
    }
    let builder = operands.into_iter().fold(builder, RuleBuilder::operand_dims);
    results.into_iter().fold(builder, RuleBuilder::result_dims).build()
}

fn common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// The scratch tensors of a ring on one rank, in the order in which they lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingScratch {
    /// Pairs of keys and values of other ranks: one that is used and one that comes.
    pub blocks: Vec<[TensorType; 2]>,
    /// Of a zigzag: operands and results with their two chunks one after the other, and room for the largest chunk.
    pub moved: Vec<TensorType>,
    /// The columns of the mask for one block, or for one chunk of it and one of the queries.
    pub mask: Option<TensorType>,
    /// Gradients of keys and values that are under way.
    pub gradients: Option<[TensorType; 2]>,
    /// The f32 copies, where the operands are bf16: of q, k and v, of the gradient's o and do, and then of the results.
    pub wide: Vec<TensorType>,
}

impl RingScratch {
    /// Scratch of a ring of `n` ranks, from local types; the mask is the dense op's operand number `mask`.
    fn new(args: &[&TensorType], results: &[&TensorType], mask: usize, (n, zigzag): (u64, bool)) -> RingScratch {
        let (k, v) = (args[1], args[2]);
        let chunks = if zigzag { 2 } else { 1 };
        let blocks = vec![[k.clone(), v.clone()]; (n - 1).min(2) as usize];
        let columns =
            |m: &&TensorType| m.with_shape([m.shape[0], m.shape[1], m.shape[2] / chunks, k.shape[1] / chunks]);
        let mut moved = Vec::new();
        if zigzag {
            moved.extend(args.iter().chain(results).map(|t| (*t).clone()));
            let largest = moved.iter().map(|t| t.bytes() / 2).max().unwrap_or(0);
            moved.push(TensorType::new(DType::Bool, [largest]));
        }
        RingScratch { blocks, moved, mask: args.get(mask).map(columns), ..RingScratch::default() }
    }

    /// Scratch of a forward ring of `n` ranks, which may be a zigzag.
    pub fn forward(args: &[&TensorType], results: &[&TensorType], ring: (u64, bool)) -> RingScratch {
        let mut scratch = RingScratch::new(args, results, 3, ring);
        if is_half(args) {
            scratch.wide = args[..3].iter().chain(&results[..1]).map(|t| wide(t)).collect();
            scratch.wide.extend(scratch.mask.as_ref().map(wide));
        }
        scratch
    }

    /// Scratch of the gradient's ring of `n` ranks, which may be a zigzag.
    pub fn backward(args: &[&TensorType], results: &[&TensorType], ring: (u64, bool)) -> RingScratch {
        let mut scratch = RingScratch::new(args, results, 6, ring);
        scratch.gradients = Some([wide(args[1]), wide(args[2])]);
        if is_half(args) {
            let read = [args[0], args[1], args[2], args[3], args[5]];
            scratch.wide = read.iter().chain(&args[..3]).map(|t| wide(t)).collect();
            scratch.wide.extend(scratch.mask.as_ref().map(wide));
        }
        scratch
    }

    /// All tensors in order.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorType> {
        let gradients = self.gradients.iter().flatten();
        self.blocks.iter().flatten().chain(&self.moved).chain(&self.mask).chain(gradients).chain(&self.wide)
    }

    /// Bytes with all tensors aligned.
    pub fn bytes(&self) -> u64 {
        self.tensors().map(|t| t.bytes().next_multiple_of(SCRATCH_ALIGNMENT)).sum()
    }
}

fn is_half(args: &[&TensorType]) -> bool {
    args[0].dtype == DType::Bf16
}

fn wide(ty: &TensorType) -> TensorType {
    TensorType::f32(ty.shape.clone())
}

macro_rules! ring {
    ($name:ident, $mnemonic:literal, $dense:ident, $scratch:expr) => {
        impl OpDef for $name {
            named!($mnemonic);
            no_alias!();
            no_gradient!("communication is inserted after differentiation");

            fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
                let types = self.attention.infer(args)?;
                check(self.attention.causal, self.zigzag, args)?;
                Ok(types)
            }

            fn rule(&self, args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
                rule(self.attention.rule(args, results), (args[0].shape[1], args[1].shape[1]))
            }

            /// That of all blocks, each of which is as large as the rank's own one.
            fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
                self.attention.work(args, results)
            }

            fn effects(&self) -> Effects {
                Effects::Communicates
            }

            /// See [`RingScratch`].
            fn workspace(&self, args: &[&TensorType], results: &[&TensorType], mesh: &Mesh) -> u64 {
                let scratch: fn(&[&TensorType], &[&TensorType], (u64, bool)) -> RingScratch = $scratch;
                let mut scratch = scratch(args, results, (mesh.product(&self.axes).max(1), self.zigzag));
                if mesh.device() != DeviceKind::Cpu {
                    scratch.wide.clear();
                }
                scratch.bytes()
            }

            fn attrs(&self) -> Attrs {
                let mut attrs = vec![("axes", AttrValue::Axes(self.axes.clone()))];
                attrs.extend(self.attention.attrs());
                if self.zigzag {
                    attrs.push(("zigzag", AttrValue::Flag));
                }
                attrs
            }

            fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
                let (scale, causal, zigzag) = (attrs.float("scale")?, attrs.flag("causal"), attrs.flag("zigzag"));
                Ok($name { attention: $dense { scale, causal }, axes: attrs.axes("axes")?, zigzag })
            }

            fn samples() -> Vec<Sample> {
                Vec::new()
            }
        }
    };
}

ring!(RingAttention, "comm.ring_attention", Attention, RingScratch::forward);
ring!(RingAttentionGrad, "comm.ring_attention_grad", AttentionGrad, RingScratch::backward);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::FactorMap;
    use crate::types::Scalar;

    fn types(shapes: &[&[u64]]) -> Vec<TensorType> {
        shapes.iter().map(|s| TensorType::f32(s.to_vec())).collect()
    }

    #[test]
    fn keys_and_values_are_cut_with_the_queries() {
        let all = types(&[&[2, 8, 4, 3], &[2, 8, 2, 3], &[2, 8, 2, 5], &[2, 8, 4, 5], &[2, 4, 8]]);
        let all: Vec<&TensorType> = all.iter().collect();
        let attention = Attention { scale: Scalar::new(0.5), causal: true };
        let ring = ring_of(&attention.into(), &all[..3], &[AxisId(1)], true).unwrap();
        let rule = ring.rule(&all[..3], &all[3..]);
        let mut map = FactorMap::replicated(&rule);
        map.axes[rule.operands[0][1][0]].push(AxisId(1));
        for i in 0..3 {
            assert_eq!(rule.operand_sharding(i, &map).dims[1], [AxisId(1)]);
        }
        assert_eq!(rule.result_sharding(0, &map).dims[1], [AxisId(1)]);
        assert_eq!(rule.result_sharding(1, &map).dims[2], [AxisId(1)]);
        assert!(!rule.result_sharding(0, &map).is_partial());
    }

    /// A causal rule needs equal lengths; without one both lengths are cut into as many blocks.
    #[test]
    fn other_lengths_of_keys_have_a_ring_without_a_rule() {
        let all = types(&[&[2, 8, 4, 3], &[2, 12, 4, 3], &[2, 12, 4, 3]]);
        let all: Vec<&TensorType> = all.iter().collect();
        let attention = |causal| Attention { scale: Scalar::new(0.5), causal }.into();
        assert_eq!(ring_of(&attention(true), &all, &[], false), None);
        assert_eq!(ring_of(&attention(false), &all, &[], true), None);
        let ring = ring_of(&attention(false), &all, &[], false).unwrap();
        let results = ring.infer(&all).unwrap();
        let rule = ring.rule(&all, &results.iter().collect::<Vec<_>>());
        assert_eq!(rule.factors[rule.operands[1][1][0]].size, 4);
    }

    /// Two blocks of another rank, whatever the size of the ring.
    #[test]
    fn scratch_does_not_grow_with_the_ring() {
        let all = types(&[&[2, 8, 4, 4], &[2, 8, 4, 4], &[2, 8, 4, 4], &[2, 8, 4, 4]]);
        let all: Vec<&TensorType> = all.iter().collect();
        let block = all[1].bytes() + all[2].bytes();
        let bytes = |n| RingScratch::forward(&all[..3], &all[3..], (n, false)).bytes();
        assert_eq!((bytes(1), bytes(2), bytes(3), bytes(64)), (0, block, 2 * block, 2 * block));
    }
}
