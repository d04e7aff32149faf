//! `galvatronc explain`, `diff`, `whatif` and `sweep`: questions about plans.

use super::compile::{Format, fault_status, parse, read_measured, read_pins};
use super::{OK, complain, shown};
use crate::analysis::{cluster_of, diff, explain, lengths, sweep, whatif};
use crate::config::cluster::{self, KEYS, to_toml};
use crate::config::train;
use crate::driver::{Compilation, Training, compile};
use crate::runner::read_plan;
use clap::Args;
use galvatron_ir::cluster::Cluster;
use galvatron_ir::module::Weight;
use galvatron_ir::profile::Profile;
use galvatron_ir::recipe::Recipe;
use galvatron_ir::types::DType;
use galvatron_ir::{Diagnostic, Level, Module};
use galvatron_passes::recognize::recognize;
use galvatron_passes::search::Pins;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The machine that a question is about.
#[derive(Args, Debug)]
pub struct Machine {
    /// The machine: hw.toml; without it the one that the plan was compiled for.
    #[arg(long, value_name = "HW.toml")]
    pub cluster: Option<PathBuf>,
    /// What was measured on it.
    #[arg(long, value_name = "PROFILE.json|DIR")]
    pub profile: Option<PathBuf>,
    /// Decisions that the search may not change.
    #[arg(long, value_name = "STRATEGY.toml")]
    pub strategy: Option<PathBuf>,
    /// Form of the answer.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// What `explain` is asked.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// The plan.
    pub plan: PathBuf,
    /// The machine.
    #[command(flatten)]
    pub machine: Machine,
}

/// What `diff` is asked.
#[derive(Args, Debug)]
pub struct DiffArgs {
    /// A plan.
    pub a: PathBuf,
    /// Another one.
    pub b: PathBuf,
    /// Form of the answer.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// What `whatif` is asked.
#[derive(Args, Debug)]
pub struct WhatIfArgs {
    /// The plan.
    pub plan: PathBuf,
    /// The machine that is supposed.
    #[command(flatten)]
    pub machine: Machine,
    /// Supposes another value of a key of hw.toml, or, with `--model`, of train.toml.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// The model, for settings that make another program of it.
    #[arg(long, value_name = "MODEL")]
    pub model: Option<PathBuf>,
    /// How the model is trained, with `--model`.
    #[arg(long, value_name = "TRAIN.toml", requires = "model")]
    pub train: Option<PathBuf>,
    /// Only prices the same strategy, in a fraction of the time: nothing is planned anew.
    #[arg(long)]
    pub same_strategy: bool,
}

/// What `sweep` is asked.
#[derive(Args, Debug)]
pub struct SweepArgs {
    /// The model.
    pub model: PathBuf,
    /// The machine; its outermost level takes more or fewer members.
    #[command(flatten)]
    pub machine: Machine,
    /// Numbers of devices.
    #[arg(long, value_name = "N,…", value_delimiter = ',', required_unless_present = "sequences")]
    pub devices: Vec<u32>,
    /// Lengths of the sequences, on the machine as it is.
    #[arg(long, value_name = "TOKENS,…", value_delimiter = ',', conflicts_with = "devices")]
    pub sequences: Vec<u64>,
    /// What a device costs an hour.
    #[arg(long, value_name = "PRICE", value_parser = price)]
    pub price: Option<f64>,
    /// How the model is trained: train.toml.
    #[arg(long, value_name = "TRAIN.toml")]
    pub train: Option<PathBuf>,
    /// Sets one key of train.toml.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Keeps weights apart that hold the same elements.
    #[arg(long)]
    pub no_retie: bool,
}

fn price(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "expected a number".to_string())?;
    if value.is_finite() && value >= 0.0 { Ok(value) } else { Err("expected a number that is not negative".into()) }
}

/// Answers, and returns the exit status.
pub fn explain(args: &ExplainArgs) -> i32 {
    done((|| {
        let plan = plan(&args.plan)?;
        let given = args.machine.cluster.as_deref().map(|path| parse(path, cluster::parse_cluster)).transpose()?;
        let cluster = cluster_of(&plan, given).map_err(fault)?;
        let compute = Training::of(&plan).map_err(fault)?.compute();
        let (profile, pins) = searched_with(&args.machine, &cluster, compute)?;
        let inputs = explain::Inputs { cluster: &cluster, profile: profile.as_ref(), pins: &pins };
        let answer = explain::Explanation::new(&plan, &inputs).map_err(fault_status)?;
        Ok(show(args.machine.format, || answer.text(), || answer.json()))
    })())
}

