//! `galvatron-exec --backend cuda` against a double of the driver, cuBLASLt and NCCL (`gpu/double/cuda.c`), which computes nothing
//! but keeps the rules of captures and of communicators: what a GPU would be told is said by the code that would tell it.
#![cfg(all(feature = "cuda", target_os = "linux"))]

#[path = "support/batches.rs"]
mod batches;
#[allow(dead_code)]
#[path = "support/fixture.rs"]
mod fixture;
#[allow(dead_code)]
#[path = "support/plan.rs"]
mod plan;

use fixture::Fixture;
use galvatron_ir::types::DType;
use plan::Order;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

const N_RANKS: u32 = 4;
const STEPS: usize = 5;

/// The names under which the double is looked for.
const NAMES: [&str; 6] =
    ["libcuda.so", "libnvrtc.so.13", "libnvrtc.so", "libcublasLt.so.13", "libcublasLt.so", "libnccl.so.2"];

/// The folder with the double, a plan and its data; `None` where there is no C compiler.
static INPUT: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("double-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the folder for test files can be written");
    let library = folder.join("libcuda.so.1");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/double/cuda.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).output();
    let Ok(built) = built else {
        eprintln!("SKIPPED: no C compiler, the double of the driver was not built");
        return None;
    };
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    for name in NAMES {
        let _ = std::os::unix::fs::symlink(&library, folder.join(name));
    }
    let fixture = Fixture::open("gpt2");
    let strategy = "dp = 2\ntp = 2\nzero = 1\nmicro_batches = 2";
    let (dialect, optimizer, compute) = ("keep20", "adamw", DType::F32);
    let order = Order { fixture: &fixture, dialect, optimizer, ranks: N_RANKS, strategy, compute };
    let module = order.compile().expect("the pins can be met").module;
    std::fs::write(folder.join("plan.gir"), galvatron_ir::text::print(&module)).expect("the plan is written");
    batches::write(&fixture, &folder.join("data.safetensors"));
    Some(folder)
});

/// What a run of four processes has said.
struct Said {
    code: Option<i32>,
    text: String,
    time: Duration,
}

fn run(n_gpus: u32, more: &[&str], variables: &[(&str, &str)]) -> Option<Said> {
    let folder = INPUT.as_ref()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_galvatron-exec"));
    command.arg(folder.join("plan.gir")).arg("--data").arg(folder.join("data.safetensors"));
    command.arg("--weights").arg(Fixture::open("gpt2").onnx("keep20"));
    command.args(["--backend", "cuda", "--nproc", "4", "--steps", &STEPS.to_string()]).args(more);
    command.env("LD_LIBRARY_PATH", folder).env("XDG_CACHE_HOME", folder.join("cache"));
    command.env("DOUBLE_GPUS", n_gpus.to_string()).envs(variables.iter().copied());
    let start = Instant::now();
    let Output { status, stdout, stderr } = command.output().expect("the executor starts");
    let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(!text.contains("broken rule") && !text.contains("panicked"), "{text}");
    Some(Said { code: status.code(), text, time: start.elapsed() })
}

impl Said {
    fn count(&self, words: &str) -> usize {
        self.text.matches(words).count()
    }
}

#[test]
fn processes_capture_a_step_and_replay_it() {
    let Some(said) = run(N_RANKS, &[], &[]) else { return };
    assert_eq!(said.code, Some(0), "{}", said.text);
    // The first two of five steps run as they come.
    assert_eq!(said.count("double: 1 captures, 3 launches of graphs"), 4, "{}", said.text);
    assert_eq!(said.count("operations on 3 streams ends"), 4, "{}", said.text);
    assert_eq!(said.count("note:"), 0, "{}", said.text);
}

#[test]
fn the_members_of_a_group_join_by_one_name() {
    let Some(said) = run(N_RANKS, &["--no-cuda-graph"], &[]) else { return };
    assert_eq!((said.code, said.count("captures, 0 launches of graphs")), (Some(0), 5), "{}", said.text);
    assert_eq!(said.count("double: 0 captures"), 5, "four ranks and their launcher:\n{}", said.text);
    let joined = |words: &str| {
        let names =
            said.text.lines().filter(|line| line.contains(words)).filter_map(|line| line.split("joins ").last());
        names.map(str::to_string).collect::<Vec<String>>()
    };
    // All ranks are one group; two pairs share the weights, two share the batch.
    let (all, pairs) = (joined(" of 4 joins"), joined(" of 2 joins"));
    assert_eq!((all.len(), BTreeSet::from_iter(&all).len()), (4, 1), "{}", said.text);
    assert_eq!((pairs.len(), BTreeSet::from_iter(&pairs).len()), (8, 3), "{}", said.text);
}

#[test]
fn ranks_that_would_share_a_gpu_are_all_refused() {
    let Some(said) = run(2, &[], &[]) else { return };
    assert_eq!(said.code, Some(4), "{}", said.text);
    for rank in 0..N_RANKS {
        let words = format!("error[run]: rank {rank}: ranks 0 and 2 would share one GPU");
        assert_eq!(said.count(&words), 1, "{words}\n{}", said.text);
    }
    let Some(allowed) = run(2, &[], &[("NCCL_MULTI_RANK_GPU_ENABLE", "1")]) else { return };
    assert_eq!(allowed.code, Some(0), "{}", allowed.text);
}

#[test]
fn no_gpu_is_said_once() {
    let Some(said) = run(0, &[], &[]) else { return };
    assert_eq!((said.code, said.count("error[")), (Some(2), 1), "{}", said.text);
    assert!(said.text.contains("error[cuda]: the driver finds no GPU"), "{}", said.text);
}

/// Exchange `number`, which is the first of a step, never ends on any rank.
fn check_hang(number: usize, step: usize, more: &[&str]) {
    let hang = number.to_string();
    let Some(said) = run(N_RANKS, &[&["--timeout", "2"], more].concat(), &[("DOUBLE_HANG", &hang)]) else { return };
    assert_eq!(said.code, Some(4), "{}", said.text);
    assert!(said.time < Duration::from_secs(15), "{:?}", said.time);
    let words = format!("at `the end of the step` (step {step}): the exchange at `%");
    assert!(said.text.contains(&words) && said.text.contains("did not end in 2 s"), "{}", said.text);
    assert!(said.text.contains("` between ranks ["), "{}", said.text);
    assert_eq!(said.count("error[run]: rank"), 4, "{}", said.text);
}

#[test]
fn an_exchange_that_never_ends_is_named() {
    check_hang(1, 1, &["--no-cuda-graph"]);
}

/// The graph that hangs, the communicators and the memory are ended in the order that the driver and NCCL ask for.
#[test]
fn an_exchange_that_never_ends_is_named_in_a_replayed_step() {
    let Some(said) = run(N_RANKS, &["--no-cuda-graph"], &[]) else { return };
    let line = said.text.lines().find(|line| line.starts_with("double: 0 captures")).expect("rank 0 sums up");
    let n_exchanges: usize = line.split(", ").last().and_then(|l| l.split(' ').next()?.parse().ok()).expect("a number");
    check_hang(n_exchanges / STEPS * 3 + 1, 4, &[]);
}
