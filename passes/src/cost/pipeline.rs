//! How long a step of several stages takes: all schedules run against each other, message by message.
//!
//! A stage computes one phase at a time. A message leaves when its send is reached and arrives after its transfer, beside which the
//! sender goes on; who receives it waits. Contention between messages is not counted.

use super::CostModel;
use super::plan::node_cost;
use galvatron_ir::Module;
use galvatron_ir::op::Op;
use galvatron_ir::plan::{Chunk, PhaseKind, ScheduleStep};
use std::collections::BTreeMap;

/// What a phase does between two messages, and the message.
#[derive(Clone, Copy, Debug)]
struct Leg {
    /// Nanoseconds of the nodes before it.
    ns: u64,
    event: Event,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    /// Sends over a channel; nanoseconds of the transfer.
    Send(u32, u64),
    /// Waits for a channel.
    Recv(u32),
    /// The phase is over.
    End,
}

/// Nanoseconds from the start of a step until its last stage is done. `hidden_ns` is by chunk what its reduce phase takes less.
///
/// # Panics
/// When the schedules wait for each other; the verifier refuses such plans.
pub fn makespan_ns(model: &CostModel, module: &Module, hidden_ns: &[u64]) -> u64 {
    let legs: Vec<BTreeMap<PhaseKind, Vec<Leg>>> = module.chunks.iter().map(|c| legs_of(model, module, c)).collect();
    let mut stages: Vec<Clock<'_>> =
        module.stages.iter().map(|s| Clock { schedule: &s.schedule, at: 0, leg: 0, ns: 0 }).collect();
    let mut arrivals = BTreeMap::new();
    let mut progress = true;
    while std::mem::take(&mut progress) {
        for stage in &mut stages {
            progress |= stage.advance(&legs, hidden_ns, &mut arrivals);
        }
    }
    assert!(stages.iter().all(Clock::is_done), "invariant: no stage waits for ever");
    stages.iter().map(|stage| stage.ns).max().unwrap_or(0)
}

/// The legs of each phase of a chunk.
fn legs_of(model: &CostModel, module: &Module, chunk: &Chunk) -> BTreeMap<PhaseKind, Vec<Leg>> {
    let mesh = module.mesh_of(chunk);
    let phase = |kind: PhaseKind| {
        let (mut legs, mut ns) = (Vec::new(), 0);
        for &node in chunk.phase(kind) {
            let event = match &chunk.graph.node(node).op {
                Op::Send(op) => {
                    Event::Send(op.channel, transfer_ns(model, module, chunk, op.to, chunk.graph.node(node).args[0]))
                }
                Op::Recv(op) => Event::Recv(op.channel),
                _ => {
                    let times = node_cost(model, chunk, mesh, node);
                    ns += times.compute_ns + times.communication_ns;
                    continue;
                }
            };
            legs.push(Leg { ns: std::mem::take(&mut ns), event });
        }
        legs.push(Leg { ns, event: Event::End });
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

/// A stage on its way through its schedule.
struct Clock<'a> {
    schedule: &'a [ScheduleStep],
    /// Entry and leg in work.
    at: usize,
    leg: usize,
    ns: u64,
}

impl Clock<'_> {
    fn is_done(&self) -> bool {
        self.at == self.schedule.len()
    }

    /// Goes on until a message is missing; whether it went anywhere.
    fn advance(
        &mut self,
        legs: &[BTreeMap<PhaseKind, Vec<Leg>>],
        hidden_ns: &[u64],
        arrivals: &mut BTreeMap<(u32, Option<u32>), u64>,
    ) -> bool {
        let start = (self.at, self.leg);
        while let Some(step) = self.schedule.get(self.at) {
            let chunk = step.chunk as usize;
            let leg = legs[chunk][&step.phase][self.leg];
            match leg.event {
                Event::Send(channel, transfer_ns) => {
                    self.ns += leg.ns;
                    arrivals.insert((channel, step.micro_batch), self.ns + transfer_ns);
                }
                Event::Recv(channel) => {
                    let Some(&arrival) = arrivals.get(&(channel, step.micro_batch)) else { break };
                    self.ns = (self.ns + leg.ns).max(arrival);
                }
                Event::End => {
                    let hidden = if step.phase == PhaseKind::Reduce { hidden_ns[chunk] } else { 0 };
                    self.ns += leg.ns.saturating_sub(hidden);
                    (self.at, self.leg) = (self.at + 1, 0);
                    continue;
                }
            }
            self.leg += 1;
        }
        (self.at, self.leg) != start
    }
}
