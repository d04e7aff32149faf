//! Plans a small GPT-2 for four CPU ranks, prints the plan as a table, and trains it on a small corpus.
//!
//! `QUICKSTART_STEPS` sets the number of steps, 200 unless given.

use galvatron::config::{cluster::parse_cluster, train::parse_recipe};
use galvatron::diagnostics::render_all;
use galvatron::driver::{Compilation, CompileFault, Compiled, compile};
use galvatron::report::{Report, no_plan_message};
use galvatron::runner::{Outputs, PlanData, TrainFault, train};
use galvatron::weights::RandomWeights;
use galvatron_backends::exec::RunOptions;
use galvatron_ir::Diagnostic;
use galvatron_ir::cluster::Cluster;
use galvatron_ir::recipe::Recipe;
use galvatron_passes::search::Pins;
use std::path::PathBuf;
use std::process::ExitCode;

const STEPS: u64 = 200;

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
    let steps = match std::env::var("QUICKSTART_STEPS") {
        Ok(text) => text.parse().map_err(|_| format!("QUICKSTART_STEPS={text} is no number of steps"))?,
        Err(_) => STEPS,
    };
    let text = read("examples/clusters/cpu-4.toml")?;
    let cluster = parse_cluster(&text).map_err(|faults| rendered(&faults))?;
    let recipe = parse_recipe(&read("examples/quickstart/train.toml")?, &[]).map_err(|faults| rendered(&faults))?;
    let compiled = plan(&cluster, &recipe)?;
    train_plan(&compiled, &recipe, steps)
}

/// Plans the training and prints the table.
fn plan(cluster: &Cluster, recipe: &Recipe) -> Result<Compiled, String> {
    let model = path("examples/quickstart/gpt2_char.onnx");
    let pins = Pins::default();
    let what = Compilation {
        model: &model,
        cluster,
        recipe,
        pins: &pins,
        profile: None,
        retie: true,
        stop_after: None,
        verify_each: false,
    };
    let compiled = compile(&what, &mut |_, _| {}).map_err(|fault| match fault {
        CompileFault::Input(faults) => rendered(&faults),
        CompileFault::NoPlan { stages, .. } => no_plan_message(&stages),
        CompileFault::Bug(fault) => rendered(&[fault]),
    })?;
    let found = compiled.found.as_ref().expect("invariant: a whole compilation searches");
    print!("{}", Report::new(found, &compiled.segments, cluster, &compiled.times).text(false));
    Ok(compiled)
}

/// Trains the plan from random weights; says how the mean loss of the last tenth of the steps compares with the first loss.
fn train_plan(compiled: &Compiled, recipe: &Recipe, steps: u64) -> Result<(), String> {
    let module = &compiled.module;
    let data = PlanData::open(&path("examples/quickstart/corpus.bin"), module).map_err(|faults| rendered(&faults))?;
    let weights = RandomWeights { seed: recipe.seed };
    let options = RunOptions { steps, ..RunOptions::default() };
    let every = (steps / 10).max(1);
    let mut losses = Vec::new();
    train(module, &options, (&data, &weights), None, &Outputs::default(), &mut |record| {
        losses.push(record.loss);
        if record.step == 1 || record.step.is_multiple_of(every) {
            println!("step {:>4}  loss {:.4}  {:>7.0} tokens/s", record.step, record.loss, record.tokens_per_s);
        }
    })
    .map_err(|fault| match fault {
        TrainFault::Input(faults) => rendered(&faults),
        TrainFault::Run(fault) => fault.to_string(),
        TrainFault::Write(path, e) => format!("cannot write `{}`: {e}", path.display()),
    })?;
    summary(&losses, every as usize)
}

fn summary(losses: &[f64], tail: usize) -> Result<(), String> {
    let (first, last) = (losses[0], &losses[losses.len() - tail..]);
    let mean = last.iter().sum::<f64>() / last.len() as f64;
    println!("the loss fell from {first:.4} to {mean:.4} (mean of the last {tail} steps)");
    if mean < first { Ok(()) } else { Err("the loss did not fall".into()) }
}

/// A file of this repository.
fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file)
}

fn read(file: &str) -> Result<String, String> {
    std::fs::read_to_string(path(file)).map_err(|e| format!("cannot read `{file}`: {e}"))
}

fn rendered(faults: &[Diagnostic]) -> String {
    render_all(faults, None)
}
