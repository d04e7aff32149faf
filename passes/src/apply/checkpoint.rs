//! `insert-recomputation`: forward values that are not kept are computed again in the backward phase, just before their
//! first use there; gathered copies of kept values and of ZeRO-3 parameters are gathered again. What another stage sent is kept.

use crate::strategy::Strategy;
use galvatron_ir::graph::Def;
use galvatron_ir::mesh::Mesh;
use galvatron_ir::op::Op;
use galvatron_ir::plan::{Chunk, PhaseKind};
use galvatron_ir::{Module, NodeId, ValueId};
use std::collections::BTreeMap;

/// Clones forward nodes into the backward phase of every chunk as the strategy demands.
pub fn insert_recomputation(module: &mut Module, strategy: &Strategy) {
    let Module { stages, chunks, .. } = module;
    for chunk in chunks {
        let mesh = &stages[chunk.stage as usize].mesh;
        let mut pass = Recompute::new(chunk, mesh, strategy);
        pass.run();
    }
}

struct Recompute<'a> {
    chunk: &'a mut Chunk,
    mesh: &'a Mesh,
    strategy: &'a Strategy,
    /// For each node whether it belongs to the forward phase.
    is_forward: Vec<bool>,
    clones: BTreeMap<ValueId, ValueId>,
    body: Vec<NodeId>,
}

impl<'a> Recompute<'a> {
    fn new(chunk: &'a mut Chunk, mesh: &'a Mesh, strategy: &'a Strategy) -> Self {
        let mut is_forward = vec![false; chunk.graph.n_nodes()];
        for &node in chunk.phase(PhaseKind::Forward) {
            is_forward[node.index()] = true;
        }
        Recompute { chunk, mesh, strategy, is_forward, clones: BTreeMap::new(), body: Vec::new() }
    }

    fn run(&mut self) {
        for node in std::mem::take(self.chunk.phase_mut(PhaseKind::Backward)) {
            let args = self.chunk.graph.node(node).args.clone();
            let args: Vec<ValueId> = args.into_iter().map(|a| self.available(a)).collect();
            self.chunk.graph.node_mut(node).args = args;
            self.body.push(node);
        }
        *self.chunk.phase_mut(PhaseKind::Backward) = std::mem::take(&mut self.body);
    }

    /// The value to read in the backward phase: the value itself if it is there or kept, otherwise its clone.
    fn available(&mut self, value: ValueId) -> ValueId {
        let Def::Node(node, index) = self.chunk.graph.value(value).def else { return value };
        if !self.is_forward.get(node.index()).copied().unwrap_or(false) || self.is_kept(value, node) {
            return value;
        }
        if let Some(&clone) = self.clones.get(&value) {
            return clone;
        }
        let args = self.chunk.graph.node(node).args.clone();
        let args: Vec<ValueId> = args.into_iter().map(|a| self.available(a)).collect();
        let clone = self.clone_node(node, &args);
        self.chunk.graph.node(clone).results[index as usize]
    }

    fn clone_node(&mut self, node: NodeId, args: &[ValueId]) -> NodeId {
        let graph = &mut self.chunk.graph;
        let original = graph.node(node).clone();
        let types = original.results.iter().map(|&r| graph.value(r).ty.clone()).collect();
        let names: Vec<String> = original.results.iter().map(|&r| format!("{}.re", graph.value(r).name)).collect();
        let clone = graph.add_typed(original.op, args, types, &names);
        graph.node_mut(clone).layer = original.layer;
        let results = graph.node(clone).results.clone();
        for (&old, new) in original.results.iter().zip(results) {
            let value = graph.value(old).clone();
            graph.value_mut(new).sharding = value.sharding;
            graph.value_mut(new).of = value.of;
            self.clones.insert(old, new);
        }
        self.body.push(clone);
        clone
    }

    fn is_kept(&self, value: ValueId, node: NodeId) -> bool {
        let graph = &self.chunk.graph;
        let of = graph.value(value).of.expect("invariant: chunk values are copies");
        let node = graph.node(node);
        if matches!(node.op, Op::Reshard(_)) {
            let source = graph.value(node.args[0]);
            let is_weight = self.strategy.weights.contains_key(&of);
            let was_partial = source.sharding.as_ref().is_some_and(|s| s.is_partial());
            let grows = self.chunk.local_type(value, self.mesh).bytes()
                > self.chunk.local_type(node.args[0], self.mesh).bytes();
            return match is_weight {
                true => !self.strategy.regather.contains(&of),
                false => self.strategy.keep.contains(&of) && (was_partial || !grows),
            };
        }
        // What another stage sent is not sent again.
        matches!(node.op, Op::Recv(_)) || (!node.args.is_empty() && self.strategy.keep.contains(&of))
    }
}
