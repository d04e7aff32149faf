//! The instructions of a rank: its nodes with everything decided that can be decided before the first step.

use std::collections::{BTreeMap, BTreeSet};

use galvatron_ir::graph::Node;
use galvatron_ir::mesh::Mesh;
use galvatron_ir::module::Module;
use galvatron_ir::op::comm::step_of_op;
use galvatron_ir::op::{Op, mem, opt};
use galvatron_ir::plan::{Chunk, Memory, PhaseKind, ResidentRole};
use galvatron_ir::{NodeId, ValueId};

use super::RunOptions;
use super::data::{DataSource, Load};
use super::exchange::{self, Buffers, Step};
use super::layout::Layout;
use super::observe::Ends;
use super::{ring, routed};
use crate::comm::Collective;
use crate::device::{BufferSpec, Device, HostCopy, Kernel, NodeSpec, Readout, Span};
use crate::fault::{RunFault, Unsupported};

/// One node of one rank.
pub(super) struct Instr {
    /// The node of the chunk.
    pub(super) node: NodeId,
    /// What errors call it; the same on every rank.
    pub(super) name: String,
    pub(super) work: Work,
    /// Whether it runs with the last micro-batch only.
    pub(super) is_with_last: bool,
    /// Ends of the buffers that it touches.
    pub(super) ends: Ends,
    /// A scalar result that is copied to the host after it, for the report of the step.
    pub(super) report: Option<(Report, Box<dyn Readout>)>,
    /// For an optimizer node: the index of the gradient that it reads, among those to be dumped, and the rank's part.
    pub(super) gradient: Option<(usize, BufferSpec)>,
}

/// A chunk that a rank hosts: its instructions for the micro-batches of each slot. What runs once a step is in the first.
pub(super) struct Hosted {
    /// Index of the chunk in the plan.
    pub(super) chunk: u32,
    pub(super) slots: Vec<Phases>,
}

/// What an instruction does.
pub(super) enum Work {
    /// Nothing: the result is where the operand is.
    Nothing,
    /// One kernel.
    Kernel(Box<dyn Kernel>),
    /// One kernel for each micro-batch of the slot, in order; the chunk has so many slots.
    ByMicroBatch { kernels: Vec<Box<dyn Kernel>>, n_slots: usize },
    /// A copy the first time in a step, if no other node has written the accumulator before; an addition otherwise.
    Accumulate { copy: Box<dyn Kernel>, add: Box<dyn Kernel>, writes_first: bool },
    /// One kernel for this node and the next ones, which have nothing left to do; `first` the first time in a step, if
    /// accumulators are written for the first time.
    Group { first: Option<Box<dyn Kernel>>, kernel: Box<dyn Kernel> },
    /// Moves and exchanges, in order.
    Collective(Vec<Step>),
    /// A message to another rank.
    Send(Message),
    /// A message from another rank.
    Recv(Message),
    /// Data from the host.
    Load(Box<Load>),
    /// The learning rate.
    LearningRate(Span),
    /// The number of the step.
    StepNumber(Span),
}

/// One end of a channel between two stages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message {
    /// The other rank.
    pub(super) peer: usize,
    pub(super) channel: u32,
    pub(super) at: Span,
}

/// A scalar that a step's report holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// The program's output `loss`.
    Loss,
    /// The program's output `grad_norm`.
    GradNorm,
}

/// The instructions of each phase, in the order of [`PhaseKind::ALL`].
pub(super) type Phases = [Vec<Instr>; PhaseKind::ALL.len()];

/// Number of a phase in [`Phases`].
pub(super) fn phase_index(phase: PhaseKind) -> usize {
    PhaseKind::ALL.iter().position(|&(kind, ..)| kind == phase).expect("invariant: all phases are listed")
}

/// Makes one rank's instructions.
pub(super) struct Builder<'a> {
    pub(super) module: &'a Module,
    pub(super) layout: &'a Layout<'a>,
    pub(super) device: &'a dyn Device,
    pub(super) comm: &'a mut dyn Collective,
    pub(super) data: &'a dyn DataSource,
    /// The values whose scalars are reported.
    pub(super) reports: &'a [(Report, ValueId)],
    /// The values whose scalars are reported by any rank.
    pub(super) reported: &'a [ValueId],
    /// The optimizer nodes whose gradients are dumped, where they are of this chunk.
    pub(super) optimizers: &'a [Option<NodeId>],
    pub(super) options: &'a RunOptions,
    pub(super) unsupported: Vec<Unsupported>,
    /// The nodes that are the first in a step to write their accumulator.
    pub(super) first_writes: BTreeSet<NodeId>,
    /// The nodes that run with the last micro-batch only.
    pub(super) with_last: BTreeSet<NodeId>,
    /// What nodes do that are prepared in groups.
    pub(super) grouped: BTreeMap<NodeId, Work>,
    /// Whether only what runs once a micro-batch is prepared, for another slot than the first.
    pub(super) is_other_slot: bool,
}

