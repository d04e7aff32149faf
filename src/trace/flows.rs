//! Flows: from the first member of a collective that starts to the last one, and from who sends a message to who receives it.

use super::us;
use galvatron_ir::mesh::Mesh;
use galvatron_ir::module::Module;
use galvatron_ir::op::Op;
use galvatron_ir::op::comm::step_of_op;
use galvatron_ir::plan::Stage;
use galvatron_ir::trace::TraceEvent;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What belongs together: the same step and micro-batch of the same message or collective.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Meeting {
    /// Channel, and position of both ranks in their stages.
    Message(u32, u64),
    /// Chunk, node and first rank of the group.
    Collective(u32, galvatron_ir::NodeId, u64),
}

/// The step and the micro-batch of a meeting.
type Occasion = (u64, Option<u32>, Meeting);

/// The flows among events on their threads; where not all members of a collective have events, there is none.
pub fn flows(plan: &Module, events: &[TraceEvent], threads: &[usize]) -> Vec<Value> {
    let mut met: BTreeMap<Occasion, (u64, Vec<usize>)> = BTreeMap::new();
    for (i, event) in events.iter().enumerate() {
        if let Some((meeting, n_members)) = meeting(plan, event) {
            let key = (event.step, event.micro_batch, meeting);
            met.entry(key).or_insert((n_members, Vec::new())).1.push(i);
        }
    }
    let whole = met.into_values().filter(|(n, members)| members.len() as u64 == *n).map(|(_, members)| members);
    whole.enumerate().flat_map(|(id, members)| flow(plan, events, threads, id, members)).collect()
}

/// What an event is a part of, and how many ranks are.
fn meeting(plan: &Module, event: &TraceEvent) -> Option<(Meeting, u64)> {
    let stage = plan.stage_of(event.chunk_in(plan));
    let at = event.rank as u64 - stage.first_rank;
    match &event.node_in(plan).op {
        Op::Send(op) => Some((Meeting::Message(op.channel, at), 2)),
        Op::Recv(op) => Some((Meeting::Message(op.channel, at), 2)),
        op => {
            let step = step_of_op(op).filter(|step| step.communicates())?;
            let group = group(stage, step.axes(), at);
            Some((Meeting::Collective(event.chunk, event.node, *group.first()?), group.len() as u64))
        }
    }
}

fn group(stage: &Stage, axes: &[galvatron_ir::AxisId], at: u64) -> Vec<u64> {
    let spatial: Vec<_> = axes.iter().copied().filter(|&axis| axis != Mesh::MB).collect();
    stage.mesh.group(&spatial, at)
}

/// One flow through its members in the order of time.
fn flow(plan: &Module, events: &[TraceEvent], threads: &[usize], id: usize, mut members: Vec<usize>) -> Vec<Value> {
    // A message goes from who sends it; of a collective he comes last who starts last.
    let is_recv = |i: usize| matches!(events[i].node_in(plan).op, Op::Recv(_));
    members.sort_by_key(|&i| (is_recv(i), events[i].start_ns, events[i].rank));
    let is_message = members.iter().any(|&i| is_recv(i));
    let name = if is_message { "message" } else { "collective" };
    let last = members.len() - 1;
    let record = |(n, i): (usize, usize)| {
        let event = &events[i];
        let ts = if is_recv(i) { event.end_ns().saturating_sub(1).max(event.start_ns) } else { event.start_ns };
        let ph = if n == 0 {
            "s"
        } else if n == last {
            "f"
        } else {
            "t"
        };
        let mut record = json!({
            "name": name, "cat": name, "ph": ph, "id": id, "pid": event.rank, "tid": threads[i], "ts": us(ts),
        });
        if ph == "f" {
            record["bp"] = "e".into();
        }
        record
    };
    if last == 0 { Vec::new() } else { members.into_iter().enumerate().map(record).collect() }
}
