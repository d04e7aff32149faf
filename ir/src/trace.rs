//! Which rank runs which node of a plan when: what an executor measured, or what a cost model expects.

use crate::graph::Node;
use crate::id::NodeId;
use crate::module::Module;
use crate::op::Op;
use crate::op::comm::step_of_op;
use crate::plan::{Chunk, PhaseKind};

/// One execution of one node by one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceEvent {
    /// The rank.
    pub rank: usize,
    /// The training step, from 1.
    pub step: u64,
    /// Index of the chunk in the plan.
    pub chunk: u32,
    /// The node of the chunk's graph.
    pub node: NodeId,
    /// The phase.
    pub phase: PhaseKind,
    /// The micro-batch, in the phases that have one.
    pub micro_batch: Option<u32>,
    /// Nanoseconds from the start of the run, or of the step where it is expected.
    pub start_ns: u64,
    /// Nanoseconds that it takes.
    pub duration_ns: u64,
}

impl TraceEvent {
    /// The chunk, in the plan that the event is of.
    pub fn chunk_in<'m>(&self, plan: &'m Module) -> &'m Chunk {
        &plan.chunks[self.chunk as usize]
    }

    /// The node, in the plan that the event is of.
    pub fn node_in<'m>(&self, plan: &'m Module) -> &'m Node {
        self.chunk_in(plan).graph.node(self.node)
    }

    /// What messages call the node, in the plan that the event is of.
    pub fn name_in(&self, plan: &Module) -> String {
        self.chunk_in(plan).node_name(self.node)
    }

    /// Nanoseconds at which it is over.
    pub fn end_ns(&self) -> u64 {
        self.start_ns + self.duration_ns
    }
}

/// What a rank does at one time: it computes, and beside that it communicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    /// Ops.
    Compute,
    /// Collectives, messages, and copies to host memory and back.
    Communication,
}

impl Stream {
    /// The stream that an op runs on; cuts that no other rank takes part in are computation.
    pub fn of(op: &Op) -> Stream {
        let crosses = matches!(op, Op::Send(_) | Op::Recv(_) | Op::ToHost(_) | Op::ToDevice(_));
        match crosses || step_of_op(op).is_some_and(|step| step.communicates()) {
            true => Stream::Communication,
            false => Stream::Compute,
        }
    }

    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            Stream::Compute => "compute",
            Stream::Communication => "communication",
        }
    }
}