/// Answers, and returns the exit status.
pub fn diff(args: &DiffArgs) -> i32 {
    done((|| {
        let (a, b) = (plan(&args.a)?, plan(&args.b)?);
        let names = [shown(&args.a), shown(&args.b)];
        let names = [names[0].as_str(), names[1].as_str()];
        let answer = diff::Diff::new(&a, &b);
        Ok(show(args.format, || answer.text(names), || answer.json(names)))
    })())
}

/// Answers, and returns the exit status.
pub fn whatif(args: &WhatIfArgs) -> i32 {
    done((|| {
        let plan = plan(&args.plan)?;
        let is_of_cluster = |set: &&String| KEYS.contains(&set.split(['.', '=']).next().unwrap_or("").trim());
        let (of_cluster, of_training): (Vec<String>, Vec<String>) =
            args.set.iter().cloned().partition(|set| is_of_cluster(&set));
        let cluster = supposed_cluster(args, &plan, &of_cluster)?;
        let training = supposed_training(args, &plan, &of_training, &cluster)?;
        let own = Training::of(&plan).map_err(fault)?;
        let compute = training.as_ref().unwrap_or(&own).compute();
        let (profile, pins) = searched_with(&args.machine, &cluster, compute)?;
        let (profile, training) = (profile.as_ref(), training.as_ref());
        let pins = (!args.same_strategy).then_some(&pins);
        let inputs = whatif::Inputs { cluster: &cluster, profile, training, pins };
        let answer = whatif::WhatIf::new(&plan, &inputs).map_err(fault_status)?;
        Ok(show(args.machine.format, || answer.text(), || answer.json()))
    })())
}

/// Answers, and returns the exit status.
pub fn sweep(args: &SweepArgs) -> i32 {
    done((|| {
        let Some(path) = &args.machine.cluster else {
            let missing = Diagnostic::new("usage", "no cluster");
            return Err(fault(missing.help("name the machine whose size is changed with `--cluster HW.toml`")));
        };
        let cluster = parse(path, cluster::parse_cluster)?;
        let recipe = recipe(args.train.as_deref(), &args.set)?;
        let (profile, pins) = searched_with(&args.machine, &cluster, recipe.compute)?;
        if !args.sequences.is_empty() {
            let programs = programs(args, &cluster, &pins)?;
            let answer = lengths::Lengths::new(&programs, &cluster, profile.as_ref(), &pins);
            return Ok(show(args.machine.format, || answer.text(), || answer.json()));
        }
        let training = trained((&args.model, &pins), &recipe, &cluster, !args.no_retie)?;
        let (profile, devices) = (profile.as_ref(), &args.devices[..]);
        let inputs = sweep::Inputs { cluster: &cluster, profile, pins: &pins, devices, price: args.price };
        let answer = sweep::Sweep::new(&training, &inputs);
        Ok(show(args.machine.format, || answer.text(), || answer.json()))
    })())
}

/// The training program for each length of the sequences.
fn programs(args: &SweepArgs, cluster: &Cluster, pins: &Pins) -> Result<Vec<(u64, Training)>, i32> {
    let program = |&sequence: &u64| {
        let sets = [&args.set[..], &[format!("batch.sequence={sequence}")]].concat();
        let recipe = recipe(args.train.as_deref(), &sets)?;
        let training = trained((&args.model, pins), &recipe, cluster, !args.no_retie)?;
        match training.module.train.as_ref().map_or(0, |train| train.sequence) {
            own if own == sequence => Ok((sequence, training)),
            0 => Err(fault(Diagnostic::new("batch", "the model reads no sequences").help("use `--devices`"))),
            own => {
                let message = format!("the model has sequences of {own}, not of {sequence}");
                Err(fault(Diagnostic::new("batch", message).help("export it with an open length of sequences")))
            }
        }
    };
    args.sequences.iter().map(program).collect()
}

