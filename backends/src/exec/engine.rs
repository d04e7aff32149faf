//! From a plan to running ranks: checks, arenas, instructions, weights, threads, and what comes back from them.

use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use galvatron_ir::module::{Level, Module};
use galvatron_ir::plan::Chunk;

use super::collect::{Gather, Trained};
use super::data::DataSource;
use super::gate::{Gate, StopOnDrop};
use super::instr::{Builder, Report, optimizer_nodes, resident_ends, value_of_output};
use super::layout::Layout;
use super::observe::Observed;
use super::rank::{Entry, Rank, RankEnd, RankReport, Scalars, Shared, Worker, learning_rate};
use super::weights::{Stored, WeightSource, stored_residents, upload};
use super::{Flow, RunOptions, RunReport, StepReport};
use crate::comm::Collective;
use crate::device::Device;
use crate::fault::{RunFault, Unsupported};

/// The ranks of a world: for each its device, with an arena of [`arena_bytes`](super::arena_bytes), and its end of the
/// communication.
pub type World = Vec<(Box<dyn Device>, Box<dyn Collective>)>;

/// Runs a plan on a given world, one thread a rank; see [`run`](super::run).
///
/// # Errors
/// See [`run`](super::run).
pub fn launch(
    module: &Module,
    world: World,
    options: &RunOptions,
    (data, weights): (&dyn DataSource, &dyn WeightSource),
    observer: &mut dyn FnMut(StepReport) -> Flow,
) -> Result<RunReport, RunFault> {
    let chunk = check(module, world.len())?;
    let first = Layout::new(module, chunk, 0);
    let mut stored = stored_residents(module, &first)?;
    stored.retain(|s| s.is_collected);
    let optimizers = optimizer_nodes(module, &first);
    let collects = options.collect || options.collect_every > 0;
    let shared = Shared {
        module,
        options,
        data,
        schedule: entries(module),
        gate: Gate::new(options.first_step),
        observed: world.iter().map(|_| Observed::default()).collect(),
        trained: Gather::new(module, subjects(&stored).filter(|_| collects)),
        gradients: Gather::new(module, optimizers.iter().map(|&(_, w)| (w, None)).filter(|_| options.dump_gradients)),
        epoch: Instant::now(),
    };
    let (ranks, reports) = prepare(&shared, chunk, world, &stored)?;
    upload_all(module, chunk, &ranks, weights)?;
    let mut snapshots = Snapshots { shared: &shared, weights, fault: None };
    let ends = run_threads(&shared, ranks, &reports, &mut |report| snapshots.step(report, observer));
    if let Some(fault) = snapshots.fault {
        return Err(fault);
    }
    finish(&shared, weights, ends)
}

/// What the engine itself relies on; everything else is the verifier's.
fn check(module: &Module, n_ranks: usize) -> Result<&Chunk, RunFault> {
    let fault = |what: String| Err(RunFault::Plan(what));
    if module.level != Level::Plan {
        return fault(format!("it is at level `{}`, not `plan`", module.level.name()));
    }
    if module.train.is_none() {
        return fault("it does not say how it is trained".into());
    }
    if module.mesh.world() != n_ranks as u64 {
        return fault(format!("it is for {} ranks, there are {n_ranks}", module.mesh.world()));
    }
    for step in &module.schedule {
        let fits = match step.micro_batch {
            Some(mb) => step.phase.is_per_micro_batch() && u64::from(mb) < module.mesh.micro_batches(),
            None => !step.phase.is_per_micro_batch(),
        };
        if !fits || step.chunk != 0 {
            let (phase, chunk, micro_batch) = (step.phase.name(), step.chunk, step.micro_batch);
            return fault(format!("`{phase}` of chunk {chunk}, micro-batch {micro_batch:?} cannot be scheduled"));
        }
    }
    match &module.chunks[..] {
        [chunk] => Ok(chunk),
        chunks => fault(format!("it has {} chunks, this engine runs one", chunks.len())),
    }
}

fn entries(module: &Module) -> Vec<Entry> {
    let schedule = &module.schedule;
    let is_first = |i: usize| schedule[..i].iter().all(|earlier| earlier.phase != schedule[i].phase);
    let entry = |(i, step): (usize, &galvatron_ir::plan::ScheduleStep)| Entry {
        phase: step.phase,
        micro_batch: step.micro_batch,
        is_first: is_first(i),
    };
    schedule.iter().enumerate().map(entry).collect()
}

fn subjects(stored: &[Stored]) -> impl Iterator<Item = (usize, Option<String>)> {
    stored.iter().map(|s| (s.weight, s.kind.clone()))
}

/// Prepares all ranks; what no kernel exists for is listed for the whole plan.
fn prepare(
    shared: &Shared<'_>,
    chunk: &Chunk,
    world: World,
    stored: &[Stored],
) -> Result<(Vec<Rank>, Receiver<RankReport>), RunFault> {
    let (sender, receiver) = channel();
    let (mut sender, mut ranks) = (Some(sender), Vec::new());
    for (rank, (device, comm)) in world.into_iter().enumerate() {
        let layout = Layout::new(shared.module, chunk, rank);
        let mut ready = prepare_rank(shared, &layout, device, comm, stored)?;
        ready.worker.reports = sender.take();
        ranks.push(ready);
    }
    Ok((ranks, receiver))
}

