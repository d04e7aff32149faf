//! Attentions that ranks compute together, as rings: the op that stands for one in a plan, and its factor rule.

use galvatron_ir::mesh::ShardingRule;
use galvatron_ir::module::Program;
use galvatron_ir::op::{Op, comm};
use galvatron_ir::{AxisId, NodeId};

/// Which part of the sequence each rank of a ring computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RingKind {
    /// The block that it holds.
    Blocks,
    /// A chunk of the front and one of the back, which evens out what a causal rule leaves to do.
    Zigzag,
}

/// The ring of a kind that computes an attention of the program, or the gradient of one, over some axes; none for other nodes, and where
/// there is none, see [`comm::ring_of`].
pub fn ring_of(program: &Program, node: NodeId, axes: &[AxisId], kind: RingKind) -> Option<Op> {
    let node = program.graph.node(node);
    comm::ring_of(&node.op, &program.graph.types(&node.args), axes, kind == RingKind::Zigzag)
}

/// The factor rule of a node as a ring, which has the factors of the node's own rule.
pub fn ring_rule(program: &Program, node: NodeId) -> Option<ShardingRule> {
    let ring = ring_of(program, node, &[], RingKind::Blocks)?;
    let node = program.graph.node(node);
    Some(ring.rule(&program.graph.types(&node.args), &program.graph.types(&node.results)))
}
