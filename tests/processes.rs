//! Ranks that are processes train like ranks that are threads, and end together: with a rank that is killed, with ranks that do
//! not fit together.

#[path = "support/batches.rs"]
mod batches;
#[path = "support/fixture.rs"]
mod fixture;
#[path = "support/plan.rs"]
mod plan;

use fixture::{Fixture, N_STEPS};
use galvatron_backends::exec::{Flow, RunOptions};
use galvatron_ir::types::DType;
use plan::Order;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

const N_RANKS: u32 = 4;

/// Two ranks share the batch, two the weights; states are sharded.
const STRATEGY: &str = "dp = 2\ntp = 2\nzero = 1\nmicro_batches = 2";

/// Variables that launchers set, which the tests must not inherit.
const LAUNCHERS: [&str; 6] = ["RANK", "WORLD_SIZE", "MASTER_ADDR", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"];

/// What all tests read.
static INPUT: LazyLock<Input> = LazyLock::new(Input::new);

fn order(fixture: &Fixture) -> Order<'_> {
    Order { fixture, dialect: "keep20", optimizer: "adamw", ranks: N_RANKS, strategy: STRATEGY, compute: DType::F32 }
}

struct Input {
    fixture: Fixture,
    folder: PathBuf,
    /// Bytes of each rank's arena.
    arena_bytes: u64,
}

impl Input {
    fn new() -> Input {
        let fixture = Fixture::open("gpt2");
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("processes");
        std::fs::create_dir_all(&folder).unwrap();
        let order = order(&fixture);
        let module = order.compile().unwrap().module;
        let other = Order { strategy: "dp = 4", ..order }.compile().unwrap().module;
        std::fs::write(folder.join("plan.gir"), galvatron_ir::text::print(&module)).unwrap();
        let half =
            Order { compute: DType::Bf16, strategy: "dp = 2\ntp = 2\nzero = 3", ..order }.compile().unwrap().module;
        std::fs::write(folder.join("half.gir"), galvatron_ir::text::print(&half)).unwrap();
        let strategy = "pp = 2\ndp = 2\nzero = 2\nschedule = \"zero-bubble\"\nmicro_batches = 2";
        let stages = Order { strategy, ..order }.compile().unwrap().module;
        std::fs::write(folder.join("stages.gir"), galvatron_ir::text::print(&stages)).unwrap();
        std::fs::write(folder.join("other.gir"), galvatron_ir::text::print(&other)).unwrap();
        batches::write(&fixture, &folder.join("data.safetensors"));
        Input { arena_bytes: module.peak_bytes(), fixture, folder }
    }

