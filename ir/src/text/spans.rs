//! Where in a text everything that a module holds was read: what diagnostics of the verifier point at.

use std::ops::Range;

/// Byte ranges of one node's line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSpans {
    /// The whole statement.
    pub whole: Range<usize>,
    /// The mnemonic.
    pub op: Range<usize>,
    /// Each operand.
    pub args: Vec<Range<usize>>,
    /// The name of each result.
    pub results: Vec<Range<usize>>,
    /// The type of each result, with its placement.
    pub types: Vec<Range<usize>>,
}

/// Byte ranges of the line that declares a value: an input, a weight, a state or a resident.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeclSpans {
    /// The whole statement.
    pub whole: Range<usize>,
    /// The name.
    pub name: Range<usize>,
    /// The type, with its placement.
    pub ty: Range<usize>,
}

/// Byte ranges of one chunk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkSpans {
    /// The header line.
    pub header: Range<usize>,
    /// The residents, by index.
    pub residents: Vec<DeclSpans>,
}

/// Byte ranges of what is said of a stage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StageSpans {
    /// Its line; empty where the only stage is the whole mesh.
    pub header: Range<usize>,
    /// The whole schedule.
    pub schedule: Range<usize>,
    /// The entries of the schedule, by index.
    pub schedule_steps: Vec<Range<usize>>,
    /// The sizes of the arena.
    pub arena: Range<usize>,
}

/// Byte ranges of a module; sections that the text does not have are empty ranges at its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceMap {
    /// The line with the name and the level.
    pub module: Range<usize>,
    /// The mesh.
    pub mesh: Range<usize>,
    /// The section about training.
    pub train: Range<usize>,
    /// The initializers, by index.
    pub initializers: Vec<Range<usize>>,
    /// The header line of the program.
    pub program: Range<usize>,
    /// The inputs of the program, by index.
    pub inputs: Vec<DeclSpans>,
    /// The weights of the program, by index.
    pub weights: Vec<DeclSpans>,
    /// The optimizer states of the program, by index.
    pub states: Vec<DeclSpans>,
    /// The nodes of the program, by id.
    pub program_nodes: Vec<NodeSpans>,
    /// The updates of the program, by index.
    pub updates: Vec<Range<usize>>,
    /// The outputs of the program, by index.
    pub outputs: Vec<Range<usize>>,
    /// The chunks, by index.
    pub chunks: Vec<ChunkSpans>,
    /// The nodes of each chunk, by id.
    pub chunk_nodes: Vec<Vec<NodeSpans>>,
    /// The stages, by index.
    pub stages: Vec<StageSpans>,
    /// The prediction.
    pub predicted: Range<usize>,
}
