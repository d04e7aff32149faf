//! petgraph views of a graph: the algorithms run there, the graph itself keeps ordered operands.

use super::Graph;
use crate::id::NodeId;
use petgraph::graphmap::DiGraphMap;

/// Directed graph over the nodes of `body`: an edge from each producer to each reader.
pub fn dependency_graph(graph: &Graph, body: &[NodeId]) -> DiGraphMap<u32, ()> {
    let mut deps = DiGraphMap::with_capacity(body.len(), body.len() * 2);
    for node in body {
        deps.add_node(node.0);
    }
    for &node in body {
        for &arg in &graph.node(node).args {
            if let Some(from) = graph.producer(arg)
                && deps.contains_node(from.0)
            {
                deps.add_edge(from.0, node.0, ());
            }
        }
    }
    deps
}

/// The nodes of `body` in an order in which producers come first, or a node on a cycle.
///
/// The order is stable: it depends on the graph and `body` only.
pub fn toposort(graph: &Graph, body: &[NodeId]) -> Result<Vec<NodeId>, NodeId> {
    let deps = dependency_graph(graph, body);
    match petgraph::algo::toposort(&deps, None) {
        Ok(order) => Ok(order.into_iter().map(NodeId).collect()),
        Err(cycle) => Err(NodeId(cycle.node_id())),
    }
}

/// The nodes of `body` whose results reach none of the roots, where `keep` says which nodes count for themselves.
pub fn dead_nodes(graph: &Graph, body: &[NodeId], keep: impl Fn(NodeId) -> bool) -> Vec<NodeId> {
    let mut live = vec![false; graph.n_nodes()];
    for &node in body.iter().rev() {
        if live[node.index()] || keep(node) {
            live[node.index()] = true;
            for &arg in &graph.node(node).args {
                if let Some(from) = graph.producer(arg) {
                    live[from.index()] = true;
                }
            }
        }
    }
    body.iter().copied().filter(|n| !live[n.index()]).collect()
}
