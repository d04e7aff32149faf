//! The text format of the IR: printing and reading modules of every level, by the grammar in `grammar.md`.
//!
//! What is printed reads back as the same module, up to the numbers of nodes and values (these follow the text) and
//! without the nodes in no body, which are not printed. A statement is a line, so faults are collected line by line.

mod fault;
mod lexer;
mod literals;
mod parser;
mod printer;
mod spans;

pub use fault::nearest;
pub use parser::{parse, parse_with_spans};
pub use printer::print;
pub use spans::{ChunkSpans, DeclSpans, NodeSpans, SourceMap, StageSpans};

/// The version of the format that this crate writes and reads.
pub const VERSION: u64 = 1;

#[cfg(test)]
mod tests;
