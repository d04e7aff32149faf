//! What a recomputation mode means for a segment.

use super::candidates::Mode;
use super::price::{Facts, Piece};
use galvatron_ir::module::Program;
use galvatron_ir::op::Op;
use galvatron_ir::{NodeId, ValueId};
use std::collections::BTreeSet;

/// What a recomputation mode keeps of a segment and what it computes again.
#[derive(Clone, Debug, Default)]
pub struct Recompute {
    /// Forward values that stay.
    pub kept: BTreeSet<ValueId>,
    /// Nodes that run again in the backward pass.
    pub again: BTreeSet<NodeId>,
}

impl Recompute {
    /// What a mode means for a segment.
    pub fn of(facts: &Facts<'_>, piece: &Piece, mode: Mode) -> Recompute {
        let program = facts.program;
        let mut kept = BTreeSet::new();
        for &node in &piece.nodes {
            let n = program.graph.node(node);
            let is_kept = match mode {
                Mode::None => true,
                Mode::Selective => matches!(n.op, Op::Einsum(_) | Op::Attention(_) | Op::Moe(_)),
                Mode::Full => false,
            };
            kept.extend(n.results.iter().filter(|&r| (is_kept && facts.saved.contains(r)) || Some(*r) == piece.output));
        }
        let mut recompute = Recompute { kept, again: BTreeSet::new() };
        let own: BTreeSet<NodeId> = piece.nodes.iter().copied().collect();
        for &value in facts.saved.iter() {
            recompute.need(program, &own, value);
        }
        recompute
    }

    fn need(&mut self, program: &Program, own: &BTreeSet<NodeId>, value: ValueId) {
        let Some(node) = program.graph.producer(value).filter(|n| own.contains(n)) else { return };
        if self.kept.contains(&value) || !self.again.insert(node) {
            return;
        }
        for &arg in &program.graph.node(node).args {
            self.need(program, own, arg);
        }
    }
}
