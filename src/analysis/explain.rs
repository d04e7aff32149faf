//! Why a plan is as it is: what each group of layers does and could do instead, and what a larger memory would be worth.

use super::figures::is_of_plan;
use super::table::Table;
use crate::driver::{CompileFault, Training, relocated};
use crate::report::{group_names, memory_json, memory_of, ms};
use galvatron_ir::cluster::Cluster;
use galvatron_ir::headroom::StageMemory;
use galvatron_ir::profile::Profile;
use galvatron_ir::{Diagnostic, Module};
use galvatron_passes::cost::{CostModel, PhaseTimes, PlanCost, plan_cost};
use galvatron_passes::recognize::recognize;
use galvatron_passes::search::{Decision, Found, Pins, RunnerUp, RunnersUp, runners_up};
use serde_json::{Value, json};
use std::ops::Range;

/// Bytes of a GiB.
const GIB: u64 = 1 << 30;

/// More bytes than any plan needs.
const NO_LIMIT: u64 = u64::MAX / 4;

/// What a plan is explained by.
pub struct Inputs<'a> {
    /// The machine.
    pub cluster: &'a Cluster,
    /// What was measured on it.
    pub profile: Option<&'a Profile>,
    /// What the search may not decide.
    pub pins: &'a Pins,
}

/// The reasons for a plan.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The model, and the machine.
    pub subject: String,
    /// Groups of layers in order.
    pub groups: Vec<Group>,
    /// The strategy around the layers: micro-batches and stages.
    pub outline: String,
    /// Nanoseconds of a step by these prices, and as the plan says.
    pub step_ns: u64,
    /// What the plan itself predicts.
    pub predicted_ns: u64,
    /// The memory of each stage.
    pub memory: Vec<StageMemory>,
    /// What each stage runs on, where devices differ.
    pub devices: Vec<StageDevices>,
    /// What the search finds under the same pins.
    pub searched: Searched,
    /// Nanoseconds that the search saves with memory without end, and with one GiB more a device.
    pub saved_ns: Saved,
    /// What could not be said, and why.
    pub notes: Vec<String>,
}

/// What a stage runs on.
#[derive(Clone, Debug, PartialEq)]
pub struct StageDevices {
    /// Its groups of devices by name.
    pub groups: Vec<String>,
    /// How many times as fast as the cluster's device its slowest is.
    pub speed: f64,
}

/// Another plan, and by how many nanoseconds its step is longer; less than 0: shorter.
pub type Slower = (RunnerUp, i64);

/// Another plan, and by how many nanoseconds its step is shorter.
pub type Faster = (RunnerUp, u64);

/// A run of layers that do the same.
#[derive(Clone, Debug)]
pub struct Group {
    /// Which layers.
    pub layers: String,
    /// What they do.
    pub strategy: String,
    /// Nanoseconds of their ops in one step.
    pub compute_ns: u64,
    /// Nanoseconds of their collectives.
    pub communication_ns: u64,
    /// The fastest other strategy that fits, and by how many nanoseconds of a step it is slower (less than 0: faster).
    pub runner_up: Option<Slower>,
    /// A strategy that would be faster if there were memory for it, and by how many nanoseconds.
    pub barred: Option<Faster>,
}

/// What the search finds.
#[derive(Clone, Debug)]
pub struct Searched {
    /// Its plan in words.
    pub name: String,
    /// Nanoseconds of a step.
    pub step_ns: u64,
    /// Whether it decides as the plan does.
    pub is_same: bool,
}

/// What more memory would save of the time of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Nanoseconds, if devices had memory without end.
    pub without_limit_ns: u64,
    /// Nanoseconds, with one GiB more a device.
    pub by_one_gib_ns: u64,
}

