//! `lower-reshards`: each change of placement becomes the collectives that make it.

use galvatron_ir::Module;
use galvatron_ir::NodeId;
use galvatron_ir::mesh::reshard_steps;
use galvatron_ir::op::Op;
use galvatron_ir::op::comm::op_of_step;
use galvatron_ir::plan::Chunk;

/// Replaces every `comm.reshard` of every chunk by its steps.
pub fn lower_reshards(module: &mut Module) {
    for chunk in &mut module.chunks {
        for phase in 0..chunk.phases.len() {
            let body = std::mem::take(&mut chunk.phases[phase].body);
            chunk.phases[phase].body = body.into_iter().flat_map(|node| lower(chunk, node)).collect();
        }
    }
}

/// The nodes that stand for `node`; the last one defines its result.
fn lower(chunk: &mut Chunk, node: NodeId) -> Vec<NodeId> {
    let graph = &mut chunk.graph;
    if graph.node(node).op != Op::Reshard(galvatron_ir::op::comm::Reshard) {
        return vec![node];
    }
    let (arg, result) = (graph.node(node).args[0], graph.node(node).results[0]);
    let from = graph.value(arg).sharding.clone().expect("invariant: chunk values are placed");
    let to = graph.value(result).sharding.clone().expect("invariant: chunk values are placed");
    let steps = reshard_steps(&from, &to).expect("invariant: reshards are possible");
    let (last, first) = steps.split_last().expect("invariant: a reshard changes the placement");
    let (mut at, mut placed, mut nodes) = (arg, from, Vec::new());
    for step in first {
        placed = step.apply(&placed);
        let new = graph.add(op_of_step(step), &[at]).expect("invariant: collectives take any value");
        let out = graph.node(new).results[0];
        let value = graph.value(result).clone();
        graph.rename(out, &value.name);
        graph.value_mut(out).sharding = Some(placed.clone());
        graph.value_mut(out).of = value.of;
        graph.node_mut(new).layer = graph.node(node).layer;
        nodes.push(new);
        at = out;
    }
    graph.node_mut(node).op = op_of_step(last);
    graph.node_mut(node).args = vec![at];
    nodes.push(node);
    nodes
}
