//! The compiler's command.

use clap::Parser;
use galvatron::cli::compile::{CompilerArgs, main as compile};

fn main() {
    std::process::exit(compile(&CompilerArgs::parse()));
}