fn prepare_rank(
    shared: &Shared<'_>,
    layout: &Layout<'_>,
    device: Box<dyn Device>,
    mut comm: Box<dyn Collective>,
    stored: &[Stored],
) -> Result<Rank, RunFault> {
    let (module, rank) = (shared.module, layout.rank as usize);
    let everyone: Vec<usize> = (0..comm.world()).collect();
    let world = comm.group(&everyone);
    let reports = reported(shared, layout)?;
    let optimizers: Vec<_> = optimizer_nodes(module, layout).into_iter().map(|(node, _)| node).collect();
    let mut builder = Builder {
        module,
        layout,
        device: &*device,
        comm: &mut *comm,
        data: shared.data,
        reports: &reports,
        optimizers: &optimizers,
        unsupported: Vec::new(),
        accumulated: Vec::new(),
    };
    let phases = builder.phases()?;
    refuse(builder.unsupported)?;
    shared.observed[rank].bind(resident_ends(layout)?);
    let stored = held(layout, stored)?;
    let (scalars, events) = (Scalars::default(), Vec::new());
    let worker = Worker { rank, comm, world, phases, stored, reports: None, scalars, events, at: None };
    Ok(Rank { device, worker })
}

fn refuse(unsupported: Vec<Unsupported>) -> Result<(), RunFault> {
    if unsupported.is_empty() { Ok(()) } else { Err(RunFault::Unsupported(unsupported)) }
}

/// The parameters and states that the rank is the first holder of.
fn held(layout: &Layout<'_>, stored: &[Stored]) -> Result<Vec<(usize, crate::device::BufferSpec)>, RunFault> {
    let value = |s: &Stored| layout.chunk.residents[s.resident].value;
    let held = stored.iter().enumerate().filter(|(_, s)| layout.is_first_replica(&layout.sharding(value(s))));
    held.map(|(i, s)| Ok((i, layout.buffer(value(s))?))).collect()
}

/// The values that rank 0 reports; the loss must be among them.
fn reported(shared: &Shared<'_>, layout: &Layout<'_>) -> Result<Vec<(Report, galvatron_ir::ValueId)>, RunFault> {
    let find = |name: &str| shared.module.program.output(name).and_then(|output| value_of_output(layout, output));
    let loss = find("loss").ok_or_else(|| RunFault::Plan("none of its values is the whole loss".into()))?;
    let grad_norm = find("grad_norm").map(|value| (Report::GradNorm, value));
    Ok([(Report::Loss, loss)].into_iter().chain(grad_norm).collect())
}

fn upload_all(module: &Module, chunk: &Chunk, ranks: &[Rank], weights: &dyn WeightSource) -> Result<(), RunFault> {
    let layout = |rank| Layout::new(module, chunk, rank);
    let ranks: Vec<_> = ranks.iter().enumerate().map(|(i, rank)| (layout(i), &*rank.device)).collect();
    upload(module, &ranks, weights)
}

/// Answers a step's report, on the caller's thread.
struct Snapshots<'a> {
    shared: &'a Shared<'a>,
    weights: &'a dyn WeightSource,
    fault: Option<RunFault>,
}

impl Snapshots<'_> {
    fn step(&mut self, report: RankReport, observer: &mut dyn FnMut(StepReport) -> Flow) -> Flow {
        let (shared, step) = (self.shared, report.step);
        let trained = match self.trained(step) {
            Ok(trained) => trained,
            Err(fault) => {
                self.fault = Some(fault);
                return Flow::Stop;
            }
        };
        let train = shared.module.train.as_ref().expect("invariant: the module was checked");
        observer(StepReport {
            step,
            loss: report.loss,
            lr: learning_rate(train, step),
            grad_norm: report.grad_norm,
            step_time_s: report.time.as_secs_f64(),
            peak_bytes: shared.observed.iter().map(Observed::peak_bytes).collect(),
            trained,
        })
    }

    fn trained(&self, step: u64) -> Result<Option<Trained>, RunFault> {
        if !self.shared.options.collects_at(step) {
            return Ok(None);
        }
        self.shared.trained.assemble(self.shared.module, Some(self.weights)).map(Some)
    }
}

/// Runs the ranks to their ends; `answer` is called for every step's report.
fn run_threads(
    shared: &Shared<'_>,
    ranks: Vec<Rank>,
    reports: &Receiver<RankReport>,
    answer: &mut dyn FnMut(RankReport) -> Flow,
) -> Vec<Result<RankEnd, RunFault>> {
    std::thread::scope(|scope| {
        let spawn = |rank: Rank| scope.spawn(move || rank.run(shared));
        let threads: Vec<_> = ranks.into_iter().map(spawn).collect();
        {
            let _stop = StopOnDrop(&shared.gate);
            while let Ok(report) = reports.recv() {
                let step = report.step;
                shared.gate.open(step, answer(report));
            }
        }
        threads.into_iter().map(|t| t.join().expect("invariant: ranks catch their panics")).collect()
    })
}

fn finish(
    shared: &Shared<'_>,
    weights: &dyn WeightSource,
    ends: Vec<Result<RankEnd, RunFault>>,
) -> Result<RunReport, RunFault> {
    let mut faults: Vec<&RunFault> = ends.iter().filter_map(|end| end.as_ref().err()).collect();
    faults.sort_by_key(|fault| fault.distance_from_cause());
    if let Some(&fault) = faults.first() {
        return Err(fault.clone());
    }
    let (module, options) = (shared.module, shared.options);
    let trained = options.collect.then(|| shared.trained.assemble(module, Some(weights))).transpose()?;
    let gradients = options.dump_gradients.then(|| shared.gradients.assemble(module, None)).transpose()?;
    let ends: Vec<RankEnd> = ends.into_iter().filter_map(Result::ok).collect();
    Ok(RunReport {
        steps: ends.first().map_or(0, |end| end.steps),
        peak_bytes: shared.observed.iter().map(Observed::peak_bytes).collect(),
        traffic: ends.iter().map(|end| end.traffic).collect(),
        trained,
        gradients: gradients.map(|g| g.parameters),
        trace: ends.into_iter().flat_map(|end| end.events).collect(),
    })
}
