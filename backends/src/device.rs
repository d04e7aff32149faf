//! What the engine asks of a device: kernels, moves of bytes, exchanges with other ranks, and access from the host.
//!
//! A device belongs to one rank and owns that rank's arena. Everything it prepares works at fixed places of the arena, given
//! as byte offsets from its start; nothing is allocated while a step runs. Where plans may use host memory it has a second arena there,
//! of which parts are copied to the first one and back, and nothing else.

mod routing;

use galvatron_ir::op::Op;
use galvatron_ir::plan::Memory;
use galvatron_ir::types::{DType, TensorType};

use crate::comm::{Collective, CommFault, GroupId, Site};

pub use routing::{Routing, RowBlock};

/// One rank's device with its arena.
pub trait Device: Send + Sync {
    /// Prepares a compute node, `accumulate` (adds operand 1 to operand 0) or `update` (copies operand 1 over operand 0).
    ///
    /// # Errors
    /// Why the device has no kernel for the node: the op, its element types or the overlap of its buffers.
    fn prepare(&self, spec: &NodeSpec<'_>) -> Result<Box<dyn Kernel>, String>;

    /// Cuts a run of nodes into groups that this device prepares together: the number of nodes of each, in order. A device
    /// that gains nothing from it prepares each node by itself.
    fn groups(&self, run: &[RunNode<'_>]) -> Vec<usize> {
        vec![1; run.len()]
    }

    /// Prepares some consecutive nodes of a run, a group of [`groups`](Self::groups), as one kernel. In a copy of the group
    /// `update` may stand for an `accumulate` of it.
    ///
    /// # Errors
    /// Why the device cannot prepare them together.
    fn prepare_group(&self, group: &[RunNode<'_>]) -> Result<Box<dyn Kernel>, String> {
        match group {
            [node] => self.prepare(&node.spec),
            _ => Err("this device prepares each node by itself".into()),
        }
    }

    /// Prepares a move inside the arena, a part of an exchange.
    ///
    /// # Errors
    /// When the two tensors of a block, or a sum and its parts, overlap.
    fn prepare_move(&self, spec: &Move) -> Result<Box<dyn Kernel>, String>;

    /// Prepares a copy between the arenas of the device and of its host.
    ///
    /// # Errors
    /// When the device has no arena in host memory.
    fn prepare_host_copy(&self, _copy: &HostCopy) -> Result<Box<dyn Kernel>, String> {
        Err("this backend has no arena in host memory yet".into())
    }

    /// Prepares the attention of queries to one block of a sequence, or its gradient.
    ///
    /// # Errors
    /// When the device has no kernel for it.
    fn prepare_block(&self, _block: &AttentionBlock<'_>) -> Result<Box<dyn Kernel>, String> {
        Err("this backend has no kernels for blocks of attention yet".into())
    }

    /// Prepares a part of a mixture of experts whose tokens travel between ranks.
    ///
    /// # Errors
    /// When the device has no kernel for it.
    fn prepare_routing(&self, _task: &Routing<'_>) -> Result<Box<dyn Kernel>, String> {
        Err("this backend has no kernels for tokens that travel to their experts yet".into())
    }

    /// Runs a collective on parts of the arena; what was launched before is finished first.
    ///
    /// # Errors
    /// The fault of the collective.
    fn exchange(&self, comm: &mut dyn Collective, exchange: &Exchange, site: &Site<'_>) -> Result<(), CommFault>;

    /// Whether ranks of this kind can send each other messages.
    ///
    /// # Errors
    /// Why they cannot.
    fn messages(&self) -> Result<(), String> {
        Err("this backend has no messages between the stages of a pipeline yet".into())
    }

    /// Sends a part of the arena to a rank, under a tag; what was launched before is finished first.
    ///
    /// # Errors
    /// The fault of the communication.
    fn send(
        &self,
        _comm: &mut dyn Collective,
        _to: (usize, u64),
        _at: Span,
        _site: &Site<'_>,
    ) -> Result<(), CommFault> {
        unreachable!("invariant: messages are prepared where the device has them")
    }

    /// Receives what a rank sends under a tag into a part of the arena.
    ///
    /// # Errors
    /// The fault of the communication.
    fn recv(
        &self,
        _comm: &mut dyn Collective,
        _from: (usize, u64),
        _at: Span,
        _site: &Site<'_>,
    ) -> Result<(), CommFault> {
        unreachable!("invariant: messages are prepared where the device has them")
    }

    /// Lets the host write the whole of a part of the arena.
    ///
    /// # Errors
    /// What `write` returns.
    fn fill(&self, at: Span, write: Write<'_>) -> Result<(), String>;

    /// Copies a part of the arena to the host; `out` has its length.
    fn read(&self, at: Span, out: &mut [u8]);

    /// The same as [`fill`](Self::fill) for a part of the arena in host memory.
    ///
    /// # Errors
    /// What `write` returns.
    fn fill_host(&self, _at: Span, _write: Write<'_>) -> Result<(), String> {
        unreachable!("invariant: copies to host memory are prepared where the device has an arena there")
    }

    /// The same as [`read`](Self::read) for a part of the arena in host memory.
    fn read_host(&self, _at: Span, _out: &mut [u8]) {
        unreachable!("invariant: copies to host memory are prepared where the device has an arena there")
    }

    /// Prepares a copy of a part of the arena to the host, to be run as a node of the step.
    ///
    /// # Errors
    /// When there is no memory for it.
    fn prepare_readout(&self, at: Span) -> Result<Box<dyn Readout>, String>;

    /// Tells that a step begins that does what all other steps do that are begun so: the same prepared nodes, exchanges and
    /// fills in the same order, up to [`finish`](Self::finish). The device may launch it as a whole at its end; `fill` calls
    /// its `write` at once in any case. A step that is not begun, or differs, is launched as it comes.
    fn begin(&self) {}

    /// Waits until everything that was launched is done; called at the end of each step.
    ///
    /// # Errors
    /// What went wrong since the last call and could not be told at once: a fault of the device, or of the data in a kernel
    /// that runs by itself.
    fn finish(&self) -> Result<(), String> {
        Ok(())
    }

    /// What a user should know of how the steps were run, such as that the device could not launch them as a whole.
    fn remark(&self) -> Option<String> {
        None
    }

    /// Calls `body` once on the thread from which this device's kernels are to be run.
    fn install(&self, body: &mut (dyn FnMut() + Send));
}

/// A prepared node: it may be run once a micro-batch, again and again.
pub trait Kernel: Send + Sync {
    /// Computes the results in the arena.
    ///
    /// # Errors
    /// What is wrong with the data, such as an index outside of its table.
    fn run(&self) -> Result<(), String>;
}

/// A prepared copy to the host.
pub trait Readout: Kernel {
    /// Copies what the part held when the readout last ran; `out` has its length. The step has been finished since.
    fn value(&self, out: &mut [u8]);
}

/// Lets the host write the whole of a part; it may be refused.
pub type Write<'a> = &'a mut dyn FnMut(&mut [u8]) -> Result<(), String>;

/// A part of an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte, from the start of the arena.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: u64,
}

impl Span {
    /// Whether the two parts share a byte.
    pub fn overlaps(&self, other: &Span) -> bool {
        self.bytes > 0
            && other.bytes > 0
            && self.offset < other.offset + other.bytes
            && other.offset < self.offset + self.bytes
    }

    /// Part number `index` of this part cut into `n` equal ones.
    pub fn chunk(&self, index: u64, n: u64) -> Span {
        Span { offset: self.offset + index * (self.bytes / n), bytes: self.bytes / n }
    }
}

/// The part of a value that one rank holds, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BufferSpec {
    /// The memory of the arena that it lies in.
    pub memory: Memory,
    /// First byte, from the start of the arena.
    pub offset: u64,
    /// Element type and local shape.
    pub ty: TensorType,
    /// Global shape.
    pub global_shape: Vec<u64>,
    /// Global index of the rank's first element along each dimension, in the micro-batch that the node is prepared for: 0, but
    /// for ops that draw by global index.
    pub first: Vec<u64>,
}

impl BufferSpec {
    /// A whole value in the device's memory.
    pub fn whole(ty: &TensorType, offset: u64) -> BufferSpec {
        let (global_shape, first) = (ty.shape.clone(), vec![0; ty.rank()]);
        BufferSpec { memory: Memory::Device, offset, ty: ty.clone(), global_shape, first }
    }

    /// The bytes of the buffer.
    pub fn span(&self) -> Span {
        Span { offset: self.offset, bytes: self.ty.bytes() }
    }

    /// Lets the host write it.
    ///
    /// # Errors
    /// What `write` returns.
    pub fn fill(&self, device: &dyn Device, write: Write<'_>) -> Result<(), String> {
        match self.memory {
            Memory::Device => device.fill(self.span(), write),
            Memory::Host => device.fill_host(self.span(), write),
        }
    }

    /// Copies its bytes from the `first` one on to the host.
    pub fn read(&self, device: &dyn Device, first: u64, out: &mut [u8]) {
        let at = Span { offset: self.offset + first, bytes: out.len() as u64 };
        match self.memory {
            Memory::Device => device.read(at, out),
            Memory::Host => device.read_host(at, out),
        }
    }
}

/// A copy between the arenas of a device and of its host, of two parts of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostCopy {
    /// The memory that is written; the other one is read.
    pub to: Memory,
    /// The part of the device's arena.
    pub device: Span,
    /// The part of the arena in host memory.
    pub host: Span,
}

/// A node as a device sees it: the op with the rank's buffers.
#[derive(Clone, Debug)]
pub struct NodeSpec<'a> {
    /// The op; shapes among its attributes are global.
    pub op: &'a Op,
    /// Operands in order.
    pub args: &'a [BufferSpec],
    /// Results in order.
    pub results: &'a [BufferSpec],
    /// Scratch memory of the op's `workspace` bytes.
    pub workspace: Option<Span>,
}

/// A node of a run: of nodes that one phase runs one after the other, with nothing between them that touches memory.
#[derive(Clone, Debug)]
pub struct RunNode<'a> {
    /// The node.
    pub spec: NodeSpec<'a>,
    /// Its position in the run.
    pub position: usize,
    /// For each result the position in the run of the last node that reads it; [`READ_LATER`] if anything but a node of the run
    /// does, `None` if nothing does.
    pub last_readers: &'a [Option<usize>],
}