    /// A mixture whose tokens travel to the ranks of their experts.
    fn of_experts() -> Input {
        let fixture = Fixture::open("mixtral");
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("processes-experts");
        std::fs::create_dir_all(&folder).unwrap();
        let strategy = "dp = 4\nep = 4\nep_kind = \"all_to_all\"\nmicro_batches = 1";
        let module = Order { strategy, ..order(&fixture) }.compile().unwrap().module;
        std::fs::write(folder.join("plan.gir"), galvatron_ir::text::print(&module)).unwrap();
        batches::write(&fixture, &folder.join("data.safetensors"));
        Input { arena_bytes: module.peak_bytes(), fixture, folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// `galvatron-exec` on a plan, with one thread a rank.
    fn exec(&self, plan: &str, steps: u64) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_galvatron-exec"));
        command.arg(self.file(plan)).arg("--data").arg(self.file("data.safetensors"));
        command.arg("--weights").arg(self.fixture.onnx("keep20"));
        command.args(["--threads", "1", "--timeout", "60", "--steps", &steps.to_string()]);
        for name in LAUNCHERS {
            command.env_remove(name);
        }
        command
    }

    /// The same with files for everything that a run leaves behind.
    fn exec_with_outputs(&self, plan: &str, name: &str) -> Command {
        let mut command = self.exec(plan, N_STEPS);
        command.arg("--metrics").arg(self.file(&format!("{name}.jsonl")));
        command.arg("--save").arg(self.file(&format!("{name}.saved")));
        command.arg("--dump-gradients").arg(self.file(&format!("{name}.gradients")));
        command
    }

    /// Everything that a run has left behind, without times.
    fn outputs(&self, name: &str) -> (Vec<Value>, Vec<Vec<u8>>) {
        let metrics = std::fs::read_to_string(self.file(&format!("{name}.jsonl"))).unwrap();
        let mut lines: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for line in &mut lines[1..] {
            let line = line.as_object_mut().unwrap();
            for key in ["step_time_s", "samples_per_s", "tokens_per_s"] {
                line.remove(key).unwrap();
            }
        }
        let mut files =
            ["model.safetensors", "optimizer.safetensors", "state.json"].map(|f| format!("{name}.saved/{f}")).to_vec();
        files.push(format!("{name}.gradients"));
        (lines, files.iter().map(|file| std::fs::read(self.file(file)).unwrap()).collect())
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Says in the environment which rank a process is.
fn as_rank(mut command: Command, rank: u32, world: u32, port: u16) -> Command {
    command.env("RANK", rank.to_string()).env("WORLD_SIZE", world.to_string());
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the processes to their ends.
fn run_all(commands: Vec<Command>) -> Vec<Output> {
    let children: Vec<Child> = commands.into_iter().map(|mut c| c.spawn().unwrap()).collect();
    children.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn assert_ok(output: &Output) {
    assert!(output.status.success(), "{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
}

/// The losses are those of PyTorch, and every rank uses as much memory as the plan says.
fn check_metrics(lines: &[Value]) {
    assert_eq!(lines.len() as u64, 1 + N_STEPS);
    let run = &INPUT.fixture.manifest["reference"]["trajectories"]["adamw"];
    let slack = 10.0 * run["max_abs_diff_f32_f64"].as_f64().unwrap();
    for (line, expected) in lines[1..].iter().zip(run["losses"].as_array().unwrap()) {
        let (loss, expected) = (line["loss"].as_f64().unwrap(), expected.as_f64().unwrap());
        assert!((loss - expected).abs() <= 1e-5 * expected.abs().max(1.0) + slack, "{line}, not {expected}");
        assert_eq!(line["peak_bytes"], serde_json::json!(vec![INPUT.arena_bytes; N_RANKS as usize]));
    }
}

/// The losses of a run inside of this process, on the reference's own data.
fn losses_inside() -> Vec<f64> {
    let (order, mut losses) = (order(&INPUT.fixture), Vec::new());
    let module = order.compile().unwrap().module;
    let options = RunOptions { steps: N_STEPS, threads: Some(1), ..RunOptions::default() };
    let ran = galvatron_backends::run(&module, &options, INPUT.fixture.data(), &order.weights(), &mut |step| {
        losses.push(step.loss);
        Flow::Continue
    });
    ran.unwrap();
    losses
}

#[test]
fn processes_train_like_threads_and_like_pytorch() {
    assert_ok(&INPUT.exec_with_outputs("plan.gir", "threads").output().unwrap());
    let (expected, files) = INPUT.outputs("threads");
    check_metrics(&expected);
    let losses: Vec<f64> = expected[1..].iter().map(|line| line["loss"].as_f64().unwrap()).collect();
    assert_eq!(losses, losses_inside());

    let spawned = INPUT.exec_with_outputs("plan.gir", "spawned").args(["--nproc", "4"]).output().unwrap();
    assert_ok(&spawned);
    assert!(text(&spawned.stdout).starts_with("step      1  loss "), "{}", text(&spawned.stdout));
    assert!(text(&spawned.stderr).contains("[rank 3] rank 3 of 4 by the flags"), "{}", text(&spawned.stderr));

    let port = free_port();
    let started =
        (0..N_RANKS).map(|r| as_rank(INPUT.exec_with_outputs("plan.gir", "started"), r, N_RANKS, port)).collect();
    let started = run_all(started);
    started.iter().for_each(assert_ok);
    assert!(text(&started[2].stderr).starts_with("rank 2 of 4 by torchrun, rendezvous at 127.0.0.1:"));
    assert!(started[2].stdout.is_empty());

    for name in ["spawned", "started"] {
        let (lines, tensors) = INPUT.outputs(name);
        assert_eq!(lines, expected, "{name}");
        assert!(tensors == files, "{name}: the saved files differ from those of threads");
    }
}

#[test]
fn plans_in_bf16_give_the_same_bits_in_processes() {
    assert_ok(&INPUT.exec_with_outputs("half.gir", "half-threads").output().unwrap());
    assert_ok(&INPUT.exec_with_outputs("half.gir", "half-spawned").args(["--nproc", "4"]).output().unwrap());
    assert!(INPUT.outputs("half-threads") == INPUT.outputs("half-spawned"));
}

#[test]
fn pipelines_give_the_same_bits_in_processes() {
    assert_ok(&INPUT.exec_with_outputs("stages.gir", "stages-threads").output().unwrap());
    assert_ok(&INPUT.exec_with_outputs("stages.gir", "stages-spawned").args(["--nproc", "4"]).output().unwrap());
    assert!(INPUT.outputs("stages-threads") == INPUT.outputs("stages-spawned"));
}

/// Messages whose sizes are known in a step only.
#[test]
fn tokens_that_travel_give_the_same_bits_in_processes() {
    let input = Input::of_experts();
    assert_ok(&input.exec_with_outputs("plan.gir", "threads").output().unwrap());
    assert_ok(&input.exec_with_outputs("plan.gir", "spawned").args(["--nproc", "4"]).output().unwrap());
    let (lines, files) = input.outputs("threads");
    assert_eq!(lines.last().unwrap()["peak_bytes"], serde_json::json!(vec![input.arena_bytes; N_RANKS as usize]));
    assert!((lines, files) == input.outputs("spawned"));
}

/// Waits for the first step's line.
fn wait_for_first_step(child: &mut Child) {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("step "), "{line}");
}

#[test]
fn a_killed_process_ends_the_others_and_is_named() {
    let port = free_port();
    let start = |rank| as_rank(INPUT.exec("plan.gir", 1_000_000), rank, N_RANKS, port).spawn().unwrap();
    let mut ranks: Vec<Child> = (0..N_RANKS).map(start).collect();
    wait_for_first_step(&mut ranks[0]);
    ranks[2].kill().unwrap();
    let killed = Instant::now();
    let ends: Vec<Output> = ranks.into_iter().map(|rank| rank.wait_with_output().unwrap()).collect();
    assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
    for (rank, end) in ends.iter().enumerate().filter(|(rank, _)| *rank != 2) {
        assert_eq!(end.status.code(), Some(4), "rank {rank}");
        assert!(text(&end.stderr).contains("because rank 2 failed"), "rank {rank}: {}", text(&end.stderr));
    }
}

/// The process of a rank that `launcher` has started.
#[cfg(target_os = "linux")]
fn child_of(launcher: u32, rank: &str) -> String {
    let children = std::fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).unwrap();
    let is_it = |pid: &&str| {
        let line = text(&std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default());
        line.contains(&format!("--rank\0{rank}\0"))
    };
    children.split_whitespace().find(is_it).expect("the rank runs").to_string()
}

#[test]
#[cfg(target_os = "linux")]
fn a_killed_local_process_ends_the_launcher_and_is_named() {
    let mut command = INPUT.exec("plan.gir", 1_000_000);
    command.args(["--nproc", "4"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut launcher = command.spawn().unwrap();
    wait_for_first_step(&mut launcher);
    let pid = child_of(launcher.id(), "2");
    let killed = Instant::now();
    assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    let end = launcher.wait_with_output().unwrap();
    assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
    assert_eq!(end.status.code(), Some(4));
    let errors = text(&end.stderr);
    assert!(errors.contains("rank 2 ended first, with signal: 9"), "{errors}");
    assert!(errors.contains("because rank 2 failed"), "{errors}");
}

#[test]
#[cfg(target_os = "linux")]
fn ranks_end_with_their_launcher() {
    let mut command = INPUT.exec("plan.gir", 1_000_000);
    command.args(["--nproc=4"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut launcher = command.spawn().unwrap();
    wait_for_first_step(&mut launcher);
    launcher.kill().unwrap();
    // Its output ends when no rank holds it any more.
    let killed = Instant::now();
    launcher.wait_with_output().unwrap();
    assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
}

/// Every process must end with status 2 and say these words.
#[track_caller]
fn assert_refused(outputs: &[Output], words: &[&str]) {
    for (rank, output) in outputs.iter().enumerate() {
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "rank {rank}: {errors}");
        assert!(words.iter().all(|word| errors.contains(word)), "rank {rank}: {errors}");
    }
}

#[test]
fn a_wrong_number_of_ranks_is_an_error_on_every_rank() {
    let port = free_port();
    let three = (0..3).map(|rank| as_rank(INPUT.exec("plan.gir", 1), rank, 3, port)).collect();
    assert_refused(&run_all(three), &["error[world-size]: the plan is for 4 ranks, torchrun says 3"]);
    let port = free_port();
    let world = |rank| if rank == 1 { 5 } else { N_RANKS };
    let odd = (0..N_RANKS).map(|rank| as_rank(INPUT.exec("plan.gir", 1), rank, world(rank), port)).collect();
    assert_refused(&run_all(odd), &["the plan is for 4 ranks, torchrun says 5"]);
    let spawned = INPUT.exec("plan.gir", 1).args(["--nproc", "3"]).output().unwrap();
    assert_refused(&[spawned], &["the plan is for 4 ranks, `--nproc` says 3"]);
}

#[test]
fn another_plan_on_one_rank_is_an_error_on_every_rank() {
    let port = free_port();
    let plan = |rank| if rank == 1 { "other.gir" } else { "plan.gir" };
    let odd = (0..N_RANKS).map(|rank| as_rank(INPUT.exec(plan(rank), 1), rank, N_RANKS, port)).collect();
    assert_refused(&run_all(odd), &["error[launch]", "rank 1 has plan sha256:"]);
}

/// Where a rank has no GPU it says so; where all have one, their flags differ.
#[test]
fn another_backend_on_one_rank_is_an_error_on_every_rank() {
    let port = free_port();
    let command = |rank| {
        let mut command = as_rank(INPUT.exec("plan.gir", 1), rank, N_RANKS, port);
        if rank == 1 {
            command.args(["--backend", "cuda"]);
        }
        command
    };
    assert_refused(&run_all((0..N_RANKS).map(command).collect()), &["cuda"]);
}

#[test]
fn a_rank_without_its_data_tells_the_others() {
    let port = free_port();
    let command = |rank| {
        let mut command = as_rank(INPUT.exec("plan.gir", 1), rank, N_RANKS, port);
        if rank == 3 {
            command.args(["--resume", "no-such-folder"]);
        }
        command
    };
    assert_refused(&run_all((0..N_RANKS).map(command).collect()), &["no-such-folder"]);
}
