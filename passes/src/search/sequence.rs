//! Sequence and context parallelism that cuts no weight: the tensor axes cut the sequence everywhere but inside of attention. The
//! gradient of a weight is a sum over these axes.
//!
//! Ulysses (Jacobs et al., 2023) cuts the heads there, with an all_to_all on either side. Context parallelism cuts the queries: every
//! rank gathers all keys and values (as in the training of Llama 3, 2024), or they travel around a ring (Ring Attention, Liu et al., 2023). Both are choices of placements among others. Here they are
//! pinned, and recognised for reports.

use super::candidates::SpaceBuilder;
use super::options::{NodeOption, Split};
use super::pins::{ContextKind, LayerPins};
use super::price::{Facts, Priced};
use crate::rings::RingKind;
use galvatron_ir::NodeId;
use galvatron_ir::mesh::ShardingRule;
use galvatron_ir::op::Op;

/// What the tensor axes cut in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TensorKind {
    /// Weights, or whatever else.
    Weights,
    /// The sequence, and inside of attention the heads.
    Ulysses,
    /// The sequence, and inside of attention the queries, which see keys and values in this way.
    Context(ContextKind),
}

/// Dimensions of queries: the sequence, and the heads.
const SEQUENCE: usize = 1;
const HEADS: usize = 2;

/// The rule of an attention as a ring; none for other ops, and for an attention without a ring.
pub(super) fn attention_ring<'f>(facts: &'f Facts<'_>, node: NodeId) -> Option<&'f ShardingRule> {
    facts.rules.ring(node).filter(|_| matches!(facts.program.graph.node(node).op, Op::Attention(_)))
}

fn kind_of(option: &NodeOption) -> ContextKind {
    match option.ring {
        None => ContextKind::Gather,
        Some(RingKind::Blocks) => ContextKind::Ring,
        Some(RingKind::Zigzag) => ContextKind::Zigzag,
    }
}

impl SpaceBuilder<'_> {
    /// Where a degree above 1 is pinned, products cut no weight, and attention cuts its heads or its queries; where 1 is pinned, nothing
    /// is cut so.
    pub(super) fn obeys_sequence_pins(
        &self,
        node: NodeId,
        option: &NodeOption,
        split: &Split,
        pins: &LayerPins,
    ) -> bool {
        if split.tensor.is_empty() || (pins.ulysses.is_none() && pins.cp.is_none()) {
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
    /// What the tensor axes cut under an assignment of a segment whose sequence they cut at its boundary.
    pub fn tensor_kind(&self, assignment: &[usize]) -> TensorKind {
        let chosen = || self.groups().iter().zip(assignment).map(|(group, &option)| (group, &group.options[option]));
        let tensor = self.tensor_axes();
        let cuts_weight = chosen().any(|(group, option)| {
            let args = self.node(group).args.iter().zip(&option.operands);
            args.filter(|(arg, _)| self.is_weight(**arg)).any(|(_, s)| tensor.iter().any(|&a| s.is_sharded_over(a)))
        });
        let mut kinds =
            chosen().filter(|(group, _)| matches!(self.node(group).op, Op::Attention(_))).map(|(_, option)| {
                let cuts = |dim: usize| tensor.iter().all(|axis| option.operands[0].dims[dim].contains(axis));
                match (cuts(HEADS), cuts(SEQUENCE)) {
                    (true, _) => TensorKind::Ulysses,
                    (_, true) => TensorKind::Context(kind_of(option)),
                    _ => TensorKind::Weights,
                }
            });
        match kinds.next() {
            Some(kind) if !cuts_weight && !tensor.is_empty() && kinds.all(|other| other == kind) => kind,
            _ => TensorKind::Weights,
        }
    }
}
