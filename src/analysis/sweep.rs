//! One model on clusters of several sizes: throughput, memory, efficiency and what a sample costs.

use super::table::Table;
use crate::driver::{CompileFault, Training};
use crate::report::{amount, ms, no_plan_message};
use galvatron_ir::cluster::Cluster;
use galvatron_ir::profile::Profile;
use galvatron_passes::search::{Found, Pins};
use serde_json::{Value, json};

/// What is planned at each size.
pub struct Inputs<'a> {
    /// The machine whose size is changed.
    pub cluster: &'a Cluster,
    /// What was measured on it.
    pub profile: Option<&'a Profile>,
    /// What the search may not decide.
    pub pins: &'a Pins,
    /// Numbers of devices.
    pub devices: &'a [u32],
    /// What a device costs an hour, in any currency.
    pub price: Option<f64>,
}

/// Plans for one model, by the size of the cluster.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// In the order in which the sizes were given.
    pub points: Vec<Point>,
    price: Option<f64>,
}

/// One size: a plan, or why there is none.
#[derive(Clone, Debug)]
pub struct Point {
    /// Number of devices.
    pub devices: u32,
    /// What the plan gives.
    pub outcome: Result<Planned, String>,
}

/// The figures of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// The strategy in words.
    pub strategy: String,
    /// Nanoseconds of a step.
    pub step_ns: u64,
    /// Samples in one step.
    pub samples: u64,
    /// Bytes of the largest arena.
    pub peak_bytes: u64,
    /// The fastest plan that needs too much memory, if it would be faster.
    pub barred: Option<String>,
    /// Throughput a device, as a part of that at the smallest size that has a plan.
    pub efficiency: f64,
}

impl Planned {
    fn new(found: &Found) -> Planned {
        Planned {
            strategy: found.decision.name(),
            step_ns: found.cost.step_ns,
            samples: found.plan.train.as_ref().map_or(1, |train| train.global_batch),
            peak_bytes: found.plan.peak_bytes(),
            barred: barred(found),
            efficiency: 1.0,
        }
    }

    /// Samples a second.
    pub fn samples_per_s(&self) -> f64 {
        self.samples as f64 / (self.step_ns as f64 * 1e-9)
    }
}

impl Point {
    /// Seconds of devices that one sample takes.
    fn device_seconds(&self, planned: &Planned) -> f64 {
        f64::from(self.devices) / planned.samples_per_s()
    }
}

impl Sweep {
    /// Plans for each size; a size without plan does not end it.
    pub fn new(training: &Training, inputs: &Inputs<'_>) -> Sweep {
        let outcome = |&devices: &u32| Point { devices, outcome: planned(training, inputs, devices) };
        let mut points: Vec<Point> = inputs.devices.iter().map(outcome).collect();
        let feasible = points.iter().filter_map(|point| Some((point.devices, point.outcome.as_ref().ok()?)));
        let base = feasible.min_by_key(|(devices, _)| *devices).map(|(n, p)| p.samples_per_s() / f64::from(n));
        for point in &mut points {
            let devices = f64::from(point.devices);
            if let (Ok(planned), Some(base)) = (&mut point.outcome, base) {
                planned.efficiency = planned.samples_per_s() / devices / base;
            }
        }
        Sweep { points, price: inputs.price }
    }

    /// A row for each size.
    pub fn text(&self) -> String {
        let mut head = vec![
            ("devices", true),
            ("step", true),
            ("samples/s", true),
            ("memory a rank", true),
            ("efficiency", true),
            ("device-s a sample", true),
        ];
        head.extend(self.price.map(|_| ("price of 1000 samples", true)));
        head.push(("strategy", false));
        let mut table = Table::new(&head);
        let mut without = String::new();
        for point in &self.points {
            match &point.outcome {
                Ok(planned) => table.row(self.row(point, planned)),
                Err(why) => without += &format!("{} devices: {why}\n", point.devices),
            }
        }
        format!("{}{without}", table.text())
    }

    fn row(&self, point: &Point, planned: &Planned) -> Vec<String> {
        let mut row = vec![
            point.devices.to_string(),
            ms(planned.step_ns),
            format!("{:.2}", planned.samples_per_s()),
            amount(planned.peak_bytes),
            format!("{:.1} %", 100.0 * planned.efficiency),
            significant(point.device_seconds(planned)),
        ];
        row.extend(self.price_of(point, planned).map(significant));
        row.push(planned.strategy.clone());
        row
    }

    /// Price of 1000 samples.
    fn price_of(&self, point: &Point, planned: &Planned) -> Option<f64> {
        self.price.map(|price| 1000.0 * point.device_seconds(planned) / 3600.0 * price)
    }

    /// The same as one JSON object.
    pub fn json(&self) -> Value {
        let point = |point: &Point| match &point.outcome {
            Ok(planned) => json!({
                "devices": point.devices, "step_ns": planned.step_ns, "samples_per_s": planned.samples_per_s(),
                "peak_bytes": planned.peak_bytes, "efficiency": planned.efficiency,
                "device_s_per_sample": point.device_seconds(planned),
                "price_of_1000_samples": self.price_of(point, planned), "strategy": planned.strategy,
            }),
            Err(why) => json!({"devices": point.devices, "infeasible": why}),
        };
        json!({"points": self.points.iter().map(point).collect::<Vec<_>>()})
    }
}

/// A number with four digits that say something.
fn significant(value: f64) -> String {
    let magnitude = if value > 0.0 { value.log10().floor() as i32 } else { 0 };
    format!("{value:.digits$}", digits = (3 - magnitude).clamp(0, 12) as usize)
}

/// The fastest of the rejected plans that are faster by the search's own cost; it is memory that bars them.
fn barred(found: &Found) -> Option<String> {
    let first = found.rejected.iter().find(|r| r.time_ns < found.surrogate_ns && r.is_too_large)?;
    Some(format!("{}: {}", first.name, first.why))
}

/// The plan for one size, or why there is none.
fn planned(training: &Training, inputs: &Inputs<'_>, devices: u32) -> Result<Planned, String> {
    planned_on(training, &inputs.cluster.resized(devices)?, inputs.profile, inputs.pins)
}

/// The plan for a cluster, or why there is none.
pub(super) fn planned_on(
    training: &Training,
    cluster: &Cluster,
    profile: Option<&Profile>,
    pins: &Pins,
) -> Result<Planned, String> {
    match training.plan(&training.costs(cluster, profile), pins) {
        Ok(found) => Ok(Planned::new(&found)),
        Err(CompileFault::Input(faults)) => {
            Err(faults.iter().map(|f| format!("{}: {}", f.code, f.message)).collect::<Vec<_>>().join("; "))
        }
        Err(CompileFault::NoPlan { stages, .. }) => Err(no_plan_message(&stages)),
        Err(CompileFault::Bug(fault)) => Err(fault.to_string()),
    }
}
