//! How long a step of several stages takes: all schedules run against each other, message by message.
//!
//! A stage computes one phase at a time, at the speed of its slowest device. A message leaves when its send is reached and arrives after its
//! transfer, beside which the sender goes on; who receives it waits. Contention between messages is not counted.

use super::legs::{Event, Leg, Legs};
use galvatron_ir::Module;
use galvatron_ir::plan::{ScheduleStep, Stage};
use std::collections::BTreeMap;

/// A leg that a stage has gone through.
pub(super) struct Visit<'a> {
    /// The entry of the schedule, and the stage whose schedule it is.
    pub(super) entry: &'a ScheduleStep,
    pub(super) stage: usize,
    pub(super) leg: &'a Leg,
    /// When its first node starts, and when its last node, or the wait for its message, ends; in nanoseconds.
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
}

/// Nanoseconds from the start of a step until its last stage is done, given the legs of each chunk. `observer` sees the legs of each stage
/// in order.
///
/// # Panics
/// When the schedules wait for each other; the verifier refuses such plans.
pub(super) fn replay(module: &Module, legs: &[Legs], observer: &mut dyn FnMut(Visit<'_>)) -> u64 {
    let clock = |(stage, s): (usize, &'_ Stage)| Clock { stage, schedule: s.schedule.clone(), at: 0, leg: 0, ns: 0 };
    let mut stages: Vec<Clock> = module.stages.iter().enumerate().map(clock).collect();
    let mut world = World { legs, arrivals: BTreeMap::new(), observer };
    let mut progress = true;
    while std::mem::take(&mut progress) {
        for stage in &mut stages {
            progress |= stage.advance(&mut world);
        }
    }
    assert!(stages.iter().all(Clock::is_done), "invariant: no stage waits for ever");
    stages.iter().map(|stage| stage.ns).max().unwrap_or(0)
}

/// What all stages share.
struct World<'a> {
    /// The legs of each chunk.
    legs: &'a [Legs],
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
            let leg = &world.legs[entry.chunk as usize].of(entry)[self.leg];
            let arrival = match leg.event {
                Event::Recv(_, channel) => match world.arrivals.get(&(channel, entry.micro_batch)) {
                    Some(&arrival) => arrival,
                    None => break,
                },
                _ => 0,
            };
            let start_ns = self.ns;
            self.ns = (start_ns + leg.ns).max(arrival);
            (world.observer)(Visit { entry, stage: self.stage, leg, start_ns, end_ns: self.ns });
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
