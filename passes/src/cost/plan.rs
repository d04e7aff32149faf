//! The predicted time of a plan: its nodes one after the other, gradient reduction hidden behind the backward pass as far as
//! the device allows.

use super::pipeline::replay;
use super::{CostModel, Ring};
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
    /// Each phase, once.
    pub phases: BTreeMap<PhaseKind, PhaseTimes>,
    /// Nanoseconds of each layer (`None`: outside of layers) in one step, by phase.
    pub layers: BTreeMap<Option<u32>, BTreeMap<PhaseKind, PhaseTimes>>,
    /// Nanoseconds of gradient reduction that hide behind the backward pass.
    pub hidden_ns: u64,
}

/// Nanoseconds of one node of a chunk, and the bytes that it sends, by the model of its ranks.
pub fn node_cost(model: &CostModel, chunk: &Chunk, mesh: &Mesh, node: NodeId) -> PhaseTimes {
    let n = chunk.graph.node(node);
    if is_in_place(chunk, node) {
        return PhaseTimes::default();
    }
    let (args, results) = (chunk.local_types(&n.args, mesh), chunk.local_types(&n.results, mesh));
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
            if let Some((op, axes)) = n.op.undistributed() {
                return model.ring_times(
                    n.layer,
                    &Ring { op: &op, axes, mesh, zigzag: n.op.is_zigzag() },
                    whole,
                    (&sources, &outs),
                );
            }
            let compute_ns = model.node_ns(n.layer, &n.op, whole, (&sources, &outs));
            PhaseTimes { compute_ns, ..PhaseTimes::default() }
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
    let hidden: Vec<u64> = module.chunks.iter().map(|chunk| add_chunk(&mut cost, model, module, chunk)).collect();
    cost.hidden_ns = hidden.iter().sum();
    let micro_batches = module.mesh.micro_batches();
    let repeats = |phase: PhaseKind| if phase.is_per_micro_batch() { micro_batches } else { 1 };
    cost.step_ns = match module.stages.len() {
        1 => {
            let total: u64 = cost.phases.iter().map(|(&p, t)| repeats(p) * (t.compute_ns + t.communication_ns)).sum();
            total - cost.hidden_ns
        }
        _ => replay(model, module, &hidden, &mut |_| {}),
    };
    cost
}

/// Nanoseconds by chunk of gradient reduction that hide behind its backward pass.
pub(super) fn hidden_by_chunk(model: &CostModel, module: &Module) -> Vec<u64> {
    let mut cost = PlanCost::default();
    module.chunks.iter().map(|chunk| add_chunk(&mut cost, model, module, chunk)).collect()
}

/// Adds the times of a chunk; returns how much of its gradient reduction hides.
fn add_chunk(cost: &mut PlanCost, model: &CostModel, module: &Module, chunk: &Chunk) -> u64 {
    let mut layers: BTreeMap<Option<u32>, BTreeMap<PhaseKind, PhaseTimes>> = BTreeMap::new();
    let model = &*model.on(&module.stage_of(chunk).ranks());
    for (phase, node) in chunk.nodes() {
        let times = node_cost(model, chunk, module.mesh_of(chunk), node);
        add(cost.phases.entry(phase).or_default(), times);
        add(layers.entry(chunk.graph.node(node).layer).or_default().entry(phase).or_default(), times);
    }
    let hidden_ns = layers.values().map(|phases| hidden(model, phases)).sum();
    for (layer, phases) in layers {
        for (phase, times) in phases {
            add(cost.layers.entry(layer).or_default().entry(phase).or_default(), times);
        }
    }
    hidden_ns
}

fn add(to: &mut PhaseTimes, more: PhaseTimes) {
    to.compute_ns += more.compute_ns;
    to.communication_ns += more.communication_ns;
    to.sent_bytes += more.sent_bytes;
}

/// A layer's gradient reduction hides behind its backward computation of the last micro-batch.
fn hidden(model: &CostModel, phases: &BTreeMap<PhaseKind, PhaseTimes>) -> u64 {
    let of = |phase| phases.get(&phase).copied().unwrap_or_default();
    model.hidden_ns(
        of(PhaseKind::Backward).compute_ns + of(PhaseKind::BackwardWeight).compute_ns,
        of(PhaseKind::Reduce).communication_ns,
    )
}