impl Explanation {
    /// Explains a plan by prices and by what the search finds in its place.
    ///
    /// # Errors
    /// A plan that the cluster cannot take, or pins that cannot be met.
    pub fn new(plan: &Module, inputs: &Inputs<'_>) -> Result<Explanation, CompileFault> {
        let input = |fault: Diagnostic| CompileFault::Input(vec![fault]);
        let training = Training::of(plan).map_err(input)?;
        let is_own = plan.cluster.as_ref() == Some(inputs.cluster);
        let plan = match is_own && is_of_plan(inputs.cluster, plan) {
            true => plan.clone(),
            false => relocated(plan, inputs.cluster).map_err(input)?,
        };
        let costs = training.costs(inputs.cluster, inputs.profile);
        let cost = plan_cost(&costs, &plan);
        let found = training.plan(&costs, inputs.pins)?;
        let searched = Searched {
            name: found.decision.name(),
            step_ns: found.cost.step_ns,
            is_same: decides_as(&found, &plan, &training),
        };
        let mut notes = notes(&plan, &cost);
        let decided = decision_of(&training, inputs, &plan, &found);
        if decided.is_none() {
            notes.push(NOT_DECIDED.into());
        }
        let decision = decided.clone().unwrap_or_else(|| recognize(&plan, &training.segments));
        let named: Vec<String> = decision.segments.iter().map(|s| s.name()).collect();
        let groups = group_names(&training.segments, &|i, j| named[i] == named[j]);
        let ranges: Vec<Range<usize>> = groups.iter().map(|(_, range)| range.clone()).collect();
        let others = decided.and_then(|decision| others(&training, &costs, (&plan, cost.step_ns), &decision, &ranges));
        notes.extend(others.as_ref().filter(|all| all.own.step_ns != cost.step_ns).map(|all| {
            format!("the names do not say where each op lies: another plan that has them takes {}", ms(all.own.step_ns))
        }));
        let tightest = plan.tightest_stage(inputs.cluster);
        let group = |(i, (layers, range)): (usize, &(String, Range<usize>))| {
            let (compute_ns, communication_ns) = times(&cost, range.clone(), plan.mesh.micro_batches());
            let (runner_up, barred) = others
                .as_ref()
                .map_or((None, None), |all| instead(&all.others[i], (cost.step_ns, tightest.peak_bytes)));
            Group {
                layers: layers.clone(),
                strategy: named[range.start].clone(),
                compute_ns,
                communication_ns,
                runner_up,
                barred,
            }
        };
        Ok(Explanation {
            subject: format!("{} on {} devices of \"{}\"", plan.name, plan.mesh.world(), inputs.cluster.name),
            groups: groups.iter().enumerate().map(group).collect(),
            outline: outline(&decision),
            step_ns: cost.step_ns,
            predicted_ns: plan.predicted.step_time_ns,
            memory: plan.memory_by_stage(inputs.cluster),
            devices: devices(&plan, inputs.cluster),
            saved_ns: saved(&training, inputs, &found)?,
            searched,
            notes,
        })
    }

    /// The table, then the reasons for the whole.
    pub fn text(&self) -> String {
        let columns = [("layers", false), ("strategy", false), ("compute", true), ("collectives", true)];
        let reasons = [("runner-up", false), ("costs more", true), ("memory bars", false)];
        let mut table = Table::new(&[&columns[..], &reasons[..]].concat());
        for group in &self.groups {
            let (runner_up, more) = match &group.runner_up {
                Some((other, more)) => (other.name.clone(), signed_ms(*more)),
                None => ("none".into(), String::new()),
            };
            let barred = group
                .barred
                .as_ref()
                .map_or("nothing".to_string(), |(other, less)| format!("{} (−{})", other.name, ms(*less)));
            let (compute, collectives) = (ms(group.compute_ns), ms(group.communication_ns));
            table.row([group.layers.clone(), group.strategy.clone(), compute, collectives, runner_up, more, barred]);
        }
        let mut out = format!("{}\n\n{}\n{}\n", self.subject, table.text(), self.outline);
        out += &self.devices_text();
        out += &format!("step: {}\n", ms(self.step_ns));
        let differs = self.memory.iter().any(|stage| stage.memory_bytes != self.memory[0].memory_bytes);
        let each = if differs { "" } else { " a device" };
        out += &format!("memory: {}{each}, {}\n", memory_of(&self.memory), self.binding());
        out += &format!("price of 1 GiB: {} a step\n", ms(self.saved_ns.by_one_gib_ns));
        out += &match (self.searched.is_same, self.searched.step_ns) {
            (true, _) => "search: finds this plan\n".to_string(),
            (false, ns) => format!("search: finds another, {}: {}\n", ms(ns), self.searched.name),
        };
        self.notes.iter().for_each(|note| out += &format!("note: {note}\n"));
        out
    }

