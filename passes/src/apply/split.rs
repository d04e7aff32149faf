//! Splits the backward phase of stages: what another stage waits for stays in it, everything else, the gradients of weights above all,
//! gets a phase of its own that may run later.

use galvatron_ir::NodeId;
use galvatron_ir::op::Op;
use galvatron_ir::plan::{Chunk, PhaseKind};
use std::collections::BTreeSet;

/// Moves the nodes of the backward phase of a chunk that no message needs to the phase `backward_weight`.
pub fn split_backward(chunk: &mut Chunk) {
    let body = std::mem::take(chunk.phase_mut(PhaseKind::Backward));
    let needed = needed_by_messages(chunk, &body);
    let (first, rest) = body.into_iter().partition(|node| needed.contains(node));
    *chunk.phase_mut(PhaseKind::Backward) = first;
    *chunk.phase_mut(PhaseKind::BackwardWeight) = rest;
}

/// The nodes of a body that send or receive, and those whose results these need.
fn needed_by_messages(chunk: &Chunk, body: &[NodeId]) -> BTreeSet<NodeId> {
    let (mut needed, mut wanted) = (BTreeSet::new(), BTreeSet::new());
    for &id in body.iter().rev() {
        let node = chunk.graph.node(id);
        if matches!(node.op, Op::Send(_) | Op::Recv(_)) || node.results.iter().any(|r| wanted.contains(r)) {
            needed.insert(id);
            wanted.extend(node.args.iter().copied());
        }
    }
    needed
}
