//! The threads of a trace: one for each stream of a rank, and more where what it communicates overlaps.

use galvatron_ir::Module;
use galvatron_ir::trace::{Stream, TraceEvent};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Threads that one stream may have.
const MOST_LANES: usize = 1 << 10;

/// The thread of each event: no two slices of a thread overlap.
pub fn assign(plan: &Module, events: &[TraceEvent]) -> Vec<usize> {
    let mut threads = vec![0; events.len()];
    let mut order: Vec<usize> = (0..events.len()).collect();
    order.sort_by_key(|&i| (events[i].start_ns, events[i].end_ns()));
    // For each stream of a rank the end of each lane.
    let mut lanes: BTreeMap<(usize, Stream), Vec<u64>> = BTreeMap::new();
    for i in order {
        let stream = Stream::of(&events[i].node_in(plan).op);
        let ends = lanes.entry((events[i].rank, stream)).or_default();
        let free = ends.iter().position(|&end| end <= events[i].start_ns).unwrap_or(ends.len());
        if free == ends.len() {
            ends.push(0);
        }
        ends[free] = events[i].end_ns();
        threads[i] = stream as usize * MOST_LANES + free;
    }
    threads
}

/// The ranks that have events.
pub fn ranks(events: &[TraceEvent]) -> BTreeSet<usize> {
    events.iter().map(|event| event.rank).collect()
}

/// What processes and threads are called.
pub fn names(plan: &Module, events: &[TraceEvent], threads: &[usize]) -> Vec<Value> {
    let record = |name: &str, rank: usize, thread: usize, args: Value| json!({"name": name, "ph": "M", "pid": rank, "tid": thread, "ts": 0, "args": args});
    let mut all = Vec::new();
    for rank in ranks(events) {
        let stage = plan.stage_of_rank(rank as u64).unwrap_or(0);
        let name = match plan.stages.len() {
            1 => format!("rank {rank}"),
            _ => format!("rank {rank} (stage {stage})"),
        };
        all.push(record("process_name", rank, 0, json!({ "name": name })));
        all.push(record("process_sort_index", rank, 0, json!({ "sort_index": rank })));
    }
    let used: BTreeSet<(usize, usize)> = events.iter().map(|event| event.rank).zip(threads.iter().copied()).collect();
    for (rank, thread) in used {
        let stream = [Stream::Compute, Stream::Communication][thread / MOST_LANES].name();
        let name = match thread % MOST_LANES {
            0 => stream.to_string(),
            lane => format!("{stream} {}", lane + 1),
        };
        all.push(record("thread_name", rank, thread, json!({ "name": name })));
        all.push(record("thread_sort_index", rank, thread, json!({ "sort_index": thread })));
    }
    all
}
