//! Reads a Chrome trace and holds it to the format: keys, kinds of events, threads whose slices do not overlap, flows that match.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A trace that keeps to the format.
pub struct Trace {
    /// All its events.
    pub events: Vec<Value>,
}

/// An execution: rank, chunk, node, micro-batch and phase.
pub type Execution = (u64, u64, String, Option<u64>, String);

impl Trace {
    /// Reads a trace; panics where it breaks the format.
    pub fn read(bytes: &[u8]) -> Trace {
        let json: Value = serde_json::from_slice(bytes).expect("a trace is JSON");
        let events = json["traceEvents"].as_array().expect("a trace has events").clone();
        let trace = Trace { events };
        trace.check();
        trace
    }

    /// The slices.
    pub fn slices(&self) -> impl Iterator<Item = &Value> {
        self.of_kind("X")
    }

    /// The events of a kind.
    pub fn of_kind<'a>(&'a self, ph: &'a str) -> impl Iterator<Item = &'a Value> + 'a {
        self.events.iter().filter(move |e| e["ph"] == ph)
    }

    /// Nanoseconds at which the last slice ends.
    pub fn end_ns(&self) -> u64 {
        self.slices().map(|e| ns(&e["ts"]) + ns(&e["dur"])).max().unwrap_or(0)
    }

    /// What was executed.
    pub fn executions(&self) -> BTreeSet<Execution> {
        let of = |e: &Value| {
            let args = &e["args"];
            let text = |key: &str| args[key].as_str().expect("a name").to_string();
            let number = |value: &Value| value.as_u64().expect("a number");
            (number(&e["pid"]), number(&args["chunk"]), text("node"), args["micro_batch"].as_u64(), text("phase"))
        };
        self.slices().map(of).collect()
    }

    fn check(&self) {
        for event in &self.events {
            let ph = event["ph"].as_str().expect("an event has a kind");
            assert!(["M", "X", "C", "s", "t", "f"].contains(&ph), "{event}");
            assert!(event["name"].as_str().is_some_and(|name| !name.is_empty()), "{event}");
            assert!(["pid", "tid"].iter().all(|key| event[key].is_u64()), "{event}");
            assert!(event["ts"].as_f64().is_some_and(|ts| ts >= 0.0), "{event}");
            match ph {
                "M" => check_name(event),
                "X" => assert!(event["dur"].as_f64().is_some_and(|d| d >= 0.0) && event["cat"].is_string(), "{event}"),
                "C" => {
                    let args = event["args"].as_object().expect("a counter has values");
                    assert!(!args.is_empty() && args.values().all(Value::is_number), "{event}");
                }
                _ => assert!(event["id"].is_u64() && event["cat"].is_string(), "{event}"),
            }
        }
        self.check_threads();
        self.check_flows();
    }

    /// Every thread has a name, and one slice at a time.
    fn check_threads(&self) {
        let of = |name: &'static str| self.of_kind("M").filter(move |e| e["name"] == name);
        let threads: BTreeSet<_> = of("thread_name").map(thread).collect();
        let ranks: BTreeSet<u64> = of("process_name").map(|e| thread(e).0).collect();
        for (at, spans) in self.spans() {
            assert!(threads.contains(&at) && ranks.contains(&at.0), "{at:?} has no name");
            for pair in spans.windows(2) {
                assert!(pair[0].1 <= pair[1].0, "{at:?}: {pair:?} overlap");
            }
        }
    }

    /// Start and end of the slices of each thread in the order of time.
    fn spans(&self) -> BTreeMap<(u64, u64), Vec<(u64, u64)>> {
        let mut spans: BTreeMap<(u64, u64), Vec<(u64, u64)>> = BTreeMap::new();
        for e in self.slices() {
            spans.entry(thread(e)).or_default().push((ns(&e["ts"]), ns(&e["ts"]) + ns(&e["dur"])));
        }
        spans.values_mut().for_each(|spans| spans.sort_unstable());
        spans
    }

    /// Every flow has one start and, not before it, one end; each of its points lies in a slice.
    fn check_flows(&self) {
        let spans = self.spans();
        let mut flows: BTreeMap<u64, Vec<&Value>> = BTreeMap::new();
        for e in self.events.iter().filter(|e| ["s", "t", "f"].iter().any(|ph| e["ph"] == *ph)) {
            flows.entry(e["id"].as_u64().expect("checked")).or_default().push(e);
            let at = ns(&e["ts"]);
            let inside = spans[&thread(e)].iter().any(|&(start, end)| start <= at && at <= end);
            assert!(inside, "no slice has {e}");
        }
        for (id, points) in flows {
            let kinds: Vec<&str> = points.iter().map(|e| e["ph"].as_str().expect("checked")).collect();
            let inner = &kinds[1..kinds.len() - 1];
            assert!(
                kinds[0] == "s" && kinds[kinds.len() - 1] == "f" && inner.iter().all(|k| *k == "t"),
                "{id}: {kinds:?}"
            );
            assert!(
                points.windows(2).all(|pair| ns(&pair[0]["ts"]) <= ns(&pair[1]["ts"])),
                "{id} goes back: {points:?}"
            );
        }
    }
}

fn check_name(event: &Value) {
    let key = if event["name"].as_str().is_some_and(|n| n.ends_with("sort_index")) { "sort_index" } else { "name" };
    assert!(!event["args"][key].is_null(), "{event}");
}

fn thread(event: &Value) -> (u64, u64) {
    (event["pid"].as_u64().expect("checked"), event["tid"].as_u64().expect("checked"))
}

/// Nanoseconds of a time in microseconds.
fn ns(us: &Value) -> u64 {
    (us.as_f64().expect("a time") * 1e3).round() as u64
}
