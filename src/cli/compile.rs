//! `galvatronc`: plans the training of a model.

use super::analysis::{self, DiffArgs, ExplainArgs, SweepArgs, WhatIfArgs};
use super::{BAD_INPUT, BUG, NO_PLAN, OK, complain, read_text, shown};
use crate::config::profile::{self, FileFaults, read_profile};
use crate::config::{cluster, strategy, train};
use crate::driver::{Compilation, CompileFault, Compiled, compile, pins_of, strategy_file};
use crate::driver::{galvatron_config, is_galvatron_config, pins_for_galvatron};
use crate::report;
use clap::{Args, Parser, Subcommand};
use galvatron_ir::cluster::Cluster;
use galvatron_ir::headroom::StageMemory;
use galvatron_ir::profile::Profile;
use galvatron_ir::recipe::Recipe;
use galvatron_ir::{Checked, Diagnostic, Level, Module};
use galvatron_passes::hetu::Release;
use galvatron_passes::manager::check_name;
use galvatron_passes::search::{Pins, set_threads};
use std::num::NonZero;
use std::path::{Path, PathBuf};

/// Plans the training of a model on a cluster.
#[derive(Parser, Debug)]
#[command(name = "galvatronc", version, args_conflicts_with_subcommands = true)]
pub struct CompilerArgs {
    /// What else than planning.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Planning.
    #[command(flatten)]
    pub compile: CompileArgs,
}

/// Form of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// Commands on plans.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Says why a plan is as it is: what each group of layers does, what it could do instead, what memory is worth.
    Explain(ExplainArgs),
    /// Compares two plans: strategies, stages, memory, times, bytes sent.
    Diff(DiffArgs),
    /// Prices a plan under another machine or other settings, and plans anew beside it.
    Whatif(WhatIfArgs),
    /// Plans a model for several sizes of a cluster.
    Sweep(SweepArgs),
    /// Checks a plan, or a module at any level.
    Verify {
        /// The file.
        plan: PathBuf,
    },
    /// Prints a module in the standard form.
    Fmt {
        /// The file.
        file: PathBuf,
        /// Rewrites the file instead.
        #[arg(long)]
        in_place: bool,
    },
}

/// Releases of Galvatron whose formulas are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum GalvatronRelease {
    /// v2.4.0.
    #[value(name = "v2.4.0")]
    V240,
    /// The main branch of June 2026.
    Main,
}

impl GalvatronRelease {
    fn formulas(self) -> Release {
        match self {
            GalvatronRelease::V240 => Release::V240,
            GalvatronRelease::Main => Release::Main,
        }
    }
}

