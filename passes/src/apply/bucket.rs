//! `bucket-reductions`: small all_reduces of the reduce phase that are ready at the same time become one.
//!
//! A gradient reduction of a bias costs a latency, not a bandwidth. Large operands stay alone: packing them would cost a
//! second copy of the gradient.

use galvatron_ir::mesh::Mesh;
use galvatron_ir::op::Op;
use galvatron_ir::op::comm::AllReduce;
use galvatron_ir::plan::{Chunk, PhaseKind};
use galvatron_ir::{AxisId, Module, NodeId, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes up to which an operand is small.
pub(crate) const SMALL_BYTES: u64 = 256 << 10;
/// Bytes that one bucket holds at most.
pub(crate) const BUCKET_BYTES: u64 = 4 << 20;

/// Merges the small all_reduces of every chunk's reduce phase.
pub fn bucket_reductions(module: &mut Module) {
    let Module { stages, chunks, .. } = module;
    for chunk in chunks {
        let mesh = &stages[chunk.stage as usize].mesh;
        let body = std::mem::take(chunk.phase_mut(PhaseKind::Reduce));
        let mut pass = Bucket { chunk, mesh, order: Vec::new(), renamed: BTreeMap::new() };
        pass.run(body);
        let (order, renamed) = (pass.order, pass.renamed);
        *chunk.phase_mut(PhaseKind::Reduce) = order;
        rename_operands(chunk, &renamed);
    }
}

struct Bucket<'a> {
    chunk: &'a mut Chunk,
    mesh: &'a Mesh,
    order: Vec<NodeId>,
    /// The result of a merged node for each result of a node that it replaces.
    renamed: BTreeMap<ValueId, ValueId>,
}

impl Bucket<'_> {
    /// Emits what is ready; when only small all_reduces are, emits all of them together.
    fn run(&mut self, mut waiting: Vec<NodeId>) {
        let mut missing: BTreeSet<ValueId> =
            waiting.iter().flat_map(|&n| self.chunk.graph.node(n).results.clone()).collect();
        while !waiting.is_empty() {
            let n_waiting = waiting.len();
            let (mut small, mut later) = (Vec::new(), Vec::new());
            for node in waiting {
                if self.chunk.graph.node(node).args.iter().any(|a| missing.contains(a)) {
                    later.push(node);
                } else if self.is_small(node) {
                    small.push(node);
                } else {
                    self.order.push(node);
                    for result in &self.chunk.graph.node(node).results {
                        missing.remove(result);
                    }
                }
            }
            let progress = !small.is_empty() || later.len() < n_waiting;
            assert!(progress, "invariant: phases have no cycle");
            for &node in &small {
                for result in &self.chunk.graph.node(node).results {
                    missing.remove(result);
                }
            }
            self.emit_buckets(&small);
            waiting = later;
        }
    }

    fn is_small(&self, node: NodeId) -> bool {
        let n = self.chunk.graph.node(node);
        matches!(n.op, Op::AllReduce(_)) && n.args.len() == 1 && self.bytes(node) <= SMALL_BYTES
    }

    fn bytes(&self, node: NodeId) -> u64 {
        self.chunk.local_type(self.chunk.graph.node(node).args[0], self.mesh).bytes()
    }

    fn emit_buckets(&mut self, small: &[NodeId]) {
        let mut by_axes: BTreeMap<Vec<AxisId>, Vec<NodeId>> = BTreeMap::new();
        for &node in small {
            if let Op::AllReduce(op) = &self.chunk.graph.node(node).op {
                by_axes.entry(op.axes.clone()).or_default().push(node);
            }
        }
        for (axes, nodes) in by_axes {
            let mut bucket: Vec<NodeId> = Vec::new();
            let mut filled = 0;
            for node in nodes {
                if filled + self.bytes(node) > BUCKET_BYTES {
                    self.merge(&axes, &std::mem::take(&mut bucket));
                    filled = 0;
                }
                filled += self.bytes(node);
                bucket.push(node);
            }
            self.merge(&axes, &bucket);
        }
    }

    fn merge(&mut self, axes: &[AxisId], bucket: &[NodeId]) {
        if let [only] = bucket {
            self.order.push(*only);
        }
        if bucket.len() < 2 {
            return;
        }
        let graph = &mut self.chunk.graph;
        let args: Vec<ValueId> = bucket.iter().map(|&n| graph.node(n).args[0]).collect();
        let old: Vec<ValueId> = bucket.iter().map(|&n| graph.node(n).results[0]).collect();
        let types = old.iter().map(|&v| graph.value(v).ty.clone()).collect();
        let names: Vec<String> = old.iter().map(|&v| graph.value(v).name.clone()).collect();
        let node = graph.add_typed(AllReduce { axes: axes.to_vec() }.into(), &args, types, &names);
        for (old, new) in old.into_iter().zip(graph.node(node).results.clone()) {
            let value = graph.value(old).clone();
            graph.value_mut(new).sharding = value.sharding;
            graph.value_mut(new).of = value.of;
            self.renamed.insert(old, new);
        }
        self.order.push(node);
    }
}

fn rename_operands(chunk: &mut Chunk, renamed: &BTreeMap<ValueId, ValueId>) {
    let nodes: Vec<NodeId> = chunk.nodes().map(|(_, n)| n).collect();
    for node in nodes {
        for arg in &mut chunk.graph.node_mut(node).args {
            if let Some(new) = renamed.get(arg) {
                *arg = *new;
            }
        }
    }
}
