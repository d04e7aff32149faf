//! `galvatron-exec`: trains a plan.

use super::{BAD_INPUT, OK, RUN_FAULT, complain, shown};
use crate::metrics::MetricsWriter;
use crate::runner::{Outputs, PlanData, TrainFault, read_plan, run_record, train};
use crate::weights::{PlanWeights, RandomWeights, Resumed, TensorFile};
use clap::Parser;
use galvatron_backends::exec::{RunOptions, WeightSource, write_chrome_trace};
use galvatron_ir::{Diagnostic, Module};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Trains a plan on CPU ranks.
#[derive(Parser, Debug)]
#[command(name = "galvatron-exec", version)]
pub struct ExecArgs {
    /// The plan.
    pub plan: PathBuf,
    /// Where it runs.
    #[arg(long, default_value = "cpu", value_parser = ["cpu", "cuda"])]
    pub backend: String,
    /// Training data: a .safetensors file, or a token stream (.bin).
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Optimizer steps.
    #[arg(long, default_value_t = 1)]
    pub steps: u64,
    /// Writes one JSON object a line: the plan, then each step.
    #[arg(long, value_name = "FILE.jsonl")]
    pub metrics: Option<PathBuf>,
    /// Writes a Chrome trace of the run.
    #[arg(long, value_name = "FILE.json")]
    pub trace: Option<PathBuf>,
    /// Where the weights are that the plan names: a file or a folder.
    #[arg(long)]
    pub weights: Option<PathBuf>,
    /// Initial weights: a .safetensors file by the names of the model, or `random`.
    #[arg(long, value_name = "FILE.safetensors|random")]
    pub init: Option<PathBuf>,
    /// Folder for the trained weights.
    #[arg(long, value_name = "DIR")]
    pub save: Option<PathBuf>,
    /// Saves also after every N steps.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub save_every: u64,
    /// Goes on from a saved folder.
    #[arg(long, value_name = "DIR")]
    pub resume: Option<PathBuf>,
    /// Writes the first step's gradients, whole, before clipping and decay.
    #[arg(long, value_name = "FILE.safetensors")]
    pub dump_gradients: Option<PathBuf>,
    /// Seconds that a rank waits for others.
    #[arg(long, default_value_t = 300.0)]
    pub timeout: f64,
    /// Threads of all ranks together; the cores of the machine unless given.
    #[arg(long)]
    pub threads: Option<usize>,
}

/// Runs the command; returns the exit status.
pub fn exec(args: &ExecArgs) -> i32 {
    let (module, text) = match read_plan(&args.plan) {
        Ok(read) => read,
        Err((faults, text)) => return complain(&faults, Some((&shown(&args.plan), &text))),
    };
    match run(args, &module, &text) {
        Ok(()) => OK,
        Err(TrainFault::Input(faults)) => complain(&faults, None),
        Err(TrainFault::Run(fault)) => {
            eprintln!("error[run]: {fault}");
            RUN_FAULT
        }
        Err(TrainFault::Write(path, e)) => {
            eprintln!("error[file]: cannot write `{}`: {e}", path.display());
            BAD_INPUT
        }
    }
}

fn run(args: &ExecArgs, module: &Module, text: &str) -> Result<(), TrainFault> {
    let input = |d: Diagnostic| TrainFault::Input(vec![d]);
    if args.backend != "cpu" {
        let fault = Diagnostic::new("unsupported", format!("backend `{}` is not supported yet", args.backend));
        return Err(input(fault.help("leave `--backend` out to train on CPU ranks")));
    }
    let timeout = Duration::try_from_secs_f64(args.timeout)
        .map_err(|_| input(Diagnostic::new("usage", "`--timeout` is no number of seconds")))?;
    let Some(path) = &args.data else {
        return Err(input(Diagnostic::new("usage", "no data").help("name a data file with `--data`")));
    };
    let data = PlanData::open(path, module).map_err(TrainFault::Input)?;
    let (weights, first_step) = weights(args, module).map_err(input)?;
    let options = RunOptions {
        steps: args.steps,
        first_step,
        timeout,
        threads: args.threads,
        trace: args.trace.is_some(),
        dump_gradients: args.dump_gradients.is_some(),
        collect: args.save.is_some(),
        collect_every: args.save_every,
    };
    let mut metrics = open_metrics(args, module, text)?;
    let outputs = Outputs { save: args.save.clone(), gradients: args.dump_gradients.clone() };
    let every = (args.steps / 20).max(1);
    let report = train(module, &options, (&data, weights.as_ref()), metrics.as_mut(), &outputs, &mut |record| {
        if record.step.is_multiple_of(every) || record.step == first_step {
            println!("step {:>6}  loss {:.6}  {:.1} ms", record.step, record.loss, record.step_time_s * 1e3);
        }
    })?;
    if let Some(path) = &args.trace {
        let written = std::fs::File::create(path).and_then(|mut file| write_chrome_trace(&report.trace, &mut file));
        written.map_err(|e| TrainFault::Write(path.clone(), e))?;
    }
    Ok(())
}

fn open_metrics(
    args: &ExecArgs,
    module: &Module,
    text: &str,
) -> Result<Option<MetricsWriter<std::fs::File>>, TrainFault> {
    let Some(path) = &args.metrics else { return Ok(None) };
    let fault = |e| TrainFault::Write(path.clone(), e);
    let mut writer = MetricsWriter::create(path).map_err(fault)?;
    writer.run(&run_record(module, format!("sha256:{}", digest(text)))).map_err(fault)?;
    Ok(Some(writer))
}

/// SHA-256 of a text, in hexadecimal.
pub fn digest(text: &str) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

/// The source of initial weights and the number of the first step.
fn weights(args: &ExecArgs, module: &Module) -> Result<(Box<dyn WeightSource>, u64), Diagnostic> {
    let plan = || PlanWeights::new(&args.plan, args.weights.as_deref());
    let open = |path: &Path| TensorFile::open(path, plan()).map_err(|what| Diagnostic::new("weights", what));
    if let Some(folder) = &args.resume {
        let model = open(&folder.join("model.safetensors"))?;
        let optimizer = open(&folder.join("optimizer.safetensors"))?;
        return Ok((Box::new(Resumed { model, optimizer }), saved_step(folder)? + 1));
    }
    Ok(match &args.init {
        None => (Box::new(plan()), 1),
        Some(path) if path.as_os_str() == "random" => {
            (Box::new(RandomWeights { seed: module.train.as_ref().map_or(0, |t| t.seed) }), 1)
        }
        Some(path) => (Box::new(open(path)?), 1),
    })
}

fn saved_step(folder: &Path) -> Result<u64, Diagnostic> {
    let path = folder.join("state.json");
    let text = super::read_text(&path)?;
    let state: serde_json::Value = serde_json::from_str(&text)
        .map_err(|e| Diagnostic::new("state", format!("`{}` is no JSON: {e}", path.display())))?;
    state["step"].as_u64().ok_or_else(|| {
        Diagnostic::new("state", format!("`{}` has no `step`", path.display()))
            .help("name a folder that `--save` wrote")
    })
}
