//! Every CUDA source compiles for the GPUs that are supported. NVRTC needs no GPU: it is looked for in the folder that
//! `GALVATRON_NVRTC` names, and else fetched from the Python package index if `GALVATRON_FETCH` is set. Without it this says
//! that it was skipped.

#[allow(dead_code)]
#[path = "support/fixture.rs"]
mod fixture;
#[allow(dead_code)]
#[path = "support/plan.rs"]
mod plan;

use fixture::Fixture;
use galvatron_backends::comm::local_world;
use galvatron_backends::cuda::Family;
use galvatron_backends::cuda::record::Recorder;
use galvatron_backends::cuda::unit::Unit;
use galvatron_backends::exec::{Flow, RunOptions, arena_bytes, launch};
use galvatron_ir::types::DType;
use plan::Order;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Ampere, Hopper, Blackwell.
const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_90a", "sm_100"];

/// The library, or why there is none.
fn nvrtc() -> Result<PathBuf, String> {
    let folder = match std::env::var_os("GALVATRON_NVRTC") {
        Some(folder) => PathBuf::from(folder),
        None => fetch()?,
    };
    let is_it = |name: &str| name.starts_with("libnvrtc.so");
    let entries = std::fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    found.retain(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_it));
    found.sort();
    found.pop().ok_or_else(|| format!("no libnvrtc.so* in {}", folder.display()))
}

fn fetch() -> Result<PathBuf, String> {
    if std::env::var_os("GALVATRON_FETCH").is_none() {
        return Err("GALVATRON_NVRTC names no folder, and GALVATRON_FETCH does not allow to fetch it".into());
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/fetch_nvrtc.sh");
    let output = Command::new(script).arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join("nvrtc")).output();
    let output = output.map_err(|e| format!("the script cannot be run: {e}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
    if output.status.success() { Ok(text(&output.stdout).into()) } else { Err(text(&output.stderr)) }
}

/// The sources of all kernels of a step of GPT-2 on one rank.
fn units(compute: DType) -> BTreeSet<Unit> {
    let fixture = Fixture::open("gpt2");
    let order = Order {
        fixture: &fixture,
        dialect: "keep20",
        optimizer: "adamw",
        ranks: 1,
        strategy: "micro_batches = 2",
        compute,
    };
    let module = order.compile_for("cuda").expect("the pins can be met").module;
    let (device, _) = Recorder::new(arena_bytes(&module), false);
    let options = RunOptions::default();
    let comm = local_world(1, options.timeout).remove(0);
    let sources = (fixture.data(), &order.weights() as &dyn galvatron_backends::exec::WeightSource);
    let world = vec![(Box::new(device.clone()) as _, Box::new(comm) as _)];
    launch(&module, world, &options, sources, &mut |_| Flow::Continue).expect("the plan runs");
    device.units()
}

#[test]
fn every_source_compiles_for_every_architecture() {
    let library = match nvrtc() {
        Ok(library) => library,
        Err(why) => {
            eprintln!("SKIPPED: the CUDA sources were not compiled: {why}");
            assert!(std::env::var_os("GALVATRON_NVRTC").is_none(), "GALVATRON_NVRTC is set, but {why}");
            return;
        }
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/compile.py");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cuda-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the folder for test files can be written");
    let of_plans = [DType::F32, DType::Bf16].into_iter().flat_map(units);
    let all: BTreeSet<Unit> = Family::ALL.map(Unit::Family).into_iter().chain(of_plans).collect();
    assert!(all.len() > Family::ALL.len(), "a plan has generated kernels");
    for unit in &all {
        let source = folder.join(format!("{}.cu", unit.name()));
        std::fs::write(&source, unit.source()).expect("the folder for test files can be written");
        for arch in ARCHITECTURES {
            let contracts = format!("--fmad={}", unit.may_contract());
            let output =
                Command::new("python3").arg(&script).arg(&library).arg(arch).arg(&source).arg(contracts).output();
            let output = output.expect("python3 can be run");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let bytes = String::from_utf8_lossy(&output.stdout);
            println!("{:<22} {arch:<7} {:>8} bytes", unit.name(), bytes.trim());
        }
    }
}
