//! The engine: runs a plan, or some ranks of it, one thread a rank, without knowing what their devices are or how they
//! reach each other.
//!
//! Everything is decided before the first step: each rank's instructions, the place of every buffer, the order of
//! communicators. A step then walks the plan's schedule. Faults, panics and missing peers end the run with a
//! [`RunFault`]; nothing waits for ever.

mod beacon;
mod collect;
mod data;
mod deliver;
mod engine;
mod exchange;
mod gate;
mod hold;
mod instr;
mod layout;
mod observe;
mod rank;
mod ring;
mod routed;
mod runs;
mod shard;
#[cfg(test)]
mod tests;
mod view;
mod weights;

use std::time::Duration;

use galvatron_ir::module::Module;
use galvatron_ir::plan::Arena;
use galvatron_ir::trace::TraceEvent;

pub use collect::{HostTensor, Tensors, Trained};
pub use data::DataSource;
pub use engine::{World, launch};
pub use gate::Flow;
#[doc(hidden)]
pub use hold::Hold;
pub use weights::WeightSource;

use crate::comm::{Collective, Stats, local_world};
use crate::cpu::{Cpu, MemoryBytes};
use crate::fault::RunFault;

/// How to run a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOptions {
    /// How many steps to run.
    pub steps: u64,
    /// Number of the first of them, from 1; larger when a run is resumed.
    pub first_step: u64,
    /// How long a rank waits for others in one collective.
    pub timeout: Duration,
    /// Threads of all ranks of this process together; `None`: the cores of the machine.
    pub threads: Option<usize>,
    /// Whether devices may prepare neighbouring nodes together.
    pub group: bool,
    /// Whether every node's execution is recorded.
    pub trace: bool,
    /// Whether the gradients of the first step are collected.
    pub dump_gradients: bool,
    /// Whether parameters and states are collected at the end.
    pub collect: bool,
    /// The parameters and states are also collected after every so many steps; 0: never.
    pub collect_every: u64,
    /// For tests only: a rank that stands still.
    #[doc(hidden)]
    pub hold: Option<Hold>,
}

impl Default for RunOptions {
    fn default() -> Self {
        RunOptions {
            steps: 1,
            first_step: 1,
            timeout: Duration::from_secs(300),
            threads: None,
            group: true,
            trace: false,
            dump_gradients: false,
            collect: false,
            collect_every: 0,
            hold: None,
        }
    }
}

impl RunOptions {
    fn dumps_at(&self, step: u64) -> bool {
        self.dump_gradients && step == self.first_step
    }

    fn collects_at(&self, step: u64) -> bool {
        self.collect_every > 0 && step.is_multiple_of(self.collect_every)
    }
}

/// What happened in one step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Its number, from 1.
    pub step: u64,
    /// The program's output `loss`, before the step's update.
    pub loss: f64,
    /// The learning rate.
    pub lr: f64,
    /// The program's output `grad_norm`, where it has one.
    pub grad_norm: Option<f64>,
    /// Seconds that rank 0 took.
    pub step_time_s: f64,
    /// For each rank the bytes that it was seen to use so far.
    pub peak_bytes: Vec<u64>,
    /// The same of host memory.
    pub host_bytes: Vec<u64>,
    /// Parameters and states, in the steps in which they are collected.
    pub trained: Option<Trained>,
}

/// What a run leaves behind.
#[derive(Clone, Debug, PartialEq)]
pub struct RunReport {
    /// Steps that were run.
    pub steps: u64,
    /// For each rank the bytes that it was seen to use.
    pub peak_bytes: Vec<u64>,
    /// The same of host memory.
    pub host_bytes: Vec<u64>,
    /// For each rank of this process what it communicated.
    pub traffic: Vec<Stats>,
    /// Parameters and states at the end, if asked for.
    pub trained: Option<Trained>,
    /// The first step's gradients by initializer, whole, before clipping and decay, if asked for.
    pub gradients: Option<Tensors>,
    /// What was recorded, rank by rank of this process, if asked for.
    pub trace: Vec<TraceEvent>,
    /// What devices of this process say of how the steps were run, with their rank.
    pub remarks: Vec<(usize, String)>,
}

/// Runs a plan on CPU ranks of this process. `observer` is called after each step, on the caller's thread, and says how to go
/// on; meanwhile the ranks wait.
///
/// # Errors
/// [`RunFault`]: before the first step when the plan, the data or the weights do not fit or kernels are missing, later what
/// ended the run. If several ranks fail, the fault nearest to the cause is returned.
pub fn run(
    module: &Module,
    options: &RunOptions,
    data: &dyn DataSource,
    weights: &dyn WeightSource,
    observer: &mut dyn FnMut(StepReport) -> Flow,
) -> Result<RunReport, RunFault> {
    run_ranks(module, thread_ranks(module, options), options, (data, weights), observer)
}

/// All ranks of a plan, as threads of this process.
pub fn thread_ranks(module: &Module, options: &RunOptions) -> Vec<Box<dyn Collective>> {
    let comms = local_world(module.mesh.world() as usize, options.timeout);
    comms.into_iter().map(|comm| Box::new(comm) as Box<dyn Collective>).collect()
}

/// Runs some ranks of a plan on CPU ranks of this process, each with its end of the communication; see [`launch`].
///
/// # Errors
/// See [`run`].
pub fn run_ranks(
    module: &Module,
    comms: Vec<Box<dyn Collective>>,
    options: &RunOptions,
    sources: (&dyn DataSource, &dyn WeightSource),
    observer: &mut dyn FnMut(StepReport) -> Flow,
) -> Result<RunReport, RunFault> {
    let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
    let n_threads = (options.threads.unwrap_or_else(cores) / comms.len().max(1)).max(1);
    let scratch = layout::scratch_bytes(module);
    let mut world: World = Vec::new();
    for comm in comms {
        let stage = module.stage_of_rank(comm.rank() as u64).map(|stage| &module.stages[stage]);
        let bytes = |of: fn(&Arena) -> u64| stage.map_or(0, |stage| of(&stage.arena));
        let (device, host) = (bytes(layout::arena_bytes), bytes(layout::host_bytes));
        let fault = || RunFault::Memory { rank: comm.rank(), bytes: device.saturating_add(host) };
        let device = Cpu::with_memory(&MemoryBytes { device, host, scratch }, n_threads).ok_or_else(fault);
        let device = device.inspect_err(|fault| comm.abort(&fault.to_string()))?;
        world.push((Box::new(device), comm));
    }
    launch(module, world, options, sources, observer)
}

/// Bytes of the largest arena that a rank of a plan needs.
pub fn arena_bytes(module: &Module) -> u64 {
    module.stages.iter().map(|stage| layout::arena_bytes(&stage.arena)).max().unwrap_or(0)
}
