//! Without the libraries of CUDA, `--backend cuda` is refused with a list of what was looked for.
#![cfg(feature = "cuda")]

#[allow(dead_code)]
#[path = "support/fixture.rs"]
mod fixture;
#[allow(dead_code)]
#[path = "support/plan.rs"]
mod plan;

use fixture::Fixture;
use galvatron_backends::cuda::probe::{NEEDED, probe};
use galvatron_ir::types::DType;
use plan::Order;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Runs a plan for that many ranks; `None` where the libraries of CUDA are all here.
fn run(ranks: u32, strategy: &str, more: &[&str]) -> Option<(Output, Duration)> {
    if probe().is_ok() {
        eprintln!("SKIPPED: the libraries of CUDA are all here");
        return None;
    }
    let fixture = Fixture::open("mlp");
    let order = Order { fixture: &fixture, dialect: "keep20", optimizer: "sgd", ranks, strategy, compute: DType::F32 };
    let module = order.compile().expect("the pins can be met").module;
    let plan = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("missing-{ranks}-{}.gir", std::process::id()));
    std::fs::write(&plan, galvatron_ir::text::print(&module)).expect("the plan is written");
    let start = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_galvatron-exec"));
    let output = command.arg(&plan).args(more).output().expect("the executor starts");
    Some((output, start.elapsed()))
}

#[track_caller]
fn check_diagnostic(output: &Output) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for needed in NEEDED {
        assert!(text.contains(needed.what), "no {} in\n{text}", needed.what);
    }
    for part in ["libcuda.so.1", "LD_LIBRARY_PATH", "GALVATRON_CUDA_LIBRARIES"] {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
    assert_eq!(text.matches("error[").count(), 1, "{text}");
    assert!(text.contains("error[cuda]") && !text.contains("panicked"), "{text}");
}

#[test]
fn a_missing_driver_is_bad_input_with_a_list_of_what_was_looked_for() {
    if let Some((output, _)) = run(1, "", &["--backend", "cuda"]) {
        check_diagnostic(&output);
    }
}

#[test]
fn ranks_in_processes_miss_the_driver_once_and_at_once() {
    if let Some((output, time)) = run(2, "dp = 2", &["--backend", "cuda", "--nproc", "2"]) {
        check_diagnostic(&output);
        assert!(time < Duration::from_secs(2), "{time:?}");
    }
}

#[test]
fn a_flag_of_gpus_is_wrong_without_them() {
    for flag in ["--no-cuda-graph", "--tf32"] {
        for more in [&["--backend", "cpu"][..], &["--backend", "cpu", "--nproc", "1"]] {
            let Some((output, _)) = run(1, "", &[more, &[flag]].concat()) else { return };
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{text}");
            let message = format!("error[usage]: `{flag}` means nothing to the backend `cpu`");
            assert!(text.contains(&message), "{text}");
        }
        if let Some((output, _)) = run(1, "", &["--backend", "cuda", flag]) {
            check_diagnostic(&output);
        }
    }
}
