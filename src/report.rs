//! What the user sees of a plan: the table, what was rejected, and the same as JSON.

mod memory;

pub use memory::{enough_memory, limits_of, memory_of, no_plan_message, peaks_of};

use galvatron_ir::Module;
use galvatron_ir::cluster::Cluster;
use galvatron_ir::headroom::StageMemory;
use galvatron_ir::plan::{Memory, PhaseKind, ResidentRole};
use galvatron_passes::cost::{PhaseTimes, Prices};
use galvatron_passes::search::Found;
use galvatron_passes::segment::{Segment, layers};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;
use std::time::Duration;

/// A plan in figures.
pub struct Report {
    rows: Vec<Row>,
    totals: Vec<(String, String)>,
    memory: BTreeMap<&'static str, u64>,
    rejected: Vec<(String, String, String)>,
    json: serde_json::Value,
}

/// A run of segments with equal decisions.
struct Row {
    layers: String,
    strategy: String,
    compute_ns: u64,
    communication_ns: u64,
    sent_bytes: u64,
}

impl Report {
    /// Collects the figures.
    pub fn new(found: &Found, segments: &[Segment], cluster: &Cluster, times: &[(&'static str, Duration)]) -> Report {
        let rows = rows(found, segments);
        let memory = memory(&found.plan);
        let search = times.iter().map(|(_, t)| t.as_secs_f64()).sum::<f64>();
        let train = found.plan.train.as_ref();
        let tokens = train.map_or(0, |t| t.global_batch * t.sequence.max(1));
        let step_s = found.cost.step_ns as f64 * 1e-9;
        let totals = vec![
            ("repeated layers".into(), repeated(segments)),
            ("micro-batches".into(), found.decision.micro_batches.to_string()),
            ("stages".into(), stages(found)),
            ("predicted step time".into(), ms(found.cost.step_ns)),
            ("predicted tokens/s".into(), format!("{:.0}", tokens as f64 / step_s)),
            ("predicted peak a rank".into(), memory_of(&found.plan.memory_by_stage(cluster))),
            ("optimality gap".into(), format!("{:.2} %", found.plan.predicted.gap_ppm as f64 / 1e4)),
            (
                "searched".into(),
                format!(
                    "{} candidates in {} of {} spaces, elimination width {}, in {:.0} ms",
                    found.effort.n_candidates,
                    found.effort.n_opened,
                    found.effort.n_spaces,
                    found.effort.width,
                    search * 1e3
                ),
            ),
        ];
        let totals = totals.into_iter().filter(|(_, text): &(String, String)| !text.is_empty()).collect();
        let rejected = found.rejected.iter().map(|r| (r.name.clone(), ms(r.time_ns), r.why.clone())).collect();
        let json = json(found, &rows, &memory, cluster);
        Report { rows, totals, memory, rejected, json }
    }

    /// The same with where its prices come from.
    pub fn with_prices(mut self, prices: &Prices) -> Report {
        let list = |names: &[String]| if names.is_empty() { "none".to_string() } else { names.join(", ") };
        self.totals.push(("measured prices".into(), list(&prices.measured)));
        self.totals.push(("analytic prices".into(), list(&prices.analytic)));
        self.json["prices"] = serde_json::json!({ "measured": prices.measured, "analytic": prices.analytic });
        self
    }

    /// The table, and with `explain` what was rejected.
    pub fn text(&self, explain: bool) -> String {
        let mut out = String::new();
        let width = self.rows.iter().map(|r| r.strategy.chars().count()).max().unwrap_or(0).max(8);
        let _ = writeln!(
            out,
            "{:<12} {:<width$} {:>12} {:>12} {:>12}",
            "layers", "strategy", "compute", "collectives", "sent a rank"
        );
        for row in &self.rows {
            let _ = writeln!(
                out,
                "{:<12} {:<width$} {:>12} {:>12} {:>12}",
                row.layers,
                row.strategy,
                ms(row.compute_ns),
                ms(row.communication_ns),
                amount(row.sent_bytes)
            );
        }
        let memory: Vec<String> =
            self.memory.iter().map(|(class, bytes)| format!("{class} {}", amount(*bytes))).collect();
        let _ = writeln!(out, "memory a rank: {}", memory.join(", "));
        for (name, value) in &self.totals {
            let _ = writeln!(out, "{name}: {value}");
        }
        if explain {
            let _ = writeln!(out, "rejected:");
            for (name, time, why) in &self.rejected {
                let _ = writeln!(out, "  {time:>12}  {name}: {why}");
            }
        }
        out
    }

    /// The same figures as one JSON object.
    pub fn json(&self) -> String {
        self.json.to_string()
    }
}

/// Nanoseconds as milliseconds.
pub fn ms(ns: u64) -> String {
    format!("{:.3} ms", ns as f64 * 1e-6)
}

/// How many layers of each kind follow one another.
fn repeated(segments: &[Segment]) -> String {
    let numbers: Vec<String> = layers(segments).iter().map(usize::to_string).collect();
    if numbers.is_empty() { "none".into() } else { numbers.join(", ") }
}

/// Bytes in the unit that suits them.
pub fn amount(bytes: u64) -> String {
    let units = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.2} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} bytes"),
    }
}