/// Flags of planning.
#[derive(Args, Debug)]
pub struct CompileArgs {
    /// The model: an ONNX file, or a config.json of Hugging Face or a folder that has one.
    #[arg(required = true)]
    pub model: Option<PathBuf>,
    /// The machine: hw.toml.
    #[arg(long, required = true)]
    pub cluster: Option<PathBuf>,
    /// What was measured: profile.json, or a folder of Galvatron's profiles; what it lacks is priced from the data sheet.
    #[arg(long, value_name = "PROFILE.json|DIR")]
    pub profile: Option<PathBuf>,
    /// Where the plan goes.
    #[arg(short, long, value_name = "PLAN.gir")]
    pub output: Option<PathBuf>,
    /// How the model is trained: train.toml.
    #[arg(long)]
    pub train: Option<PathBuf>,
    /// Sets one key of train.toml.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Prints the whole train.toml and exits.
    #[arg(long)]
    pub print_config: bool,
    /// Threads of the search, as many as there are cores if not given; the plan does not depend on them.
    #[arg(long)]
    pub threads: Option<NonZero<usize>>,
    /// Decisions that are fixed: strategy.toml.
    #[arg(long)]
    pub strategy: Option<PathBuf>,
    /// Plans for the runtime of this release of Galvatron: its strategies, formulas and memory rule, on the profile's measurements.
    #[arg(long, value_enum, requires = "profile", value_name = "RELEASE")]
    pub galvatron: Option<GalvatronRelease>,
    /// Keeps weights apart that hold the same elements; without it tied weights that the file stores twice are tied again.
    #[arg(long)]
    pub no_retie: bool,
    /// Writes what the search decided as a strategy.toml that gives the same plan, or as a galvatron_config*.json.
    #[arg(long, value_name = "FILE")]
    pub emit_strategy: Option<PathBuf>,
    /// Writes one step as it is expected, as a Chrome trace.
    #[arg(long, value_name = "TRACE.json")]
    pub trace: Option<PathBuf>,
    /// Prints the module after a pass, or after `all`.
    #[arg(long, value_name = "PASS|all")]
    pub print_ir_after: Option<String>,
    /// Writes the module after each pass into a folder.
    #[arg(long, value_name = "DIR")]
    pub dump_dir: Option<PathBuf>,
    /// Ends after a pass; the output is the module as it is then.
    #[arg(long, value_name = "PASS")]
    pub stop_after: Option<String>,
    /// Prints how long each pass took.
    #[arg(long)]
    pub time_passes: bool,
    /// Prints what was rejected, and why.
    #[arg(long)]
    pub explain: bool,
    /// Form of the report.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// Runs the command; returns the exit status.
pub fn main(args: &CompilerArgs) -> i32 {
    match &args.command {
        Some(Command::Explain(args)) => analysis::explain(args),
        Some(Command::Diff(args)) => analysis::diff(args),
        Some(Command::Whatif(args)) => analysis::whatif(args),
        Some(Command::Sweep(args)) => analysis::sweep(args),
        Some(Command::Verify { plan }) => super::files::verify(plan),
        Some(Command::Fmt { file, in_place }) => super::files::fmt(file, *in_place),
        None => run(&args.compile),
    }
}

/// The files of a compilation, read.
struct Inputs {
    cluster: Cluster,
    recipe: Recipe,
    pins: Pins,
    profile: Option<Profile>,
}

fn run(args: &CompileArgs) -> i32 {
    if let Some(n) = args.threads {
        set_threads(n);
    }
    let inputs = match read_inputs(args) {
        Ok(inputs) => inputs,
        Err(status) => return status,
    };
    if args.print_config {
        print!("{}", train::to_toml(&inputs.recipe));
        return OK;
    }
    let Some(model) = &args.model else { return BAD_INPUT };
    let what = Compilation {
        model,
        cluster: &inputs.cluster,
        recipe: &inputs.recipe,
        pins: &inputs.pins,
        profile: inputs.profile.as_ref(),
        retie: !args.no_retie,
        stop_after: args.stop_after.as_deref(),
        verify_each: cfg!(debug_assertions),
    };
    let pins = match for_runtime(args, &what) {
        Ok(pins) => pins,
        Err(fault) => return fault_status(fault),
    };
    let what = Compilation { pins: &pins, ..what };
    let mut dumps = Dumps { args, n_passes: 0 };
    match compile(&what, &mut |pass, module| dumps.pass(pass, module)) {
        Ok(compiled) => finish(args, &inputs, &compiled),
        Err(fault) => fault_status(fault),
    }
}

/// The pins, with what Galvatron's formulas decide for its runtime, if the plan is for that.
fn for_runtime(args: &CompileArgs, what: &Compilation<'_>) -> Result<Pins, CompileFault> {
    let Some(release) = args.galvatron else { return Ok(what.pins.clone()) };
    let (pins, price) = pins_for_galvatron(what, release.formulas())?;
    let most_mb = price.memory_mb.iter().copied().fold(0.0, f64::max);
    eprintln!(
        "note: by Galvatron's formulas {:.3} samples/s, {most_mb:.0} MB on the fullest stage",
        price.samples_per_s
    );
    Ok(pins)
}

/// Prints why a compilation failed; returns the exit status.
pub(super) fn fault_status(fault: CompileFault) -> i32 {
    match fault {
        CompileFault::Input(faults) => complain(&faults, None),
        CompileFault::NoPlan { stages, name } => no_plan(&stages, &name),
        CompileFault::Bug(fault) => {
            complain(&[fault], None);
            BUG
        }
    }
}

fn no_plan(stages: &[StageMemory], name: &str) -> i32 {
    let fault = Diagnostic::new("no-plan", report::no_plan_message(stages));
    let help = format!("the cheapest fix: {} ({name}), or more devices", report::enough_memory(stages));
    complain(&[fault.help(help)], None);
    NO_PLAN
}

fn read_inputs(args: &CompileArgs) -> Result<Inputs, i32> {
    if let Some(name) = args.print_ir_after.as_deref().filter(|n| *n != "all") {
        check_name(name).map_err(|d| complain(&[d], None))?;
    }
    let cluster = args.cluster.as_deref().map_or_else(|| Err(BAD_INPUT), |p| parse(p, cluster::parse_cluster))?;
    let recipe = match &args.train {
        Some(path) => parse(path, |text| train::parse_recipe(text, &args.set))?,
        None => train::parse_recipe("", &args.set).map_err(|faults| complain(&faults, None))?,
    };
    let pins = read_pins(args.strategy.as_deref())?;
    let profile = read_measured(args.profile.as_deref(), &cluster, &recipe)?;
    Ok(Inputs { cluster, recipe, pins, profile })
}

/// The pins of a strategy file, if there is one.
pub(super) fn read_pins(path: Option<&Path>) -> Result<Pins, i32> {
    path.map_or(Ok(Pins::default()), |path| parse(path, |text| pins_of(&strategy::parse_strategy(text)?)))
}

/// What was measured, if anything was.
pub(super) fn read_measured(path: Option<&Path>, cluster: &Cluster, recipe: &Recipe) -> Result<Option<Profile>, i32> {
    let read = |path: &Path| read_profile(path, profile::Wanted::of(cluster, recipe)).map_err(complain_of_files);
    path.map(read).transpose()
}

/// Prints the faults of several files; returns the exit status of bad input.
fn complain_of_files(files: Vec<FileFaults>) -> i32 {
    for file in &files {
        let source = (file.name.as_str(), file.text.as_str());
        complain(&file.faults, (!file.text.is_empty()).then_some(source));
    }
    BAD_INPUT
}

/// Reads a file, and prints what is wrong with it.
pub(super) fn parse<T>(path: &Path, parse: impl FnOnce(&str) -> galvatron_ir::Checked<T>) -> Result<T, i32> {
    let text = read_text(path).map_err(|d| complain(&[d], None))?;
    parse(&text).map_err(|faults| complain(&faults, Some((&shown(path), &text))))
}

/// Prints and writes modules between passes.
struct Dumps<'a> {
    args: &'a CompileArgs,
    n_passes: usize,
}

