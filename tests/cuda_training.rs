//! A plan trains on emulated GPUs with the losses of PyTorch: the launch table, the kernels and the engine together.

#[path = "support/dropped.rs"]
mod dropped;
#[path = "support/emulated.rs"]
mod emulated;
#[allow(dead_code)]
#[path = "support/fixture.rs"]
mod fixture;
#[allow(dead_code)]
#[path = "support/plan.rs"]
mod plan;

use dropped::with_dropouts;
use emulated::Emulated;
use fixture::Fixture;
use galvatron::weights::PlanWeights;
use galvatron_backends::device::Device;
use galvatron_backends::exec::{
    Flow, RunOptions, StepReport, Tensors, Trained, World, arena_bytes, launch, thread_ranks,
};
use galvatron_ir::types::DType;
use plan::Order;
use std::path::Path;

/// Steps that are compared; the emulator is slow.
const STEPS: u64 = 3;

/// What a run has left behind.
#[derive(Debug, PartialEq)]
struct Outcome {
    losses: Vec<(f64, Option<f64>)>,
    trained: Option<Trained>,
    gradients: Option<Tensors>,
    peak_bytes: Vec<u64>,
    /// Rank and name of each node that was traced.
    nodes: Vec<(usize, String)>,
}

/// A run on CPU ranks, or on emulated GPUs; with `graphs` these replay steps. Also how many steps were replayed.
fn run(order: &Order<'_>, options: &RunOptions, gpus: Option<bool>) -> Option<(Outcome, Vec<u64>)> {
    run_model(&order.fixture.onnx(order.dialect), order, options, gpus)
}

/// The same for another file of the model.
fn run_model(model: &Path, order: &Order<'_>, options: &RunOptions, gpus: Option<bool>) -> Option<(Outcome, Vec<u64>)> {
    let module = order.compile_model(model, "cuda", None).expect("the pins can be met").module;
    let (n_ranks, bytes) = (module.mesh.world() as usize, arena_bytes(&module));
    let mut losses = Vec::new();
    let mut note = |step: StepReport| {
        losses.push((step.loss, step.grad_norm));
        Flow::Continue
    };
    let (data, weights) = (order.fixture.data(), PlanWeights::new(Path::new(""), Some(model)));
    let (ran, devices) = match gpus {
        None => (galvatron_backends::run(&module, options, data, &weights, &mut note), Vec::new()),
        Some(graphs) => {
            let devices = Emulated::world(emulated::program()?, n_ranks, bytes, graphs);
            let boxed = devices.iter().map(|device| Box::new(device.clone()) as Box<dyn Device>);
            let world: World = boxed.zip(thread_ranks(&module, options)).collect();
            (launch(&module, world, options, (data, &weights), &mut note), devices)
        }
    };
    let report = ran.expect("the plan runs");
    // The plan is for GPUs, so CPU ranks have no room in it for f32 copies, and say so.
    let says_copies = gpus.is_none() && order.compute == DType::Bf16;
    let n_remarks = if says_copies { n_ranks } else { 0 };
    assert_eq!(report.remarks.len(), n_remarks, "{:?}", report.remarks);
    assert!(report.remarks.iter().all(|(_, remark)| remark.contains("outside of its arena")), "{:?}", report.remarks);
    let nodes = report.trace.into_iter().map(|event| (event.rank, event.name_in(&module))).collect();
    let (trained, gradients, peak_bytes) = (report.trained, report.gradients, report.peak_bytes);
    let outcome = Outcome { losses, trained, gradients, peak_bytes, nodes };
    Some((outcome, devices.iter().map(Emulated::n_replayed).collect()))
}

fn check(model: &str, optimizer: &str, ranks: u32, strategy: &str) {
    check_in((DType::F32, 1e-5), model, optimizer, ranks, strategy);
}

/// Losses agree within a part of them.
fn check_in((compute, band): (DType, f64), model: &str, optimizer: &str, ranks: u32, strategy: &str) {
    let fixture = Fixture::open(model);
    let order = Order { fixture: &fixture, dialect: "keep20", optimizer, ranks, strategy, compute };
    let options = RunOptions { steps: STEPS, ..RunOptions::default() };
    compare(&fixture.onnx(order.dialect), &order, &options, band);
}

fn compare(model: &Path, order: &Order<'_>, options: &RunOptions, band: f64) {
    let Some((gpu, _)) = run_model(model, order, options, Some(false)) else { return };
    let (cpu, _) = run_model(model, order, options, None).expect("CPU ranks need nothing");
    assert_eq!((cpu.losses.len(), gpu.losses.len()), (STEPS as usize, STEPS as usize));
    for (step, (&(c, _), &(g, _))) in cpu.losses.iter().zip(&gpu.losses).enumerate() {
        let error = (c - g).abs() / c.abs().max(1.0);
        println!("step {}: {g} on emulated GPUs, {c} on CPU ranks, {error:.1e} apart", step + 1);
        assert!(error <= band, "step {}: {g} on emulated GPUs, {c} on CPU ranks", step + 1);
    }
}

/// Runs with and without replays leave the same bits behind; `n_replayed` steps of every rank are replayed.
fn check_replays(order: &Order<'_>, options: &RunOptions, n_replayed: u64) {
    let Some((eager, none)) = run(order, options, Some(false)) else { return };
    let (replayed, counts) = run(order, options, Some(true)).expect("the emulator is there");
    assert_eq!(eager, replayed);
    assert!(none.iter().all(|&n| n == 0) && counts.iter().all(|&n| n == n_replayed), "{none:?} {counts:?}");
}

