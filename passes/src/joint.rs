//! Nodes that ranks compute together: attentions as rings, and mixtures of experts whose tokens travel. Which op stands for one in a
//! plan, and its factor rule.

use galvatron_ir::mesh::{Sharding, ShardingRule};
use galvatron_ir::module::Program;
use galvatron_ir::op::{Op, comm};
use galvatron_ir::{AxisId, NodeId};

/// How ranks compute a node together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum JointKind {
    /// Keys and values of an attention travel around a ring; each rank computes the block of the sequence that it holds.
    Ring,
    /// The same, where each rank computes a chunk of the front and one of the back, which evens out what a causal rule leaves to do.
    Zigzag,
    /// The tokens of a mixture travel to the ranks of their experts.
    Routed,
}

/// The op that computes a node of the program, or the gradient of one, over some axes; none for nodes that are not computed in this way,
/// see [`comm::ring_of`] and [`comm::routed_of`].
pub fn joint_of(program: &Program, node: NodeId, axes: &[AxisId], kind: JointKind) -> Option<Op> {
    let node = program.graph.node(node);
    match kind {
        JointKind::Routed => comm::routed_of(&node.op, axes),
        _ => comm::ring_of(&node.op, &program.graph.types(&node.args), axes, kind == JointKind::Zigzag),
    }
}

/// The factor rule of a node that ranks compute together, which has the factors of the node's own rule.
pub fn joint_rule(program: &Program, node: NodeId) -> Option<ShardingRule> {
    let kinds = [JointKind::Ring, JointKind::Routed].into_iter();
    let op = kinds.filter_map(|kind| joint_of(program, node, &[], kind)).next()?;
    let node = program.graph.node(node);
    Some(op.rule(&program.graph.types(&node.args), &program.graph.types(&node.results)))
}

/// The axes over which ranks compute a node together, by the placements of its operands: those of the sequence, or those of the experts
/// over which the tokens lie too.
pub fn joint_axes(kind: JointKind, operands: &[Sharding]) -> Vec<AxisId> {
    match kind {
        JointKind::Routed => {
            operands[3].dims[0].iter().copied().filter(|&axis| operands[0].is_sharded_over(axis)).collect()
        }
        _ => operands[0].dims[1].clone(),
    }
}
