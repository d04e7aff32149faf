//! The commands: they print and exit, and hold no compiler logic.

#[cfg(feature = "compiler")]
pub mod analysis;
#[cfg(feature = "compiler")]
pub mod compile;
pub mod exec;
pub mod export;
pub mod files;
mod ranks;

use crate::diagnostics::render_all;
use crate::trace::write_chrome_trace;
use galvatron_ir::trace::TraceEvent;
use galvatron_ir::{Diagnostic, Module};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Exit status: everything went well.
pub const OK: i32 = 0;
/// Exit status: wrong usage or bad input.
pub const BAD_INPUT: i32 = 2;
/// Exit status: no plan fits.
pub const NO_PLAN: i32 = 3;
/// Exit status: a fault at run time.
pub const RUN_FAULT: i32 = 4;
/// Exit status: a bug of galvatron, as of a panic.
#[cfg(feature = "compiler")]
pub const BUG: i32 = 101;

/// Prints diagnostics about a source to stderr; returns the exit status of bad input.
pub fn complain(diagnostics: &[Diagnostic], source: Option<(&str, &str)>) -> i32 {
    eprint!("{}", render_all(diagnostics, source));
    BAD_INPUT
}

/// Prints a line to stderr in one piece: lines of several processes do not mix.
pub fn say_line(line: &str) {
    let line = format!("{line}\n");
    eprint!("{line}");
}

/// Writes a trace of a plan.
fn write_trace(path: &Path, plan: &Module, events: &[TraceEvent]) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    write_chrome_trace(plan, events, &mut file)?;
    file.flush()
}

/// A file's name for messages.
pub fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Reads a text file.
///
/// # Errors
/// A diagnostic that names the file.
pub fn read_text(path: &Path) -> Result<String, Diagnostic> {
    std::fs::read_to_string(path)
        .map_err(|e| Diagnostic::new("file", format!("cannot read `{}`: {e}", path.display())).help("check the path"))
}
