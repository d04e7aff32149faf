//! Removes what no output depends on.

use galvatron_ir::graph::dead_nodes;
use galvatron_ir::{NodeId, Program};
use std::collections::BTreeSet;

/// Removes nodes that reach no output, no update and write nothing.
pub(crate) fn remove_dead_nodes(program: &mut Program) {
    let graph = &program.graph;
    let roots = program.outputs.iter().map(|(_, v)| *v).chain(program.updates.iter().map(|(_, v)| *v));
    let roots: BTreeSet<NodeId> = roots.filter_map(|v| graph.producer(v)).collect();
    let dead: BTreeSet<NodeId> = dead_nodes(graph, &program.body, |node| roots.contains(&node)).into_iter().collect();
    program.body.retain(|node| !dead.contains(node));
}

/// Removes weights that nothing reads.
pub(super) fn remove_unused_weights(program: &mut Program) {
    let mut used = vec![false; program.graph.n_values()];
    for &node in &program.body {
        for arg in &program.graph.node(node).args {
            used[arg.index()] = true;
        }
    }
    for (_, value) in &program.outputs {
        used[value.index()] = true;
    }
    program.weights.retain(|w| used[w.value.index()]);
}