/// The last reader of a result that is needed after its run.
pub const READ_LATER: Option<usize> = Some(usize::MAX);

/// A copy inside the arena, or a sum of what came from other ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    /// Copies a block of one tensor into another one; the two tensors do not overlap.
    Block {
        /// Element type of both.
        dtype: DType,
        /// Extents of the block.
        extents: Vec<u64>,
        /// Where it is read.
        from: Corner,
        /// Where it is written.
        to: Corner,
    },
    /// Reorders equal chunks in place: chunk `i` moves to place `to[i]`.
    Permute {
        /// All chunks.
        at: Span,
        /// A permutation of the numbers of the chunks.
        to: Vec<usize>,
    },
    /// Adds equal parts of bf16 in f32, in their order, and rounds the sum once. Parts and sum do not overlap.
    Sum {
        /// The parts, one after the other.
        parts: Span,
        /// The sum, as long as a part.
        to: Span,
    },
}

/// The queries of a rank and one block of keys and values: q [b, s, h, d], k [b, t, g, d], v [b, t, g, e], o [b, s, h, e],
/// lse [b, h, s], a mask [m, 1 or h, s, t]; all of f32.
#[derive(Clone, Copy, Debug)]
pub struct AttentionBlock<'a> {
    /// Factor on the scores.
    pub scale: f64,
    /// Whether query i sees the keys j <= i of the block only.
    pub causal: bool,
    /// Queries.
    pub q: &'a BufferSpec,
    /// Keys of the block.
    pub k: &'a BufferSpec,
    /// Values of the block.
    pub v: &'a BufferSpec,
    /// What is added to the scores.
    pub mask: Option<&'a BufferSpec>,
    /// Output: forward that of the blocks seen before, backward that of all.
    pub o: &'a BufferSpec,
    /// Its log-sum-exp.
    pub lse: &'a BufferSpec,
    /// What is done.
    pub task: BlockTask<'a>,
}

