//! What things cost: time of ops and collectives on a cluster, from profiles where there are any, analytic otherwise.
//!
//! [`CostModel`] is the only way to a cost; it knows no search. It is one of ranks that run one program: their ops go at the speed of the slowest
//! device, collectives and messages at that of the links.

mod calibrate;
mod collectives;
mod compute;
mod joint;
mod legs;
mod measured;
mod pipeline;
mod plan;
mod prices;
mod rings;
mod routed;
mod streams;
mod timeline;

pub use calibrate::Types;
pub use galvatron_ir::profile::Collective;
pub use plan::{PhaseTimes, PlanCost, node_cost, plan_cost};
pub use prices::Prices;
pub use timeline::timeline;

use crate::segment::Segment;
use calibrate::Calibration;
use galvatron_ir::Module;
use galvatron_ir::cluster::{Cluster, DeviceKind, DeviceSpec, HostMemory};
use galvatron_ir::mesh::{Mesh, ReshardStep, Sharding, reshard_steps};
use galvatron_ir::op::Op;
use galvatron_ir::profile::Profile;
use galvatron_ir::types::{DType, TensorType};
use measured::Measured;
use std::borrow::Cow;
use std::ops::Range;

/// Looks up the time of ops and collectives.
#[derive(Clone, Debug)]
pub struct CostModel {
    cluster: Cluster,
    /// What ops run on.
    device: DeviceSpec,
    measured: Option<Measured>,
    calibration: Calibration,
}

impl CostModel {
    /// A model of this cluster, all of whose ranks run one program, from its data sheet alone.
    pub fn analytic(cluster: &Cluster) -> CostModel {
        CostModel {
            cluster: cluster.clone(),
            device: device_of(cluster, &all_ranks(cluster)),
            measured: None,
            calibration: Calibration::default(),
        }
    }

    /// A model of this cluster with what was measured in the place of what is analytic: collectives, overlap, and the layers of a
    /// module at level `training` that computes in `compute`. What the profile lacks stays analytic. Layers were measured on the cluster's
    /// device, at speed 1.
    pub fn measured(
        cluster: &Cluster,
        profile: &Profile,
        compute: DType,
        module: &Module,
        segments: &[Segment],
    ) -> CostModel {
        let calibration = Calibration::new(&cluster.device, profile, compute, module, segments);
        let measured = Some(Measured::new(profile, cluster.levels.len()));
        CostModel { measured, calibration, ..CostModel::analytic(cluster) }
    }

    /// The model of some ranks of the cluster that run one program.
    pub fn on(&self, ranks: &Range<u64>) -> Cow<'_, CostModel> {
        let device = device_of(&self.cluster, ranks);
        if device == self.device { Cow::Borrowed(self) } else { Cow::Owned(CostModel { device, ..self.clone() }) }
    }

    /// What of the profile does not fit the model.
    pub fn warnings(&self) -> &[String] {
        &self.calibration.warnings
    }

    /// The cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Nanoseconds of one op on local types.
    pub fn op_ns(&self, op: &Op, args: &[&TensorType], results: &[&TensorType]) -> u64 {
        compute::op_ns(&self.device, op, args, results)
    }

    /// Nanoseconds of one op of a segment of the program, from its types in the whole program and on one rank.
    pub fn node_ns(&self, segment: Option<u32>, op: &Op, whole: Types<'_>, local: Types<'_>) -> u64 {
        self.calibration.scaled(self.op_ns(op, local.0, local.1), segment, op, whole, local)
    }

    /// Nanoseconds of one collective over some axes; `bytes` is the larger of what a rank puts in and gets out.
    pub fn collective_ns(&self, kind: Collective, mesh: &Mesh, axes: &[galvatron_ir::AxisId], bytes: u64) -> u64 {
        let measured = self.measured.as_ref().and_then(|m| m.collective_ns(kind, mesh, axes, bytes));
        measured.unwrap_or_else(|| collectives::collective_ns(&self.cluster, kind, mesh, axes, bytes))
    }

    /// Nanoseconds of a message from a rank of one of `n_stages` pipeline stages to one of another: as measured between
    /// neighbours of so many, or over the slowest link between them.
    pub fn message_ns(&self, mesh: &Mesh, n_stages: usize, (from, to): (u64, u64), bytes: u64) -> u64 {
        if let Some(ns) = self.measured.as_ref().and_then(|m| m.message_ns(n_stages, bytes)) {
            return ns;
        }
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
        match prices::kind_of(step) {
            Some(kind) => self.collective_ns(kind, mesh, step.axes(), bytes),
            None => compute::copy_ns(&self.device, 2 * to_bytes),
        }
    }

    /// Nanoseconds to move some bytes through memory.
    pub fn copy_ns(&self, bytes: u64) -> u64 {
        compute::copy_ns(&self.device, bytes)
    }

    /// Nanoseconds of a copy between the memories of a device and its host; through the device's own memory where the cluster knows no host.
    pub fn host_copy_ns(&self, bytes: u64) -> u64 {
        let over_link = |host: &HostMemory| (bytes as f64 / host.bandwidth * 1e9 + host.latency_ns) as u64;
        self.cluster.host.as_ref().map_or_else(|| self.copy_ns(2 * bytes), over_link)
    }

    /// How many times longer computing and communicating take while both run; `None` where a device does one at a time.
    ///
    /// As it was measured, or else by an assumption: GPUs, which communicate on a stream of their own, slow down by a fifth. CPU ranks
    /// compute and communicate on the same cores. Where both would take twice as long nothing is gained.
    pub fn slowdown(&self) -> Option<f64> {
        let measured = self.measured.as_ref().and_then(Measured::overlap_slowdown);
        let assumed = (self.cluster.device.kind == DeviceKind::Cuda).then_some(SLOWDOWN);
        measured.or(assumed).map(|slowdown| slowdown.clamp(1.0, 2.0))
    }

    /// Nanoseconds of communication that hide behind some computation: as much of it as fits runs beside it, and slows both down.
    pub fn hidden_ns(&self, compute_ns: u64, communication_ns: u64) -> u64 {
        let saved = self.slowdown().map_or(0.0, |slowdown| 2.0 - slowdown);
        (communication_ns.min(compute_ns) as f64 * saved) as u64
    }
}

/// How many times longer a GPU's computing and communicating take while both run, where it was not measured.
const SLOWDOWN: f64 = 1.2;

/// The slowest device of some ranks.
fn device_of(cluster: &Cluster, ranks: &Range<u64>) -> DeviceSpec {
    cluster.device.at_speed(cluster.speed(ranks))
}

fn all_ranks(cluster: &Cluster) -> Range<u64> {
    0..u64::from(cluster.world())
}

fn local_bytes(sharding: &Sharding, ty: &TensorType, mesh: &Mesh) -> Option<u64> {
    let shape = sharding.local_shape(&ty.shape, mesh).ok()?;
    Some(ty.with_shape(shape).bytes())
}
