//! The predicted time of a plan, and what of it is for which phase and layer.

use super::CostModel;
use super::legs::Legs;
use super::pipeline::replay;
use crate::apply::overlap::copies_host;
use galvatron_ir::mesh::Mesh;
use galvatron_ir::op::Op;
use galvatron_ir::op::comm::step_of_op;
use galvatron_ir::plan::{Chunk, PhaseKind};
use galvatron_ir::{Module, NodeId};
use std::collections::BTreeMap;

/// Nanoseconds and bytes of one phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhaseTimes {
    /// Ops.
    pub compute_ns: u64,
    /// Collectives.
    pub communication_ns: u64,
    /// Bytes that one rank puts into collectives.
    pub sent_bytes: u64,
}

/// Predicted costs of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanCost {
    /// Nanoseconds of one optimizer step.
    pub step_ns: u64,
    /// Each phase, once. What runs with the last micro-batch only counts as of the reduce phase.
    pub phases: BTreeMap<PhaseKind, PhaseTimes>,
    /// Nanoseconds of each layer (`None`: outside of layers) in one step, by phase.
    pub layers: BTreeMap<Option<u32>, BTreeMap<PhaseKind, PhaseTimes>>,
    /// Nanoseconds in one step by which the stages together take less than if they communicated or computed, one at a time.
    pub hidden_ns: u64,
}

/// Nanoseconds of one node of a chunk, and the bytes that it sends, by the model of its ranks.
pub fn node_cost(model: &CostModel, chunk: &Chunk, mesh: &Mesh, node: NodeId) -> PhaseTimes {
    let n = chunk.graph.node(node);
    if is_in_place(chunk, node) {
        return PhaseTimes::default();
    }
    let (args, results) = (chunk.local_types(&n.args, mesh), chunk.local_types(&n.results, mesh));
    if copies_host(chunk, node) {
        let communication_ns = model.host_copy_ns(results.iter().map(|t| t.bytes()).sum());
        return PhaseTimes { communication_ns, ..PhaseTimes::default() };
    }
    match step_of_op(&n.op) {
        Some(step) => {
            let from: u64 = args.iter().map(|t| t.bytes()).sum();
            let to: u64 = results.iter().map(|t| t.bytes()).sum();
            let ns = model.step_ns(&step, from, to, mesh);
            match step.communicates() {
                true => PhaseTimes { compute_ns: 0, communication_ns: ns, sent_bytes: from },
                false => PhaseTimes { compute_ns: ns, ..PhaseTimes::default() },
            }
        }
        None => {
            let (sources, outs) = (args.iter().collect::<Vec<_>>(), results.iter().collect::<Vec<_>>());
            let whole = (&chunk.graph.types(&n.args)[..], &chunk.graph.types(&n.results)[..]);
            let local = (&sources[..], &outs[..]);
            model.joint_times(n.layer, &n.op, mesh, whole, local).unwrap_or_else(|| {
                let compute_ns = model.node_ns(n.layer, &n.op, whole, local);
                PhaseTimes { compute_ns, ..PhaseTimes::default() }
            })
        }
    }
}

/// An update whose new value was written over the old one: nothing is left to copy.
fn is_in_place(chunk: &Chunk, node: NodeId) -> bool {
    let n = chunk.graph.node(node);
    let place = |i: usize| n.args.get(i).and_then(|&v| chunk.graph.value(v).place);
    matches!(n.op, Op::Update(_)) && place(0).is_some() && place(0) == place(1)
}

/// Prices every node of the plan, each on the devices of its stage.
pub fn plan_cost(model: &CostModel, module: &Module) -> PlanCost {
    let mut cost = PlanCost::default();
    let legs: Vec<Legs> = module.chunks.iter().map(|chunk| Legs::new(model, module, chunk)).collect();
    for (chunk, legs) in module.chunks.iter().zip(&legs) {
        for (phase, node, times) in legs.times() {
            add(cost.phases.entry(phase).or_default(), times);
            let layer = chunk.graph.node(node).layer;
            add(cost.layers.entry(layer).or_default().entry(phase).or_default(), times);
        }
    }
    cost.hidden_ns = legs.iter().map(|legs| legs.hidden_ns(module.mesh.micro_batches())).sum();
    cost.step_ns = replay(module, &legs, &mut |_| {});
    cost
}

fn add(to: &mut PhaseTimes, more: PhaseTimes) {
    to.compute_ns += more.compute_ns;
    to.communication_ns += more.communication_ns;
    to.sent_bytes += more.sent_bytes;
}
