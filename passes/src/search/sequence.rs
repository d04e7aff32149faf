//! Sequence and context parallelism that cuts no weight: some axes cut the sequence everywhere but inside of attention. The gradient of a
//! weight is a sum over these axes. They are the context axes beside tensor axes, which cut weights, or else the tensor axes.
//!
//! Ulysses (Jacobs et al., 2023) cuts the heads there, with an all_to_all on either side. Context parallelism cuts the queries: every
//! rank gathers all keys and values (as in the training of Llama 3, 2024, tensor parallelism inside), or they travel around a ring (Ring
//! Attention, Liu et al., 2023). Both are choices of placements among others. Here they are pinned, and recognised for reports.

use super::boundary::SEQUENCE;
use super::candidates::SpaceBuilder;
use super::experts::expert_factor;
use super::options::{NodeOption, OptionContext};
use super::pins::{ContextKind, LayerPins};
use super::price::{Facts, Piece, Priced};
use super::split::Split;
use crate::batch::BatchFactors;
use crate::joint::JointKind;
use galvatron_ir::mesh::Mesh;
use galvatron_ir::module::Program;
use galvatron_ir::op::Op;
use galvatron_ir::{AxisId, NodeId, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// What the context axes cut in a segment, or the tensor axes where there are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TensorKind {
    /// Weights, or whatever else.
    Weights,
    /// The sequence, and inside of attention the heads.
    Ulysses,
    /// The sequence, and inside of attention the queries, which see keys and values in this way.
    Context(ContextKind),
}

/// Dimension of the heads of queries.
const HEADS: usize = 2;

/// Where the sequence is that flows between segments.
pub struct Sequences {
    /// The sequence factors of forward nodes.
    pub factors: BTreeMap<NodeId, usize>,
    /// The nodes of segments in which attention has that sequence for its queries.
    pub attending: BTreeSet<NodeId>,
}

impl Sequences {
    /// Follows the sequence of all boundaries through the forward program.
    pub fn of(program: &Program, forward: &[NodeId], pieces: &[Piece], batch: &BatchFactors) -> Sequences {
        let boundaries = pieces.iter().flat_map(|piece| [piece.input, piece.output]).flatten();
        let has_one = |v: &ValueId| program.graph.value(*v).ty.rank() >= 3 && batch.dims.get(v) == Some(&0);
        let dims = boundaries.filter(has_one).map(|value| (value, SEQUENCE)).collect();
        let factors = BatchFactors::following(program, forward, dims).factors;
        let is_attention =
            |n: &NodeId| factors.contains_key(n) && matches!(program.graph.node(*n).op, Op::Attention(_));
        let attending = pieces.iter().filter(|piece| piece.nodes.iter().any(is_attention));
        let attending = attending.flat_map(|piece| piece.nodes.iter().copied()).collect();
        Sequences { factors, attending }
    }
}

impl Facts<'_> {
    /// Whether the tensor axes are there for the weights of a node: beside context axes, in layers with attention.
    pub(super) fn cuts_weights(&self, node: NodeId, split: &Split) -> bool {
        !split.context.is_empty() && self.sequences.attending.contains(&node)
    }
}

impl<'a> OptionContext<'a> {
    /// Of a forward node.
    pub(super) fn of(facts: &'a Facts<'_>, node: NodeId, split: &'a Split, mesh: &'a Mesh) -> OptionContext<'a> {
        let (rule, op) = (&facts.rules[node], &facts.program.graph.node(node).op);
        let heads = matches!(op, Op::Attention(_)).then(|| rule.operands[0][HEADS].first().copied());
        OptionContext {
            mesh,
            split,
            batch: facts.batch.factors.get(&node).copied(),
            sequence: facts.sequences.factors.get(&node).copied(),
            heads: heads.flatten(),
            experts: expert_factor(op, rule),
            joint: facts.rules.joint(node),
            whole_batch: facts.is_whole_batch(node),
        }
    }
}

fn kind_of(option: &NodeOption) -> ContextKind {
    match option.joint {
        None | Some(JointKind::Routed) => ContextKind::Gather,
        Some(JointKind::Ring) => ContextKind::Ring,
        Some(JointKind::Zigzag) => ContextKind::Zigzag,
    }
}

/// What the axes of the sequence cut in the queries of an attention; none where it is something else.
fn kind_over(option: &NodeOption, axes: &[AxisId]) -> Option<TensorKind> {
    let cuts = |dim: usize| axes.iter().all(|axis| option.operands[0].dims[dim].contains(axis));
    match (cuts(HEADS), cuts(SEQUENCE)) {
        (true, _) => Some(TensorKind::Ulysses),
        (_, true) => Some(TensorKind::Context(kind_of(option))),
        _ => None,
    }
}

