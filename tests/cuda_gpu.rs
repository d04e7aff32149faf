//! Ops and training on a GPU, against the reference and against CPU ranks. Where there is no GPU every test says that it was
//! skipped; with `GALVATRON_NEEDS_GPU` set that is a failure.
#![cfg(feature = "cuda")]

#[macro_use]
#[path = "support/conformance.rs"]
mod conformance;
#[allow(dead_code)]
#[path = "support/fixture.rs"]
mod fixture;
#[allow(dead_code)]
#[path = "support/plan.rs"]
mod plan;

use fixture::{Fixture, N_STEPS};
use galvatron_backends::cuda::{Settings, probe, world};
use galvatron_backends::device::Device;
use galvatron_backends::exec::{Flow, RunOptions, arena_bytes, launch};
use galvatron_ir::types::DType;
use plan::Order;
use std::sync::OnceLock;
use std::time::Duration;

/// The libraries of CUDA; none is said aloud.
fn libraries() -> Option<&'static probe::Libraries> {
    static FOUND: OnceLock<Option<probe::Libraries>> = OnceLock::new();
    let look = || match probe::probe() {
        Ok(libraries) => Some(libraries),
        Err(missing) => {
            assert!(std::env::var_os("GALVATRON_NEEDS_GPU").is_none(), "{missing}");
            eprintln!("SKIPPED: nothing ran on a GPU: {missing}");
            None
        }
    };
    FOUND.get_or_init(look).as_ref()
}

/// The first GPU.
fn device(arena_bytes: u64) -> Option<Box<dyn Device>> {
    let settings = Settings { arena_bytes, timeout: Duration::from_secs(60), graphs: false, tf32: false };
    let ranks = world(libraries()?, 1, &settings).expect("the GPU opens");
    ranks.into_iter().next().map(|(device, _)| device)
}

/// Losses of a plan on GPUs and on CPU ranks; those on one GPU have the same bits when steps are launched as CUDA graphs.
fn check(model: &str, optimizer: &str, ranks: u32, strategy: &str) {
    check_in((DType::F32, 1e-5), model, optimizer, ranks, strategy);
}

/// Part of a loss in bf16 that GPUs and CPU ranks may be apart.
const BF16_BAND: f64 = 5e-3;

/// The same for an element type, within a part of the losses.
fn check_in((compute, band): (DType, f64), model: &str, optimizer: &str, ranks: u32, strategy: &str) {
    let Some(libraries) = libraries() else { return };
    let fixture = Fixture::open(model);
    let order = Order { fixture: &fixture, dialect: "keep20", optimizer, ranks, strategy, compute };
    let module = order.compile_for("cuda").expect("the pins can be met").module;
    let options = RunOptions { steps: N_STEPS, timeout: Duration::from_secs(60), ..RunOptions::default() };
    let data = fixture.data();
    let mut cpu = Vec::new();
    let ran = galvatron_backends::run(&module, &options, data, &order.weights(), &mut |step| {
        cpu.push(step.loss);
        Flow::Continue
    });
    ran.expect("the plan runs on CPU ranks");
    let on_gpus = |graphs| {
        let settings = Settings { arena_bytes: arena_bytes(&module), timeout: options.timeout, graphs, tf32: false };
        let gpus = world(libraries, ranks as usize, &settings).expect("the GPUs open");
        let mut losses = Vec::new();
        let ran = launch(&module, gpus, &options, (data, &order.weights()), &mut |step| {
            losses.push(step.loss);
            Flow::Continue
        });
        assert_eq!(ran.expect("the plan runs on GPUs").remarks, [], "steps can be captured");
        losses
    };
    let gpu = on_gpus(false);
    for (step, (c, g)) in cpu.iter().zip(&gpu).enumerate() {
        assert!((c - g).abs() <= band * c.abs().max(1.0), "step {}: {g} on GPUs, {c} on CPU ranks", step + 1);
    }
    let replayed = on_gpus(true);
    if ranks == 1 {
        assert_eq!(gpu, replayed, "CUDA graphs change nothing");
    }
    // NCCL may choose other ways through a graph, which add in another order.
    for (step, (g, r)) in gpu.iter().zip(&replayed).enumerate() {
        assert!((g - r).abs() <= band * g.abs().max(1.0), "step {}: {r} by a graph, {g} node by node", step + 1);
    }
}

#[test]
fn one_gpu_trains_like_the_cpu() {
    for optimizer in ["sgd", "sgd_momentum", "adamw"] {
        check("gpt2", optimizer, 1, "");
        check("mlp", optimizer, 1, "");
    }
}

#[test]
fn one_gpu_trains_in_bf16_like_the_cpu() {
    for optimizer in ["sgd", "adamw"] {
        check_in((DType::Bf16, BF16_BAND), "gpt2", optimizer, 1, "");
        check_in((DType::Bf16, BF16_BAND), "mlp", optimizer, 1, "");
    }
}

/// On one GPU this needs NCCL 2.30 and `NCCL_MULTI_RANK_GPU_ENABLE=1`.
#[test]
fn several_ranks_train_like_the_cpu() {
    if std::env::var_os("GALVATRON_GPU_RANKS").is_none() {
        eprintln!("SKIPPED: GALVATRON_GPU_RANKS is not set, nothing ran on several ranks");
        return;
    }
    check("gpt2", "adamw", 2, "dp = 2\nzero = 3");
    check("gpt2", "adamw", 4, "dp = 2\ntp = 2\nzero = 3\nrecompute = \"full\"\nmicro_batches = 2");
    check_in((DType::Bf16, BF16_BAND), "gpt2", "adamw", 2, "tp = 2");
    check_in((DType::Bf16, BF16_BAND), "gpt2", "adamw", 4, "dp = 2\ntp = 2\nzero = 3\nmicro_batches = 2");
}

conformance_tests!(device);