impl Dumps<'_> {
    fn pass(&mut self, pass: &str, module: &Module) {
        if self.args.print_ir_after.as_deref().is_some_and(|name| name == pass || name == "all") {
            println!("// after {pass}\n{}", galvatron_ir::text::print(module));
        }
        if let Some(folder) = &self.args.dump_dir {
            let path = folder.join(format!("{:02}-{pass}.gir", self.n_passes));
            let written =
                std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&path, galvatron_ir::text::print(module)));
            if let Err(e) = written {
                eprintln!("warning: cannot write `{}`: {e}", path.display());
            }
        }
        self.n_passes += 1;
    }
}

fn finish(args: &CompileArgs, inputs: &Inputs, compiled: &Compiled) -> i32 {
    for note in &compiled.notes {
        eprintln!("note: {note}");
    }
    for warning in &compiled.warnings {
        eprintln!("warning: {warning}");
    }
    let written = write_files(args, compiled);
    if let Some(found) = &compiled.found {
        let report = report::Report::new(found, &compiled.segments, &inputs.cluster, &compiled.times);
        let report = compiled.prices().iter().fold(report, report::Report::with_prices);
        match args.format {
            Format::Json => println!("{}", report.json()),
            Format::Text => print!("{}", report.text(args.explain)),
        }
    }
    if args.time_passes {
        for (pass, time) in &compiled.times {
            println!("{pass:<22} {:>9.2} ms", time.as_secs_f64() * 1e3);
        }
    }
    written.map_or_else(|faults| complain(&faults, None), |()| OK)
}

/// The plan and the strategy, where they were asked for.
fn write_files(args: &CompileArgs, compiled: &Compiled) -> Checked<()> {
    let write = |path: &Path, text: String| std::fs::write(path, text).map_err(|e| vec![unwritable(path, &e)]);
    if let Some(path) = &args.output {
        write(path, galvatron_ir::text::print(&compiled.module))?;
    }
    if let Some(path) = &args.trace {
        if compiled.module.level != Level::Plan {
            let fault =
                Diagnostic::new("usage", "`--trace` is about a plan, and `--stop-after` ends before there is one");
            return Err(vec![fault.help("leave one of them out")]);
        }
        super::write_trace(path, &compiled.module, &compiled.timeline()).map_err(|e| vec![unwritable(path, &e)])?;
    }
    if let (Some(path), Some(found)) = (&args.emit_strategy, &compiled.found) {
        let text = match is_galvatron_config(path) {
            true => galvatron_config(&compiled.module, found, &compiled.segments)?,
            false => strategy::to_toml(&strategy_file(compiled, found)),
        };
        write(path, text)?;
    }
    Ok(())
}

fn unwritable(path: &Path, e: &std::io::Error) -> Diagnostic {
    Diagnostic::new("file", format!("cannot write `{}`: {e}", path.display()))
}