/// Runs of layers of one kind that are the `same`, and every other segment by itself; each with its name.
pub fn group_names(segments: &[Segment], same: &dyn Fn(usize, usize) -> bool) -> Vec<(String, Range<usize>)> {
    let n_layers = segments.iter().filter(|s| s.is_layer).count();
    let mut groups: Vec<(String, Range<usize>)> = Vec::new();
    let (mut layer, mut first) = (0, 0);
    for (i, segment) in segments.iter().enumerate() {
        let is_more = |last: usize| {
            segment.is_layer && segments[last].is_layer && segments[last].kind == segment.kind && same(last, i)
        };
        match groups.last_mut().filter(|(_, range)| is_more(range.start)) {
            Some((name, range)) => {
                *name = format!("{first}–{layer}");
                range.end = i + 1;
            }
            None => {
                let name = match (segment.is_layer, layer) {
                    (true, _) => layer.to_string(),
                    (false, _) if n_layers == 0 => "all".into(),
                    (false, 0) => "embedding".into(),
                    (false, _) if layer < n_layers => "between".into(),
                    (false, _) => "head".into(),
                };
                first = layer;
                groups.push((name, i..i + 1));
            }
        }
        layer += usize::from(segment.is_layer);
    }
    groups
}

/// Runs of layers with equal decisions, and every other segment by itself, with their times in one step.
fn rows(found: &Found, segments: &[Segment]) -> Vec<Row> {
    let n = u64::from(found.decision.micro_batches);
    let strategy = |i: usize| found.decision.segments[i].name();
    let times = |i: Option<u32>| found.cost.layers.get(&i).map(|times| total(times, n));
    let row = |layers: String, strategy: String, times: Vec<PhaseTimes>| Row {
        layers,
        strategy,
        compute_ns: times.iter().map(|t| t.compute_ns).sum(),
        communication_ns: times.iter().map(|t| t.communication_ns).sum(),
        sent_bytes: times.iter().map(|t| t.sent_bytes).sum(),
    };
    let groups = group_names(segments, &|i, j| strategy(i) == strategy(j));
    let group = |(layers, range): (String, Range<usize>)| {
        let strategy = strategy(range.start);
        row(layers, strategy, range.filter_map(|i| times(Some(i as u32))).collect())
    };
    let mut rows: Vec<Row> = groups.into_iter().map(group).collect();
    rows.extend(times(None).map(|rest| row("loss, norm".into(), String::new(), vec![rest])));
    rows
}

fn total(phases: &BTreeMap<PhaseKind, PhaseTimes>, micro_batches: u64) -> PhaseTimes {
    let mut sum = PhaseTimes::default();
    for (phase, times) in phases {
        let n = if phase.is_per_micro_batch() { micro_batches } else { 1 };
        sum.compute_ns += n * times.compute_ns;
        sum.communication_ns += n * times.communication_ns;
        sum.sent_bytes += n * times.sent_bytes;
    }
    sum
}

/// The stages of the pipeline and their largest arenas; nothing where there is one.
fn stages(found: &Found) -> String {
    let Some(stages) = &found.decision.stages else { return String::new() };
    let peaks: Vec<String> = found.plan.stages.iter().map(|s| amount(s.arena.bytes())).collect();
    format!("{}; peaks {}", stages.name(), peaks.join(", "))
}

/// Bytes of one rank by class, of the stage that needs most.
fn memory(plan: &Module) -> BTreeMap<&'static str, u64> {
    let largest = (0..plan.stages.len()).rev().max_by_key(|&s| plan.stages[s].arena.bytes()).unwrap_or(0);
    memory_of_stage(plan, largest)
}

/// Bytes of each rank of a stage by class.
pub fn memory_of_stage(plan: &Module, index: usize) -> BTreeMap<&'static str, u64> {
    let stage = &plan.stages[index];
    let mut classes = BTreeMap::from([("activations and workspaces", stage.arena.slots + stage.arena.transient)]);
    for chunk in plan.chunks.iter().filter(|chunk| chunk.stage as usize == index) {
        for resident in chunk.residents.iter().filter(|resident| resident.memory == Memory::Device) {
            let class = match resident.role {
                ResidentRole::Parameter => "parameters",
                ResidentRole::State => "optimizer state",
                ResidentRole::Accumulator => "gradients",
            };
            *classes.entry(class).or_default() += chunk.local_type(resident.value, &stage.mesh).bytes();
        }
    }
    if stage.arena.host_bytes() > 0 {
        classes.insert("in host memory", stage.arena.host_bytes());
    }
    classes
}

/// What each stage needs and has, as JSON.
pub fn memory_json(stages: &[StageMemory]) -> serde_json::Value {
    let one = |s: &StageMemory| serde_json::json!({"peak_bytes": s.peak_bytes, "memory_bytes": s.memory_bytes});
    stages.iter().map(one).collect()
}

fn json(found: &Found, rows: &[Row], memory: &BTreeMap<&'static str, u64>, cluster: &Cluster) -> serde_json::Value {
    let row = |r: &Row| {
        serde_json::json!({
            "layers": r.layers, "strategy": r.strategy, "compute_ns": r.compute_ns,
            "communication_ns": r.communication_ns, "sent_bytes": r.sent_bytes,
        })
    };
    let rejected = |r: &galvatron_passes::search::Rejected| serde_json::json!({ "name": r.name, "time_ns": r.time_ns, "bytes": r.bytes, "why": r.why });
    serde_json::json!({
        "cluster": cluster.name,
        "world": cluster.world(),
        "micro_batches": found.decision.micro_batches,
        "step_time_ns": found.cost.step_ns,
        "peak_bytes": found.plan.peak_bytes(),
        "stages": memory_json(&found.plan.memory_by_stage(cluster)),
        "gap_ppm": found.plan.predicted.gap_ppm,
        "memory": memory,
        "rows": rows.iter().map(row).collect::<Vec<_>>(),
        "rejected": found.rejected.iter().map(rejected).collect::<Vec<_>>(),
    })
}
