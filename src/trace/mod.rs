//! Traces in the Chrome trace-event format, for Perfetto or `chrome://tracing`: the same for a plan that was run and for one that is
//! expected to run.
//!
//! A rank is a process, what it computes and what it communicates are threads of it. Each execution of a node is a slice;
//! the members of a collective, and the two ends of a message, are joined by flows; a counter shows how full the arena is.
//! The format is described in "Trace Event Format" (Duca and Sinclair, Google, 2016).

mod flows;
mod lanes;
mod memory;
mod slices;

use galvatron_ir::Module;
use galvatron_ir::trace::TraceEvent;
use serde_json::{Value, json};
use std::io::{self, Write};

/// Executions of nodes that a viewer takes at ease.
pub const MOST_EVENTS: u64 = 1 << 18;

/// A step as it is expected, for all ranks: `events` are those of the first rank of each stage, and the other ranks of a stage do the
/// same. Where that is more than `most_events`, the first ranks are left alone.
pub fn for_all_ranks(plan: &Module, events: &[TraceEvent], most_events: u64) -> Vec<TraceEvent> {
    let ranks = |event: &TraceEvent| {
        let stage = plan.stage_of_rank(event.rank as u64).expect("invariant: an event is of a rank of the plan");
        plan.stages[stage].ranks()
    };
    let n_events: u64 = plan.stages.iter().map(|s| events_of(events, s.first_rank) * s.mesh.world()).sum();
    if n_events > most_events {
        return events.to_vec();
    }
    let of_ranks = |event: &TraceEvent| ranks(event).map(|rank| TraceEvent { rank: rank as usize, ..*event }).collect();
    events.iter().flat_map::<Vec<TraceEvent>, _>(of_ranks).collect()
}

fn events_of(events: &[TraceEvent], rank: u64) -> u64 {
    events.iter().filter(|event| event.rank as u64 == rank).count() as u64
}

/// Writes the events of a plan, which are in the order in which each rank starts its nodes by the plan.
///
/// # Errors
/// Those of the writer.
pub fn write_chrome_trace(plan: &Module, events: &[TraceEvent], out: &mut dyn Write) -> io::Result<()> {
    let threads = lanes::assign(plan, events);
    let head = json!({
        "world": plan.mesh.world(),
        "ranks": lanes::ranks(events).len(),
        "predicted_step_time_ns": plan.predicted.step_time_ns,
    });
    write!(out, "{{\"displayTimeUnit\":\"ns\",\"otherData\":{head},\"traceEvents\":[")?;
    let mut separator = "\n";
    let mut write = |record: Value| {
        let written = out.write_all(separator.as_bytes());
        separator = ",\n";
        written.and_then(|()| serde_json::to_writer(&mut *out, &record).map_err(io::Error::from))
    };
    lanes::names(plan, events, &threads).into_iter().try_for_each(&mut write)?;
    slices::Slices::new(plan).all(events, &threads).try_for_each(&mut write)?;
    flows::flows(plan, events, &threads).into_iter().try_for_each(&mut write)?;
    memory::counters(plan, events).into_iter().try_for_each(&mut write)?;
    out.write_all(b"\n]}\n")
}

/// Microseconds, the unit of the format.
fn us(ns: u64) -> f64 {
    ns as f64 / 1e3
}
