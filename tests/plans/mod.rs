//! Compiles the committed models inside the process, for the tests on plans and on the IR after each pass.

use galvatron::config::{cluster::parse_cluster, strategy::parse_strategy, train::parse_recipe};
use galvatron::driver::{Compilation, CompileFault, Compiled, compile, pins_of};
use galvatron_ir::cluster::Cluster;
use galvatron_ir::{Diagnostic, Module};
use std::path::Path;

/// What is compiled, for what, and how.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// `mlp` or `gpt2`.
    pub model: &'a str,
    /// Text of a `train.toml`.
    pub train: &'a str,
    /// Ranks on one node.
    pub ranks: u32,
    /// Text of a `strategy.toml`.
    pub strategy: &'a str,
}

impl Job<'_> {
    /// Ranks on the cores of one machine.
    pub fn cluster(&self) -> Cluster {
        let device = "kind = \"cpu\"\nmemory_gib = 2.0\npeak_tflops = { f32 = 0.1 }\nmemory_bandwidth_gbps = 10.0\n";
        let head = format!("name = \"test\"\nnodes = 1\ndevices_per_node = {}\n[device]\n{device}", self.ranks);
        let links = "[links.intra_node]\nbandwidth_gbps = 4.0\nlatency_us = 10.0\n";
        let text = if self.ranks > 1 { head + links } else { head };
        parse_cluster(&text).expect("the cluster is well formed")
    }

    /// Runs the pipeline; the observer sees the module after each pass.
    ///
    /// The path of the model is relative to the repository, where cargo runs the tests, so that it is the same in every text.
    ///
    /// # Errors
    /// What the pins are refused for.
    pub fn compile(&self, observer: &mut dyn FnMut(&str, &Module)) -> Result<Compiled, Vec<Diagnostic>> {
        let model = format!("tests/fixtures/{0}/{0}.keep20.onnx", self.model);
        let what = Compilation {
            model: Path::new(&model),
            cluster: &self.cluster(),
            recipe: &parse_recipe(self.train, &[])?,
            pins: &pins_of(&parse_strategy(self.strategy)?)?,
            profile: None,
            retie: true,
            stop_after: None,
            verify_each: true,
        };
        compile(&what, observer).map_err(|fault| match fault {
            CompileFault::Input(faults) => faults,
            CompileFault::Bug(fault) => panic!("{fault}"),
            CompileFault::NoPlan { name, .. } => panic!("two GiB are enough for `{name}`"),
        })
    }
}
