//! Less and less memory moves the searched plan of a GPT-2 from plain data parallelism to ZeRO and recomputation, and at last
//! to a refusal that names what would fit.

#[path = "support/allocator.rs"]
mod allocator;
#[path = "support/snapshot.rs"]
mod snapshot;

use galvatron::config::{cluster::parse_cluster, train::parse_recipe};
use galvatron::driver::{Compilation, compile};
use galvatron_ir::Module;
use galvatron_ir::cluster::Cluster;
use galvatron_passes::cost::CostModel;
use galvatron_passes::search::{Found, LayerPins, Mode, NoPlan, Pins, SequenceMode, search};
use galvatron_passes::segment::Segment;
use std::fmt::Write;
use std::path::Path;

/// Samples of a batch.
const BATCH: u32 = 64;

/// Numbers of micro-batches of the uniform plans.
const MICRO_BATCHES: [u32; 3] = [1, 4, 16];

/// The memory is tightened to this many hundredths of what the last plan needed.
const TIGHTER: u64 = 85;

fn cluster(memory_bytes: u64) -> Cluster {
    let text = "nodes = 1\ndevices_per_node = 4\n\
        [device]\nkind = \"cpu\"\nmemory_gib = 1.0\npeak_tflops = { f32 = 0.1 }\nmemory_bandwidth_gbps = 10.0\n\
        [links.intra_node]\nbandwidth_gbps = 10.0\nlatency_us = 1.0\n";
    let mut cluster = parse_cluster(text).expect("the cluster is described well");
    cluster.device.memory_bytes = memory_bytes;
    cluster
}

/// GPT-2 with its loss and optimizer, ready for the search on four ranks.
fn program() -> (Module, Vec<Segment>) {
    let settings = ["optimizer.kind=adamw".into(), format!("batch.global={BATCH}"), "batch.sequence=32".into()];
    let what = Compilation {
        model: &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gpt2/gpt2.keep18.onnx"),
        cluster: &cluster(1 << 30),
        recipe: &parse_recipe("", &settings).expect("the recipe is right"),
        pins: &Pins::default(),
        profile: None,
        retie: true,
        stop_after: Some("attach-optimizer"),
        verify_each: false,
    };
    let compiled = compile(&what, &mut |_, _| {}).unwrap_or_else(|_| panic!("the model is planned"));
    (compiled.module, compiled.segments)
}

/// A model that is searched again and again.
struct Searched {
    module: Module,
    segments: Vec<Segment>,
}

impl Searched {
    fn search(&self, memory_bytes: u64, pins: &Pins) -> Result<Found, NoPlan> {
        let found = search(&self.module, &self.segments, &CostModel::analytic(&cluster(memory_bytes)), pins);
        found
            .inspect(|found| assert!(found.plan.peak_bytes() <= memory_bytes, "{} does not fit", found.decision.name()))
    }

    /// The plans as the memory is tightened, and the bytes of the smallest.
    fn tighten(&self, pins: &Pins) -> (Vec<(u64, Found)>, u64) {
        let (mut limit, mut steps) = (1 << 30, Vec::new());
        loop {
            match self.search(limit, pins) {
                Ok(found) => {
                    let next = found.plan.peak_bytes() * TIGHTER / 100;
                    steps.push((limit, found));
                    limit = next;
                }
                Err(NoPlan::Memory { stages, .. }) => {
                    let peaks = stages.iter().map(|stage| stage.peak_bytes);
                    return (steps, peaks.max().expect("a plan was lowered"));
                }
                Err(NoPlan::Pin(fault)) => panic!("{}", fault.message),
            }
        }
    }
}

/// What is uniform in a plan whose layers, embedding and head run alike.
fn uniform_pins() -> Vec<Pins> {
    let mut all = Vec::new();
    for (tp, zero) in [1, 2, 4].into_iter().flat_map(|tp| (0..4).map(move |zero| (tp, zero))) {
        for mode in [Mode::None, Mode::Selective, Mode::Full] {
            for sequence in [SequenceMode::None, SequenceMode::Megatron] {
                let ends = LayerPins { dp: Some(4 / tp), tp: Some(tp), zero: Some(zero), ..LayerPins::default() };
                let ends = LayerPins { sequence: Some(sequence), ..ends };
                let layers = LayerPins { recompute: Some(mode), ..ends.clone() };
                all.extend(MICRO_BATCHES.map(|m| Pins {
                    micro_batches: Some(m),
                    all: layers.clone(),
                    embedding: ends.clone(),
                    head: ends.clone(),
                    ..Pins::default()
                }));
            }
        }
    }
    all
}

/// One line of the sequence.
fn row(limit: u64, found: &Found) -> String {
    let kib = |bytes: u64| bytes as f64 / 1024.0;
    let (limit, peak) = (kib(limit), kib(found.plan.peak_bytes()));
    let ms = found.cost.step_ns as f64 / 1e6;
    format!("{limit:>9.0} KiB: {peak:>6.0} KiB, {ms:>7.3} ms, {}\n", found.decision.name())
}

fn check_sequence(searched: &Searched, name: &str, pins: &Pins) {
    let (steps, least_bytes) = searched.tighten(pins);
    let mut text: String = steps.iter().map(|(limit, found)| row(*limit, found)).collect();
    for pair in steps.windows(2) {
        let [(_, more), (limit, less)] = pair else { unreachable!("invariant: pairs") };
        assert!(less.cost.step_ns >= more.bound_ns, "with {limit} bytes a plan beats the bound that more memory has");
    }
    let last = searched.search(least_bytes, pins).expect("what is named as the least is enough");
    let _ = write!(text, "the least\n{}", row(least_bytes, &last));
    snapshot::check(name, &text);
}

#[test]
fn less_memory_leads_to_zero_micro_batches_and_recomputation() {
    let (module, segments) = program();
    let searched = Searched { module, segments };
    check_sequence(&searched, "memory.gpt2", &Pins::default());
    check_sequence(&searched, "memory.gpt2-whole-batch", &Pins { micro_batches: Some(1), ..Pins::default() });
}

#[test]
fn no_uniform_plan_is_faster() {
    let (module, segments) = program();
    let searched = Searched { module, segments };
    let (steps, _) = searched.tighten(&Pins::default());
    let uniform = uniform_pins();
    let mut n_compared = 0;
    for (limit, found) in &steps {
        for other in uniform.iter().filter_map(|pins| searched.search(*limit, pins).ok()) {
            n_compared += 1;
            let (best, name) = (found.cost.step_ns, other.decision.name());
            assert!(
                other.cost.step_ns >= best,
                "within {limit} bytes: {name} is faster than {}",
                found.decision.name()
            );
        }
    }
    println!("{n_compared} uniform plans within {} limits", steps.len());
    assert!(n_compared > 100 * steps.len() / 2);
}
