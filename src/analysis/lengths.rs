//! One model at several lengths of its sequences: how plans change as activations outgrow the weights, and what memory bars.

use super::sweep::{Planned, planned_on};
use super::table::Table;
use crate::driver::Training;
use crate::report::{amount, ms};
use galvatron_ir::cluster::Cluster;
use galvatron_ir::profile::Profile;
use galvatron_passes::search::Pins;
use serde_json::{Value, json};

/// Plans for one model, by the length of its sequences.
#[derive(Clone, Debug)]
pub struct Lengths {
    /// In the order in which the lengths were given.
    pub points: Vec<Point>,
}

/// One length: a plan, or why there is none.
#[derive(Clone, Debug)]
pub struct Point {
    /// Tokens of a sample.
    pub sequence: u64,
    /// What the plan gives.
    pub outcome: Result<Planned, String>,
}

impl Lengths {
    /// Plans for each program; a length without plan does not end it.
    pub fn new(programs: &[(u64, Training)], cluster: &Cluster, profile: Option<&Profile>, pins: &Pins) -> Lengths {
        let point = |(sequence, training): &(u64, Training)| Point {
            sequence: *sequence,
            outcome: planned_on(training, cluster, profile, pins),
        };
        Lengths { points: programs.iter().map(point).collect() }
    }

    /// A row for each length.
    pub fn text(&self) -> String {
        let mut table = Table::new(&[
            ("sequence", true),
            ("step", true),
            ("tokens/s", true),
            ("memory a rank", true),
            ("strategy", false),
            ("memory bars", false),
        ]);
        let mut without = String::new();
        for Point { sequence, outcome } in &self.points {
            match outcome {
                Ok(planned) => table.row(vec![
                    sequence.to_string(),
                    ms(planned.step_ns),
                    format!("{:.0}", planned.samples_per_s() * *sequence as f64),
                    amount(planned.peak_bytes),
                    planned.strategy.clone(),
                    planned.barred.clone().unwrap_or_else(|| "nothing faster".into()),
                ]),
                Err(why) => without += &format!("{sequence} tokens: {why}\n"),
            }
        }
        format!("{}{without}", table.text())
    }

    /// The same as one JSON object.
    pub fn json(&self) -> Value {
        let point = |Point { sequence, outcome }: &Point| match outcome {
            Ok(planned) => json!({
                "sequence": sequence, "step_ns": planned.step_ns,
                "tokens_per_s": planned.samples_per_s() * *sequence as f64,
                "peak_bytes": planned.peak_bytes, "strategy": planned.strategy, "memory_bars": planned.barred,
            }),
            Err(why) => json!({"sequence": sequence, "infeasible": why}),
        };
        json!({"points": self.points.iter().map(point).collect::<Vec<_>>()})
    }
}
