//! What a device is told to do for one node, as plain data: kernels to launch, matrix products, copies.
//!
//! Commands name places by offsets and kernels by name, so that they are made, printed and checked without a GPU.

use galvatron_ir::types::DType;

use crate::device::Span;

use super::unit::Unit;

/// The memory beside the arena that kernels may use while they run: partial sums, sort keys, packed operands. In bytes.
pub const SCRATCH_BYTES: u64 = 64 << 20;

/// Where an argument lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Byte offset in the rank's arena.
    Arena(u64),
    /// Byte offset in the scratch memory of [`SCRATCH_BYTES`].
    Scratch(u64),
    /// The record of the first fault that a kernel found in its data.
    Fault,
}

/// An argument of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    /// A pointer.
    At(Place),
    /// A null pointer: an optional operand that is not there.
    Null,
    /// A `long long`.
    Int(i64),
    /// A `float`.
    Float(f32),
    /// A `double`.
    Double(f64),
    /// A struct of that many `long long`s, by value.
    Ints(Vec<i64>),
    /// A struct of pointers and `long long`s, by value.
    Struct(Vec<Word>),
}

/// A field of a struct that is an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// A pointer.
    At(Place),
    /// A null pointer.
    Null,
    /// A `long long`.
    Int(i64),
}

/// One launch of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The source that the kernel is in.
    pub unit: Unit,
    /// Its name.
    pub entry: String,
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block, along x.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
    /// Arguments in order.
    pub args: Vec<Arg>,
}

/// An operand of a strided-batched product, in elements: element (i, j) of batch b is at `i * row + j * col + b * batch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// First element.
    pub at: Place,
    /// Step from row to row.
    pub row: u64,
    /// Step from column to column.
    pub col: u64,
    /// Step from product to product.
    pub batch: u64,
}

/// `batch` products c = a b with sums in f32, a [m, k], b [k, n], c [m, n].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matmul {
    /// Element type of all three, f32 or bf16.
    pub dtype: DType,
    /// Rows of the result.
    pub m: u64,
    /// Columns of the result.
    pub n: u64,
    /// The summed extent.
    pub k: u64,
    /// Number of products.
    pub batch: u64,
    /// Left operand.
    pub a: Matrix,
    /// Right operand.
    pub b: Matrix,
    /// Result.
    pub c: Matrix,
    /// What is added to the products before they are written.
    pub epilogue: Epilogue,
}

/// What is added to products of f32 before they are written; the sum is rounded once more, as by a node of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// Nothing.
    None,
    /// What the result holds.
    Accumulate,
    /// Element j of a row of that many to column j.
    Bias(Place, u64),
}

/// One command of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// A kernel.
    Launch(Launch),
    /// Matrix products.
    Matmul(Matmul),
    /// A copy of bytes.
    Copy {
        /// Source.
        from: Place,
        /// Target.
        to: Place,
        /// How many.
        bytes: u64,
    },
    /// Bytes set to zero.
    Zero {
        /// Target.
        at: Place,
        /// How many.
        bytes: u64,
    },
}

/// The parts of the arena that something touches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accesses {
    /// Parts that are read.
    pub reads: Vec<Span>,
    /// Parts that are written.
    pub writes: Vec<Span>,
}

impl Accesses {
    /// Whether the two must not run at the same time: one writes what the other touches.
    pub fn conflicts(&self, other: &Accesses) -> bool {
        let meet = |a: &[Span], b: &[Span]| a.iter().any(|x| b.iter().any(|y| x.overlaps(y)));
        meet(&self.writes, &other.writes) || meet(&self.writes, &other.reads) || meet(&self.reads, &other.writes)
    }

    /// What both touch.
    pub fn with(mut self, other: Accesses) -> Accesses {
        self.reads.extend(other.reads);
        self.writes.extend(other.writes);
        self
    }
}

/// A stream of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    /// Kernels and matrix products.
    Compute,
    /// Exchanges between ranks.
    Communication,
    /// Copies from and to the host.
    Copy,
}

impl Stream {
    /// All streams.
    pub const ALL: [Stream; 3] = [Stream::Compute, Stream::Communication, Stream::Copy];

    /// Its number.
    pub fn index(self) -> usize {
        self as usize
    }
}

/// All that a node does, in order on one stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// The op's mnemonic, for faults and traces.
    pub name: String,
    /// Where it runs.
    pub stream: Stream,
    /// The commands.
    pub commands: Vec<Command>,
    /// What they touch in the arena.
    pub accesses: Accesses,
}

/// Threads of a block of most kernels.
pub const BLOCK: u32 = 256;

/// Blocks for `n` independent pieces of work, one a thread; kernels loop where there are more.
pub fn blocks(n: u64) -> [u32; 3] {
    [n.div_ceil(u64::from(BLOCK)).clamp(1, 1 << 20) as u32, 1, 1]
}

impl Launch {
    /// A kernel of one thread a piece of work.
    pub fn of(unit: impl Into<Unit>, entry: impl Into<String>, n: u64, args: Vec<Arg>) -> Command {
        Launch::grid(unit, entry, blocks(n), args)
    }

    /// A kernel over a grid of blocks of [`BLOCK`] threads.
    pub fn grid(unit: impl Into<Unit>, entry: impl Into<String>, grid: [u32; 3], args: Vec<Arg>) -> Command {
        Command::Launch(Launch { unit: unit.into(), entry: entry.into(), grid, block: BLOCK, shared_bytes: 0, args })
    }
}