    /// Nothing where all devices are equal.
    fn devices_text(&self) -> String {
        let stage = |(i, stage): (usize, &StageDevices)| {
            format!("stage {i} at speed {} ({})", stage.speed, stage.groups.join(", "))
        };
        let all: Vec<String> = self.devices.iter().enumerate().map(stage).collect();
        if all.is_empty() { String::new() } else { format!("devices: {}\n", all.join(", ")) }
    }

    fn binding(&self) -> String {
        match self.saved_ns.without_limit_ns {
            0 => "which binds nothing".into(),
            ns => format!("which binds: without its limit a step takes {} less", ms(ns)),
        }
    }

    /// The same as one JSON object.
    pub fn json(&self) -> Value {
        let other = |r: &RunnerUp| json!({"strategy": r.name, "peak_bytes": r.memory.peak_bytes, "step_ns": r.step_ns});
        let group = |g: &Group| {
            json!({
                "layers": g.layers, "strategy": g.strategy, "compute_ns": g.compute_ns,
                "communication_ns": g.communication_ns,
                "runner_up": g.runner_up.as_ref().map(|(r, more)| json!({"plan": other(r), "costs_more_ns": more})),
                "barred_by_memory": g.barred.as_ref().map(|(r, less)| json!({"plan": other(r), "saves_ns": less})),
            })
        };
        json!({
            "subject": self.subject, "groups": self.groups.iter().map(group).collect::<Vec<_>>(),
            "outline": self.outline, "step_ns": self.step_ns, "predicted_step_ns": self.predicted_ns,
            "peak_bytes": self.memory.iter().map(|stage| stage.peak_bytes).max(),
            "memory_bytes": self.memory.iter().map(|stage| stage.memory_bytes).min(),
            "stages": memory_json(&self.memory),
            "devices": self.devices.iter().map(|d| json!({"groups": d.groups, "speed": d.speed})).collect::<Vec<_>>(),
            "binding": if self.saved_ns.without_limit_ns > 0 { "memory" } else { "none" },
            "without_limit_saves_ns": self.saved_ns.without_limit_ns, "one_gib_saves_ns": self.saved_ns.by_one_gib_ns,
            "searched": {"name": self.searched.name, "step_ns": self.searched.step_ns, "is_same": self.searched.is_same},
            "notes": self.notes,
        })
    }
}

/// Milliseconds with their sign.
fn signed_ms(ns: i64) -> String {
    format!("{}{}", if ns < 0 { "−" } else { "+" }, ms(ns.unsigned_abs()))
}

/// Whether a search gives this very plan; what it predicts does not count.
fn decides_as(found: &Found, plan: &Module, training: &Training) -> bool {
    let own = recognize(&found.plan, &training.segments);
    own.name() == recognize(plan, &training.segments).name()
        && found.plan.peak_bytes_by_rank() == plan.peak_bytes_by_rank()
}

fn outline(decision: &Decision) -> String {
    let stages = decision.stages.as_ref().map_or("one stage".into(), |stages| stages.name());
    format!("micro-batches: {}\nstages: {stages}", decision.micro_batches)
}

/// What each stage runs on; nothing where all devices are equal.
fn devices(plan: &Module, cluster: &Cluster) -> Vec<StageDevices> {
    let of = |ranks: Range<u64>| StageDevices {
        groups: cluster.groups_of(&ranks).map(|group| group.name.clone()).collect(),
        speed: cluster.speed(&ranks),
    };
    let all = plan.stages.iter().map(|stage| of(stage.ranks()));
    all.filter(|stage| !stage.groups.is_empty()).collect()
}