impl Builder<'_> {
    /// The instructions of all phases; nodes without a kernel are collected in `unsupported`.
    ///
    /// # Errors
    /// When the plan cannot be run at all, or the data does not fit it.
    pub(super) fn phases(&mut self) -> Result<Phases, RunFault> {
        self.prepare_groups()?;
        let mut phases = Phases::default();
        let chunk = self.layout.chunk;
        for (kind, node) in chunk.nodes() {
            if !self.prepares(kind) {
                continue;
            }
            let instr = self.instr(node)?;
            phases[phase_index(kind)].extend(instr);
        }
        Ok(phases)
    }

    /// Whether nodes of a phase are prepared.
    pub(super) fn prepares(&self, phase: PhaseKind) -> bool {
        !self.is_other_slot || phase.is_per_micro_batch()
    }

    fn instr(&mut self, id: NodeId) -> Result<Option<Instr>, RunFault> {
        let node = self.layout.chunk.graph.node(id);
        let (args, results) = (self.layout.buffers(&node.args)?, self.layout.buffers(&node.results)?);
        let workspace = self.layout.workspace(id, &args, &results)?;
        let (name, op) = (self.layout.chunk.node_name(id), node.op.mnemonic());
        let spans = args.iter().chain(&results).map(|b| (b.memory, b.span()));
        let spans = spans.chain(workspace.map(|at| (Memory::Device, at)));
        let ends = self.layout.ends(spans);
        let work = match self.grouped.remove(&id) {
            Some(work) => Ok(work),
            None => self.work(id, &args, &results, workspace)?,
        };
        let work = match work {
            Ok(work) => work,
            Err(what) => {
                self.unsupported.push(Unsupported { node: name, op: op.into(), what });
                return Ok(None);
            }
        };
        let reported = self.reports.iter().find_map(|&(report, value)| {
            let index = node.results.iter().position(|&r| r == value)?;
            Some((report, results[index].span()))
        });
        let report = match reported {
            Some((report, at)) => Some((report, self.device.prepare_readout(at).map_err(|what| self.fault(what))?)),
            None => None,
        };
        let gradient = self.optimizers.iter().position(|&n| n == Some(id));
        let gradient = gradient.filter(|_| self.layout.is_first_replica(&self.layout.sharding(node.args[1])));
        let gradient = gradient.map(|index| (index, args[1].clone()));
        let is_with_last = self.with_last.contains(&id);
        Ok(Some(Instr { node: id, name, work, is_with_last, ends, report, gradient }))
    }

    fn fault(&self, what: String) -> RunFault {
        RunFault::Device { rank: self.layout.rank as usize, what }
    }

    /// What a node does, or why the backend cannot do it.
    fn work(
        &mut self,
        id: NodeId,
        args: &[BufferSpec],
        results: &[BufferSpec],
        workspace: Option<Span>,
    ) -> Result<Result<Work, String>, RunFault> {
        let node = self.layout.chunk.graph.node(id);
        if let Some(step) = step_of_op(&node.op) {
            let buffers = Buffers { args, results, workspace };
            let collected = exchange::prepare(&step, self.layout, self.device, self.comm, buffers);
            return Ok(collected.map(Work::Collective));
        }
        if node.op.undistributed().is_some() {
            let (op, buffers) = (&node.op, Buffers { args, results, workspace });
            let steps = match op.is_routed() {
                true => routed::prepare(op, self.layout, self.device, self.comm, buffers),
                false => ring::prepare(op, self.layout, self.device, buffers),
            };
            return Ok(steps.map(Work::Collective));
        }
        let spec = NodeSpec { op: &node.op, args, results, workspace };
        Ok(match &node.op {
            Op::Load(op) => return self.load(op, node.results[0]).map(Ok),
            Op::RunScalar(op) if op.name == "lr" => Ok(Work::LearningRate(results[0].span())),
            Op::RunScalar(_) => Ok(Work::StepNumber(results[0].span())),
            Op::Accumulate(_) => self.accumulate(id, &spec),
            Op::Send(op) => self.message(op.channel, op.to, args[0].span()).map(Work::Send),
            Op::Recv(op) => self.message(op.channel, op.from, results[0].span()).map(Work::Recv),
            Op::Dropout(_) => return self.by_micro_batch(node, workspace),
            Op::Update(_) | Op::Reshape(_) if is_same_place(&spec) => Ok(Work::Nothing),
            Op::ToHost(_) | Op::ToDevice(_) => self.host_copy(&args[0], &results[0]),
            _ if is_in_host(&spec) => Err("what lies in host memory is only copied, and updated where it lies".into()),
            _ => self.device.prepare(&spec).map(Work::Kernel),
        })
    }

    fn host_copy(&self, from: &BufferSpec, to: &BufferSpec) -> Result<Work, String> {
        let (device, host) = match (from.memory, to.memory) {
            (Memory::Device, Memory::Host) => (from, to),
            (Memory::Host, Memory::Device) => (to, from),
            _ => return Err("it copies within one memory".into()),
        };
        let copy = HostCopy { to: to.memory, device: device.span(), host: host.span() };
        self.device.prepare_host_copy(&copy).map(Work::Kernel)
    }

    fn load(&self, op: &galvatron_ir::op::mem::Load, value: ValueId) -> Result<Work, RunFault> {
        let train = self.module.train.as_ref().expect("invariant: the engine checked the module");
        let load = Load::new(op, value, self.layout, self.data, train.global_batch)?;
        Ok(Work::Load(Box::new(load)))
    }

    fn message(&self, channel: u32, chunk: u32, at: Span) -> Result<Message, String> {
        let peer = self.layout.peer(chunk).ok_or_else(|| format!("there is no chunk {chunk}"))?;
        self.device.messages()?;
        Ok(Message { peer, channel, at })
    }

    /// A node whose results depend on where in the whole step its elements lie.
    fn by_micro_batch(&self, node: &Node, workspace: Option<Span>) -> Result<Result<Work, String>, RunFault> {
        let is_cut = node.results.iter().any(|&value| self.layout.sharding(value).is_sharded_over(Mesh::MB));
        let n_kernels = if is_cut { usize::MAX } else { 1 };
        let mut kernels = Vec::new();
        for index in self.layout.micro_batches().take(n_kernels) {
            let layout = self.layout.in_micro_batch(index);
            let (args, results) = (layout.buffers(&node.args)?, layout.buffers(&node.results)?);
            match self.device.prepare(&NodeSpec { op: &node.op, args: &args, results: &results, workspace }) {
                Ok(kernel) => kernels.push(kernel),
                Err(what) => return Ok(Err(what)),
            }
        }
        Ok(Ok(match kernels.len() {
            1 => Work::Kernel(kernels.remove(0)),
            _ => Work::ByMicroBatch { kernels, n_slots: self.layout.n_slots() },
        }))
    }

    fn accumulate(&self, id: NodeId, spec: &NodeSpec<'_>) -> Result<Work, String> {
        let add = self.device.prepare(spec)?;
        let copy = self.device.prepare(&NodeSpec { op: &mem::Update.into(), ..*spec })?;
        let writes_first = self.first_writes.contains(&id);
        Ok(Work::Accumulate { copy, add, writes_first })
    }
}

