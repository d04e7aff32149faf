//! Two plans side by side: what they decide, need, take and send.

use super::figures::{phase_ns, sent_bytes};
use super::table::Table;
use crate::driver::Training;
use crate::report::{amount, group_names, memory_of_stage, ms};
use galvatron_ir::plan::PhaseKind;
use galvatron_ir::{Module, text};
use galvatron_passes::recognize::recognize;
use galvatron_passes::search::Decision;
use galvatron_passes::segment::Segment;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Both plans' answers to one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair<T> {
    /// What it is about.
    pub what: String,
    /// That of the first plan and that of the second.
    pub both: [T; 2],
}

impl<T: PartialEq> Pair<T> {
    /// Whether the plans differ in it.
    pub fn differs(&self) -> bool {
        self.both[0] != self.both[1]
    }
}

/// What two plans have in common, and what not.
#[derive(Clone, Debug)]
pub struct Diff {
    /// Whether they are the same module.
    pub identical: bool,
    /// Model, ranks, micro-batches and stages, in words.
    pub outline: Vec<Pair<String>>,
    /// The strategy of each group of layers.
    pub layers: Vec<Pair<String>>,
    /// Bytes of a rank by class, for each run of equal ranks.
    pub memory: Vec<Pair<u64>>,
    /// Nanoseconds of a step, then of each phase where the plan says its cluster.
    pub times: Vec<Pair<Option<u64>>>,
    /// Bytes that one rank of each stage sends in each phase of a step.
    pub sent: Vec<Pair<u64>>,
}

impl Diff {
    /// Compares two plans.
    pub fn new(a: &Module, b: &Module) -> Diff {
        let plans = [a, b];
        Diff {
            identical: text::print(a) == text::print(b),
            outline: outline(plans),
            layers: layers(plans),
            memory: memory(plans),
            times: times(plans),
            sent: sent(plans),
        }
    }

    /// A table of what differs, section by section.
    pub fn text(&self, names: [&str; 2]) -> String {
        if self.identical {
            return "the plans are identical\n".into();
        }
        let mut out = format!("a: {}\nb: {}\n", names[0], names[1]);
        let mut section = |title: &'static str, rows: Vec<[String; 3]>, n_equal: usize| {
            let mut table = Table::new(&[(title, false), ("a", false), ("b", false)]);
            let is_empty = rows.is_empty();
            rows.into_iter().for_each(|row| table.row(row));
            out += "\n";
            out += &if is_empty { format!("{title}: equal\n") } else { table.text() };
            if !is_empty && n_equal > 0 {
                out += &format!("… {n_equal} equal\n");
            }
        };
        let mut show = |title, (rows, n_equal)| section(title, rows, n_equal);
        show("plan", rows(&self.outline, String::clone));
        show("layers", rows(&self.layers, String::clone));
        show("memory of a rank", rows(&self.memory, |bytes| amount(*bytes)));
        show("time", rows(&self.times, |ns| ns.map_or("not known".into(), ms)));
        show("sent by a rank of each stage", rows(&self.sent, |bytes| amount(*bytes)));
        out
    }

    /// The same as one JSON object, with what is equal.
    pub fn json(&self, names: [&str; 2]) -> Value {
        json!({
            "a": names[0], "b": names[1], "identical": self.identical,
            "plan": pairs(&self.outline), "layers": pairs(&self.layers), "memory_bytes": pairs(&self.memory),
            "time_ns": pairs(&self.times), "sent_bytes": pairs(&self.sent),
        })
    }
}

/// The pairs that differ, and how many do not.
fn rows<T: PartialEq>(all: &[Pair<T>], show: impl Fn(&T) -> String) -> (Vec<[String; 3]>, usize) {
    let differing: Vec<&Pair<T>> = all.iter().filter(|pair| pair.differs()).collect();
    let n_equal = all.len() - differing.len();
    (differing.iter().map(|p| [p.what.clone(), show(&p.both[0]), show(&p.both[1])]).collect(), n_equal)
}

fn pairs<T: serde::Serialize + PartialEq>(all: &[Pair<T>]) -> Value {
    let one = |p: &Pair<T>| json!({"what": p.what, "a": p.both[0], "b": p.both[1], "differs": p.differs()});
    all.iter().map(one).collect()
}

fn pair<T>(what: impl Into<String>, plans: [&Module; 2], of: impl Fn(&Module) -> T) -> Pair<T> {
    Pair { what: what.into(), both: plans.map(of) }
}

