//! The same model in PyTorch, in a process beside, where Python can import `torch`.

use super::Times;
use super::model::SIZE;
use std::path::PathBuf;
use std::process::Command;

/// The script that times PyTorch's steps.
const SCRIPT: &str = include_str!("torch_step.py");

/// A Python with PyTorch.
pub struct Torch {
    python: PathBuf,
}

impl Torch {
    /// Looks for PyTorch; says so if there is none.
    pub fn find() -> Option<Torch> {
        let python = std::env::var_os("GALVATRON_TORCH_PYTHON").map_or_else(|| "python3".into(), PathBuf::from);
        let script = "import torch; print(torch.__version__)";
        match Command::new(&python).args(["-c", script]).output() {
            Ok(output) if output.status.success() => {
                let version = String::from_utf8_lossy(&output.stdout);
                println!("PyTorch {} through `{}`", version.trim(), python.display());
                Some(Torch { python })
            }
            _ => {
                println!("no PyTorch: `{}` cannot import it; the comparison is skipped", python.display());
                None
            }
        }
    }

    /// What an eager step takes; nothing where the script fails, which it says.
    pub fn step_times(&self, mode: &str, steps: u64) -> Option<Times> {
        let numbers = [SIZE.layers, SIZE.hidden, SIZE.heads, SIZE.vocab, SIZE.seq, SIZE.batch, steps];
        let args = numbers.iter().map(u64::to_string);
        let output = Command::new(&self.python).args(["-c", SCRIPT, mode]).args(args).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let times = Times::new(text.lines().filter_map(|line| line.trim().parse().ok()).collect());
        if times.is_none() {
            println!("  PyTorch has no result: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        times
    }
}
