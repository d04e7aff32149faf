//! Times training steps of a small GPT-2 on CPU ranks, next to the speed of a matrix product and, where it is installed, PyTorch.
//!
//! `cargo run --release --example step_time`. `STEP_TIME_STEPS` sets the number of measured steps, 10 unless given;
//! `STEP_TIME_MODES` names some of the modes. PyTorch is looked for in `GALVATRON_TORCH_PYTHON`, else in `python3`.

mod model;
mod profile;
mod torch;

use galvatron::config::{cluster::parse_cluster, strategy::parse_strategy};
use galvatron::diagnostics::render_all;
use galvatron::driver::pins_of;
use galvatron::weights::RandomWeights;
use galvatron_backends::cpu::kernels::einsum::{self, EinsumDims, EinsumPlan};
use galvatron_backends::cpu::threads::Threads;
use galvatron_backends::exec::{DataSource, Flow, RunOptions, RunReport};
use galvatron_ir::{Diagnostic, Module};
use galvatron_passes::apply::apply;
use galvatron_passes::cost::CostModel;
use galvatron_passes::rules::Rules;
use galvatron_passes::search::search;
use model::SIZE;
use std::process::ExitCode;
use std::time::Instant;

/// Steps before the measured ones.
const WARMUP: u64 = 2;

/// A way to run the model.
struct Mode {
    /// What the tables and the PyTorch script call it.
    name: &'static str,
    ranks: u32,
    /// Threads of all ranks together.
    threads: usize,
    /// Text of `strategy.toml`.
    strategy: &'static str,
}

const MODES: [Mode; 5] = [
    Mode { name: "single1", ranks: 1, threads: 1, strategy: "" },
    Mode { name: "single2", ranks: 1, threads: 2, strategy: "" },
    Mode { name: "dp", ranks: 2, threads: 2, strategy: "dp = 2\nzero = 0\nmicro_batches = 1" },
    Mode { name: "zero3", ranks: 2, threads: 2, strategy: "dp = 2\nzero = 3\nmicro_batches = 1" },
    Mode { name: "tp", ranks: 2, threads: 2, strategy: "tp = 2\nmicro_batches = 1" },
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let steps = match std::env::var("STEP_TIME_STEPS") {
        Ok(text) => text.parse().map_err(|_| format!("STEP_TIME_STEPS={text} is no number of steps"))?,
        Err(_) => 10,
    };
    let peak = gemm_peak();
    println!("matrix product 1024x768x768 on one thread: {peak:.1} GFLOP/s");
    let torch = torch::Torch::find();
    let wanted = std::env::var("STEP_TIME_MODES").unwrap_or_default();
    for mode in MODES.iter().filter(|mode| wanted.is_empty() || wanted.split(',').any(|name| name == mode.name)) {
        let plan = plan(mode)?;
        let (times, report) = train(&plan, mode, steps)?;
        println!("\n{}: {times} a step", mode.name);
        let speed = |ms: f64| profile::model_flops(&plan) as f64 / ms / 1e6;
        let share = |ms: f64| 100.0 * speed(ms) / (peak * mode.threads as f64);
        let (median, fastest) = (times.median, times.fastest);
        println!("  {:.1} GFLOP/s, {:.1} % of the product's speed", speed(median), share(median));
        println!("  fastest step: {:.1} GFLOP/s, {:.1} % of the product's speed", speed(fastest), share(fastest));
        if let Some(theirs) = torch.as_ref().and_then(|torch| torch.step_times(mode.name, steps)) {
            let (slower, at_best) = (median / theirs.median, fastest / theirs.fastest);
            println!("  PyTorch: {theirs} a step; ours takes {slower:.2} times as long, fastest {at_best:.2} times");
        }
        print!("{}", profile::table(&plan, &report.trace, WARMUP));
    }
    Ok(())
}

/// Milliseconds of a step: on a machine that others use, the fastest says more than the median.
struct Times {
    median: f64,
    fastest: f64,
}