/// An exit status, whatever became of it.
fn done(outcome: Result<i32, i32>) -> i32 {
    outcome.unwrap_or_else(|status| status)
}

fn fault(fault: Diagnostic) -> i32 {
    complain(&[fault], None)
}

fn show(format: Format, text: impl Fn() -> String, json: impl Fn() -> Value) -> i32 {
    match format {
        Format::Text => print!("{}", text()),
        Format::Json => println!("{}", json()),
    }
    OK
}

/// A sound module at level `plan`.
fn plan(path: &Path) -> Result<Module, i32> {
    let (module, _) = read_plan(path).map_err(|(faults, text)| complain(&faults, Some((&shown(path), &text))))?;
    match module.level {
        Level::Plan => Ok(module),
        level => {
            let message = format!("`{}` is a module at level `{}`, not a plan", shown(path), level.name());
            Err(fault(Diagnostic::new("no-plan-file", message).help("name what `galvatronc -o` wrote")))
        }
    }
}

/// What was measured, and what is pinned.
fn searched_with(machine: &Machine, cluster: &Cluster, compute: DType) -> Result<(Option<Profile>, Pins), i32> {
    let recipe = Recipe { compute, ..Recipe::default() };
    let profile = read_measured(machine.profile.as_deref(), cluster, &recipe)?;
    Ok((profile, read_pins(machine.strategy.as_deref())?))
}

/// The cluster of a file, or of the plan, with some keys changed.
fn supposed_cluster(args: &WhatIfArgs, plan: &Module, sets: &[String]) -> Result<Cluster, i32> {
    match &args.machine.cluster {
        Some(path) => parse(path, |text| cluster::parse_cluster_with(text, sets)),
        None if sets.is_empty() => cluster_of(plan, None).map_err(fault),
        None => {
            let own = cluster_of(plan, None).map_err(fault)?;
            cluster::parse_cluster_with(&to_toml(&own), sets).map_err(|faults| complain(&faults, None))
        }
    }
}

/// The training program under other settings, if any are supposed.
fn supposed_training(
    args: &WhatIfArgs,
    plan: &Module,
    sets: &[String],
    cluster: &Cluster,
) -> Result<Option<Training>, i32> {
    let Some(model) = &args.model else {
        return match sets.first() {
            None => Ok(None),
            Some(set) => {
                let message =
                    format!("`{set}` is no key of hw.toml, and a plan does not hold the settings of train.toml");
                Err(fault(
                    Diagnostic::new("usage", message)
                        .help("add `--model MODEL`, from which the program is built again"),
                ))
            }
        };
    };
    let own = Training::of(plan).map_err(fault)?;
    let mut all = Vec::new();
    if let (Some(train), None) = (&plan.train, &args.train) {
        all.push(format!("batch.global={}", train.global_batch));
        all.extend((train.sequence > 0).then(|| format!("batch.sequence={}", train.sequence)));
        all.push(format!("precision.compute={}", own.compute()));
    }
    all.extend_from_slice(sets);
    // A padded plan is asked about with the padding that its degrees need.
    let is_padded = plan.program.weights.iter().any(Weight::is_padded);
    let pins = match &args.machine.strategy {
        None if is_padded => recognize(plan, &own.segments).pins(&own.segments),
        strategy => read_pins(strategy.as_deref())?,
    };
    trained((model, &pins), &recipe(args.train.as_deref(), &all)?, cluster, true).map(Some)
}

fn recipe(path: Option<&Path>, sets: &[String]) -> Result<Recipe, i32> {
    match path {
        Some(path) => parse(path, |text| train::parse_recipe(text, sets)),
        None => train::parse_recipe("", sets).map_err(|faults| complain(&faults, None)),
    }
}

/// The training program of a model, padded as the pins ask for.
fn trained((model, pins): (&Path, &Pins), recipe: &Recipe, cluster: &Cluster, retie: bool) -> Result<Training, i32> {
    let what = Compilation {
        model,
        cluster,
        recipe,
        pins,
        profile: None,
        retie,
        stop_after: Some("attach-optimizer"),
        verify_each: cfg!(debug_assertions),
    };
    let compiled = compile(&what, &mut |_, _| {}).map_err(fault_status)?;
    compiled.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    Ok(Training { module: compiled.module, segments: compiled.segments })
}
