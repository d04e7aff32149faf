//! One rank at work: the steps of the schedule, its faults, what it reports.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use galvatron_ir::NodeId;
use galvatron_ir::module::{Module, TrainInfo};
use galvatron_ir::plan::PhaseKind;
use galvatron_ir::trace::TraceEvent;

use super::RunOptions;
use super::beacon::Beacon;
use super::collect::Gather;
use super::data::DataSource;
use super::deliver::{END_OF_STEP, Expected};
use super::exchange::Step;
use super::gate::{Flow, Gate};
use super::instr::{Hosted, Instr, Message, Optimizer, Report, Work, phase_index};
use super::observe::Observed;
use crate::comm::{Collective, CommFault, GroupId, Site, Stats};
use crate::device::{BufferSpec, Device, Span};
use crate::fault::RunFault;

/// What all ranks share.
pub(super) struct Shared<'a> {
    pub(super) module: &'a Module,
    pub(super) options: &'a RunOptions,
    pub(super) data: &'a dyn DataSource,
    /// The optimizer nodes of all chunks.
    pub(super) optimizers: Vec<Optimizer>,
    pub(super) gate: Gate,
    /// Whether all ranks of the world are in this process.
    pub(super) is_whole: bool,
    /// What each rank has used.
    pub(super) observed: Vec<Observed>,
    /// Parameters and states under collection.
    pub(super) trained: Gather,
    /// Gradients of the first step under collection.
    pub(super) gradients: Gather,
    pub(super) epoch: Instant,
}

/// One phase of a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) phase: PhaseKind,
    /// Which of the rank's chunks, by its place among them.
    pub(super) hosted: usize,
    /// The slot of the micro-batch.
    pub(super) slot: usize,
    pub(super) micro_batch: Option<u32>,
    /// Whether no earlier entry of the step runs this phase of the chunk.
    pub(super) is_first: bool,
    /// Whether no later one does.
    pub(super) is_last: bool,
}

/// What rank 0 says about a step.
pub(super) struct RankReport {
    pub(super) step: u64,
    pub(super) loss: f64,
    pub(super) grad_norm: Option<f64>,
    pub(super) time: Duration,
}

/// A rank before its first step.
pub(super) struct Rank {
    pub(super) device: Box<dyn Device>,
    pub(super) worker: Worker,
}

/// The part of a rank that moves along the plan.
pub(super) struct Worker {
    pub(super) rank: usize,
    pub(super) comm: Box<dyn Collective>,
    pub(super) world: GroupId,
    /// The chunks of the rank's stage.
    pub(super) hosted: Vec<Hosted>,
    /// What its stage runs in order.
    pub(super) schedule: Vec<Entry>,
    /// The parameters and states that this rank is the first holder of, by their entry in the collection.
    pub(super) stored: Vec<(usize, BufferSpec)>,
    /// What rank 0 gets from ranks of other processes.
    pub(super) expected: Expected,
    /// Parts of the first step's gradients that are to be sent to rank 0, by their entry in the collection.
    pub(super) pending: Vec<(usize, Vec<u8>)>,
    /// Rank 0 has it.
    pub(super) reports: Option<Sender<RankReport>>,
    pub(super) events: Vec<TraceEvent>,
    /// Entry and number of the instruction in work, for the message of a panic.
    pub(super) at: Option<(Entry, usize)>,
    /// Tells other ranks where this one is.
    pub(super) beacon: Arc<Beacon>,
}

/// The scalars that a step reports.
#[derive(Clone, Copy, Default)]
struct Scalars {
    loss: f64,
    grad_norm: Option<f64>,
}

/// What is left of a rank.
pub(super) struct RankEnd {
    pub(super) rank: usize,
    pub(super) steps: u64,
    /// What the device has to say.
    pub(super) remark: Option<String>,
    pub(super) events: Vec<TraceEvent>,
    pub(super) traffic: Stats,
}

impl Rank {
    /// Runs all steps. A fault or a panic takes the world down, so that no other rank waits for this one.
    pub(super) fn run(self, shared: &Shared<'_>) -> Result<RankEnd, RunFault> {
        let Rank { device, mut worker } = self;
        let mut outcome = Ok(0);
        let run = catch_unwind(AssertUnwindSafe(|| {
            device.install(&mut || outcome = worker.steps(&*device, shared));
        }));
        if let Err(panic) = run {
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message = message.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message");
            let node = worker.at.map_or("no node", |(entry, i)| &worker.instrs(entry)[i].name).to_string();
            outcome = Err(RunFault::Panic { rank: worker.rank, node, message: message.into() });
        }
        match outcome {
            Ok(steps) => {
                let (rank, remark, traffic) = (worker.rank, device.remark(), *worker.comm.stats());
                Ok(RankEnd { rank, steps, remark, events: worker.events, traffic })
            }
            Err(fault) => {
                worker.comm.abort(&fault.to_string());
                Err(fault)
            }
        }
    }
}

