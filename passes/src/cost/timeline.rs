//! When each node of a plan runs, by the same replay that the predicted time of its step comes from.

use super::CostModel;
use super::pipeline::{Event, Visit, replay};
use super::plan::{PhaseTimes, hidden_by_chunk};
use galvatron_ir::trace::TraceEvent;
use galvatron_ir::{Module, NodeId};

/// One step as the cost model expects it: the events of the first rank of each stage, stage by stage in the order in which it
/// runs them. The other ranks of a stage do the same at the same time.
///
/// What of a gradient reduction hides lies beside what is computed before it; a message is as long as its
/// transfer for who sends it, and as the wait for who receives it. The last event ends with the step.
///
/// # Panics
/// When the schedules wait for each other; the verifier refuses such plans.
pub fn timeline(model: &CostModel, plan: &Module) -> Vec<TraceEvent> {
    let mut stages: Vec<Vec<TraceEvent>> = vec![Vec::new(); plan.stages.len()];
    let mut observer = |visit: Visit<'_>| {
        let rank = plan.stages[visit.stage].first_rank as usize;
        stages[visit.stage].extend(events_of(rank, &visit));
    };
    replay(model, plan, &hidden_by_chunk(model, plan), &mut observer);
    stages.concat()
}

/// The events of a leg, in order.
fn events_of(rank: usize, visit: &Visit<'_>) -> Vec<TraceEvent> {
    let entry = visit.entry;
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
    let mut events: Vec<TraceEvent> = spans(&visit.leg.nodes, visit.start_ns, visit.hidden_ns)
        .map(|(node, start, end)| event(node, start, end))
        .collect();
    let done_ns = visit.start_ns + busy_ns(&visit.leg.nodes) - visit.hidden_ns;
    match visit.leg.event {
        Event::Send(node, _, transfer_ns) => events.push(event(node, done_ns, done_ns + transfer_ns)),
        Event::Recv(node, _) => events.push(event(node, done_ns, visit.end_ns)),
        Event::End => {}
    }
    events
}

fn busy_ns(nodes: &[(NodeId, PhaseTimes)]) -> u64 {
    nodes.iter().map(|(_, times)| times.compute_ns + times.communication_ns).sum()
}

/// Start and end of nodes that run one after the other from `start_ns` on, but for `hidden_ns` of the first collectives: these
/// end when what follows them begins, one after the other too.
fn spans(nodes: &[(NodeId, PhaseTimes)], start_ns: u64, hidden_ns: u64) -> impl Iterator<Item = (NodeId, u64, u64)> {
    let (mut at, mut left) = (start_ns, hidden_ns);
    let mut spans = Vec::new();
    for &(node, times) in nodes {
        let hidden = left.min(times.communication_ns);
        left -= hidden;
        let end = at + times.compute_ns + times.communication_ns - hidden;
        spans.push((node, end - (times.compute_ns + times.communication_ns).min(end), end, hidden > 0));
        at = end;
    }
    // From the last one on backwards, none may end after the next one starts.
    let mut next = u64::MAX;
    for (_, start, end, _) in spans.iter_mut().rev().filter(|span| span.3) {
        let late = end.saturating_sub(next);
        (*start, *end) = (start.saturating_sub(late), *end - late);
        next = *start;
    }
    spans.into_iter().map(|(node, start, end, _)| (node, start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(nodes: &[(u64, u64)], hidden_ns: u64, expected: &[(u64, u64)]) {
        let times =
            |&(compute_ns, communication_ns): &(u64, u64)| PhaseTimes { compute_ns, communication_ns, sent_bytes: 0 };
        let nodes: Vec<(NodeId, PhaseTimes)> = nodes.iter().map(|n| (NodeId(0), times(n))).collect();
        let found: Vec<(u64, u64)> = spans(&nodes, 100, hidden_ns).map(|(_, start, end)| (start, end)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn nodes_follow_one_another() {
        check(&[(5, 0), (0, 7), (0, 0), (2, 0)], 0, &[(100, 105), (105, 112), (112, 112), (112, 114)]);
    }

    #[test]
    fn hidden_collectives_end_before_their_phase() {
        check(&[(0, 10), (3, 0), (0, 20), (4, 0)], 30, &[(73, 83), (100, 103), (83, 103), (103, 107)]);
        check(&[(0, 10), (0, 20), (0, 5)], 30, &[(70, 80), (80, 100), (100, 105)]);
    }

    #[test]
    fn what_does_not_hide_runs_on() {
        check(&[(0, 10), (3, 0), (0, 20)], 15, &[(88, 98), (100, 103), (98, 118)]);
    }
}
