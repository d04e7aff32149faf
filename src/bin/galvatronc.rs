//! The compiler's command.

use clap::Parser;
use galvatron::cli::compile::{CompilerArgs, main as compile};
use mimalloc::MiMalloc;

/// The search makes and drops many small lists; with the system's allocator these take a quarter of its time.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() {
    std::process::exit(compile(&CompilerArgs::parse()));
}
