//! `galvatron-exec`: trains a plan.

use super::export::{ExportArgs, export};
use super::{BAD_INPUT, OK, RUN_FAULT, complain, ranks, say_line, shown};
use crate::launch::Place;
use crate::metrics::MetricsWriter;
use crate::runner::{Backend, GpuFlags, Outputs, PlanData, TrainFault, read_plan, run_record, train_on};
use crate::weights::{PlanWeights, RandomWeights, Resumed, TensorFile};
use clap::{Args, Parser, Subcommand};
use galvatron_backends::comm::tcp::JoinFault;
use galvatron_backends::exec::{RunOptions, WeightSource};
use galvatron_ir::{Checked, Diagnostic, Module};
use std::path::{Path, PathBuf};

/// Trains a plan on CPU ranks or GPUs.
#[derive(Parser, Debug)]
#[command(name = "galvatron-exec", version, args_conflicts_with_subcommands = true)]
pub struct ExecutorArgs {
    /// What else than training.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Training.
    #[command(flatten)]
    pub exec: Option<ExecArgs>,
}

/// Commands on trained models.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Writes a trained model as ONNX.
    Export(ExportArgs),
}

/// Flags of training.
#[derive(Args, Debug)]
pub struct ExecArgs {
    /// The plan.
    pub plan: PathBuf,
    /// Where it runs.
    #[arg(long, default_value = "cpu", value_parser = ["cpu", "cuda"])]
    pub backend: String,
    /// Launches each node by itself; without it whole steps are launched as CUDA graphs after the first ones. Only for `cuda`.
    #[arg(long)]
    pub no_cuda_graph: bool,
    /// Rounds operands of f32 products to TF32 (10 bits of mantissa), which tensor cores multiply. Only for `cuda`.
    #[arg(long)]
    pub tf32: bool,
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
    /// Initial weights: `random`, or a .safetensors file, an index.json of several, or a folder with either.
    #[arg(long, value_name = "PATH|random")]
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
    /// Threads of all ranks of a machine together; its cores unless given.
    #[arg(long)]
    pub threads: Option<usize>,
    /// Starts N processes on this machine, one a rank; without it ranks are threads.
    #[arg(long, value_name = "N", conflicts_with_all = ["rank", "world_size", "rendezvous"])]
    pub nproc: Option<usize>,
    /// The rank that this process is; torchrun, Slurm, Open MPI and PMI say it in the environment.
    #[arg(long, value_name = "R")]
    pub rank: Option<usize>,
    /// The number of ranks, each a process.
    #[arg(long, value_name = "N")]
    pub world_size: Option<usize>,
    /// Where the ranks meet: the host of rank 0 and a free port.
    #[arg(long, value_name = "HOST:PORT")]
    pub rendezvous: Option<String>,
    /// Ends the process when its standard input ends; `--nproc` sets it.
    #[arg(long, hide = true)]
    pub end_with_stdin: bool,
}

/// Runs what the arguments say; returns the exit status.
pub fn main(args: &ExecutorArgs) -> i32 {
    match (&args.command, &args.exec) {
        (Some(Command::Export(args)), _) => export(args),
        (None, Some(args)) => exec(args),
        (None, None) => complain(&[Diagnostic::new("usage", "no plan").help("say `galvatron-exec PLAN.gir`")], None),
    }
}

/// Trains a plan; returns the exit status.
pub fn exec(args: &ExecArgs) -> i32 {
    if args.end_with_stdin {
        ranks::end_with_stdin();
    }
    let place = match ranks::place(args) {
        Ok(place) => place,
        Err(fault) => return complain(&[fault], None),
    };
    let (module, text) = match read_plan(&args.plan) {
        Ok(read) => read,
        Err((faults, text)) => {
            ranks::decline(args, place.as_ref(), &text, &faults);
            return complain(&faults, Some((&shown(&args.plan), &text)));
        }
    };
    if let Some(n) = args.nproc {
        // What every process would say is said once.
        return match backend(args) {
            Ok(_) => ranks::spawn_all(&module, n),
            Err(fault) => complain(&[fault], None),
        };
    }
    match run(args, &module, &text, place.as_ref()) {
        Ok(()) => OK,
        Err(Fault::Train(fault)) => say(fault),
        Err(Fault::Join(fault)) => {
            say_line(&format!("error[launch]: {fault}"));
            if matches!(fault, JoinFault::Refused { is_input: true, .. }) { BAD_INPUT } else { RUN_FAULT }
        }
    }
}

