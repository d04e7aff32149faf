//! From a fixture and pins to a plan, inside the process.

use crate::fixture::Fixture;
use galvatron::config::cluster::parse_cluster;
use galvatron::config::strategy::parse_strategy;
use galvatron::driver::{Compilation, CompileFault, Compiled, compile, pins_of};
use galvatron::weights::PlanWeights;
use galvatron_ir::recipe::Recipe;
use galvatron_ir::types::DType;
use galvatron_ir::{Checked, Diagnostic};
use galvatron_passes::search::Pins;
use std::path::Path;

/// A plan to be made.
#[derive(Clone, Copy)]
pub struct Order<'a> {
    /// The model and its reference.
    pub fixture: &'a Fixture,
    /// How the model was exported.
    pub dialect: &'a str,
    /// The reference run: `sgd`, `sgd_momentum` or `adamw`.
    pub optimizer: &'a str,
    /// Number of ranks.
    pub ranks: u32,
    /// Text of a `strategy.toml`.
    pub strategy: &'a str,
    /// Element type of parameters and activations.
    pub compute: DType,
}

impl Order<'_> {
    /// The pins of the strategy.
    ///
    /// # Errors
    /// What the strategy file is refused for.
    pub fn pins(&self) -> Checked<Pins> {
        pins_of(&parse_strategy(self.strategy)?)
    }

    /// Compiles the model; the module is verified after each pass.
    ///
    /// # Errors
    /// What the pins are refused for.
    pub fn compile(&self) -> Checked<Compiled> {
        self.compile_for("cpu")
    }

    /// The same for a cluster of that kind of devices, otherwise equal.
    ///
    /// # Errors
    /// As [`Order::compile`].
    pub fn compile_for(&self, kind: &str) -> Checked<Compiled> {
        self.compile_with(kind, None)
    }

    /// The same up to a pass, if one is named.
    ///
    /// # Errors
    /// As [`Order::compile`].
    pub fn compile_with(&self, kind: &str, stop_after: Option<&str>) -> Checked<Compiled> {
        self.compile_model(&self.fixture.onnx(self.dialect), kind, stop_after)
    }

    /// The same for another file of the model.
    ///
    /// # Errors
    /// As [`Order::compile`].
    pub fn compile_model(&self, model: &Path, kind: &str, stop_after: Option<&str>) -> Checked<Compiled> {
        let what = Compilation {
            model,
            cluster: &parse_cluster(&self.cluster(kind))?,
            recipe: &Recipe { compute: self.compute, ..self.fixture.recipe(self.dialect, self.optimizer) },
            pins: &self.pins()?,
            profile: None,
            retie: true,
            stop_after,
            verify_each: true,
        };
        compile(&what, &mut |_, _| {}).map_err(|fault| match fault {
            CompileFault::Input(faults) => faults,
            CompileFault::Bug(fault) => vec![fault],
            CompileFault::NoPlan { name, .. } => vec![Diagnostic::new("no-plan", name)],
        })
    }

    /// Ranks of one machine, with host memory where the strategy speaks of it.
    fn cluster(&self, kind: &str) -> String {
        let has_host = self.strategy.contains("offload");
        cluster(self.ranks, kind) + if has_host { HOST } else { "" }
    }

    /// The weights inside the ONNX file.
    pub fn weights(&self) -> PlanWeights {
        PlanWeights::new(Path::new(""), Some(&self.fixture.onnx(self.dialect)))
    }
}

/// What of its memory a host lets each device use.
const HOST: &str = "[host]\nmemory_gib = 2.0\nbandwidth_gbps = 4.0\nlatency_us = 5.0\n";

/// Ranks of one machine.
fn cluster(ranks: u32, kind: &str) -> String {
    format!(
        "nodes = 1\ndevices_per_node = {ranks}\n\
         [device]\nkind = \"{kind}\"\nmemory_gib = 2.0\npeak_tflops = {{ f32 = 0.1 }}\nmemory_bandwidth_gbps = 10.0\n\
         [links.intra_node]\nbandwidth_gbps = 4.0\nlatency_us = 10.0\n"
    )
}
