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
use galvatron_backends::comm::{Collective, Site};
use galvatron_backends::cuda::{Settings, probe, world};
use galvatron_backends::device::{Device, Exchange, ExchangeKind, Span};
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

/// Whether several ranks are asked for; on one GPU they need NCCL 2.30 and `NCCL_MULTI_RANK_GPU_ENABLE=1`.
fn several_ranks() -> Option<()> {
    let asked = std::env::var_os("GALVATRON_GPU_RANKS");
    if asked.is_none() {
        eprintln!("SKIPPED: GALVATRON_GPU_RANKS is not set, nothing ran on several ranks");
    }
    asked.map(|_| ())
}

#[test]
fn several_ranks_train_like_the_cpu() {
    if several_ranks().is_none() {
        return;
    }
    check("gpt2", "adamw", 2, "dp = 2\nzero = 3");
    check("gpt2", "adamw", 4, "dp = 2\ntp = 2\nzero = 3\nrecompute = \"full\"\nmicro_batches = 2");
    check_in((DType::Bf16, BF16_BAND), "gpt2", "adamw", 2, "tp = 2");
    check_in((DType::Bf16, BF16_BAND), "gpt2", "adamw", 4, "dp = 2\ntp = 2\nzero = 3\nmicro_batches = 2");
}

/// Bytes of an exchange whose bandwidth is measured.
const EXCHANGED: u64 = 64 << 20;

/// Exchanges that are measured together, after one more to warm up.
const EXCHANGES: u32 = 10;

/// Seconds of an exchange of `bytes` on one rank.
fn exchange_seconds(
    (device, mut comm): (Box<dyn Device>, Box<dyn Collective>),
    kind: ExchangeKind,
    n_ranks: usize,
) -> f64 {
    let (site, mut seconds) = (Site { node: "measured", step: 1 }, 0.0);
    device.install(&mut || {
        let group = comm.group(&(0..n_ranks).collect::<Vec<usize>>());
        let exchange = Exchange { group, kind };
        let mut run = |n| {
            (0..n).for_each(|_| device.exchange(&mut *comm, &exchange, &site).expect("the ranks exchange"));
            device.finish().expect("the exchanges end");
        };
        run(2);
        let start = std::time::Instant::now();
        run(EXCHANGES);
        seconds = start.elapsed().as_secs_f64() / f64::from(EXCHANGES);
    });
    seconds
}

/// Prints the bus bandwidth of each collective, as NVIDIA's nccl-tests define it: what a link carries, whatever the number of
/// ranks. Ranks on one GPU exchange through its own memory.
#[test]
fn bandwidth_between_ranks() {
    let Some(libraries) = several_ranks().and_then(|()| libraries()) else { return };
    for n_ranks in [2usize, 4] {
        let (whole, part) = (Span { offset: 0, bytes: EXCHANGED }, EXCHANGED / n_ranks as u64);
        let (output, input) = (Span { offset: EXCHANGED, bytes: part }, Span { offset: EXCHANGED, bytes: EXCHANGED });
        let n = n_ranks as f64;
        let kinds = [
            ("all_reduce", ExchangeKind::AllReduce(whole), 2.0 * (n - 1.0) / n),
            ("all_gather", ExchangeKind::AllGather { input: output, output: whole }, (n - 1.0) / n),
            ("reduce_scatter", ExchangeKind::ReduceScatter { input: whole, output }, (n - 1.0) / n),
            ("all_to_all", ExchangeKind::AllToAll { input: whole, output: input }, (n - 1.0) / n),
        ];
        for (name, kind, share) in kinds {
            let timeout = Duration::from_secs(60);
            let settings = Settings { arena_bytes: 2 * EXCHANGED, timeout, graphs: false, tf32: false };
            let ranks = world(libraries, n_ranks, &settings).expect("the GPUs open");
            let seconds = std::thread::scope(|scope| {
                let threads: Vec<_> =
                    ranks.into_iter().map(|rank| scope.spawn(move || exchange_seconds(rank, kind, n_ranks))).collect();
                threads.into_iter().map(|thread| thread.join().expect("the rank ends")).fold(0.0, f64::max)
            });
            let gb = EXCHANGED as f64 * share / seconds / 1e9;
            println!("FIGURE {name} of 64 MiB by {n_ranks} ranks: {gb:.1} GB/s bus bandwidth, {:.3} ms", 1e3 * seconds);
        }
    }
}

conformance_tests!(device);
