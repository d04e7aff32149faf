//! Every CUDA source compiles for the GPUs that are supported. NVRTC needs no GPU: it is looked for in the folder that
//! `GALVATRON_NVRTC` names, and else fetched from the Python package index if `GALVATRON_FETCH` is set. Without it this says
//! that it was skipped.

use galvatron_backends::cuda::Family;
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
    for family in Family::ALL {
        let source = folder.join(format!("{}.cu", family.name()));
        std::fs::write(&source, family.source()).expect("the folder for test files can be written");
        for arch in ARCHITECTURES {
            let output = Command::new("python3").arg(&script).arg(&library).arg(arch).arg(&source).output();
            let output = output.expect("python3 can be run");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let bytes = String::from_utf8_lossy(&output.stdout);
            println!("{:<14} {arch:<7} {:>8} bytes", family.name(), bytes.trim());
        }
    }
}
