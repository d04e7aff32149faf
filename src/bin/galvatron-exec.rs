//! The executor's command.

use clap::Parser;
use galvatron::cli::exec::{ExecArgs, exec};

fn main() {
    std::process::exit(exec(&ExecArgs::parse()));
}
