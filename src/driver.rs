//! The standard pipeline: from a model file, a cluster and a recipe to a plan.

mod emit;
mod galvatron;
mod padding;
mod pins;
mod replan;
mod target;

pub use emit::strategy_file;
pub use galvatron::{galvatron_config, is_galvatron_config};
pub use pins::pins_of;
pub use replan::{Training, relocated};
pub use target::pins_for_galvatron;

use crate::import::{ImportOptions, import};
use crate::trace::{MOST_EVENTS, for_all_ranks};
use galvatron_ir::cluster::{Cluster, DeviceKind};
use galvatron_ir::headroom::StageMemory;
use galvatron_ir::mesh::Mesh;
use galvatron_ir::module::TrainInfo;
use galvatron_ir::profile::Profile;
use galvatron_ir::recipe::Recipe;
use galvatron_ir::trace::TraceEvent;
use galvatron_ir::types::DType;
use galvatron_ir::{Diagnostic, Level, Module};
use galvatron_passes::cost::{CostModel, Prices, timeline};
use galvatron_passes::joint::JointKind;
use galvatron_passes::manager::{Observer, PassFault, PassManager};
use galvatron_passes::pad::{Degrees, Padded, pad};
use galvatron_passes::rebatch::rebatch;
use galvatron_passes::search::{Found, NoPlan, Pins, search};
use galvatron_passes::segment::{Segment, segment};
use galvatron_passes::train::{attach_loss, attach_optimizer, differentiate};
use galvatron_passes::{apply, canonicalize, precision, rewrite};
use std::path::Path;
use std::time::Duration;

/// What is compiled, for what, and how.
pub struct Compilation<'a> {
    /// The model: an ONNX file, a configuration, or a folder that has one.
    pub model: &'a Path,
    /// The machine.
    pub cluster: &'a Cluster,
    /// How the model is trained.
    pub recipe: &'a Recipe,
    /// Decisions that the user fixes.
    pub pins: &'a Pins,
    /// What was measured on the machine, if anything was.
    pub profile: Option<&'a Profile>,
    /// Whether tied weights that the file stores twice are tied again.
    pub retie: bool,
    /// Where to stop, if not at the plan.
    pub stop_after: Option<&'a str>,
    /// Whether the module is verified after each pass.
    pub verify_each: bool,
}

/// What a compilation gives.
pub struct Compiled {
    /// The module: the plan, or what the pipeline had when it was told to stop.
    pub module: Module,
    /// What the search found, if it ran.
    pub found: Option<Found>,
    /// The segments of the forward program, if they were found.
    pub segments: Vec<Segment>,
    /// What the search priced plans by, if it ran.
    pub costs: Option<CostModel>,
    /// The multiple to which extents are padded by choice: of the user, or of the search where no degree is pinned; 1 where nothing is padded.
    pub pad: Option<u32>,
    /// What the user should know.
    pub notes: Vec<String>,
    /// What is probably not as the user wants it.
    pub warnings: Vec<String>,
    /// Samples of one step, and tokens of each.
    sizes: (u64, u64),
    /// The passes that ran and how long each took.
    pub times: Vec<(&'static str, Duration)>,
}

impl Compiled {
    fn nothing(pad: Option<u32>) -> Compiled {
        Compiled {
            module: Module::new("model"),
            found: None,
            segments: Vec::new(),
            costs: None,
            pad,
            notes: Vec::new(),
            warnings: Vec::new(),
            sizes: (0, 0),
            times: Vec::new(),
        }
    }

    /// Where the prices of the plan come from, if there was a profile.
    pub fn prices(&self) -> Option<Prices> {
        self.costs.as_ref()?.prices(&self.found.as_ref()?.plan)
    }

