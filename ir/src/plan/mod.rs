//! What a plan adds to a program: chunks with phases, residents, a schedule, arenas and a prediction.

mod last;
pub mod lifetime;
mod room;
mod stage;

pub use crate::place::{ALIGNMENT, Memory, Place, Region};
pub use last::with_last_micro_batch;
pub use room::{Room, UnderWay};
pub use stage::{Arena, Slots, Stage};

use crate::graph::Graph;
use crate::id::{NodeId, ValueId};
use crate::mesh::Mesh;
use crate::op::Op;
use crate::types::TensorType;

/// Phases of a chunk, in the order in which a step runs them; those of forward and backward once a micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PhaseKind {
    /// Once a step, before the first micro-batch: what needs the whole batch, such as the count of labels.
    Prologue,
    /// Forward of one micro-batch.
    Forward,
    /// Backward of one micro-batch, recomputation included.
    Backward,
    /// What of the backward of one micro-batch no other stage waits for, where it is split: the gradients of weights.
    BackwardWeight,
    /// Once a step, after the last micro-batch: gradient reduction.
    Reduce,
    /// Optimizer.
    Step,
}

impl PhaseKind {
    /// All phases with their names and letters (in schedules) in the text format.
    pub const ALL: [(PhaseKind, &'static str, char); 6] = [
        (PhaseKind::Prologue, "prologue", 'P'),
        (PhaseKind::Forward, "forward", 'F'),
        (PhaseKind::Backward, "backward", 'B'),
        (PhaseKind::BackwardWeight, "backward_weight", 'W'),
        (PhaseKind::Reduce, "reduce", 'R'),
        (PhaseKind::Step, "step", 'S'),
    ];

    /// Name in the text format.
    pub fn name(self) -> &'static str {
        PhaseKind::ALL.iter().find(|p| p.0 == self).map_or("?", |p| p.1)
    }

    /// Letter in schedules.
    pub fn letter(self) -> char {
        PhaseKind::ALL.iter().find(|p| p.0 == self).map_or('?', |p| p.2)
    }

    /// Whether the phase runs once a micro-batch.
    pub fn is_per_micro_batch(self) -> bool {
        matches!(self, PhaseKind::Forward | PhaseKind::Backward | PhaseKind::BackwardWeight)
    }
}

/// One phase of a chunk: its nodes in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// Which phase.
    pub kind: PhaseKind,
    /// The nodes.
    pub body: Vec<NodeId>,
}

/// Why a value stays in memory between phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ResidentRole {
    /// A parameter or a frozen buffer: a copy of a weight.
    Parameter,
    /// Optimizer state.
    State,
    /// A sum over micro-batches.
    Accumulator,
}

impl ResidentRole {
    /// All roles with their names in the text format.
    pub const ALL: [(ResidentRole, &'static str); 3] = [
        (ResidentRole::Parameter, "parameter"),
        (ResidentRole::State, "state"),
        (ResidentRole::Accumulator, "accumulator"),
    ];

    /// Name in the text format.
    pub fn name(self) -> &'static str {
        ResidentRole::ALL.iter().find(|(r, _)| *r == self).map_or("?", |(_, n)| n)
    }
}

/// A value that stays in memory between phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident {
    /// The value, declared in the chunk's graph.
    pub value: ValueId,
    /// Why it stays.
    pub role: ResidentRole,
    /// In which memory.
    pub memory: Memory,
}

/// A slice of the model as one SPMD program: every rank of its stage runs it on its own parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// The graph of all phases.
    pub graph: Graph,
    /// What stays in memory.
    pub residents: Vec<Resident>,
    /// The phases, each kind at most once, in order.
    pub phases: Vec<Phase>,
    /// Index of the stage that hosts it.
    pub stage: u32,
    /// Where activations of several micro-batches lie, at level `plan`.
    pub slots: Slots,
}

impl Chunk {
    /// A chunk with empty phases of every kind.
    pub fn new() -> Chunk {
        let phases = PhaseKind::ALL.iter().map(|&(kind, ..)| Phase { kind, body: Vec::new() }).collect();
        Chunk { graph: Graph::new(), residents: Vec::new(), phases, stage: 0, slots: Slots::default() }
    }

    /// The nodes of a phase.
    pub fn phase(&self, kind: PhaseKind) -> &[NodeId] {
        self.phases.iter().find(|p| p.kind == kind).map_or(&[], |p| &p.body)
    }

    /// The nodes of a phase, to change them.
    pub fn phase_mut(&mut self, kind: PhaseKind) -> &mut Vec<NodeId> {
        &mut self.phases.iter_mut().find(|p| p.kind == kind).expect("invariant: chunks have all phases").body
    }

    /// Every node with its phase, in order of execution.
    pub fn nodes(&self) -> impl Iterator<Item = (PhaseKind, NodeId)> + '_ {
        self.phases.iter().flat_map(|p| p.body.iter().map(|&n| (p.kind, n)))
    }

    /// What messages and traces call a node: its first result, or its op and what it writes or sends.
    pub fn node_name(&self, node: NodeId) -> String {
        let node = self.graph.node(node);
        let value = node.results.first().or(node.args.first());
        let name = value.map_or("", |&v| self.graph.value(v).name.as_str());
        if node.results.is_empty() { format!("{} %{name}", node.op.mnemonic()) } else { format!("%{name}") }
    }

    /// For each value of the graph whether it lies in host memory: a copy to it computes the value, or it is a resident there.
    pub fn in_host(&self) -> Vec<bool> {
        let mut in_host = vec![false; self.graph.n_values()];
        self.residents.iter().for_each(|r| in_host[r.value.index()] = r.memory == Memory::Host);
        let copies = self.nodes().map(|(_, node)| self.graph.node(node)).filter(|n| matches!(n.op, Op::ToHost(_)));
        copies.flat_map(|node| &node.results).for_each(|result| in_host[result.index()] = true);
        in_host
    }

    /// Type of the part of a value that one rank holds.
    pub fn local_type(&self, value: ValueId, mesh: &Mesh) -> TensorType {
        let value = self.graph.value(value);
        match &value.sharding {
            Some(sharding) => sharding.local_type(&value.ty, mesh),
            None => value.ty.clone(),
        }
    }

    /// Local types of some values.
    pub fn local_types(&self, values: &[ValueId], mesh: &Mesh) -> Vec<TensorType> {
        values.iter().map(|&v| self.local_type(v, mesh)).collect()
    }
}

impl Default for Chunk {
    fn default() -> Self {
        Chunk::new()
    }
}

/// One entry of a schedule: a phase of a chunk, for a micro-batch where the phase has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduleStep {
    /// The phase.
    pub phase: PhaseKind,
    /// The chunk.
    pub chunk: u32,
    /// The micro-batch.
    pub micro_batch: Option<u32>,
}

/// What the compiler expects of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Predicted {
    /// Nanoseconds of one optimizer step.
    pub step_time_ns: u64,
    /// Parts in a million by which the searched cost may exceed the optimum of the declared space.
    pub gap_ppm: u64,
}

/// Whether an op is a collective of several ranks (not a local cut).
pub fn is_collective(op: &Op) -> bool {
    matches!(op, Op::AllReduce(_) | Op::ReduceScatter(_) | Op::AllGather(_) | Op::AllToAll(_))
}