/// What an [`AttentionBlock`] does.
#[derive(Clone, Copy, Debug)]
pub enum BlockTask<'a> {
    /// Output and log-sum-exp of the blocks seen before become those with this block; before the first one they are 0 and -inf.
    Forward,
    /// Adds this block's part of the gradients.
    Backward {
        /// The gradient of the output.
        grad: &'a BufferSpec,
        /// That of the queries.
        dq: &'a BufferSpec,
        /// That of the block's keys.
        dk: &'a BufferSpec,
        /// That of the block's values.
        dv: &'a BufferSpec,
    },
}

/// A corner of a block inside a row-major tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corner {
    /// First byte of the tensor.
    pub offset: u64,
    /// Shape of the tensor.
    pub shape: Vec<u64>,
    /// Index of the block's first element.
    pub first: Vec<u64>,
}

impl Corner {
    /// The bytes of the whole tensor.
    pub fn span(&self, dtype: DType) -> Span {
        Span { offset: self.offset, bytes: self.shape.iter().product::<u64>() * dtype.bytes() }
    }
}

impl Move {
    /// Copies a whole tensor.
    pub fn whole(ty: &TensorType, from: u64, to: u64) -> Move {
        let corner = |offset| Corner { offset, shape: ty.shape.clone(), first: vec![0; ty.rank()] };
        Move::Block { dtype: ty.dtype, extents: ty.shape.clone(), from: corner(from), to: corner(to) }
    }
}

/// A collective on parts of the arena; chunks lie in the order of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// What is done.
    pub kind: ExchangeKind,
    /// The ranks that take part.
    pub group: GroupId,
}

/// What an [`Exchange`] does. Sums are of f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExchangeKind {
    /// Replaces the part by its sum over the group.
    AllReduce(Span),
    /// Sums the input and keeps this rank's chunk.
    ReduceScatter {
        /// One chunk for each member.
        input: Span,
        /// This rank's chunk.
        output: Span,
    },
    /// Joins everyone's input; the input may be this rank's chunk of the output.
    AllGather {
        /// This rank's chunk.
        input: Span,
        /// One chunk for each member.
        output: Span,
    },
    /// Gives chunk j of the input to member j.
    AllToAll {
        /// One chunk for each member.
        input: Span,
        /// One chunk from each member.
        output: Span,
    },
}
