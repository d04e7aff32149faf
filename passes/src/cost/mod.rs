//! What things cost: time of ops and collectives on a cluster, from profiles where there are any, analytic otherwise.
//!
//! [`CostModel`] is the only way to a cost; it knows no search.

mod collectives;
mod compute;
mod pipeline;
mod plan;

pub use collectives::Collective;
pub use plan::{PhaseTimes, PlanCost, node_cost, plan_cost};

use galvatron_ir::cluster::{Cluster, DeviceKind};
use galvatron_ir::mesh::{Mesh, ReshardStep, Sharding, reshard_steps};
use galvatron_ir::op::Op;
use galvatron_ir::types::TensorType;

/// Looks up the time of ops and collectives.
#[derive(Clone, Debug)]
pub struct CostModel {
    cluster: Cluster,
}

impl CostModel {
    /// A model of this cluster from its data sheet alone.
    pub fn analytic(cluster: &Cluster) -> CostModel {
        CostModel { cluster: cluster.clone() }
    }

    /// The cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Nanoseconds of one op on local types.
    pub fn op_ns(&self, op: &Op, args: &[&TensorType], results: &[&TensorType]) -> u64 {
        compute::op_ns(&self.cluster.device, op, args, results)
    }

    /// Nanoseconds of one collective over some axes; `bytes` is the larger of what a rank puts in and gets out.
    pub fn collective_ns(&self, kind: Collective, mesh: &Mesh, axes: &[galvatron_ir::AxisId], bytes: u64) -> u64 {
        collectives::collective_ns(&self.cluster, kind, mesh, axes, bytes)
    }

    /// Nanoseconds of a message from one rank to another: over the slowest link between them.
    pub fn message_ns(&self, mesh: &Mesh, from: u64, to: u64, bytes: u64) -> u64 {
        let (a, b) = (mesh.coordinates(from), mesh.coordinates(to));
        let axis = mesh.spatial().find(|axis| a[axis.index()] != b[axis.index()]);
        let level =
            axis.and_then(|axis| mesh.axes()[axis.index()].level).and_then(|l| self.cluster.levels.get(l as usize));
        level.map_or(0, |level| (bytes as f64 / level.bandwidth * 1e9 + level.latency_ns) as u64)
    }

    /// Nanoseconds of a change of placement, or `None` where no collective makes it.
    pub fn reshard_ns(&self, from: &Sharding, to: &Sharding, ty: &TensorType, mesh: &Mesh) -> Option<u64> {
        if from == to {
            return Some(0);
        }
        let (mut at, mut total) = (from.clone(), 0);
        for step in reshard_steps(from, to)? {
            // Micro-batches follow each other: only a sum over them is ever resolved.
            if step.axes().contains(&Mesh::MB) && !matches!(step, ReshardStep::AllReduce { .. }) {
                return None;
            }
            let next = step.apply(&at);
            total += self.step_ns(&step, local_bytes(&at, ty, mesh)?, local_bytes(&next, ty, mesh)?, mesh);
            at = next;
        }
        Some(total)
    }

    /// Nanoseconds of one reshard step between local buffers of these bytes.
    pub fn step_ns(&self, step: &ReshardStep, from_bytes: u64, to_bytes: u64, mesh: &Mesh) -> u64 {
        let bytes = from_bytes.max(to_bytes);
        match step {
            ReshardStep::AllReduce { axes } => self.collective_ns(Collective::AllReduce, mesh, axes, bytes),
            ReshardStep::ReduceScatter { axes, .. } => self.collective_ns(Collective::ReduceScatter, mesh, axes, bytes),
            ReshardStep::AllGather { axes, .. } => self.collective_ns(Collective::AllGather, mesh, axes, bytes),
            ReshardStep::AllToAll { axes, .. } => self.collective_ns(Collective::AllToAll, mesh, axes, bytes),
            ReshardStep::Shard { .. } => compute::copy_ns(&self.cluster.device, 2 * to_bytes),
        }
    }

    /// Nanoseconds to move some bytes through memory.
    pub fn copy_ns(&self, bytes: u64) -> u64 {
        compute::copy_ns(&self.cluster.device, bytes)
    }

    /// Share of a layer's backward time behind which its gradient reduction hides.
    ///
    /// GPUs communicate on a stream of their own; a CPU rank computes and communicates on the same cores.
    pub fn reduction_overlap(&self) -> f64 {
        match self.cluster.device.kind {
            DeviceKind::Cuda => 0.8,
            DeviceKind::Cpu => 0.0,
        }
    }
}

fn local_bytes(sharding: &Sharding, ty: &TensorType, mesh: &Mesh) -> Option<u64> {
    let shape = sharding.local_shape(&ty.shape, mesh).ok()?;
    Some(ty.with_shape(shape).bytes())
}
