//! Trains a plan: data and weights in, metrics and saved weights out.

mod backend;
mod save;
mod source;

pub use backend::{Backend, GpuFlags, Process};
pub use save::{save_gradients, save_training};
pub use source::PlanData;

use crate::metrics::{MetricsWriter, Progress, RunRecord, StepRecord};
use galvatron_backends::RunFault;
use galvatron_backends::exec::{Flow, RunOptions, RunReport, StepReport, WeightSource};
use galvatron_ir::{Diagnostic, Module};
use std::fs::File;
use std::path::{Path, PathBuf};

/// What a run writes.
#[derive(Default)]
pub struct Outputs {
    /// Folder of saved weights, optimizer state and step.
    pub save: Option<PathBuf>,
    /// Safetensors file of the first step's gradients.
    pub gradients: Option<PathBuf>,
}

/// Why a run failed.
#[derive(Debug)]
pub enum TrainFault {
    /// The input is wrong.
    Input(Vec<Diagnostic>),
    /// The run failed.
    Run(RunFault),
    /// Something could not be written.
    Write(PathBuf, std::io::Error),
}

/// The first line of the metrics.
pub fn run_record(module: &Module, plan_digest: String) -> RunRecord {
    let world = module.mesh.world();
    RunRecord {
        plan: plan_digest,
        world: world as u32,
        predicted_step_time_s: module.predicted.step_time_ns as f64 * 1e-9,
        predicted_peak_bytes: module.peak_bytes_by_rank(),
        predicted_host_bytes: module.host_bytes_by_rank(),
    }
}

/// Runs the plan on threads and reports every step to `metrics`, `progress` and `each`.
///
/// # Errors
/// A fault of the run, or a file that cannot be written.
pub fn train(
    module: &Module,
    options: &RunOptions,
    sources: (&PlanData, &dyn WeightSource),
    metrics: Option<&mut MetricsWriter<File>>,
    outputs: &Outputs,
    each: &mut dyn FnMut(&StepRecord),
) -> Result<RunReport, TrainFault> {
    train_on(Backend::cpu(), module, options, sources, metrics, outputs, each)
}

/// As [`train`], on any backend. Where a process has one rank of several, steps are reported, and files written, by rank 0.
///
/// # Errors
/// See [`train`].
pub fn train_on(
    backend: Backend,
    module: &Module,
    options: &RunOptions,
    (data, weights): (&PlanData, &dyn WeightSource),
    mut metrics: Option<&mut MetricsWriter<File>>,
    outputs: &Outputs,
    each: &mut dyn FnMut(&StepRecord),
) -> Result<RunReport, TrainFault> {
    let mut progress = Progress::stderr(options.steps);
    let mut broken: Option<TrainFault> = None;
    let report = backend.run(module, options, (data, weights), &mut |step| {
        let record = step_record(module, &step);
        let written = metrics.as_mut().map_or(Ok(()), |m| m.step(&record));
        if let Some(progress) = &mut progress {
            progress.step(&record);
        }
        each(&record);
        let saved = match (&step.trained, &outputs.save) {
            (Some(trained), Some(folder)) => save_training(folder, trained, step.step),
            _ => Ok(()),
        };
        match written.map_err(|e| (PathBuf::from("metrics"), e)).and(saved) {
            Ok(()) => Flow::Continue,
            Err((path, e)) => {
                broken = Some(TrainFault::Write(path, e));
                Flow::Stop
            }
        }
    });
    if let Some(progress) = progress {
        progress.finish();
    }
    if let Some(fault) = broken {
        return Err(fault);
    }
    let report = report.map_err(TrainFault::Run)?;
    write_outputs(&report, options, outputs).map_err(|(path, e)| TrainFault::Write(path, e))?;
    Ok(report)
}

fn write_outputs(report: &RunReport, options: &RunOptions, outputs: &Outputs) -> Result<(), (PathBuf, std::io::Error)> {
    if let (Some(folder), Some(trained)) = (&outputs.save, &report.trained) {
        save_training(folder, trained, options.first_step + report.steps - 1)?;
    }
    if let (Some(path), Some(gradients)) = (&outputs.gradients, &report.gradients) {
        save_gradients(path, gradients)?;
    }
    Ok(())
}

fn step_record(module: &Module, step: &StepReport) -> StepRecord {
    let train = module.train.as_ref();
    let samples = train.map_or(0, |t| t.global_batch) as f64;
    let tokens = samples * train.map_or(0, |t| t.sequence) as f64;
    StepRecord {
        step: step.step,
        loss: step.loss,
        lr: step.lr,
        grad_norm: step.grad_norm.unwrap_or(0.0),
        step_time_s: step.step_time_s,
        samples_per_s: samples / step.step_time_s,
        tokens_per_s: tokens / step.step_time_s,
        peak_bytes: step.peak_bytes.clone(),
        host_bytes: step.host_bytes.clone(),
    }
}

/// Reads a plan file: its module and its text, for diagnostics.
///
/// # Errors
/// Diagnostics of the reader and the verifier, with the text that they point into.
pub fn read_plan(path: &Path) -> Result<(Module, String), (Vec<Diagnostic>, String)> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        let message = format!("cannot read `{}`: {e}", path.display());
        (vec![Diagnostic::new("plan-file", message)], String::new())
    })?;
    let (module, map) = match galvatron_ir::text::parse_with_spans(&text) {
        Ok(parsed) => parsed,
        Err(faults) => return Err((faults, text)),
    };
    let faults = galvatron_ir::verify::check(&module, Some(&map));
    if faults.is_empty() { Ok((module, text)) } else { Err((faults, text)) }
}
