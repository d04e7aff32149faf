//! What the phases of a chunk do between messages, and how long that takes.

use super::CostModel;
use super::plan::{PhaseTimes, node_cost};
use super::streams::{Ran, Streams};
use galvatron_ir::op::Op;
use galvatron_ir::plan::{Chunk, PhaseKind, ScheduleStep, with_last_micro_batch};
use galvatron_ir::{Module, NodeId, ValueId};
use std::collections::BTreeMap;

/// What a phase does between two messages, and the message.
#[derive(Clone, Debug)]
pub(super) struct Leg {
    /// The nodes before it.
    pub(super) ran: Vec<Ran>,
    /// Nanoseconds of these nodes.
    pub(super) ns: u64,
    pub(super) event: Event,
}

/// What ends a leg.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// Sends over a channel; nanoseconds of the transfer.
    Send(NodeId, u32, u64),
    /// Waits for a channel.
    Recv(NodeId, u32),
    /// The phase is over.
    End,
}

/// A node with its times, and whether it runs with the last micro-batch only.
type Timed = (NodeId, PhaseTimes, bool);

/// The legs of the phases of a chunk.
pub(super) struct Legs {
    micro_batches: u32,
    nodes: BTreeMap<PhaseKind, Vec<Timed>>,
    each: BTreeMap<PhaseKind, Vec<Leg>>,
    /// Of the last micro-batch, where more runs with it.
    last: BTreeMap<PhaseKind, Vec<Leg>>,
}

impl Legs {
    /// Of a chunk of a plan, on the devices of its stage.
    pub(super) fn new(model: &CostModel, module: &Module, chunk: &Chunk) -> Legs {
        let (mesh, late) = (module.mesh_of(chunk), with_last_micro_batch(chunk));
        let own = &*model.on(&module.stage_of(chunk).ranks());
        let timed = |&node: &NodeId| (node, node_cost(own, chunk, mesh, node), late.contains(&node));
        let nodes = PhaseKind::ALL.iter().map(|&(kind, ..)| (kind, chunk.phase(kind).iter().map(timed).collect()));
        let micro_batches = mesh.micro_batches() as u32;
        let mut legs = Legs { micro_batches, nodes: nodes.collect(), each: BTreeMap::new(), last: BTreeMap::new() };
        for (&kind, nodes) in &legs.nodes {
            legs.each.insert(kind, make(model, module, chunk, nodes, false));
            if nodes.iter().any(|(.., is_late)| *is_late) {
                legs.last.insert(kind, make(model, module, chunk, nodes, true));
            }
        }
        legs
    }

    /// The legs of an entry of the schedule.
    pub(super) fn of(&self, entry: &ScheduleStep) -> &[Leg] {
        let is_last = entry.micro_batch.is_some_and(|micro_batch| micro_batch + 1 == self.micro_batches);
        let last = self.last.get(&entry.phase).filter(|_| is_last);
        last.unwrap_or(&self.each[&entry.phase])
    }

    /// Every node with its times; what runs with the last micro-batch only as of the reduce phase, because it runs once a step.
    pub(super) fn times(&self) -> impl Iterator<Item = (PhaseKind, NodeId, PhaseTimes)> + '_ {
        self.nodes.iter().flat_map(|(&kind, nodes)| {
            nodes
                .iter()
                .map(move |&(node, times, is_late)| (if is_late { PhaseKind::Reduce } else { kind }, node, times))
        })
    }

    /// Nanoseconds of one step by which the phases are shorter than the sum of their nodes.
    pub(super) fn hidden_ns(&self, micro_batches: u64) -> u64 {
        let busy = |nodes: &[Timed], with_late: bool| -> u64 {
            let nodes = nodes.iter().filter(|(.., is_late)| with_late || !is_late);
            nodes.map(|(_, times, _)| times.compute_ns + times.communication_ns).sum()
        };
        let ns = |legs: &[Leg]| legs.iter().map(|leg| leg.ns).sum::<u64>();
        let of = |(kind, nodes): (&PhaseKind, &Vec<Timed>)| {
            let runs = if kind.is_per_micro_batch() { micro_batches } else { 1 };
            let each = busy(nodes, false).saturating_sub(ns(&self.each[kind]));
            match self.last.get(kind) {
                Some(last) => (runs - 1) * each + busy(nodes, true).saturating_sub(ns(last)),
                None => runs * each,
            }
        };
        self.nodes.iter().map(of).sum()
    }
}

/// The legs of a phase with or without what runs with the last micro-batch only. What is communicated aside goes on beside the next legs,
/// but not while a message is waited for.
fn make(model: &CostModel, module: &Module, chunk: &Chunk, nodes: &[Timed], with_late: bool) -> Vec<Leg> {
    let (mesh, mut events, mut streams) = (module.mesh_of(chunk), Vec::new(), Streams::new(model.slowdown()));
    for &(node, times, _) in nodes.iter().filter(|(.., is_late)| with_late || !is_late) {
        match &chunk.graph.node(node).op {
            Op::Send(op) => {
                streams.wait_to_read(chunk, mesh, node);
                let transfer_ns = transfer_ns(model, module, chunk, op.to, chunk.graph.node(node).args[0]);
                events.push((streams.at(), Event::Send(node, op.channel, transfer_ns)));
            }
            Op::Recv(op) => events.push((streams.at(), Event::Recv(node, op.channel))),
            _ => streams.run(chunk, mesh, node, times),
        }
    }
    let (ran, ns) = streams.end();
    events.push(((ran.len(), ns), Event::End));
    let mut start = (0, 0);
    let leg = |(end, event): ((usize, u64), Event)| {
        let (first, start_ns) = std::mem::replace(&mut start, end);
        let from_start = |r: &Ran| Ran { start_ns: r.start_ns - start_ns, end_ns: r.end_ns - start_ns, ..*r };
        Leg { ran: ran[first..end.0].iter().map(from_start).collect(), ns: end.1 - start_ns, event }
    };
    events.into_iter().map(leg).collect()
}

/// Nanoseconds of one rank's part of a value to the same position of the stage of another chunk.
fn transfer_ns(model: &CostModel, module: &Module, chunk: &Chunk, to: u32, value: ValueId) -> u64 {
    let (from, to) = (module.stage_of(chunk), module.stage_of(&module.chunks[to as usize]));
    let bytes = chunk.local_type(value, &from.mesh).bytes();
    model.message_ns(&module.mesh, module.stages.len(), (from.first_rank, to.first_rank), bytes)
}
