//! Ulysses (Jacobs et al., 2023): the tensor axes cut the sequence everywhere but inside of attention, where they cut the heads; an
//! all_to_all stands on either side. No weight is cut: its gradient is a sum over these axes.
//!
//! It is a choice of placements among others. Here it is pinned, and recognised for reports.

use super::candidates::SpaceBuilder;
use super::options::{NodeOption, Split};
use super::pins::LayerPins;
use super::price::Priced;
use crate::batch::rule_of;
use galvatron_ir::NodeId;
use galvatron_ir::op::Op;

impl SpaceBuilder<'_> {
    /// Under a pinned degree products cut no weight, and attention cuts its heads; where the pin is 1, products do not cut a sequence.
    pub(super) fn obeys_ulysses(&self, node: NodeId, option: &NodeOption, split: &Split, pins: &LayerPins) -> bool {
        let Some(degree) = pins.ulysses.filter(|_| !split.tensor.is_empty()) else { return true };
        let program = self.facts.program;
        let wanted = self.tensor_factors(node, &rule_of(program, node));
        let cuts_wanted = option.tensor_factor.map(|factor| wanted.contains(&factor));
        match program.graph.node(node).op {
            _ if wanted.is_empty() => true,
            Op::Attention(_) if degree > 1 => {
                let is_cut = |axis| option.operands[0].is_sharded_over(axis);
                cuts_wanted == Some(true) && split.tensor.iter().all(|&axis| is_cut(axis))
            }
            Op::Attention(_) => true,
            _ if degree > 1 => cuts_wanted != Some(true),
            _ => {
                let batch = self.facts.batch.factors.get(&node);
                cuts_wanted != Some(false) || option.tensor_factor.as_ref() == batch
            }
        }
    }
}

impl Priced<'_> {
    /// Whether an assignment of a segment with attention cuts the heads of all of it, but no weight.
    pub fn is_ulysses(&self, assignment: &[usize]) -> bool {
        let chosen = || self.groups().iter().zip(assignment).map(|(group, &option)| (group, &group.options[option]));
        let tensor = self.tensor_axes();
        let is_cut = |option: &NodeOption, operand: usize| {
            tensor.iter().any(|&axis| option.operands[operand].is_sharded_over(axis))
        };
        let mut attentions = chosen().filter(|(group, _)| matches!(self.node(group).op, Op::Attention(_))).peekable();
        let has_attention = attentions.peek().is_some();
        let heads = attentions.all(|(_, option)| is_cut(option, 0));
        let weights = chosen().any(|(group, option)| {
            let args = self.node(group).args.iter().enumerate();
            args.filter(|(_, arg)| self.is_weight(**arg)).any(|(i, _)| is_cut(option, i))
        });
        has_attention && heads && !weights && !tensor.is_empty()
    }
}