impl Worker {
    fn steps(&mut self, device: &dyn Device, shared: &Shared<'_>) -> Result<u64, RunFault> {
        let (options, mut done) = (shared.options, 0);
        for step in options.first_step..options.first_step + options.steps {
            self.step(device, shared, step)?;
            done += 1;
            if self.flow(shared, step)? == Flow::Stop {
                break;
            }
        }
        self.finish(device, shared, options.first_step + done)?;
        Ok(done)
    }

    /// One step; it ends when all ranks have ended it and rank 0 has sent the report.
    fn step(&mut self, device: &dyn Device, shared: &Shared<'_>, step: u64) -> Result<(), RunFault> {
        let (start, options) = (Instant::now(), shared.options);
        // A step in which each node is looked at by itself is not launched as a whole.
        if !options.trace && !options.dumps_at(step) {
            device.begin();
        }
        for i in 0..self.schedule.len() {
            self.phase(device, shared, i, step)?;
        }
        self.at = None;
        self.beacon.end_step();
        device.finish().map_err(|what| self.fault_at_end(what, step))?;
        let Scalars { loss, grad_norm } = self.scalars();
        let time = start.elapsed();
        self.collect_gradients(shared, step)?;
        if shared.options.collects_at(step) {
            self.collect(device, shared, step)?;
        }
        self.meet(shared, step)?;
        if let Some(reports) = &self.reports {
            // The caller's side is gone only when it stops the run, which the gate tells.
            let _ = reports.send(RankReport { step, loss, grad_norm, time });
        }
        Ok(())
    }

    /// Why a device did not finish a step: another rank has failed, or the fault is its own.
    fn fault_at_end(&self, what: String, step: u64) -> RunFault {
        let own = || Failure::Data(what).at(self.rank, END_OF_STEP, step);
        self.comm.alarm().fault().map_or_else(own, RunFault::Comm)
    }

    /// Runs an entry of the schedule.
    fn phase(&mut self, device: &dyn Device, shared: &Shared<'_>, number: usize, step: u64) -> Result<(), RunFault> {
        let entry = self.schedule[number];
        for i in 0..self.instrs(entry).len() {
            if self.instrs(entry)[i].is_with_last && !entry.is_last {
                continue;
            }
            self.at = Some((entry, i));
            self.beacon.enter(step, number, i);
            shared.options.hold.as_ref().map_or(Ok(()), |hold| hold.at(&*self.comm, &self.beacon))?;
            let instr = &mut self.hosted[entry.hosted].slots[entry.slot][phase_index(entry.phase)][i];
            shared.observed[self.rank].bind(instr.ends);
            if let Some((index, gradient)) = &instr.gradient
                && shared.options.dumps_at(step)
            {
                if shared.is_whole || self.rank == 0 {
                    shared.gradients.write(*index, device, gradient);
                } else {
                    self.pending.push((*index, part(device, gradient)));
                }
            }
            let start = Instant::now();
            let mut cx = Context { device, comm: &mut *self.comm, shared, entry, step };
            cx.execute(instr).map_err(|fault| fault.at(self.rank, &instr.name, step))?;
            if shared.options.trace {
                let node = instr.node;
                self.record(shared, entry, node, (step, start));
            }
        }
        Ok(())
    }

    /// Notes an execution of a node that started at `start` and is over now.
    fn record(&mut self, shared: &Shared<'_>, entry: Entry, node: NodeId, (step, start): (u64, Instant)) {
        self.events.push(TraceEvent {
            rank: self.rank,
            step,
            chunk: self.hosted[entry.hosted].chunk,
            node,
            phase: entry.phase,
            micro_batch: entry.micro_batch,
            start_ns: start.duration_since(shared.epoch).as_nanos() as u64,
            duration_ns: start.elapsed().as_nanos() as u64,
        });
    }

    fn all_instrs(&self) -> impl Iterator<Item = &Instr> {
        self.hosted.iter().flat_map(|hosted| hosted.slots.iter().flatten().flatten())
    }

    /// The instructions of an entry.
    fn instrs(&self, entry: Entry) -> &[Instr] {
        &self.hosted[entry.hosted].slots[entry.slot][phase_index(entry.phase)]
    }

    /// What the readouts of a finished step hold.
    fn scalars(&self) -> Scalars {
        let mut scalars = Scalars::default();
        for (report, readout) in self.all_instrs().filter_map(|instr| instr.report.as_ref()) {
            let mut bytes = [0; 4];
            readout.value(&mut bytes);
            let value = f64::from(f32::from_ne_bytes(bytes));
            match report {
                Report::Loss => scalars.loss = value,
                Report::GradNorm => scalars.grad_norm = Some(value),
            }
        }
        scalars
    }
}

