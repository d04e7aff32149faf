//! From a plan to running ranks: checks, arenas, instructions, weights, threads, and what comes back from them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use galvatron_ir::ValueId;
use galvatron_ir::module::{Level, Module};
use galvatron_ir::plan::{ScheduleStep, with_last_micro_batch};

use super::beacon::Beacon;
use super::collect::{Gather, Trained};
use super::data::DataSource;
use super::deliver::{Expected, held};
use super::gate::{Gate, StopOnDrop};
use super::instr::{Builder, Hosted, Optimizer, Report, optimizer_nodes, resident_ends, value_of_output};
use super::layout::Layout;
use super::observe::Observed;
use super::rank::{Entry, Rank, RankEnd, RankReport, Shared, Worker, learning_rate};
use super::runs::first_writes;
use super::weights::{Stored, WeightSource, collected, stored_residents, upload};
use super::{Flow, RunOptions, RunReport, StepReport};
use crate::comm::{Collective, GroupId, Whereabouts};
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
    check(module, n_ranks)?;
    let stored = collected(stored_residents(module)?);
    let optimizers = optimizer_nodes(module);
    let has_first = world.iter().any(|(_, comm)| comm.rank() == 0);
    let collects = has_first && (options.collect || options.collect_every > 0);
    let dumps = has_first && options.dump_gradients;
    let shared = Shared {
        module,
        options,
        data,
        gate: Gate::new(options.first_step),
        is_whole: world.len() == n_ranks,
        observed: (0..n_ranks).map(|_| Observed::default()).collect(),
        trained: Gather::new(module, subjects(&stored).filter(|_| collects)),
        gradients: Gather::new(module, optimizers.iter().map(|o| (o.weight, None)).filter(|_| dumps)),
        optimizers,
        epoch: Instant::now(),
    };
    let (ranks, reports) = prepare(&shared, world, &stored)?;
    upload_all(module, &ranks, weights).inspect_err(|fault| {
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
fn check(module: &Module, n_ranks: usize) -> Result<(), RunFault> {
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
    if module.chunks.iter().any(|chunk| chunk.stage as usize >= module.stages.len()) {
        return fault("it has a chunk without a stage".into());
    }
    for (index, stage) in module.stages.iter().enumerate() {
        for step in &stage.schedule {
            let fits = match step.micro_batch {
                Some(mb) => step.phase.is_per_micro_batch() && u64::from(mb) < stage.mesh.micro_batches(),
                None => !step.phase.is_per_micro_batch(),
            };
            let is_hosted = module.chunks.get(step.chunk as usize).is_some_and(|c| c.stage as usize == index);
            if !fits || !is_hosted {
                let (phase, chunk, micro_batch) = (step.phase.name(), step.chunk, step.micro_batch);
                return fault(format!("`{phase}` of chunk {chunk}, micro-batch {micro_batch:?} cannot be scheduled"));
            }
        }
    }
    Ok(())
}

/// What a stage runs in order; `hosted` are its chunks.
fn entries(module: &Module, stage: usize, hosted: &[u32]) -> Vec<Entry> {
    let schedule = &module.stages[stage].schedule;
    let is_same = |a: &ScheduleStep, b: &ScheduleStep| (a.phase, a.chunk) == (b.phase, b.chunk);
    let entry = |(i, step): (usize, &ScheduleStep)| {
        let slots = module.chunks[step.chunk as usize].slots.count.max(1);
        Entry {
            phase: step.phase,
            hosted: hosted.iter().position(|&c| c == step.chunk).expect("invariant: the schedule was checked"),
            slot: (step.micro_batch.unwrap_or(0) % slots) as usize,
            micro_batch: step.micro_batch,
            is_first: schedule[..i].iter().all(|earlier| !is_same(earlier, step)),
            is_last: schedule[i + 1..].iter().all(|later| !is_same(later, step)),
        }
    };
    schedule.iter().enumerate().map(entry).collect()
}

fn subjects(stored: &[Stored]) -> impl Iterator<Item = (usize, Option<String>)> {
    stored.iter().map(|s| (s.weight, s.kind.clone()))
}

/// Prepares all ranks; what no kernel exists for is listed for the whole plan.
fn prepare(
    shared: &Shared<'_>,
    world: World,
    stored: &[Stored],
) -> Result<(Vec<Rank>, Receiver<RankReport>), RunFault> {
    let (sender, receiver) = channel();
    let mut ranks = Vec::new();
    for (device, mut comm) in world {
        let prepared = prepare_rank(shared, &*device, &mut *comm, stored);
        let prepared = prepared.inspect_err(|fault| comm.abort(&fault.to_string()))?;
        let reports = (comm.rank() == 0).then(|| sender.clone());
        let worker = prepared.worker(shared.module, comm, reports);
        ranks.push(Rank { device, worker });
    }
    Ok((ranks, receiver))
}

fn prepare_rank(
    shared: &Shared<'_>,
    device: &dyn Device,
    comm: &mut dyn Collective,
    stored: &[Stored],
) -> Result<Prepared, RunFault> {
    let (module, rank) = (shared.module, comm.rank());
    let everyone: Vec<usize> = (0..comm.world()).collect();
    let world = comm.group(&everyone);
    let layouts: Vec<(usize, Layout<'_>)> =
        (0..module.chunks.len()).filter_map(|c| Some((c, Layout::hosted(module, c, rank)?))).collect();
    let fault = || RunFault::Plan(format!("no stage has rank {rank}"));
    let stage = module.stage_of_rank(rank as u64).ok_or_else(fault)?;
    if rank == 0 && !layouts.iter().any(|(_, layout)| find(module, layout, "loss").is_some()) {
        return Err(RunFault::Plan("none of its values is the whole loss".into()));
    }
    let (mut hosted, mut unsupported) = (Vec::new(), Vec::new());
    for (chunk, layout) in &layouts {
        hosted.push(prepare_chunk(shared, (*chunk, layout), device, comm, &mut unsupported)?);
        shared.observed[rank].bind(resident_ends(layout)?);
    }
    refuse(unsupported)?;
    let expected = match rank {
        0 if !shared.is_whole => Expected::new(shared, stored)?,
        _ => Expected::default(),
    };
    let chunks: Vec<u32> = hosted.iter().map(|h| h.chunk).collect();
    let schedule = entries(module, stage, &chunks);
    Ok(Prepared { world, hosted, schedule, stored: held(module, rank, stored)?, expected })
}

/// Prepares a chunk for each of its slots.
fn prepare_chunk(
    shared: &Shared<'_>,
    (chunk, layout): (usize, &Layout<'_>),
    device: &dyn Device,
    comm: &mut dyn Collective,
    unsupported: &mut Vec<Unsupported>,
) -> Result<Hosted, RunFault> {
    let module = shared.module;
    let mut reports = reported(module, layout);
    let reported: Vec<_> = reports.iter().map(|&(_, value)| value).collect();
    reports.retain(|_| layout.rank == 0);
    let own = |o: &Optimizer| (o.chunk == chunk).then_some(o.node);
    let optimizers: Vec<_> = shared.optimizers.iter().map(own).collect();
    let mut slots = Vec::new();
    for slot in 0..layout.chunk.slots.count.max(1) {
        let mut builder = Builder {
            module,
            layout: &layout.in_slot(slot),
            device,
            comm: &mut *comm,
            data: shared.data,
            reports: &reports,
            reported: &reported,
            optimizers: &optimizers,
            unsupported: Vec::new(),
            first_writes: first_writes(layout.chunk),
            with_last: with_last_micro_batch(layout.chunk),
            grouped: BTreeMap::new(),
            options: shared.options,
            is_other_slot: slot > 0,
        };
        slots.push(builder.phases()?);
        if slot == 0 {
            unsupported.extend(builder.unsupported);
        }
    }
    Ok(Hosted { chunk: chunk as u32, slots })
}

/// A rank's part of the plan.
struct Prepared {
    world: GroupId,
    hosted: Vec<Hosted>,
    schedule: Vec<Entry>,
    stored: Vec<(usize, BufferSpec)>,
    expected: Expected,
}

impl Prepared {
    fn worker(self, module: &Module, mut comm: Box<dyn Collective>, reports: Option<Sender<RankReport>>) -> Worker {
        let Prepared { world, hosted, schedule, stored, expected } = self;
        let (rank, events, pending) = (comm.rank(), Vec::new(), Vec::new());
        let beacon = Arc::new(Beacon::new(module, &schedule, &hosted));
        comm.watch(Arc::clone(&beacon) as Arc<dyn Whereabouts>);
        Worker { rank, comm, world, hosted, schedule, stored, expected, pending, reports, events, at: None, beacon }
    }
}

fn refuse(unsupported: Vec<Unsupported>) -> Result<(), RunFault> {
    if unsupported.is_empty() { Ok(()) } else { Err(RunFault::Unsupported(unsupported)) }
}

/// The whole copies of what is reported that a chunk has.
fn reported(module: &Module, layout: &Layout<'_>) -> Vec<(Report, ValueId)> {
    let reports = [("loss", Report::Loss), ("grad_norm", Report::GradNorm)];
    reports.into_iter().filter_map(|(name, report)| Some((report, find(module, layout, name)?))).collect()
}

/// A chunk's whole copy of an output.
fn find(module: &Module, layout: &Layout<'_>, name: &str) -> Option<ValueId> {
    module.program.output(name).and_then(|output| value_of_output(layout, output))
}

fn upload_all(module: &Module, ranks: &[Rank], weights: &dyn WeightSource) -> Result<(), RunFault> {
    let ranks: Vec<_> = ranks.iter().map(|rank| (rank.worker.rank, &*rank.device)).collect();
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
            host_bytes: shared.observed.iter().map(Observed::host_bytes).collect(),
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
        host_bytes: shared.observed.iter().map(Observed::host_bytes).collect(),
        traffic: ends.iter().map(|end| end.traffic).collect(),
        remarks: ends.iter().filter_map(|end| Some((end.rank, end.remark.clone()?))).collect(),
        trained,
        gradients: gradients.map(|g| g.parameters),
        trace: ends.into_iter().flat_map(|end| end.events).collect(),
    })
}
