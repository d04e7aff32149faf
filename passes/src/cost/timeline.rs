//! When each node of a plan runs, by the same replay that the predicted time of its step comes from.

use super::CostModel;
use super::legs::{Event, Legs};
use super::pipeline::{Visit, replay};
use galvatron_ir::Module;
use galvatron_ir::trace::TraceEvent;

/// One step as the cost model expects it: the events of the first rank of each stage, stage by stage in the order in which it
/// begins them. The other ranks of a stage do the same at the same time.
///
/// A collective lies beside what is computed meanwhile; a message is as long as its transfer for who sends it, and as the wait for who
/// receives it. The last event ends with the step.
///
/// # Panics
/// When the schedules wait for each other; the verifier refuses such plans.
pub fn timeline(model: &CostModel, plan: &Module) -> Vec<TraceEvent> {
    let mut stages: Vec<Vec<TraceEvent>> = vec![Vec::new(); plan.stages.len()];
    let mut observer = |visit: Visit<'_>| {
        let rank = plan.stages[visit.stage].first_rank as usize;
        stages[visit.stage].extend(events_of(rank, &visit));
    };
    let legs: Vec<Legs> = plan.chunks.iter().map(|chunk| Legs::new(model, plan, chunk)).collect();
    replay(plan, &legs, &mut observer);
    stages.concat()
}

/// The events of a leg, in order.
fn events_of(rank: usize, visit: &Visit<'_>) -> Vec<TraceEvent> {
    let (entry, leg) = (visit.entry, visit.leg);
    let event = |node, start_ns, end_ns| TraceEvent {
        rank,
        step: 1,
        chunk: entry.chunk,
        node,
        phase: entry.phase,
        micro_batch: entry.micro_batch,
        start_ns,
        duration_ns: end_ns - start_ns,
    };
    let at = |ns: u64| visit.start_ns + ns;
    let mut events: Vec<TraceEvent> =
        leg.ran.iter().map(|ran| event(ran.node, at(ran.start_ns), at(ran.end_ns))).collect();
    match leg.event {
        Event::Send(node, _, transfer_ns) => events.push(event(node, at(leg.ns), at(leg.ns) + transfer_ns)),
        Event::Recv(node, _) => events.push(event(node, at(leg.ns), visit.end_ns)),
        Event::End => {}
    }
    events
}
