//! A plan under another machine or other settings: the same strategy priced anew, and what the search would do instead.

use super::table::Table;
use crate::driver::{CompileFault, Training, relocated};
use crate::report::{amount, limits_of, memory_json, ms, no_plan_message, peaks_of};
use galvatron_ir::Module;
use galvatron_ir::cluster::Cluster;
use galvatron_ir::headroom::StageMemory;
use galvatron_ir::profile::Profile;
use galvatron_passes::cost::plan_cost;
use galvatron_passes::recognize::recognize;
use galvatron_passes::search::{Decision, Found, Pins};
use serde_json::{Value, json};

/// What is asked about a plan.
pub struct Inputs<'a> {
    /// The machine that is supposed.
    pub cluster: &'a Cluster,
    /// What was measured on it.
    pub profile: Option<&'a Profile>,
    /// The training program under other settings, if they are others.
    pub training: Option<&'a Training>,
    /// What the search may not decide; without it nothing is planned anew.
    pub pins: Option<&'a Pins>,
}

/// A plan as it is, and under what is supposed.
#[derive(Clone, Debug)]
pub struct WhatIf {
    /// The plan as it was made.
    pub planned: Case,
    /// Its strategy under what is supposed, or why that is not possible.
    pub same: Result<Case, String>,
    /// What the search finds there, or why it finds nothing; none where it was not asked for.
    pub replanned: Option<Result<Case, String>>,
}

/// The figures of one case.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// The strategy in words.
    pub strategy: String,
    /// Nanoseconds of a step.
    pub step_ns: u64,
    /// Samples in one step.
    pub samples: u64,
    /// Bytes of the largest arena.
    pub peak_bytes: u64,
    /// The memory of each stage; `None` where the machine is not recorded.
    pub stages: Option<Vec<StageMemory>>,
    /// Whether it takes no more host memory than the machine has.
    pub fits_host: bool,
}

impl Case {
    fn new(plan: &Module, decision: &Decision, step_ns: u64, cluster: Option<&Cluster>) -> Case {
        Case {
            strategy: decision.name(),
            step_ns,
            samples: plan.train.as_ref().map_or(1, |train| train.global_batch),
            peak_bytes: plan.peak_bytes(),
            stages: cluster.map(|cluster| plan.memory_by_stage(cluster)),
            fits_host: cluster
                .is_none_or(|cluster| plan.stages.iter().all(|stage| stage.arena.host_bytes() <= cluster.host_bytes())),
        }
    }

    fn of(found: &Found, training: &Training, cluster: &Cluster) -> Case {
        let decision = recognize(&found.plan, &training.segments);
        Case::new(&found.plan, &decision, found.cost.step_ns, Some(cluster))
    }

    /// Whether it fits the devices and their hosts, as far as these are known.
    pub fn fits(&self) -> Option<bool> {
        self.stages.as_ref().map(|stages| self.fits_host && stages.iter().all(StageMemory::fits))
    }

    /// Bytes of the smallest device.
    fn memory_bytes(&self) -> Option<u64> {
        self.stages.as_ref()?.iter().map(|stage| stage.memory_bytes).min()
    }

    fn samples_per_s(&self) -> f64 {
        self.samples as f64 / (self.step_ns.max(1) as f64 * 1e-9)
    }
}

impl WhatIf {
    /// Prices a plan under what is supposed, and plans anew where that is asked for.
    ///
    /// # Errors
    /// A plan whose layers are not tagged.
    pub fn new(plan: &Module, inputs: &Inputs<'_>) -> Result<WhatIf, CompileFault> {
        let own = Training::of(plan).map_err(|fault| CompileFault::Input(vec![fault]))?;
        let decision = recognize(plan, &own.segments);
        let planned = Case::new(plan, &decision, plan.predicted.step_time_ns, plan.cluster.as_ref());
        let training = inputs.training.unwrap_or(&own);
        let costs = training.costs(inputs.cluster, inputs.profile);
        let same = match inputs.training {
            // The program is another one: the decisions are pinned.
            Some(training) => {
                let roomy = inputs.cluster.with_memory(|_| u64::MAX / 4);
                let pins = decision.pins(&training.segments);
                let found = training.plan(&training.costs(&roomy, inputs.profile), &pins);
                found.map(|found| Case::of(&found, training, inputs.cluster)).map_err(why)
            }
            None => relocated(plan, inputs.cluster)
                .map_err(|fault| fault.message)
                .map(|moved| Case::new(&moved, &decision, plan_cost(&costs, &moved).step_ns, Some(inputs.cluster))),
        };
        let replanned = inputs.pins.map(|pins| {
            let found = training.plan(&costs, pins).map_err(why)?;
            Ok(Case::of(&found, training, inputs.cluster))
        });
        Ok(WhatIf { planned, same, replanned })
    }

    /// Each case with its name in JSON and in text.
    fn cases(&self) -> impl Iterator<Item = ([&'static str; 2], Result<&Case, &String>)> {
        let planned = (["planned", "as planned"], Ok(&self.planned));
        let same = (["same_strategy", "same strategy"], self.same.as_ref());
        let replanned = self.replanned.iter().map(|case| (["planned_anew", "planned anew"], case.as_ref()));
        [planned, same].into_iter().chain(replanned)
    }

    /// A row for each case.
    pub fn text(&self) -> String {
        let mut table = Table::new(&[
            ("", false),
            ("step", true),
            ("samples/s", true),
            ("memory a rank", true),
            ("fits", false),
            ("strategy", false),
        ]);
        for ([_, name], case) in self.cases() {
            let Ok(case) = case else {
                table.row([name, "—", "—", "—", "—", case.err().map_or("", String::as_str)].map(String::from));
                continue;
            };
            let (peak, fits) = match &case.stages {
                None => (amount(case.peak_bytes), "not known".into()),
                Some(stages) => {
                    let fits = if case.fits() == Some(true) { "yes" } else { "no" };
                    (peaks_of(stages), format!("{}: {fits}", limits_of(stages)))
                }
            };
            let speed = format!("{:.2}", case.samples_per_s());
            table.row([name.into(), ms(case.step_ns), speed, peak, fits, case.strategy.clone()]);
        }
        table.text()
    }

    /// The same as one JSON object.
    pub fn json(&self) -> Value {
        let case = |case: Result<&Case, &String>| match case {
            Ok(c) => json!({
                "strategy": c.strategy, "step_ns": c.step_ns, "samples_per_s": c.samples_per_s(),
                "peak_bytes": c.peak_bytes, "memory_bytes": c.memory_bytes(), "fits": c.fits(),
                "stages": c.stages.as_deref().map(memory_json),
            }),
            Err(why) => json!({"infeasible": why}),
        };
        self.cases().map(|([key, _], c)| (key.to_string(), case(c))).collect::<serde_json::Map<_, _>>().into()
    }
}

fn why(fault: CompileFault) -> String {
    match fault {
        CompileFault::Input(faults) => {
            faults.iter().map(|f| format!("{}: {}", f.code, f.message)).collect::<Vec<_>>().join("; ")
        }
        CompileFault::NoPlan { stages, .. } => no_plan_message(&stages),
        CompileFault::Bug(fault) => fault.to_string(),
    }
}
