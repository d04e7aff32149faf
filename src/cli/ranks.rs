//! Ranks in processes, as `galvatron-exec` sees them: its own rank, the way to the others, local processes for all.

use super::exec::{ExecArgs, digest};
use super::{OK, RUN_FAULT, complain, say_line};
use crate::launch::{Flags, Line, Place, Spawn, discover, spawn};
use crate::runner::Process;
use galvatron_backends::comm::tcp::{self, JoinFault, JoinOptions, Machine};
use galvatron_backends::exec::RunOptions;
use galvatron_ir::{Checked, Diagnostic, Module};
use std::ffi::OsString;
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Which rank this process is, if it is one; says so on stderr.
///
/// # Errors
/// When flags or variables do not say it whole.
pub(super) fn place(args: &ExecArgs) -> Result<Option<Place>, Diagnostic> {
    if args.nproc.is_some() {
        return Ok(None);
    }
    let flags = Flags { rank: args.rank, world: args.world_size, rendezvous: args.rendezvous.as_deref() };
    let place = discover(&flags, &|name| std::env::var(name).ok())?;
    if let Some(Place { rank, world, local_rank, rendezvous, source }) = &place {
        let local = local_rank.map_or(String::new(), |local| format!(", local rank {local}"));
        say_line(&format!("rank {rank} of {world}{local} by {source}, rendezvous at {rendezvous}"));
    }
    Ok(place)
}

/// The time-out of the flags.
///
/// # Errors
/// When it is no number of seconds.
pub(super) fn timeout(args: &ExecArgs) -> Result<Duration, Diagnostic> {
    Duration::try_from_secs_f64(args.timeout)
        .map_err(|_| Diagnostic::new("usage", "`--timeout` is no number of seconds"))
}

/// The world must have as many ranks as the plan.
pub(super) fn check_world(module: &Module, place: Option<&Place>) -> Checked<()> {
    match place {
        Some(place) if place.world as u64 != module.mesh.world() => {
            let source = format!("{} says", place.source).replace("the flags says", "the flags say");
            Err(vec![wrong_world(module, place.world, &source)])
        }
        _ => Ok(()),
    }
}

fn wrong_world(module: &Module, found: usize, source: &str) -> Diagnostic {
    let n_ranks = module.mesh.world();
    Diagnostic::new("world-size", format!("the plan is for {n_ranks} ranks, {source} {found}"))
        .help(format!("start {n_ranks} processes, or make a plan for {found} ranks"))
}

/// Tells the other ranks, if there are any, that this one cannot take part.
pub(super) fn decline(args: &ExecArgs, place: Option<&Place>, text: &str, faults: &[Diagnostic]) {
    if let (Some(place), Some(fault)) = (place, faults.first()) {
        tcp::decline(&join_options(args, place, text, String::new()), &fault.message);
    }
}

/// Connects this rank to the others; returns it with the number of its threads.
///
/// # Errors
/// Why there is no world.
pub(super) fn join(
    args: &ExecArgs,
    place: &Place,
    text: &str,
    options: &RunOptions,
) -> Result<(Process, usize), JoinFault> {
    let comm = tcp::join(&join_options(args, place, text, terms(args, options)))?;
    let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
    let Machine { n_ranks, local_rank } = comm.machine();
    let threads = (args.threads.unwrap_or_else(cores) / n_ranks).max(1);
    Ok((Process { comm: Box::new(comm), local_rank: place.local_rank.unwrap_or(local_rank) }, threads))
}

/// The flags that all ranks must agree on.
fn terms(args: &ExecArgs, options: &RunOptions) -> String {
    format!(
        "--backend {}{}{} --steps {} from step {}{} --save-every {}{}",
        args.backend,
        if args.no_cuda_graph { " --no-cuda-graph" } else { "" },
        if args.tf32 { " --tf32" } else { "" },
        options.steps,
        options.first_step,
        if options.collect { " --save" } else { "" },
        options.collect_every,
        if options.dump_gradients { " --dump-gradients" } else { "" },
    )
}

fn join_options(args: &ExecArgs, place: &Place, text: &str, terms: String) -> JoinOptions {
    let Place { rank, world, .. } = *place;
    let (rendezvous, plan) = (place.rendezvous.clone(), format!("sha256:{}", digest(text)));
    JoinOptions { rank, world, rendezvous, plan, terms, timeout: timeout(args).unwrap_or_default() }
}

/// The trace of this process: ranks other than 0 have files of their own beside that of rank 0.
pub(super) fn trace_file(path: &Path, place: Option<&Place>) -> PathBuf {
    match place {
        Some(place) if place.rank > 0 => {
            let extension = path.extension().map_or(String::new(), |e| format!(".{}", e.display()));
            path.with_extension(format!("rank{}{extension}", place.rank))
        }
        _ => path.to_path_buf(),
    }
}

/// Ends this process when its standard input ends, because whoever started it is gone.
pub(super) fn end_with_stdin() {
    std::thread::spawn(|| {
        // Whatever it is that ends the input, nobody is there any more.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        eprintln!("error[launch]: the process that started this rank is gone");
        std::process::exit(RUN_FAULT);
    });
}

/// Starts this program once for each rank on this machine, with the same arguments; returns the worst exit status.
pub(super) fn spawn_all(module: &Module, n: usize) -> i32 {
    if n as u64 != module.mesh.world() {
        return complain(&[wrong_world(module, n, "`--nproc` says")], None);
    }
    let ended = std::env::current_exe().and_then(|program| {
        let rendezvous = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let args = (0..n).map(|rank| rank_args(rank, n, &rendezvous)).collect();
        spawn(&Spawn { program, args }, print)
    });
    let end = match ended {
        Ok(end) => end,
        Err(e) => {
            eprintln!("error[launch]: cannot start {n} processes: {e}");
            return RUN_FAULT;
        }
    };
    if let Some(rank) = end.first {
        eprintln!("error[launch]: rank {rank} ended first, with {}", end.statuses[rank]);
    }
    let code = |status: &std::process::ExitStatus| status.code().unwrap_or(RUN_FAULT);
    end.statuses.iter().map(code).max().unwrap_or(OK)
}

/// The arguments of this process as those of one rank.
fn rank_args(rank: usize, n: usize, rendezvous: &str) -> Vec<OsString> {
    let (rank, n) = (rank.to_string(), n.to_string());
    let own = ["--rank", &rank, "--world-size", &n, "--rendezvous", rendezvous, "--end-with-stdin"];
    let mut args: Vec<OsString> = own.map(OsString::from).to_vec();
    let mut given = std::env::args_os().skip(1);
    while let Some(arg) = given.next() {
        if arg == "--nproc" {
            given.next();
        } else if !arg.to_string_lossy().starts_with("--nproc=") {
            args.push(arg);
        }
    }
    args
}

fn print(line: &Line) {
    let Line { rank, is_error, text } = line;
    let line = format!("[rank {rank}] {text}");
    if *is_error { say_line(&line) } else { println!("{line}") }
}
