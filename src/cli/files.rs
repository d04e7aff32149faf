//! `galvatronc verify` and `galvatronc fmt`: checks and rewrites text files of the IR.

use super::{OK, complain, shown};
use crate::runner::read_plan;
use std::path::Path;

/// Reads and verifies a module; says so if it is sound.
pub fn verify(path: &Path) -> i32 {
    match read_plan(path) {
        Ok((module, _)) => {
            let chunk_nodes: usize = module.chunks.iter().map(|c| c.nodes().count()).sum();
            let name = shown(path);
            println!("{name}: sound at level {}, {chunk_nodes} plan nodes", module.level.name());
            OK
        }
        Err((faults, text)) => complain(&faults, Some((&shown(path), &text))),
    }
}

/// Prints a module in the standard form, or rewrites the file.
pub fn fmt(path: &Path, in_place: bool) -> i32 {
    let text = match super::read_text(path) {
        Ok(text) => text,
        Err(fault) => return complain(&[fault], None),
    };
    match galvatron_ir::text::parse(&text) {
        Ok(module) => {
            let printed = galvatron_ir::text::print(&module);
            if !in_place {
                print!("{printed}");
            } else if let Err(e) = std::fs::write(path, printed) {
                eprintln!("error[file]: cannot write `{}`: {e}", path.display());
                return super::BAD_INPUT;
            }
            OK
        }
        Err(faults) => complain(&faults, Some((&shown(path), &text))),
    }
}