impl Times {
    /// Of at least one step.
    fn new(mut ms: Vec<f64>) -> Option<Times> {
        ms.sort_by(f64::total_cmp);
        Some(Times { median: *ms.get(ms.len() / 2)?, fastest: *ms.first()? })
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} ms (fastest {:.1})", self.median, self.fastest)
    }
}

/// GFLOP/s of one thread in a product as large as a layer's: the best of several runs.
fn gemm_peak() -> f64 {
    let size = |label: u8| if label == b'm' { 1024 } else { 768 };
    let dims = EinsumDims { lhs: b"mk".into(), rhs: b"kn".into(), out: b"mn".into(), size };
    let plan = EinsumPlan::new(&dims).expect("invariant: it is a matrix product");
    let (a, b, mut c) = (vec![0.5; 1024 * 768], vec![0.25; 768 * 768], vec![0.0; 1024 * 768]);
    let mut best = f64::INFINITY;
    for _ in 0..20 {
        let start = Instant::now();
        einsum::run(&plan, &a, &b, &mut c, false, Threads::ONE);
        best = best.min(start.elapsed().as_secs_f64());
    }
    plan.flops() as f64 / best / 1e9
}

/// Plans the training of the model.
fn plan(mode: &Mode) -> Result<Module, String> {
    let cluster = parse_cluster(&cluster(mode.ranks)).map_err(|faults| rendered(&faults))?;
    let pins = parse_strategy(mode.strategy).and_then(|file| pins_of(&file)).map_err(|faults| rendered(&faults))?;
    let (mut module, segments) = model::training(&cluster)?;
    let found = search(&module, &segments, &CostModel::analytic(&cluster), &pins)
        .map_err(|fault| format!("{}: no plan: {fault:?}", mode.name))?;
    module.mesh = found.plan.mesh.clone();
    let rules = Rules::of(&module.program);
    apply(&mut module, &found.strategy, &rules);
    Ok(module)
}

fn cluster(ranks: u32) -> String {
    format!(
        "nodes = 1\ndevices_per_node = {ranks}\n\
         [device]\nkind = \"cpu\"\nmemory_gib = 8.0\npeak_tflops = {{ f32 = 0.1 }}\nmemory_bandwidth_gbps = 10.0\n\
         [links.intra_node]\nbandwidth_gbps = 4.0\nlatency_us = 10.0\n"
    )
}

/// Trains; returns what a step took, and the report.
fn train(plan: &Module, mode: &Mode, steps: u64) -> Result<(Times, RunReport), String> {
    let options =
        RunOptions { steps: WARMUP + steps, threads: Some(mode.threads), trace: true, ..RunOptions::default() };
    let mut times = Vec::new();
    let report = galvatron_backends::run(plan, &options, &Tokens, &RandomWeights { seed: 0 }, &mut |step| {
        times.push(step.step_time_s * 1e3);
        Flow::Continue
    })
    .map_err(|fault| format!("{}: {fault}", mode.name))?;
    let times = Times::new(times.split_off(WARMUP as usize)).ok_or("no step is measured")?;
    Ok((times, report))
}

/// The same few samples again and again.
struct Tokens;

impl DataSource for Tokens {
    fn sample_bytes(&self, _: &str) -> Option<u64> {
        Some(SIZE.seq * size_of::<i64>() as u64)
    }

    fn fill(&self, input: &str, sample: u64, out: &mut [u8]) -> Result<(), String> {
        let shift = u64::from(input == "labels");
        for (i, out) in out.chunks_exact_mut(size_of::<i64>()).enumerate() {
            let place = sample % SIZE.batch * (SIZE.seq + 1) + i as u64 + shift;
            let token = place.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
            out.copy_from_slice(&((token % SIZE.vocab) as i64).to_ne_bytes());
        }
        Ok(())
    }
}

fn rendered(faults: &[Diagnostic]) -> String {
    render_all(faults, None)
}
