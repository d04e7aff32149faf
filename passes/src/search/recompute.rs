//! What a recomputation mode means for a segment.

use super::candidates::Mode;
use super::price::{Facts, Piece};
use galvatron_ir::module::Program;
use galvatron_ir::op::{Alias, Op};
use galvatron_ir::{NodeId, ValueId};
use std::collections::BTreeSet;

/// What a recomputation mode keeps of a segment and what it computes again.
#[derive(Clone, Debug, Default)]
pub struct Recompute {
    /// Forward values that stay.
    pub kept: BTreeSet<ValueId>,
    /// Nodes that run again in the backward pass.
    pub again: BTreeSet<NodeId>,
    /// What of that which stays lies in host memory meanwhile.
    pub hosted: BTreeSet<ValueId>,
}

impl Recompute {
    /// What a mode means for a segment.
    pub fn of(facts: &Facts<'_>, piece: &Piece, mode: Mode) -> Recompute {
        let program = facts.program;
        let mut kept = BTreeSet::new();
        for &node in &piece.nodes {
            let n = program.graph.node(node);
            let is_kept = match mode {
                Mode::None | Mode::Offload => true,
                Mode::Selective => matches!(n.op, Op::Einsum(_) | Op::Attention(_) | Op::Moe(_)),
                Mode::Full => false,
            };
            kept.extend(n.results.iter().filter(|&r| (is_kept && facts.saved.contains(r)) || Some(*r) == piece.output));
        }
        let own: BTreeSet<NodeId> = piece.nodes.iter().copied().collect();
        let mut recompute = Recompute { kept, again: BTreeSet::new(), hosted: BTreeSet::new() };
        if mode == Mode::Offload {
            recompute.move_to_host(facts, &own, piece.output);
        }
        for &value in facts.saved.iter() {
            recompute.need(program, &own, value);
        }
        recompute
    }

    /// Puts what is kept into host memory: what these nodes write there, not what is a view of something older. Views of what is
    /// copied are made again.
    fn move_to_host(&mut self, facts: &Facts<'_>, own: &BTreeSet<NodeId>, output: Option<ValueId>) {
        let graph = &facts.program.graph;
        for value in self.kept.clone().into_iter().filter(|value| facts.saved.contains(value)) {
            let root = root(facts.program, value);
            let is_written = |node: &NodeId| own.contains(node) && !graph.node(*node).args.is_empty();
            if graph.producer(root).filter(is_written).is_none() {
                continue;
            }
            if root != value && facts.saved.contains(&root) && Some(value) != output {
                self.kept.remove(&value);
            } else {
                self.hosted.insert(value);
            }
        }
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

/// The value whose memory a value lies in.
fn root(program: &Program, value: ValueId) -> ValueId {
    let node = program.graph.producer(value).map(|node| program.graph.node(node));
    match node.map(|node| (node.op.alias(), &node.args)) {
        Some((Alias::View(operand), args)) => root(program, args[operand]),
        _ => value,
    }
}
