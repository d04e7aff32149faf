//! Damages ONNX files for some minutes and imports them: the models of the fixtures and the node tests of ONNX, the committed
//! ones or those in the folder `GALVATRON_FIXTURES`.
//!
//! `cargo run --release --example fuzz_import -- --minutes 10 [--seed N] [--corpus FOLDER]`. Files that make the importer panic
//! stay in `target/fuzz_import/`, and the status is 1 then, or if it took more memory than it may. The file at hand is always
//! in `current.onnx` there, so that one that ends the process can be found.

#[path = "../../tests/support/damaged.rs"]
mod damaged;
#[path = "../../tests/support/mutate.rs"]
mod mutate;
#[path = "../../tests/support/node_tests.rs"]
mod node_tests;

use clap::Parser;
use damaged::{Outcomes, damaged, fixtures, models, node_models};
use mutate::Mutator;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Most memory that importing may take: 2 GiB of known values, what one operator makes of them, and the files.
const MAX_MEMORY_MIB: u64 = 6 << 10;

#[derive(Parser)]
struct FuzzArgs {
    /// How long.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Seed of the damage.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A folder of models, or of folders of them.
    #[arg(long)]
    corpus: Option<PathBuf>,
}

fn main() -> std::io::Result<()> {
    let args = FuzzArgs::parse();
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let corpora = [models(&args.corpus.unwrap_or_else(fixtures)), node_models()];
    println!("{} models, {} operators", corpora[0].len(), corpora[1].len());
    let folder = root.join("target/fuzz_import");
    std::fs::create_dir_all(&folder)?;
    let (mut mutator, mut outcomes) = (Mutator::new(args.seed), Outcomes::default());
    let (start, limit) = (Instant::now(), Duration::from_secs_f64(60.0 * args.minutes));
    let (mut n_files, mut slowest) = (0, Duration::ZERO);
    while start.elapsed() < limit {
        // Models are larger than operators by far: one of them for seven of these.
        let corpus = &corpora[usize::from(n_files % 8 > 0)];
        let file = damaged(&mut mutator, corpus);
        std::fs::write(folder.join("current.onnx"), &file)?;
        let before = Instant::now();
        outcomes.take(file.clone());
        if before.elapsed() > slowest {
            slowest = before.elapsed();
            std::fs::write(folder.join("slowest.onnx"), &file)?;
        }
        n_files += 1;
    }
    println!("{n_files} files, the slowest in {slowest:.1?}: {} imported", outcomes.n_imported);
    println!("refused: {:?}", outcomes.refused);
    for (index, crash) in outcomes.crashes.iter().enumerate() {
        std::fs::write(folder.join(format!("crash-{index}.onnx")), crash)?;
    }
    let memory = most_memory_mib();
    println!("{} panics; most memory: {}", outcomes.crashes.len(), memory.map_or("?".into(), |n| format!("{n} MiB")));
    let is_sound = outcomes.crashes.is_empty() && memory.is_none_or(|n| n <= MAX_MEMORY_MIB);
    std::process::exit(i32::from(!is_sound));
}

/// The largest resident set of this process, where the system tells it.
fn most_memory_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? / 1024)
}