/// Why nothing was trained, or not to the end.
enum Fault {
    /// Training failed.
    Train(TrainFault),
    /// The ranks did not become a world.
    Join(JoinFault),
}

impl From<TrainFault> for Fault {
    fn from(fault: TrainFault) -> Fault {
        Fault::Train(fault)
    }
}

/// Prints a fault; returns its exit status.
fn say(fault: TrainFault) -> i32 {
    match fault {
        TrainFault::Input(faults) => complain(&faults, None),
        TrainFault::Run(fault) => {
            say_line(&format!("error[run]: {fault}"));
            RUN_FAULT
        }
        TrainFault::Write(path, e) => {
            eprintln!("error[file]: cannot write `{}`: {e}", path.display());
            BAD_INPUT
        }
    }
}

/// What training reads, and how it goes.
struct Ready {
    backend: Backend,
    data: PlanData,
    weights: Box<dyn WeightSource>,
    options: RunOptions,
}

fn run(args: &ExecArgs, module: &Module, text: &str, place: Option<&Place>) -> Result<(), Fault> {
    let ready = ranks::check_world(module, place).and_then(|()| prepare(args, module));
    let Ready { mut backend, data, weights, mut options } = ready.map_err(|faults| {
        ranks::decline(args, place, text, &faults);
        TrainFault::Input(faults)
    })?;
    if let Some(place) = place {
        let (process, threads) = ranks::join(args, place, text, &options).map_err(Fault::Join)?;
        options.threads = Some(threads);
        backend = backend.in_process(process);
    }
    let metrics = if backend.has_first_rank() { open_metrics(args, module, text) } else { Ok(None) };
    let mut metrics = metrics.inspect_err(|_| backend.abort("it cannot write the metrics"))?;
    let outputs = Outputs { save: args.save.clone(), gradients: args.dump_gradients.clone() };
    let every = (args.steps / 20).max(1);
    let sources = (&data, weights.as_ref());
    let report = train_on(backend, module, &options, sources, metrics.as_mut(), &outputs, &mut |record| {
        if record.step.is_multiple_of(every) || record.step == options.first_step {
            println!("step {:>6}  loss {:.6}  {:.1} ms", record.step, record.loss, record.step_time_s * 1e3);
        }
    })?;
    for (rank, remark) in &report.remarks {
        say_line(&format!("note: rank {rank}: {remark}"));
    }
    if let Some(path) = &args.trace {
        let path = ranks::trace_file(path, place);
        super::write_trace(&path, module, &report.trace).map_err(|e| TrainFault::Write(path, e))?;
    }
    Ok(())
}

fn backend(args: &ExecArgs) -> Result<Backend, Diagnostic> {
    let flags = [("--no-cuda-graph", args.no_cuda_graph), ("--tf32", args.tf32)];
    if let Some((flag, _)) = flags.iter().find(|(_, is_given)| *is_given && args.backend != "cuda") {
        let message = format!("`{flag}` means nothing to the backend `{}`", args.backend);
        return Err(Diagnostic::new("usage", message).help("leave it out, or add `--backend cuda`"));
    }
    Backend::open(&args.backend, GpuFlags { graphs: !args.no_cuda_graph, tf32: args.tf32 })
}

/// Opens the data and the weights.
fn prepare(args: &ExecArgs, module: &Module) -> Checked<Ready> {
    let input = |d: Diagnostic| vec![d];
    let backend = backend(args).map_err(input)?;
    let timeout = ranks::timeout(args).map_err(input)?;
    let Some(path) = &args.data else {
        return Err(input(Diagnostic::new("usage", "no data").help("name a data file with `--data`")));
    };
    let data = PlanData::open(path, module)?;
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
        ..RunOptions::default()
    };
    Ok(Ready { backend, data, weights, options })
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
        None => (Box::new(stored_weights(module, plan())?), 1),
        Some(path) if path.as_os_str() == "random" => {
            (Box::new(RandomWeights { seed: module.train.as_ref().map_or(0, |t| t.seed) }), 1)
        }
        Some(path) => (Box::new(open(path)?), 1),
    })
}

/// The weights that the plan names; what a checkpoint lacks is made from the seed.
fn stored_weights(module: &Module, plan: PlanWeights) -> Result<PlanWeights, Diagnostic> {
    if module.initializers.iter().all(|i| i.file.is_empty()) {
        let fault = Diagnostic::new("weights", "the plan names no file of weights");
        return Err(fault.help("say `--init random`, or name a checkpoint with `--init PATH`"));
    }
    Ok(plan.or_fresh(module.train.as_ref().map_or(0, |t| t.seed)))
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
