//! How long a step of several stages takes: all schedules run against each other, message by message.
//!
//! A stage computes one phase at a time, at the speed of its slowest device. A message leaves when its send is reached and arrives after its
//! transfer, beside which the sender goes on; who receives it waits. Contention between messages is not counted. What of a gradient
//! reduction hides behind the backward pass is taken from the first collectives of the reduce phase.

use super::CostModel;
use super::plan::{PhaseTimes, node_cost};
use galvatron_ir::op::Op;
use galvatron_ir::plan::{Chunk, PhaseKind, ScheduleStep, Stage};
use galvatron_ir::{Module, NodeId};
use std::collections::BTreeMap;

/// What a phase does between two messages, and the message.
#[derive(Clone, Debug)]
pub(super) struct Leg {
    /// The nodes before it, each with its nanoseconds.
    pub(super) nodes: Vec<(NodeId, PhaseTimes)>,
    /// Nanoseconds of these nodes.
    ns: u64,
    /// Nanoseconds of the collectives among them.
    collectives_ns: u64,
    pub(super) event: Event,
}

impl Leg {
    fn new(nodes: Vec<(NodeId, PhaseTimes)>, event: Event) -> Leg {
        let collectives_ns = nodes.iter().map(|(_, times)| times.communication_ns).sum();
        let ns = nodes.iter().map(|(_, times)| times.compute_ns).sum::<u64>() + collectives_ns;
        Leg { nodes, ns, collectives_ns, event }
    }
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

/// A leg that a stage has gone through.
pub(super) struct Visit<'a> {
    /// The entry of the schedule, and the stage whose schedule it is.
    pub(super) entry: &'a ScheduleStep,
    pub(super) stage: usize,
    pub(super) leg: &'a Leg,
    /// When its first node starts, what of its collectives hides before that, and when its last node, or the wait for its
    /// message, ends; in nanoseconds.
    pub(super) start_ns: u64,
    pub(super) hidden_ns: u64,
    pub(super) end_ns: u64,
}

/// Nanoseconds from the start of a step until its last stage is done. `hidden_ns` is by chunk what the collectives of its reduce
/// phase take less. `observer` sees the legs of each stage in order.
///
/// # Panics
/// When the schedules wait for each other; the verifier refuses such plans.
pub(super) fn replay(
    model: &CostModel,
    module: &Module,
    hidden_ns: &[u64],
    observer: &mut dyn FnMut(Visit<'_>),
) -> u64 {
    let legs: Vec<Legs> = module.chunks.iter().map(|c| legs_of(model, module, c)).collect();
    let clock = |(stage, s): (usize, &'_ Stage)| Clock { stage, schedule: s.schedule.clone(), at: 0, leg: 0, ns: 0 };
    let mut stages: Vec<Clock> = module.stages.iter().enumerate().map(clock).collect();
    let mut world = World { legs: &legs, hidden_ns: hidden_ns.to_vec(), arrivals: BTreeMap::new(), observer };
    let mut progress = true;
    while std::mem::take(&mut progress) {
        for stage in &mut stages {
            progress |= stage.advance(&mut world);
        }
    }
    assert!(stages.iter().all(Clock::is_done), "invariant: no stage waits for ever");
    stages.iter().map(|stage| stage.ns).max().unwrap_or(0)
}

/// The legs of each phase of a chunk.
type Legs = BTreeMap<PhaseKind, Vec<Leg>>;

fn legs_of(model: &CostModel, module: &Module, chunk: &Chunk) -> Legs {
    let mesh = module.mesh_of(chunk);
    let own = &*model.on(&module.stage_of(chunk).ranks());
    let phase = |kind: PhaseKind| {
        let (mut legs, mut nodes) = (Vec::new(), Vec::new());
        for &node in chunk.phase(kind) {
            let event = match &chunk.graph.node(node).op {
                Op::Send(op) => {
                    let transfer_ns = transfer_ns(model, module, chunk, op.to, chunk.graph.node(node).args[0]);
                    Event::Send(node, op.channel, transfer_ns)
                }
                Op::Recv(op) => Event::Recv(node, op.channel),
                _ => {
                    nodes.push((node, node_cost(own, chunk, mesh, node)));
                    continue;
                }
            };
            legs.push(Leg::new(std::mem::take(&mut nodes), event));
        }
        legs.push(Leg::new(nodes, Event::End));
        legs
    };
    PhaseKind::ALL.iter().map(|&(kind, ..)| (kind, phase(kind))).collect()
}

/// Nanoseconds of one rank's part of a value to the same position of the stage of another chunk.
fn transfer_ns(model: &CostModel, module: &Module, chunk: &Chunk, to: u32, value: galvatron_ir::ValueId) -> u64 {
    let (from, to) = (module.stage_of(chunk), module.stage_of(&module.chunks[to as usize]));
    let bytes = chunk.local_type(value, &from.mesh).bytes();
    model.message_ns(&module.mesh, module.stages.len(), (from.first_rank, to.first_rank), bytes)
}

/// What all stages share.
struct World<'a> {
    /// The legs of each chunk.
    legs: &'a [Legs],
    /// What the collectives of each chunk's reduce phase may still take less.
    hidden_ns: Vec<u64>,
    /// When messages arrive, by channel and micro-batch.
    arrivals: BTreeMap<(u32, Option<u32>), u64>,
    observer: &'a mut dyn FnMut(Visit<'_>),
}

/// A stage on its way through its schedule.
struct Clock {
    stage: usize,
    schedule: Vec<ScheduleStep>,
    /// Entry and leg in work.
    at: usize,
    leg: usize,
    ns: u64,
}

impl Clock {
    fn is_done(&self) -> bool {
        self.at == self.schedule.len()
    }

    /// Goes on until a message is missing; whether it went anywhere.
    fn advance(&mut self, world: &mut World<'_>) -> bool {
        let start = (self.at, self.leg);
        while let Some(entry) = self.schedule.get(self.at) {
            let chunk = entry.chunk as usize;
            let leg = &world.legs[chunk][&entry.phase][self.leg];
            let arrival = match leg.event {
                Event::Recv(_, channel) => match world.arrivals.get(&(channel, entry.micro_batch)) {
                    Some(&arrival) => arrival,
                    None => break,
                },
                _ => 0,
            };
            let hidden_ns = match entry.phase {
                PhaseKind::Reduce => world.hidden_ns[chunk].min(leg.collectives_ns),
                _ => 0,
            };
            world.hidden_ns[chunk] -= hidden_ns;
            let start_ns = self.ns;
            self.ns = (start_ns + leg.ns - hidden_ns).max(arrival);
            (world.observer)(Visit { entry, stage: self.stage, leg, start_ns, hidden_ns, end_ns: self.ns });
            match leg.event {
                Event::Send(_, channel, transfer_ns) => {
                    world.arrivals.insert((channel, entry.micro_batch), self.ns + transfer_ns);
                    self.leg += 1;
                }
                Event::Recv(..) => self.leg += 1,
                Event::End => (self.at, self.leg) = (self.at + 1, 0),
            }
        }
        (self.at, self.leg) != start
    }
}
