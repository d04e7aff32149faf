//! From a plan back to what it was planned for: its training program, its prices on another machine, and other plans for it.

use super::{CompileFault, mesh_of, no_plan_fault};
use galvatron_ir::cluster::Cluster;
use galvatron_ir::mesh::Mesh;
use galvatron_ir::profile::Profile;
use galvatron_ir::types::DType;
use galvatron_ir::{Diagnostic, Level, Module};
use galvatron_passes::cost::CostModel;
use galvatron_passes::search::{Found, Pins, search};
use galvatron_passes::segment::{Segment, recorded};

/// A training program and its repeated layers: what plans are searched for.
#[derive(Clone, Debug)]
pub struct Training {
    /// At level `training`, for no machine in particular.
    pub module: Module,
    /// The segments of its forward program.
    pub segments: Vec<Segment>,
}

impl Training {
    /// The program that a plan, or a module at level `training`, carries.
    ///
    /// # Errors
    /// Code `no-segments`, where its layers are not those that the compiler finds.
    pub fn of(module: &Module) -> Result<Training, Diagnostic> {
        let segments = recorded(&module.program).filter(|segments| !segments.is_empty()).ok_or_else(|| {
            Diagnostic::new(
                "no-segments",
                format!("the layers of `{}` are not tagged as galvatronc tags them", module.name),
            )
            .help("name a plan that galvatronc wrote")
        })?;
        let bare = Module {
            name: module.name.clone(),
            level: Level::Training,
            initializers: module.initializers.clone(),
            program: module.program.clone(),
            train: module.train.clone(),
            ..Module::new("")
        };
        Ok(Training { module: bare, segments })
    }

    /// The same on a machine.
    fn on(&self, cluster: &Cluster) -> Module {
        Module { mesh: mesh_of(cluster), cluster: Some(cluster.clone()), ..self.module.clone() }
    }

    /// What things cost on a machine, as measured where there is a profile.
    pub fn costs(&self, cluster: &Cluster, profile: Option<&Profile>) -> CostModel {
        match profile {
            None => CostModel::analytic(cluster),
            Some(profile) => CostModel::measured(cluster, profile, self.compute(), &self.module, &self.segments),
        }
    }

    /// The element type that it computes in.
    pub fn compute(&self) -> DType {
        let program = &self.module.program;
        let is_half = program.weights.iter().any(|w| program.graph.value(w.value).ty.dtype == DType::Bf16);
        if is_half { DType::Bf16 } else { DType::F32 }
    }

    /// Searches the fastest plan on a machine.
    ///
    /// # Errors
    /// Pins that cannot be met, or that nothing fits.
    pub fn plan(&self, costs: &CostModel, pins: &Pins) -> Result<Found, CompileFault> {
        let module = self.on(costs.cluster());
        search(&module, &self.segments, costs, pins).map_err(no_plan_fault)
    }

    /// The module that is searched on a machine.
    pub fn module_on(&self, cluster: &Cluster) -> Module {
        self.on(cluster)
    }
}

/// A plan on another machine, with the same placements, where that has the same ranks at places that correspond.
///
/// # Errors
/// Code `other-cluster`: why the machine cannot take the plan as it is.
pub fn relocated(plan: &Module, cluster: &Cluster) -> Result<Module, Diagnostic> {
    let refused =
        |message: String| Err(Diagnostic::new("other-cluster", message).help("only a plan of its own fits there"));
    let whole = mesh_of(cluster).with_micro_batches(plan.mesh.micro_batches() as u32);
    if whole.device() != plan.mesh.device() {
        let (from, to) = (plan.mesh.device().name(), whole.device().name());
        return refused(format!("the plan is for devices of kind `{from}`, the cluster has `{to}`"));
    }
    if sizes(&whole) != sizes(&plan.mesh) {
        let (from, to) = (plan.mesh.world(), whole.world());
        return refused(format!(
            "the plan is for {from} devices by {:?}, the cluster has {to} by {:?}",
            sizes(&plan.mesh),
            sizes(&whole)
        ));
    }
    let mut moved = plan.clone();
    for stage in &mut moved.stages {
        let part = if plan.stages.len() == 1 { Some(whole.clone()) } else { whole.part_of(plan.stages.len() as u64) };
        match part.filter(|part| sizes(part) == sizes(&stage.mesh)) {
            Some(part) => stage.mesh = part,
            None => return refused("the stages of the plan are cut along other links".into()),
        }
    }
    moved.mesh = whole;
    moved.cluster = Some(cluster.clone());
    Ok(moved)
}

/// Sizes of the spatial axes.
fn sizes(mesh: &Mesh) -> Vec<u64> {
    mesh.spatial().map(|axis| mesh.size(axis)).collect()
}