fn outline(plans: [&Module; 2]) -> Vec<Pair<String>> {
    let stages = |plan: &Module| match read(plan).and_then(|(_, decision)| decision.stages) {
        Some(stages) => stages.name(),
        None => "one".into(),
    };
    let cluster = |plan: &Module| plan.cluster.as_ref().map_or("not recorded".into(), |c| c.name.clone());
    let batch = |plan: &Module| plan.train.as_ref().map_or(String::new(), |t| t.global_batch.to_string());
    vec![
        pair("model", plans, |plan| plan.name.clone()),
        pair("cluster", plans, cluster),
        pair("devices", plans, |plan| format!("{} {}", plan.mesh.world(), plan.mesh.device().name())),
        pair("samples in a step", plans, batch),
        pair("micro-batches", plans, |plan| plan.mesh.micro_batches().to_string()),
        pair("stages", plans, stages),
    ]
}

/// The segments of a plan and what it does with them, if its layers are tagged.
fn read(plan: &Module) -> Option<(Vec<Segment>, Decision)> {
    let segments = Training::of(plan).ok()?.segments;
    let decision = recognize(plan, &segments);
    Some((segments, decision))
}

/// Groups of layers that are alike in both plans; where their layers do not correspond, the groups of each.
fn layers(plans: [&Module; 2]) -> Vec<Pair<String>> {
    let [a, b] = plans.map(read);
    let none = || "—".to_string();
    match (a, b) {
        (Some((segments, a)), Some((others, b))) if shape(&segments) == shape(&others) => {
            let name = |i: usize| [a.segments[i].name(), b.segments[i].name()];
            let groups = group_names(&segments, &|i, j| name(i) == name(j));
            groups.into_iter().map(|(what, range)| Pair { what, both: name(range.start) }).collect()
        }
        (a, b) => {
            let own = |read: Option<(Vec<Segment>, Decision)>| {
                read.map_or_else(Vec::new, |(segments, decision)| {
                    let name = |i: usize| decision.segments[i].name();
                    let groups = group_names(&segments, &|i, j| name(i) == name(j));
                    groups.into_iter().map(|(what, range)| (what, name(range.start))).collect::<Vec<_>>()
                })
            };
            let first = own(a).into_iter().map(|(what, name)| Pair { what, both: [name, none()] });
            let second = own(b).into_iter().map(|(what, name)| Pair { what, both: [none(), name] });
            first.chain(second).collect()
        }
    }
}

/// What of two models must be equal for their layers to correspond.
fn shape(segments: &[Segment]) -> Vec<(usize, bool)> {
    segments.iter().map(|s| (s.kind, s.is_layer)).collect()
}

/// Ranks are told apart where either plan has another stage.
fn memory(plans: [&Module; 2]) -> Vec<Pair<u64>> {
    let ends = plans.iter().flat_map(|plan| plan.stages.iter().flat_map(|s| [s.ranks().start, s.ranks().end]));
    let cuts: Vec<u64> = ends.collect::<BTreeSet<u64>>().into_iter().collect();
    let mut all = Vec::new();
    for (from, to) in cuts.iter().zip(cuts.iter().skip(1)) {
        let of =
            plans.map(|plan| plan.stage_of_rank(*from).map(|stage| memory_of_stage(plan, stage)).unwrap_or_default());
        let ranks = if to - from == 1 { format!("rank {from}") } else { format!("ranks {from}–{}", to - 1) };
        let classes: BTreeSet<&str> = of.iter().flat_map(|classes| classes.keys().copied()).collect();
        for class in classes {
            let both = [0, 1].map(|i| of[i].get(class).copied().unwrap_or(0));
            all.push(Pair { what: format!("{ranks}: {class}"), both });
        }
    }
    all
}

fn times(plans: [&Module; 2]) -> Vec<Pair<Option<u64>>> {
    let phases = plans.map(|plan| plan.cluster.as_ref().and_then(|cluster| phase_ns(plan, cluster)));
    let of = |phase: PhaseKind, i: usize| Some(phases[i].as_ref()?.get(&phase).copied().unwrap_or(0));
    let mut all = vec![pair("step", plans, |plan| Some(plan.predicted.step_time_ns))];
    all.extend(PhaseKind::ALL.iter().filter_map(|&(phase, name, _)| {
        let both = [0, 1].map(|i| of(phase, i));
        both.iter().flatten().any(|ns| *ns > 0).then(|| Pair { what: format!("{name}, all stages"), both })
    }));
    all
}

fn sent(plans: [&Module; 2]) -> Vec<Pair<u64>> {
    let by_phase = plans.map(sent_bytes);
    let phases: BTreeSet<PhaseKind> = by_phase.iter().flat_map(|phases| phases.keys().copied()).collect();
    let both = |phase: PhaseKind| [0, 1].map(|i| by_phase[i].get(&phase).copied().unwrap_or(0));
    phases.into_iter().map(|phase| Pair { what: phase.name().into(), both: both(phase) }).collect()
}
