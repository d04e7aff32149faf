//! The segments of a program that has been differentiated since they were found, such as that of a plan.

use super::{Segment, segment};
use galvatron_ir::module::Program;
use galvatron_ir::{NodeId, ValueId};
use std::collections::BTreeSet;

/// The repeated layers of a training program, by the tags that [`segment`] left on its nodes; `None` if the tags are others, as
/// those of a program that was written by hand.
pub fn recorded(program: &Program) -> Option<Vec<Segment>> {
    let forward = forward_nodes(program);
    let mut alone = program.clone();
    alone.body.retain(|node| forward.contains(node));
    alone.updates.clear();
    alone.outputs.retain(|(name, _)| name != GRAD_NORM);
    let segments = segment(&mut alone);
    let is_tagged = |(i, s): (usize, &Segment)| s.nodes.iter().all(|&n| program.graph.node(n).layer == Some(i as u32));
    segments.iter().enumerate().all(is_tagged).then_some(segments)
}

/// The output that depends on gradients.
const GRAD_NORM: &str = "grad_norm";

/// The nodes that the loss and the model's outputs depend on.
fn forward_nodes(program: &Program) -> BTreeSet<NodeId> {
    let outputs = program.outputs.iter().filter(|(name, _)| name != GRAD_NORM);
    let mut open: Vec<ValueId> = outputs.map(|(_, value)| *value).collect();
    let mut forward = BTreeSet::new();
    while let Some(value) = open.pop() {
        if let Some(node) = program.graph.producer(value)
            && forward.insert(node)
        {
            open.extend(&program.graph.node(node).args);
        }
    }
    forward
}
