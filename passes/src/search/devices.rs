//! What stages run on: how fast each one is, and how much memory it has.
//!
//! Bytes are counted as on the devices of the stage that has most: what another stage has less counts as taken there. So a plan has one
//! number of bytes, and under one budget every stage keeps to its own memory.

use super::solver::Infeasible;
use super::solver::{Cost, Solution};
use crate::cost::CostModel;
use std::ops::Range;

/// The devices of equal numbers of stages.
pub struct Devices {
    /// Costs at each speed that some stage has, fastest first.
    pub models: Vec<CostModel>,
    /// For each stage which of them is its own.
    pub speed_of: Vec<usize>,
    /// For each stage the bytes that a plan may use on each of its devices.
    pub memory_bytes: Vec<u64>,
    /// Bytes of the stage that has most.
    pub most_bytes: u64,
}

impl Devices {
    /// The devices of a cluster whose ranks are cut into `n_stages`.
    pub fn of(model: &CostModel, n_stages: u32) -> Devices {
        let cluster = model.cluster();
        let each = u64::from(cluster.world() / n_stages);
        let ranks: Vec<Range<u64>> = (0..u64::from(n_stages)).map(|stage| stage * each..(stage + 1) * each).collect();
        let own: Vec<f64> = ranks.iter().map(|ranks| cluster.speed(ranks)).collect();
        let mut fastest: Vec<usize> = (0..own.len()).collect();
        fastest.sort_by(|&a, &b| own[b].total_cmp(&own[a]));
        fastest.dedup_by_key(|stage| own[*stage].to_bits());
        let models = fastest.iter().map(|&stage| model.on(&ranks[stage]).into_owned()).collect();
        let position = |speed: &f64| fastest.iter().position(|&stage| own[stage].to_bits() == speed.to_bits());
        let speed_of = own.iter().map(|speed| position(speed).expect("invariant: every speed was kept")).collect();
        let memory_bytes: Vec<u64> = ranks.iter().map(|ranks| cluster.memory_bytes(ranks)).collect();
        let most_bytes = memory_bytes.iter().copied().max().unwrap_or(0);
        Devices { models, speed_of, memory_bytes, most_bytes }
    }

    /// Number of stages.
    pub fn n_stages(&self) -> usize {
        self.speed_of.len()
    }

    /// Whether some stage has less memory than another.
    pub fn differ_in_memory(&self) -> bool {
        self.memory_bytes.iter().any(|&bytes| bytes < self.most_bytes)
    }

    /// Whether some stage has less memory or another speed than another.
    pub fn differ(&self) -> bool {
        self.models.len() > 1 || self.differ_in_memory()
    }

    /// The bytes that a stage has less than the one that has most.
    pub fn missing_bytes(&self, stage: usize) -> u64 {
        self.most_bytes - self.memory_bytes[stage]
    }

    /// A cost of a stage with what it lacks counted as taken.
    pub fn counted(&self, stage: usize, cost: Cost) -> Cost {
        cost.plus(Cost::new(0, self.missing_bytes(stage)))
    }

    /// The candidates of a stage under a budget of counted bytes: `solve` finds those under the stage's own budget, and both kinds of answers
    /// have counted bytes.
    pub fn solve(
        &self,
        stage: usize,
        budget: Option<u64>,
        solve: impl FnOnce(Option<u64>) -> Result<Solution, Infeasible>,
    ) -> Result<Solution, Infeasible> {
        let missing = self.missing_bytes(stage);
        let found = solve(budget.map(|budget| budget.saturating_sub(missing)));
        let counted = |cost| self.counted(stage, cost);
        match found {
            Err(none) => Err(Infeasible { least: counted(none.least), ..none }),
            Ok(found) if budget.is_some_and(|budget| budget < missing) => {
                Err(Infeasible { least: counted(found.cost), assignment: found.assignment, proven: true })
            }
            Ok(found) => Ok(Solution { cost: counted(found.cost), ..found }),
        }
    }
}
