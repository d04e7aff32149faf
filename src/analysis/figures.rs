//! Figures that are read off a plan: bytes sent, times by phase.

use galvatron_ir::cluster::Cluster;
use galvatron_ir::op::Op;
use galvatron_ir::op::comm::step_of_op;
use galvatron_ir::plan::{PhaseKind, with_last_micro_batch};
use galvatron_ir::{Level, Module};
use galvatron_passes::cost::{CostModel, plan_cost};
use std::collections::BTreeMap;

/// Bytes that one rank of each stage puts into collectives and messages in one step, of all stages together, by phase; what
/// runs with the last micro-batch only counts as of the reduce phase.
pub fn sent_bytes(plan: &Module) -> BTreeMap<PhaseKind, u64> {
    let mut sent = BTreeMap::new();
    for chunk in &plan.chunks {
        let (mesh, late) = (plan.mesh_of(chunk), with_last_micro_batch(chunk));
        for (phase, id) in chunk.nodes() {
            let node = chunk.graph.node(id);
            let phase = if late.contains(&id) { PhaseKind::Reduce } else { phase };
            let sends = matches!(node.op, Op::Send(_)) || step_of_op(&node.op).is_some_and(|s| s.communicates());
            if sends {
                let bytes: u64 = chunk.local_types(&node.args, mesh).iter().map(|ty| ty.bytes()).sum();
                *sent.entry(phase).or_default() += runs(plan, phase) * bytes;
            }
        }
    }
    sent
}

/// Nanoseconds of one step by phase, of all stages together, as the data sheet has them; `None` where the machine is not the
/// plan's.
pub fn phase_ns(plan: &Module, cluster: &Cluster) -> Option<BTreeMap<PhaseKind, u64>> {
    if plan.level != Level::Plan || !is_of_plan(cluster, plan) {
        return None;
    }
    let cost = plan_cost(&CostModel::analytic(cluster), plan);
    let of = |(&phase, times): (&PhaseKind, &galvatron_passes::cost::PhaseTimes)| {
        (phase, runs(plan, phase) * (times.compute_ns + times.communication_ns))
    };
    Some(cost.phases.iter().map(of).collect())
}

/// Whether a cluster has as many devices as a plan has ranks, and all link levels that its meshes name.
pub fn is_of_plan(cluster: &Cluster, plan: &Module) -> bool {
    let meshes = plan.stages.iter().map(|stage| &stage.mesh).chain([&plan.mesh]);
    let mut levels = meshes.flat_map(|mesh| mesh.axes()).filter_map(|axis| axis.level);
    u64::from(cluster.world()) == plan.mesh.world() && levels.all(|level| (level as usize) < cluster.levels.len())
}

fn runs(plan: &Module, phase: PhaseKind) -> u64 {
    if phase.is_per_micro_batch() { plan.mesh.micro_batches() } else { 1 }
}
