//! Times planning: compiles a model twice, prints the time of each pass, the plan's figures and the digest of its text.
//!
//! `cargo run --release --example planning -- MODEL CLUSTER.toml [BATCH] [SEQUENCE]`
//!
//! `growth CONFIG.json CLUSTER.toml` in their place plans a model on more and more devices, with more and more layers, and with less and
//! less memory.

mod growth;

use galvatron::config::{cluster::parse_cluster, train::parse_recipe};
use galvatron::diagnostics::render_all;
use galvatron::driver::{Compilation, CompileFault, Compiled, compile};
use galvatron::report::no_plan_message;
use galvatron_ir::Diagnostic;
use galvatron_ir::cluster::Cluster;
use galvatron_ir::recipe::Recipe;
use galvatron_passes::search::Pins;
use sha2::Digest;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str =
    "usage: planning MODEL CLUSTER.toml [BATCH] [SEQUENCE]\n       planning growth CONFIG.json CLUSTER.toml";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<(), String> {
    if let [word, config, cluster] = args
        && word == "growth"
    {
        return growth::run(Path::new(config), Path::new(cluster));
    }
    let [model, cluster, rest @ ..] = args else { return Err(USAGE.into()) };
    let text = std::fs::read_to_string(cluster).map_err(|e| format!("cannot read `{cluster}`: {e}"))?;
    let cluster = parse_cluster(&text).map_err(|faults| rendered(&faults))?;
    let keys = ["batch.global", "batch.sequence"];
    let overrides: Vec<String> = keys.iter().zip(rest).map(|(key, value)| format!("{key}={value}")).collect();
    let recipe = parse_recipe("", &overrides).map_err(|faults| rendered(&faults))?;
    let (first, took) = plan(Path::new(model), &cluster, &recipe)?;
    print_passes(&first, took);
    print_plan(&first);
    let (second, took) = plan(Path::new(model), &cluster, &recipe)?;
    println!("{:<22} {:>9.2} ms", "again", took.as_secs_f64() * 1e3);
    let digests = [digest(&first), digest(&second)];
    println!("sha256 of the plan: {}", digests[0]);
    if digests[0] == digests[1] { Ok(()) } else { Err(format!("the second plan differs: {}", digests[1])) }
}

fn plan(model: &Path, cluster: &Cluster, recipe: &Recipe) -> Result<(Compiled, Duration), String> {
    let (start, pins) = (Instant::now(), Pins::default());
    let compiled = compile(&compilation(model, cluster, recipe, &pins), &mut |_, _| {}).map_err(spelled)?;
    Ok((compiled, start.elapsed()))
}

/// A compilation by the data sheet alone.
fn compilation<'a>(model: &'a Path, cluster: &'a Cluster, recipe: &'a Recipe, pins: &'a Pins) -> Compilation<'a> {
    Compilation { model, cluster, recipe, pins, profile: None, retie: true, stop_after: None, verify_each: false }
}

fn spelled(fault: CompileFault) -> String {
    match fault {
        CompileFault::Input(faults) => rendered(&faults),
        CompileFault::NoPlan { stages, .. } => no_plan_message(&stages),
        CompileFault::Bug(fault) => rendered(&[fault]),
    }
}

fn print_passes(compiled: &Compiled, took: Duration) {
    for (pass, time) in &compiled.times {
        println!("{pass:<22} {:>9.2} ms", time.as_secs_f64() * 1e3);
    }
    println!("{:<22} {:>9.2} ms", "all", took.as_secs_f64() * 1e3);
}

fn print_plan(compiled: &Compiled) {
    let Some(found) = &compiled.found else { return };
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    println!("strategy: {}", found.decision.name());
    println!("step time: {:.3} s (surrogate {:.3} s)", seconds(found.cost.step_ns), seconds(found.surrogate_ns));
    println!("optimality gap: {:.4} %", found.plan.predicted.gap_ppm as f64 / 1e4);
    println!("peak a rank: {:.3} GiB", gib(found.plan.peak_bytes()));
    println!("searched: {:?}", found.effort);
}

fn seconds(ns: u64) -> f64 {
    ns as f64 * 1e-9
}

fn digest(compiled: &Compiled) -> String {
    let text = galvatron_ir::text::print(&compiled.module);
    sha2::Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

fn rendered(faults: &[Diagnostic]) -> String {
    render_all(faults, None)
}
