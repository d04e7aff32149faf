//! What the verifier reports: a broken invariant and the place in the module that breaks it.

use crate::id::NodeId;

/// A part of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// All of it.
    Whole,
    /// The op with its attributes.
    Op,
    /// An operand.
    Arg(usize),
    /// A result: its name, type, placement, `of` and place.
    Result(usize),
}

/// A place in a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Site {
    /// The module as a whole.
    Module,
    /// An input of the program, by index.
    Input(usize),
    /// A weight of the program, by index.
    Weight(usize),
    /// An optimizer state of the program, by index.
    State(usize),
    /// A node of the program.
    ProgramNode(NodeId, Part),
    /// An update of the program, by index.
    Update(usize),
    /// An output of the program, by index.
    Output(usize),
    /// A resident of a chunk, by index.
    Resident(u32, usize),
    /// A node of a chunk.
    ChunkNode(u32, NodeId, Part),
    /// A stage.
    Stage(usize),
    /// An entry of the schedule of a stage, by index; one past the end where entries are missing.
    Schedule(usize, usize),
    /// The sizes of the arena of a stage.
    Arena(usize),
}

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Code of the invariant, `G02xx`.
    pub code: &'static str,
    /// What was found and what was expected.
    pub message: String,
    /// How to mend it.
    pub help: Option<String>,
    /// Where.
    pub at: Site,
}

impl Finding {
    /// A finding without help.
    pub fn new(code: &'static str, at: Site, message: impl Into<String>) -> Finding {
        Finding { code, message: message.into(), help: None, at }
    }

    /// Says how to mend it.
    pub fn help(mut self, help: impl Into<String>) -> Finding {
        self.help = Some(help.into());
        self
    }
}