impl SpaceBuilder<'_> {
    /// Beside context axes the tensor axes leave the batch alone, in layers they cut no second part of the queries, and attention does with the
    /// context axes what is pinned. Where nothing is, attention keeps a sequence whole that flows between no segments, such as that of a window.
    pub(super) fn obeys_context(&self, node: NodeId, option: &NodeOption, split: &Split, pins: &LayerPins) -> bool {
        if split.context.is_empty() {
            return true;
        }
        if option.tensor_factor.is_some() && option.tensor_factor.as_ref() == self.facts.batch.factors.get(&node) {
            return false;
        }
        if !matches!(self.facts.program.graph.node(node).op, Op::Attention(_)) {
            return true;
        }
        let Some(kind) = kind_over(option, &split.context) else {
            return !pins.cuts_sequence() && !self.facts.sequences.factors.contains_key(&node);
        };
        let is_pinned_away = |pin: Option<u32>, other: Option<u32>| match pin {
            Some(degree) => degree == 1,
            None => other.is_some_and(|degree| degree > 1),
        };
        match kind {
            TensorKind::Ulysses => !is_pinned_away(pins.ulysses, pins.cp),
            TensorKind::Context(kind) => {
                !is_pinned_away(pins.cp, pins.ulysses) && pins.cp_kind.is_none_or(|pinned| pinned == kind)
            }
            TensorKind::Weights => false,
        }
    }

    /// Where a degree above 1 is pinned, products cut no weight, and attention cuts its heads or its queries; where 1 is pinned, nothing
    /// is cut so.
    pub(super) fn obeys_sequence_pins(
        &self,
        node: NodeId,
        option: &NodeOption,
        split: &Split,
        pins: &LayerPins,
    ) -> bool {
        if split.tensor.is_empty() || !split.context.is_empty() || (pins.ulysses.is_none() && pins.cp.is_none()) {
            return true;
        }
        let program = self.facts.program;
        let rule = &self.facts.rules[node];
        let (wanted, batch) = (self.tensor_factors(node, rule), self.facts.batch.factors.get(&node));
        let is_free = |f: &usize| rule.is_shardable(*f) && !wanted.contains(f) && Some(f) != batch;
        let cuts_wanted = option.tensor_factor.map(|factor| wanted.contains(&factor));
        let cuts = |dim: usize| split.tensor.iter().all(|axis| option.operands[0].dims[dim].contains(axis));
        match program.graph.node(node).op {
            _ if wanted.is_empty() => true,
            Op::Attention(_) => match pins.tensor_name() {
                "ulysses" => cuts(HEADS),
                "cp" => cuts(SEQUENCE) && pins.cp_kind.is_none_or(|kind| kind == kind_of(option)),
                _ => pins.cp.is_none() || !cuts(SEQUENCE),
            },
            // A product without a sequence is computed alike on all ranks.
            _ if pins.cuts_sequence() => {
                cuts_wanted == Some(false) || (cuts_wanted.is_none() && !(0..rule.factors.len()).any(|f| is_free(&f)))
            }
            _ => cuts_wanted != Some(false) || option.tensor_factor.as_ref() == batch,
        }
    }
}

impl Priced<'_> {
    /// What the axes of the sequence cut under an assignment of a segment whose sequence they cut at its boundary. Beside tensor axes a segment
    /// without attention is like one that gathers keys, and where several attentions differ the first one names the segment.
    pub fn tensor_kind(&self, assignment: &[usize]) -> TensorKind {
        let chosen = || self.groups().iter().zip(assignment).map(|(group, &option)| (group, &group.options[option]));
        let axes = self.split().sequence_axes();
        let attentions = chosen().filter(|(group, _)| matches!(self.node(group).op, Op::Attention(_)));
        let mut kinds = attentions.map(|(_, option)| kind_over(option, axes));
        if !self.split().context.is_empty() {
            return kinds.flatten().next().unwrap_or(TensorKind::Context(ContextKind::Gather));
        }
        let cuts_weight = chosen().any(|(group, option)| {
            let args = self.node(group).args.iter().zip(&option.operands);
            args.filter(|(arg, _)| self.is_weight(**arg)).any(|(_, s)| axes.iter().any(|&a| s.is_sharded_over(a)))
        });
        match kinds.next().flatten() {
            Some(kind) if !cuts_weight && !axes.is_empty() && kinds.all(|other| other == Some(kind)) => kind,
            _ => TensorKind::Weights,
        }
    }
}
