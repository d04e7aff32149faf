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
use std::process::Command;

#[test]
fn a_missing_driver_is_bad_input_with_a_list_of_what_was_looked_for() {
    if probe().is_ok() {
        eprintln!("SKIPPED: the libraries of CUDA are all here");
        return;
    }
    let fixture = Fixture::open("mlp");
    let order =
        Order { fixture: &fixture, dialect: "keep20", optimizer: "sgd", ranks: 1, strategy: "", compute: DType::F32 };
    let module = order.compile().expect("a plan for one rank").module;
    let plan = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("missing-{}.gir", std::process::id()));
    std::fs::write(&plan, galvatron_ir::text::print(&module)).expect("the plan is written");
    let output = Command::new(env!("CARGO_BIN_EXE_galvatron-exec")).arg(&plan).args(["--backend", "cuda"]).output();
    let output = output.expect("the executor starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for needed in NEEDED {
        assert!(text.contains(needed.what), "no {} in\n{text}", needed.what);
    }
    for part in ["error[cuda]", "libcuda.so.1", "LD_LIBRARY_PATH", "GALVATRON_CUDA_LIBRARIES"] {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}
