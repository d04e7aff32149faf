//! The executor's command.

use clap::Parser;
use galvatron::cli::exec::{ExecutorArgs, main as execute};

fn main() {
    std::process::exit(execute(&ExecutorArgs::parse()));
}
