//! Which nodes of forward and backward run with the last micro-batch only.
//!
//! A sum over micro-batches is complete when the last one has been added. So a node that reads one in a phase of micro-batches, and a node
//! that reads what such a node gives, runs once a step, with the last of them: a gradient is reduced beside the computation of the next
//! one. This follows from what nodes read, and is written nowhere.

use super::{Chunk, ResidentRole};
use crate::id::NodeId;
use crate::op::Op;
use std::collections::BTreeSet;

/// The nodes in phases of micro-batches that run with the last one only.
pub fn with_last_micro_batch(chunk: &Chunk) -> BTreeSet<NodeId> {
    let mut is_late = vec![false; chunk.graph.n_values()];
    for resident in chunk.residents.iter().filter(|r| r.role == ResidentRole::Accumulator) {
        is_late[resident.value.index()] = true;
    }
    let mut found = BTreeSet::new();
    for (_, id) in chunk.nodes().filter(|(phase, _)| phase.is_per_micro_batch()) {
        let node = chunk.graph.node(id);
        // What an accumulator held before is no sum of all micro-batches.
        let written = usize::from(matches!(node.op, Op::Accumulate(_)));
        if node.args.iter().skip(written).any(|arg| is_late[arg.index()]) {
            found.insert(id);
            node.results.iter().for_each(|result| is_late[result.index()] = true);
        }
    }
    found
}