#[test]
fn one_emulated_gpu_trains_like_the_cpu() {
    check("gpt2", "adamw", 1, "");
}

#[test]
fn sharded_plans_train_like_the_cpu() {
    check("gpt2", "sgd_momentum", 4, "dp = 2\ntp = 2\nzero = 3\nrecompute = \"full\"\nmicro_batches = 2");
    check("gpt2", "sgd_momentum", 2, "cp = 2\ncp_kind = \"gather\"");
}

/// Sums in another order give another f32 now and then, and with it another bf16: half a percent in one element.
const BF16_BAND: f64 = 1e-3;

#[test]
fn one_emulated_gpu_trains_in_bf16_like_the_cpu() {
    check_in((DType::Bf16, BF16_BAND), "gpt2", "adamw", 1, "");
    check_in((DType::Bf16, BF16_BAND), "mlp", "sgd", 1, "");
}

#[test]
fn sharded_plans_train_in_bf16_like_the_cpu() {
    let strategy = "dp = 2\ntp = 2\nzero = 3\nrecompute = \"full\"\nmicro_batches = 2";
    check_in((DType::Bf16, BF16_BAND), "gpt2", "sgd_momentum", 4, strategy);
}

#[test]
fn replayed_steps_train_to_the_same_bits() {
    let fixture = Fixture::open("mlp");
    let strategy = "dp = 2\nzero = 1\nmicro_batches = 2";
    let (dialect, optimizer, compute) = ("keep20", "adamw", DType::F32);
    let order = Order { fixture: &fixture, dialect, optimizer, ranks: 2, strategy, compute };
    // What is saved in between is read after the end of a step, and the step after it is replayed again.
    let options = RunOptions { steps: 20, collect: true, collect_every: 7, ..RunOptions::default() };
    check_replays(&order, &options, 18);
    // The first step is looked at, so it does not count as a step that is like the others.
    check_replays(&order, &RunOptions { dump_gradients: true, steps: 6, ..options.clone() }, 3);
    // Each node of each step is looked at.
    check_replays(&order, &RunOptions { trace: true, steps: 4, ..options }, 0);
}

#[test]
fn replayed_steps_of_a_sharded_transformer_train_to_the_same_bits() {
    let fixture = Fixture::open("gpt2");
    let strategy = "dp = 2\ntp = 2\nzero = 3\nrecompute = \"full\"\nmicro_batches = 2";
    let (dialect, optimizer, compute) = ("keep20", "adamw", DType::F32);
    let order = Order { fixture: &fixture, dialect, optimizer, ranks: 4, strategy, compute };
    check_replays(&order, &RunOptions { steps: 4, collect: true, ..RunOptions::default() }, 2);
}

/// Nodes that are launched together give the bits that they give one by one, use the memory that they use one by one, and are
/// told of one by one.
#[test]
fn fused_steps_train_to_the_bits_of_unfused_ones() {
    let sharded = "dp = 2\ntp = 2\nzero = 3\nrecompute = \"full\"\nmicro_batches = 2";
    let fixture = Fixture::open("gpt2");
    for (optimizer, ranks, strategy) in [("adamw", 1, ""), ("adamw", 4, sharded), ("sgd", 1, "micro_batches = 2")] {
        let order = Order { fixture: &fixture, dialect: "keep20", optimizer, ranks, strategy, compute: DType::F32 };
        let run = |group| {
            let options = RunOptions { steps: 2, collect: true, trace: true, group, ..RunOptions::default() };
            run(&order, &options, Some(false)).map(|(outcome, _)| outcome)
        };
        let (Some(fused), Some(unfused)) = (run(true), run(false)) else { return };
        assert_eq!(fused, unfused, "{optimizer} on {ranks}");
        assert!(fused.nodes.len() > 100 && fused.peak_bytes[0] > 0);
    }
}

/// Emulated GPUs drop what CPU ranks drop: in each part and micro-batch, when it is computed again, and in steps that are replayed.
#[test]
fn dropouts_drop_the_same_on_emulated_gpus() {
    let fixture = Fixture::open("gpt2");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("dropout-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the folder for test files can be written");
    let model = folder.join("model.onnx");
    let exported = std::fs::read(fixture.onnx("keep18")).expect("the fixture has the file");
    std::fs::write(&model, with_dropouts(&exported, &["Softmax", "LayerNormalization"], 0.3))
        .expect("the folder takes files");
    let strategy = "dp = 2\ntp = 2\nzero = 3\nrecompute = \"full\"\nmicro_batches = 2";
    let order = |compute| Order {
        fixture: &fixture,
        dialect: "keep18",
        optimizer: "sgd_momentum",
        ranks: 4,
        strategy,
        compute,
    };
    let options = RunOptions { steps: STEPS, ..RunOptions::default() };
    compare(&model, &order(DType::F32), &options, 1e-5);
    compare(&model, &order(DType::Bf16), &options, BF16_BAND);
    let run = |graphs| run_model(&model, &order(DType::F32), &options, Some(graphs));
    let (Some((eager, _)), Some((replayed, counts))) = (run(false), run(true)) else { return };
    assert_eq!(eager, replayed);
    assert_eq!(counts, [1; 4]);
    std::fs::remove_dir_all(folder).expect("the folder can be removed");
}