/// The bytes of a rank's part of a value.
pub(super) fn part(device: &dyn Device, buffer: &BufferSpec) -> Vec<u8> {
    let mut bytes = vec![0; buffer.ty.bytes() as usize];
    buffer.read(device, 0, &mut bytes);
    bytes
}

/// Tags of messages between stages; those between ranks that compute a node together, and of the engine itself, are below it.
const MESSAGES: u64 = 1 << 63;

/// The first tag of messages between ranks that compute a node together; between two ranks those of a tag come in order.
pub(super) const TAGS: u64 = 1 << 62;

/// Where an instruction runs.
struct Context<'a> {
    device: &'a dyn Device,
    comm: &'a mut dyn Collective,
    shared: &'a Shared<'a>,
    entry: Entry,
    step: u64,
}

/// Why an instruction failed.
enum Failure {
    Data(String),
    Comm(CommFault),
}

impl Failure {
    fn at(self, rank: usize, node: &str, step: u64) -> RunFault {
        match self {
            Failure::Data(what) => RunFault::Node { rank, node: node.into(), step, what },
            Failure::Comm(fault) => RunFault::Comm(fault),
        }
    }
}

impl From<String> for Failure {
    fn from(what: String) -> Failure {
        Failure::Data(what)
    }
}

impl Context<'_> {
    fn execute(&mut self, instr: &mut Instr) -> Result<(), Failure> {
        match &mut instr.work {
            Work::Nothing => {}
            Work::Kernel(kernel) => kernel.run()?,
            Work::ByMicroBatch { kernels, n_slots } => {
                kernels[self.entry.micro_batch.unwrap_or(0) as usize / *n_slots].run()?;
            }
            Work::Accumulate { copy, writes_first: true, .. } if self.entry.is_first => copy.run()?,
            Work::Accumulate { add, .. } => add.run()?,
            Work::Group { first: Some(first), .. } if self.entry.is_first => first.run()?,
            Work::Group { kernel, .. } => kernel.run()?,
            Work::Collective(steps) => {
                let site = Site { node: &instr.name, step: self.step };
                for step in steps {
                    match step {
                        Step::Run(kernel) => kernel.run()?,
                        Step::Exchange(exchange) => {
                            self.device.exchange(&mut *self.comm, exchange, &site).map_err(Failure::Comm)?;
                        }
                        Step::Send(hop) => {
                            if let Some(at) = hop.part(self.device)? {
                                let to = (hop.peer, hop.tag);
                                self.device.send(&mut *self.comm, to, at, &site).map_err(Failure::Comm)?;
                            }
                        }
                        Step::Recv(hop) => {
                            if let Some(at) = hop.part(self.device)? {
                                let from = (hop.peer, hop.tag);
                                self.device.recv(&mut *self.comm, from, at, &site).map_err(Failure::Comm)?;
                            }
                        }
                    }
                }
            }
            Work::Send(Message { peer, channel, at }) => {
                let site = Site { node: &instr.name, step: self.step };
                let tag = self.tag(*channel);
                self.device.send(&mut *self.comm, (*peer, tag), *at, &site).map_err(Failure::Comm)?;
            }
            Work::Recv(Message { peer, channel, at }) => {
                let site = Site { node: &instr.name, step: self.step };
                let tag = self.tag(*channel);
                self.device.recv(&mut *self.comm, (*peer, tag), *at, &site).map_err(Failure::Comm)?;
            }
            Work::Load(load) => {
                let micro_batch = self.entry.micro_batch.unwrap_or(0) as usize;
                load.run(self.device, self.shared.data, self.step, micro_batch)?;
            }
            Work::LearningRate(at) => self.scalar(*at, learning_rate(self.train(), self.step))?,
            Work::StepNumber(at) => self.scalar(*at, self.step as f64)?,
        }
        if let Some((_, readout)) = &instr.report {
            readout.run()?;
        }
        Ok(())
    }

    /// The tag of a channel's message of the micro-batch in work.
    fn tag(&self, channel: u32) -> u64 {
        MESSAGES | u64::from(channel) << 32 | u64::from(self.entry.micro_batch.unwrap_or(0))
    }

    fn train(&self) -> &TrainInfo {
        self.shared.module.train.as_ref().expect("invariant: the engine checked the module")
    }

    fn scalar(&self, at: Span, value: f64) -> Result<(), String> {
        self.device.fill(at, &mut |out| {
            out.copy_from_slice(&(value as f32).to_ne_bytes());
            Ok(())
        })
    }
}

/// Learning rate of a step (from 1).
pub(super) fn learning_rate(train: &TrainInfo, step: u64) -> f64 {
    train.schedule.lr_at(train.lr, step)
}
