//! What each rank did when, as a Chrome trace (for Perfetto or `chrome://tracing`).

use std::io::{self, Write};

use galvatron_ir::plan::PhaseKind;
use serde_json::json;

/// One execution of one node by one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceEvent {
    /// The rank.
    pub rank: usize,
    /// The training step.
    pub step: u64,
    /// The plan node, as errors name it.
    pub node: String,
    /// The op's mnemonic.
    pub op: &'static str,
    /// The phase.
    pub phase: PhaseKind,
    /// The micro-batch, in the phases that have one.
    pub micro_batch: Option<u32>,
    /// Nanoseconds from the start of the run.
    pub start_ns: u64,
    /// Nanoseconds that it took.
    pub duration_ns: u64,
}

/// Writes the events as Chrome trace JSON: one process a rank, times in microseconds.
///
/// # Errors
/// Those of the writer.
pub fn write_chrome_trace(events: &[TraceEvent], out: &mut dyn Write) -> io::Result<()> {
    out.write_all(b"{\"traceEvents\":[")?;
    for (i, event) in events.iter().enumerate() {
        out.write_all(if i == 0 { b"\n" } else { b",\n" })?;
        let record = json!({
            "name": event.node,
            "cat": event.op,
            "ph": "X",
            "pid": event.rank,
            "tid": 0,
            "ts": event.start_ns as f64 / 1e3,
            "dur": event.duration_ns as f64 / 1e3,
            "args": {"step": event.step, "phase": event.phase.name(), "micro_batch": event.micro_batch},
        });
        serde_json::to_writer(&mut *out, &record)?;
    }
    out.write_all(b"\n]}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_json() {
        let event = TraceEvent {
            rank: 1,
            step: 2,
            node: "%h".into(),
            op: "einsum",
            phase: PhaseKind::Forward,
            micro_batch: Some(0),
            start_ns: 1500,
            duration_ns: 500,
        };
        let mut out = Vec::new();
        write_chrome_trace(&[event.clone(), event], &mut out).unwrap();
        let parsed: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(parsed["traceEvents"].as_array().unwrap().len(), 2);
        assert_eq!(parsed["traceEvents"][1]["ts"], 1.5);
    }
}