/// Whether an op of one source and one target has nothing to move.
pub(super) fn is_same_place(spec: &NodeSpec<'_>) -> bool {
    let (to, from) = match spec.results.first() {
        Some(result) => (result, &spec.args[0]),
        None => (&spec.args[0], &spec.args[1]),
    };
    (to.memory, to.span()) == (from.memory, from.span())
}

/// Whether a node has an operand or a result in host memory.
pub(super) fn is_in_host(spec: &NodeSpec<'_>) -> bool {
    spec.args.iter().chain(spec.results).any(|buffer| buffer.memory == Memory::Host)
}

/// The value of a chunk that holds an output of the program: the last one that is whole on every rank.
pub(super) fn value_of_output(layout: &Layout<'_>, output: ValueId) -> Option<ValueId> {
    let chunk = layout.chunk;
    let is_it = |value: &ValueId| {
        let sharding = layout.sharding(*value);
        chunk.graph.value(*value).of == Some(output) && sharding.axes().next().is_none()
    };
    chunk.nodes().flat_map(|(_, node)| chunk.graph.node(node).results.iter().copied()).filter(is_it).last()
}

/// A node that updates a weight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Optimizer {
    /// Index of its chunk.
    pub(super) chunk: usize,
    pub(super) node: NodeId,
    /// Index of the weight in the program.
    pub(super) weight: usize,
}

/// The optimizer nodes of all chunks.
pub(super) fn optimizer_nodes(module: &Module) -> Vec<Optimizer> {
    let weight = |chunk: &Chunk, node: NodeId| {
        let node = chunk.graph.node(node);
        matches!(node.op, Op::Sgd(opt::Sgd { .. }) | Op::Adamw(opt::Adamw { .. })).then_some(())?;
        let of = chunk.graph.value(node.args[0]).of?;
        let weight = module.program.states.iter().find(|s| s.value == of).map_or(of, |s| s.weight);
        module.program.weights.iter().position(|w| w.value == weight)
    };
    let nodes = module.chunks.iter().enumerate().flat_map(|(index, chunk)| {
        let step = chunk.phase(PhaseKind::Step).iter();
        step.filter_map(move |&node| Some(Optimizer { chunk: index, node, weight: weight(chunk, node)? }))
    });
    nodes.collect()
}

/// The ends of what is in memory before the first step.
pub(super) fn resident_ends(layout: &Layout<'_>) -> Result<Ends, RunFault> {
    let loaded = layout.chunk.residents.iter().filter(|r| r.role != ResidentRole::Accumulator);
    let spans = loaded.map(|r| layout.buffer(r.value).map(|b| (b.memory, b.span()))).collect::<Result<Vec<_>, _>>()?;
    Ok(layout.ends(spans.into_iter()))
}
