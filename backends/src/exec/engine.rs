//! From a plan to running ranks: checks, arenas, instructions, weights, threads, and what comes back from them.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use galvatron_ir::module::{Level, Module};
use galvatron_ir::plan::Chunk;

use super::collect::{Gather, Trained};
use super::data::DataSource;
use super::deliver::{Expected, held};
use super::gate::{Gate, StopOnDrop};
use super::instr::{Builder, Phases, Report, optimizer_nodes, resident_ends, value_of_output};
use super::layout::Layout;
use super::observe::Observed;
use super::rank::{Entry, Rank, RankEnd, RankReport, Shared, Worker, learning_rate};
use super::runs::first_writes;
use super::weights::{Stored, WeightSource, stored_residents, upload};
use super::{Flow, RunOptions, RunReport, StepReport};
use crate::comm::{Collective, GroupId};
use crate::device::{BufferSpec, Device};
use crate::fault::{RunFault, Unsupported};

/// Ranks of a world: for each its device, with an arena of [`arena_bytes`](super::arena_bytes), and its end of the
/// communication.
pub type World = Vec<(Box<dyn Device>, Box<dyn Collective>)>;

/// Runs the given ranks of a plan, one thread a rank; see [`run`](super::run). They may be all ranks of the plan or a part of
/// them, while other processes run the rest with the same options. `observer` is called in the process that has rank 0, and
/// only there parameters, states and gradients are returned.
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
    let n_ranks = world.first().map_or(0, |(_, comm)| comm.world());
    let chunk = check(module, n_ranks)?;
    let first = Layout::new(module, chunk, 0);
    let mut stored = stored_residents(module, &first)?;
    stored.retain(|s| s.is_collected);
    let optimizers = optimizer_nodes(module, &first);
    let has_first = world.iter().any(|(_, comm)| comm.rank() == 0);
    let collects = has_first && (options.collect || options.collect_every > 0);
    let dumps = has_first && options.dump_gradients;
    let shared = Shared {
        module,
        options,
        data,
        schedule: entries(module),
        gate: Gate::new(options.first_step),
        is_whole: world.len() == n_ranks,
        observed: (0..n_ranks).map(|_| Observed::default()).collect(),
        trained: Gather::new(module, subjects(&stored).filter(|_| collects)),
        gradients: Gather::new(module, optimizers.iter().map(|&(_, w)| (w, None)).filter(|_| dumps)),
        epoch: Instant::now(),
    };
    let (ranks, reports) = prepare(&shared, chunk, world, &stored)?;
    upload_all(module, chunk, &ranks, weights).inspect_err(|fault| {
        ranks.iter().for_each(|rank| rank.worker.comm.abort(&fault.to_string()));
    })?;
    let mut snapshots = Snapshots { shared: &shared, weights, fault: None };
    let ends = run_threads(&shared, ranks, &reports, &mut |report| snapshots.step(report, observer));
    if let Some(fault) = snapshots.fault {
        return Err(fault);
    }
    finish(&shared, weights, ends, has_first)
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
    let mut ranks = Vec::new();
    for (device, mut comm) in world {
        let layout = Layout::new(shared.module, chunk, comm.rank());
        let prepared = prepare_rank(shared, &layout, &*device, &mut *comm, stored);
        let prepared = prepared.inspect_err(|fault| comm.abort(&fault.to_string()))?;
        let reports = (comm.rank() == 0).then(|| sender.clone());
        let worker = prepared.worker(comm, reports);
        ranks.push(Rank { device, worker });
    }
    Ok((ranks, receiver))
}

fn prepare_rank(
    shared: &Shared<'_>,
    layout: &Layout<'_>,
    device: &dyn Device,
    comm: &mut dyn Collective,
    stored: &[Stored],
) -> Result<Prepared, RunFault> {
    let (module, chunk, rank) = (shared.module, layout.chunk, layout.rank as usize);
    let everyone: Vec<usize> = (0..comm.world()).collect();
    let world = comm.group(&everyone);
    let mut reports = reported(shared, layout)?;
    let reported: Vec<_> = reports.iter().map(|&(_, value)| value).collect();
    reports.retain(|_| rank == 0);
    let optimizers: Vec<_> = optimizer_nodes(module, layout).into_iter().map(|(node, _)| node).collect();
    let mut builder = Builder {
        module,
        layout,
        device,
        comm,
        data: shared.data,
        reports: &reports,
        reported: &reported,
        optimizers: &optimizers,
        unsupported: Vec::new(),
        first_writes: first_writes(chunk),
        grouped: BTreeMap::new(),
        options: shared.options,
    };
    let phases = builder.phases()?;
    refuse(builder.unsupported)?;
    shared.observed[rank].bind(resident_ends(layout)?);
    let expected = match rank {
        0 if !shared.is_whole => Expected::new(shared, layout, stored)?,
        _ => Expected::default(),
    };
    Ok(Prepared { world, phases, stored: held(layout, stored)?, expected })
}

/// A rank's part of the plan.
struct Prepared {
    world: GroupId,
    phases: Phases,
    stored: Vec<(usize, BufferSpec)>,
    expected: Expected,
}

impl Prepared {
    fn worker(self, comm: Box<dyn Collective>, reports: Option<Sender<RankReport>>) -> Worker {
        let Prepared { world, phases, stored, expected } = self;
        let (rank, events, pending) = (comm.rank(), Vec::new(), Vec::new());
        Worker { rank, comm, world, phases, stored, expected, pending, reports, events, at: None }
    }
}

fn refuse(unsupported: Vec<Unsupported>) -> Result<(), RunFault> {
    if unsupported.is_empty() { Ok(()) } else { Err(RunFault::Unsupported(unsupported)) }
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
    let ranks: Vec<_> = ranks.iter().map(|rank| (layout(rank.worker.rank), &*rank.device)).collect();
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
    has_first: bool,
) -> Result<RunReport, RunFault> {
    let mut faults: Vec<&RunFault> = ends.iter().filter_map(|end| end.as_ref().err()).collect();
    faults.sort_by_key(|fault| fault.distance_from_cause());
    if let Some(&fault) = faults.first() {
        return Err(fault.clone());
    }
    let (module, options) = (shared.module, shared.options);
    let (collect, dump) = (has_first && options.collect, has_first && options.dump_gradients);
    let trained = collect.then(|| shared.trained.assemble(module, Some(weights))).transpose()?;
    let gradients = dump.then(|| shared.gradients.assemble(module, None)).transpose()?;
    let ends: Vec<RankEnd> = ends.into_iter().filter_map(Result::ok).collect();
    Ok(RunReport {
        steps: ends.first().map_or(0, |end| end.steps),
        peak_bytes: shared.observed.iter().map(Observed::peak_bytes).collect(),
        traffic: ends.iter().map(|end| end.traffic).collect(),
        remarks: ends.iter().filter_map(|end| Some((end.rank, end.remark.clone()?))).collect(),
        trained,
        gradients: gradients.map(|g| g.parameters),
        trace: ends.into_iter().flat_map(|end| end.events).collect(),
    })
}