    /// One step of the plan as it is expected, on all ranks; nothing where there is no plan.
    pub fn timeline(&self) -> Vec<TraceEvent> {
        let is_plan = self.module.level == Level::Plan;
        let costs = self.costs.as_ref().filter(|_| is_plan);
        costs.map_or_else(Vec::new, |costs| for_all_ranks(&self.module, &timeline(costs, &self.module), MOST_EVENTS))
    }
}

/// Why a compilation failed.
pub enum CompileFault {
    /// The input is wrong.
    Input(Vec<Diagnostic>),
    /// No plan fits the memory of the devices.
    NoPlan {
        /// The memory of the stages of the smallest plan.
        stages: Vec<StageMemory>,
        /// Its strategy in words.
        name: String,
    },
    /// A pass has a bug; the diagnostic names it.
    Bug(Diagnostic),
}

impl From<PassFault> for CompileFault {
    fn from(fault: PassFault) -> Self {
        match fault {
            PassFault::Input(faults) => CompileFault::Input(faults),
            PassFault::Bug(fault) => CompileFault::Bug(fault),
        }
    }
}

/// Runs the pipeline.
///
/// # Errors
/// Diagnostics about the input, that nothing fits, or that a pass has a bug.
pub fn compile(what: &Compilation<'_>, observer: Observer<'_>) -> Result<Compiled, CompileFault> {
    let verify: Option<fn(&Module) -> Vec<Diagnostic>> =
        if what.verify_each { Some(|m| galvatron_ir::verify::check(m, None)) } else { None };
    let mut passes = PassManager::new(observer, what.stop_after, verify).map_err(PassFault::from)?;
    let mut module = Module::new("model");
    let mut out = Compiled::nothing(what.pins.pad);
    forward(what, &mut passes, &mut module, &mut out)?;
    if !passes.is_stopped() && out.pad.is_none() {
        out.pad = padding::multiple(what, &module, &out);
    }
    training(what, &mut passes, &mut module, &mut out)?;
    if !passes.is_stopped() {
        let model = cost_model(what, &module, &mut out);
        let mut fault = None;
        passes.run("search", &mut module, |module| {
            match search(module, &out.segments, &model, what.pins) {
                Ok(found) => out.found = Some(found),
                Err(no_plan) => fault = Some(no_plan),
            }
            Ok(())
        })?;
        if let Some(no_plan) = fault {
            return Err(no_plan_fault(no_plan));
        }
        out.costs = Some(model);
    }
    if let Some(found) = &out.found {
        out.warnings.extend(unfit_for_gpus(found, what.cluster));
        back(found, &mut passes, &mut module)?;
        // A plan is never handed out unverified. If it is unsound, a second compilation that checks each pass names the one
        // that has the bug.
        if !(what.verify_each || passes.is_stopped() || galvatron_ir::verify::check(&module, None).is_empty()) {
            return compile(&Compilation { verify_each: true, ..*what }, &mut |_, _| {});
        }
    }
    out.times = passes.times().to_vec();
    out.module = module;
    Ok(out)
}

/// From the model file to the forward program with its loss.
fn forward(
    what: &Compilation<'_>,
    passes: &mut PassManager<'_>,
    module: &mut Module,
    out: &mut Compiled,
) -> Result<(), PassFault> {
    let recipe = what.recipe;
    let mut sizes = (0, 0);
    passes.run("import", module, |module| {
        let imported = import(what.model, &ImportOptions { recipe, retie: what.retie })?;
        sizes = (imported.global_batch, imported.sequence);
        (out.notes, out.warnings) = (imported.notes, imported.warnings);
        *module = imported.module;
        match recipe.global_batch {
            Some(wanted) if wanted != sizes.0 => {
                rebatch(&mut module.program, std::mem::replace(&mut sizes.0, wanted), wanted)
            }
            _ => Ok(()),
        }
    })?;
    passes.run("canonicalize", module, |module| {
        canonicalize::canonicalize(module);
        Ok(())
    })?;
    passes.run("rewrite", module, |module| {
        rewrite::rewrite(module);
        Ok(())
    })?;
    passes.run("choose-precision", module, |module| {
        if recipe.compute == DType::Bf16 {
            precision::to_bf16(module);
        }
        Ok(())
    })?;
    passes.run("attach-loss", module, |module| attach_loss(module, &recipe.loss).map_err(|d| vec![d]))?;
    out.sizes = sizes;
    Ok(())
}

/// From the forward program to the training program.
fn training(
    what: &Compilation<'_>,
    passes: &mut PassManager<'_>,
    module: &mut Module,
    out: &mut Compiled,
) -> Result<(), PassFault> {
    let recipe = what.recipe;
    passes.run("pad", module, |module| {
        let mut degrees = padding::degrees(what, out.pad);
        if let Some(why) = padding::obstacle(what).filter(|_| degrees != Degrees::default()) {
            out.notes.push(why.into());
            degrees = Degrees::default();
        }
        let padded = pad(&mut module.program, &degrees);
        out.pad = if padded.is_empty() { Some(1) } else { out.pad.or(degrees.multiple()) };
        out.notes.extend(padded.iter().map(Padded::to_string));
        Ok(())
    })?;
    passes.run("segment", module, |module| {
        out.segments = segment(&mut module.program);
        Ok(())
    })?;
    let mut gradients = Default::default();
    passes.run("differentiate", module, |module| {
        gradients = differentiate(&mut module.program)?;
        if gradients.is_empty() {
            let fault = Diagnostic::new("nothing-to-train", "the loss depends on no parameter of the model");
            return Err(vec![fault.help("name the output that the loss reads with `loss.output`")]);
        }
        Ok(())
    })?;
    passes.run("attach-optimizer", module, |module| {
        let unused = attach_optimizer(module, &gradients, &recipe.optimizer);
        out.notes
            .extend(unused.iter().map(|n| format!("parameter `{n}` has no gradient: the loss does not depend on it")));
        module.train = Some(train_info(recipe, out.sizes));
        module.mesh = mesh_of(what.cluster);
        module.cluster = Some(what.cluster.clone());
        module.level = Level::Training;
        Ok(())
    })
}

/// From the decisions to the plan, pass by pass.
fn back(found: &Found, passes: &mut PassManager<'_>, module: &mut Module) -> Result<(), PassFault> {
    passes.run("shard", module, |module| {
        apply::shard(module, &found.strategy, &galvatron_passes::rules::Rules::of(&module.program));
        Ok(())
    })?;
    passes.run("insert-recomputation", module, |module| {
        apply::insert_recomputation(module, &found.strategy);
        Ok(())
    })?;
    passes.run("offload", module, |module| {
        apply::offload(module, &found.strategy);
        Ok(())
    })?;
    passes.run("lower-reshards", module, |module| {
        apply::lower_reshards(module);
        Ok(())
    })?;
    passes.run("bucket-reductions", module, |module| {
        apply::bucket_reductions(module);
        Ok(())
    })?;
    passes.run("schedule", module, |module| {
        apply::schedule(module, &found.strategy);
        Ok(())
    })?;
    passes.run("overlap", module, |module| {
        apply::overlap(module, &found.strategy);
        Ok(())
    })?;
    passes.run("assign-buffers", module, |module| {
        apply::assign_buffers(module);
        module.predicted = found.plan.predicted;
        Ok(())
    })
}

/// Measured where there is a profile, with a warning for what of it does not fit the model.
fn cost_model(what: &Compilation<'_>, module: &Module, out: &mut Compiled) -> CostModel {
    let Some(profile) = what.profile else { return CostModel::analytic(what.cluster) };
    let model = CostModel::measured(what.cluster, profile, what.recipe.compute, module, &out.segments);
    out.warnings.extend_from_slice(model.warnings());
    model
}

/// Plans for GPUs may have stages, rings and host memory, which the executor has for CPU ranks only.
fn unfit_for_gpus(found: &Found, cluster: &Cluster) -> Vec<String> {
    let has_rings = found.strategy.joint.values().any(|&kind| kind != JointKind::Routed);
    let refused = [
        (found.decision.stages.is_some(), "pipeline stages", "pp = 1"),
        (has_rings, "ring attention", "cp_kind = \"gather\""),
        (found.plan.host_bytes_by_rank().iter().any(|&bytes| bytes > 0), "host memory", "offload = \"none\""),
    ];
    let is_told = |is_in: bool| is_in && cluster.device.kind == DeviceKind::Cuda;
    let text = |what, pin| {
        format!("the plan has {what}, which `--backend cuda` does not run yet: pin `{pin}` for one that it runs")
    };
    refused.into_iter().filter(|(is_in, ..)| is_told(*is_in)).map(|(_, what, pin)| text(what, pin)).collect()
}

fn mesh_of(cluster: &Cluster) -> Mesh {
    let sizes: Vec<u32> = cluster.levels.iter().map(|l| l.size).collect();
    Mesh::from_levels(&sizes, 1).of(cluster.device.kind)
}

fn train_info(recipe: &Recipe, (global_batch, sequence): (u64, u64)) -> TrainInfo {
    TrainInfo {
        seed: recipe.seed,
        shuffle: recipe.shuffle,
        lr: recipe.optimizer.lr,
        schedule: recipe.schedule.clone(),
        global_batch,
        sequence,
        labels: recipe.loss.labels.clone(),
        shift: recipe.loss.shift,
        ignore_index: recipe.loss.ignore_index,
    }
}

fn no_plan_fault(no_plan: NoPlan) -> CompileFault {
    match no_plan {
        NoPlan::Memory { stages, name } => CompileFault::NoPlan { stages, name },
        NoPlan::Pin(fault) => CompileFault::Input(vec![Diagnostic::new(fault.code, fault.message).help(fault.help)]),
    }
}