/// What the prices at hand do not explain.
fn notes(plan: &Module, cost: &PlanCost) -> Vec<String> {
    let predicted = plan.predicted.step_time_ns;
    let differs = predicted > 0 && predicted != cost.step_ns;
    let note = format!(
        "the plan predicts {}, these prices give {}: it was priced by other figures (another cluster, or `--profile`), or edited",
        ms(predicted),
        ms(cost.step_ns)
    );
    differs.then_some(note).into_iter().collect()
}

/// Times of a run of segments in one step.
fn times(cost: &PlanCost, segments: Range<usize>, micro_batches: u64) -> (u64, u64) {
    let phases = segments.filter_map(|i| cost.layers.get(&Some(i as u32))).flatten();
    phases.fold((0, 0), |(compute, communication), (phase, times): (_, &PhaseTimes)| {
        let n = if phase.is_per_micro_batch() { micro_batches } else { 1 };
        (compute + n * times.compute_ns, communication + n * times.communication_ns)
    })
}

/// Why there are no runners-up.
const NOT_DECIDED: &str =
    "the search has no plan with these names, so there are no runners-up: it was edited, or pinned op by op";

/// The decisions of a plan as the search names them: those of the search, or of one in which what the plan does is pinned.
fn decision_of(training: &Training, inputs: &Inputs<'_>, plan: &Module, found: &Found) -> Option<Decision> {
    if decides_as(found, plan, training) {
        return Some(found.decision.clone());
    }
    let roomy = inputs.cluster.with_memory(|_| NO_LIMIT);
    let pins = recognize(plan, &training.segments).pins(&training.segments);
    let pinned = training.plan(&training.costs(&roomy, inputs.profile), &pins).ok()?;
    let is_same = recognize(&pinned.plan, &training.segments).name() == recognize(plan, &training.segments).name();
    is_same.then_some(pinned.decision)
}

/// What each group could do instead, fastest first.
fn others(
    training: &Training,
    costs: &CostModel,
    (plan, step_ns): (&Module, u64),
    decision: &Decision,
    groups: &[Range<usize>],
) -> Option<RunnersUp> {
    let module = training.module_on(costs.cluster());
    let tightest = plan.tightest_stage(costs.cluster());
    runners_up(&module, &training.segments, costs, decision, groups, (tightest, step_ns)).ok().flatten()
}

/// The fastest that fits with what it costs more, and the fastest that is faster than that and the plan and does not fit, with
/// what it would save.
///
/// What takes the time and the memory of the plan is the plan itself under another name.
fn instead(others: &[RunnerUp], (step_ns, peak_bytes): (u64, u64)) -> (Option<Slower>, Option<Faster>) {
    let fits = |other: &&RunnerUp| other.memory.fits();
    let is_other = |other: &&RunnerUp| (other.step_ns, other.memory.peak_bytes) != (step_ns, peak_bytes);
    let runner_up = others.iter().filter(is_other).find(fits);
    let fastest_ns = runner_up.map_or(step_ns, |other| other.step_ns.min(step_ns));
    let barred = others.iter().find(|other| !fits(other) && other.step_ns < fastest_ns);
    let more = |other: &RunnerUp| (other.clone(), other.step_ns as i64 - step_ns as i64);
    (runner_up.map(more), barred.map(|other| (other.clone(), step_ns - other.step_ns)))
}

/// What the search saves with more memory.
fn saved(training: &Training, inputs: &Inputs<'_>, found: &Found) -> Result<Saved, CompileFault> {
    let with = |cluster: Cluster| {
        let more = training.plan(&training.costs(&cluster, inputs.profile), inputs.pins)?;
        Ok::<u64, CompileFault>(found.cost.step_ns.saturating_sub(more.cost.step_ns))
    };
    let without_limit_ns = with(inputs.cluster.with_memory(|_| NO_LIMIT))?;
    let more = || inputs.cluster.with_memory(|bytes| bytes + GIB);
    let by_one_gib_ns = if without_limit_ns == 0 { 0 } else { with(more())? };
    Ok(Saved { without_limit_ns, by_one_gib_ns })
}
