//! Collective nodes as moves inside the arena around one exchange between ranks.
//!
//! Chunk p of a value belongs to the rank at position p of the group, row-major over the node's axes. On the wire chunks lie
//! in the order of the group's ranks; where the two orders differ, chunks are packed, or permuted in place.

use galvatron_ir::AxisId;
use galvatron_ir::mesh::ReshardStep;
use galvatron_ir::op::widened_bytes;
use galvatron_ir::types::TensorType;

use super::layout::Layout;
use crate::comm::{Collective, GroupId};
use crate::device::{BufferSpec, Corner, Device, Exchange, ExchangeKind, Kernel, Move, Span};

/// A collective node, prepared.
pub(super) struct Collected {
    /// Moves before the exchange.
    pub(super) before: Vec<Box<dyn Kernel>>,
    /// The exchange; none for a local cut.
    pub(super) exchange: Option<Exchange>,
    /// Moves after it.
    pub(super) after: Vec<Box<dyn Kernel>>,
}

/// Prepares a collective; the communicator of its group is created here, on all ranks in the same order.
///
/// # Errors
/// Why the node cannot be run.
pub(super) fn prepare(
    step: &ReshardStep,
    layout: &Layout<'_>,
    device: &dyn Device,
    comm: &mut dyn Collective,
    buffers: Buffers<'_>,
) -> Result<Collected, String> {
    buffers.check()?;
    let parts = Parts::new(layout, comm, step.axes())?;
    let widened_bytes = widening_bytes(step, buffers.args, buffers.results);
    let workspace = buffers.workspace;
    let mut plan = Plan { device, parts, workspace, widened_bytes, before: Vec::new(), after: Vec::new() };
    let (x, y) = (&buffers.args[0], &buffers.results[0]);
    let exchange = match *step {
        ReshardStep::AllReduce { .. } => Some(plan.all_reduce(buffers.args, buffers.results)?),
        ReshardStep::ReduceScatter { dim, .. } => Some(plan.reduce_scatter(x, y, dim)?),
        ReshardStep::AllGather { dim, .. } => Some(plan.all_gather(x, y, dim)?),
        ReshardStep::AllToAll { from, to, .. } => Some(plan.all_to_all(x, y, from, to)?),
        ReshardStep::Shard { dim, .. } => {
            let position = plan.parts.position;
            plan.move_before(block(x, whole(y), dim, position, Side::From))?;
            None
        }
    };
    let widened = plan.widening()?;
    let exchange = exchange.map(|kind| Exchange { kind, group: plan.parts.group, widened });
    Ok(Collected { before: plan.before, exchange, after: plan.after })
}

/// The buffers of a collective node.
#[derive(Clone, Copy)]
pub(super) struct Buffers<'a> {
    pub(super) args: &'a [BufferSpec],
    pub(super) results: &'a [BufferSpec],
    pub(super) workspace: Option<Span>,
}

impl Buffers<'_> {
    /// Buffers are apart, but an all-reduce may have its result in the operand's place, and an all-gather its operand
    /// inside of the result.
    fn check(&self) -> Result<(), String> {
        let all = || self.args.iter().chain(self.results);
        if self.workspace.is_some_and(|ws| all().any(|b| b.span().overlaps(&ws))) {
            return Err("the workspace overlaps a buffer in memory".into());
        }
        Ok(())
    }
}

/// How a value is cut into one chunk for each member of a group.
struct Parts {
    group: GroupId,
    /// For each position its place in the order of the group's ranks.
    slots: Vec<usize>,
    /// This rank's position.
    position: u64,
}

impl Parts {
    fn new(layout: &Layout<'_>, comm: &mut dyn Collective, axes: &[AxisId]) -> Result<Parts, String> {
        if axes.contains(&galvatron_ir::mesh::Mesh::MB) {
            return Err("no collective runs over micro-batches".into());
        }
        let ranks: Vec<usize> = layout.mesh.group(axes, layout.rank).into_iter().map(|r| r as usize).collect();
        let group = comm.group(&ranks);
        let members = comm.members(group);
        let slot = |&rank: &usize| members.index_of(rank).expect("invariant: the group has these ranks");
        Ok(Parts { group, slots: ranks.iter().map(slot).collect(), position: layout.index_along(axes) })
    }

    fn n(&self) -> u64 {
        self.slots.len() as u64
    }

    fn is_in_order(&self) -> bool {
        self.slots.iter().enumerate().all(|(p, &slot)| p == slot)
    }

    /// For each slot the position of its rank.
    fn positions(&self) -> Vec<usize> {
        let mut positions = vec![0; self.slots.len()];
        self.slots.iter().enumerate().for_each(|(p, &slot)| positions[slot] = p);
        positions
    }
}

/// Which side of a copy is a block of a larger tensor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    From,
    To,
}

/// A tensor at an offset.
struct Packed {
    offset: u64,
    ty: TensorType,
}

fn whole(buffer: &BufferSpec) -> Packed {
    Packed { offset: buffer.offset, ty: buffer.ty.clone() }
}

/// The copy between block number `index` along `dim` of `tensor` and a packed chunk.
fn block(tensor: &BufferSpec, chunk: Packed, dim: usize, index: u64, side: Side) -> Move {
    let mut first = vec![0; tensor.ty.rank()];
    first[dim] = index * chunk.ty.shape[dim];
    let in_tensor = Corner { offset: tensor.offset, shape: tensor.ty.shape.clone(), first };
    let origin = vec![0; chunk.ty.rank()];
    let in_chunk = Corner { offset: chunk.offset, shape: chunk.ty.shape.clone(), first: origin };
    let (from, to) = if side == Side::From { (in_tensor, in_chunk) } else { (in_chunk, in_tensor) };
    Move::Block { dtype: tensor.ty.dtype, extents: chunk.ty.shape, from, to }
}

/// Whether the parts of a dimension are contiguous: all dimensions before it have extent 1.
fn is_leading(buffer: &BufferSpec, dim: usize) -> bool {
    buffer.ty.shape[..dim].iter().all(|&d| d == 1)
}

struct Plan<'a> {
    device: &'a dyn Device,
    parts: Parts,
    workspace: Option<Span>,
    /// Bytes of the f32 copies at the start of the workspace.
    widened_bytes: u64,
    before: Vec<Box<dyn Kernel>>,
    after: Vec<Box<dyn Kernel>>,
}

impl Plan<'_> {
    fn move_before(&mut self, spec: Move) -> Result<(), String> {
        self.before.push(self.device.prepare_move(&spec)?);
        Ok(())
    }

    fn move_after(&mut self, spec: Move) -> Result<(), String> {
        self.after.push(self.device.prepare_move(&spec)?);
        Ok(())
    }

    /// Room to pack messages, after the f32 copies.
    fn scratch(&self, bytes: u64) -> Result<Span, String> {
        let widened = self.widened_bytes;
        let at = self.workspace.filter(|ws| ws.bytes >= widened + bytes);
        let at = at.map(|ws| Span { offset: ws.offset + widened, bytes });
        at.ok_or_else(|| format!("it needs {} bytes of workspace", widened + bytes))
    }

    /// Room for the f32 copies of sums of bf16.
    fn widening(&self) -> Result<Option<Span>, String> {
        let bytes = self.widened_bytes;
        if bytes == 0 {
            return Ok(None);
        }
        let at = self.workspace.filter(|ws| ws.bytes >= bytes);
        at.map(|ws| Some(Span { bytes, ..ws })).ok_or_else(|| format!("it needs {bytes} bytes of workspace"))
    }

    fn all_reduce(&mut self, args: &[BufferSpec], results: &[BufferSpec]) -> Result<ExchangeKind, String> {
        check_floats(args)?;
        if let ([x], [y]) = (args, results) {
            if x.offset != y.offset {
                self.move_before(Move::whole(&x.ty, x.offset, y.offset))?;
            }
            return Ok(ExchangeKind::AllReduce(y.span()));
        }
        let bucket = self.scratch(args.iter().map(|a| a.ty.bytes()).sum())?;
        let mut offset = bucket.offset;
        for (x, y) in args.iter().zip(results) {
            self.move_before(Move::whole(&x.ty, x.offset, offset))?;
            self.move_after(Move::whole(&y.ty, offset, y.offset))?;
            offset += x.ty.bytes();
        }
        Ok(ExchangeKind::AllReduce(bucket))
    }

    fn reduce_scatter(&mut self, x: &BufferSpec, y: &BufferSpec, dim: usize) -> Result<ExchangeKind, String> {
        check_floats(std::slice::from_ref(x))?;
        apart(x, y)?;
        let (mut input, output) = (x.span(), y.span());
        if !is_leading(x, dim) {
            input = self.scratch(input.bytes)?;
            self.pack(x, &y.ty, dim, input)?;
        } else if !self.parts.is_in_order() {
            self.move_before(Move::Permute { at: input, to: self.parts.slots.clone() })?;
            self.move_after(Move::Permute { at: input, to: self.parts.positions() })?;
        }
        Ok(ExchangeKind::ReduceScatter { input, output })
    }

    fn all_gather(&mut self, x: &BufferSpec, y: &BufferSpec, dim: usize) -> Result<ExchangeKind, String> {
        let (input, mut output) = (x.span(), y.span());
        let slot = self.parts.slots[self.parts.position as usize];
        if !is_leading(y, dim) {
            apart(x, y)?;
            output = self.scratch(output.bytes)?;
            self.unpack(y, &x.ty, dim, output)?;
        } else if input != output.chunk(slot as u64, self.parts.n()) {
            apart(x, y)?;
        }
        if is_leading(y, dim) && !self.parts.is_in_order() {
            self.move_after(Move::Permute { at: output, to: self.parts.positions() })?;
        }
        Ok(ExchangeKind::AllGather { input, output })
    }

    fn all_to_all(&mut self, x: &BufferSpec, y: &BufferSpec, from: usize, to: usize) -> Result<ExchangeKind, String> {
        apart(x, y)?;
        let mut chunk = x.ty.clone();
        chunk.shape[to] /= self.parts.n();
        let (mut input, mut output) = (x.span(), y.span());
        let scratch = self.scratch(2 * input.bytes)?;
        if !is_leading(x, to) || !self.parts.is_in_order() {
            input = scratch.chunk(0, 2);
            self.pack(x, &chunk, to, input)?;
        }
        if !is_leading(y, from) || !self.parts.is_in_order() {
            output = scratch.chunk(1, 2);
            self.unpack(y, &chunk, from, output)?;
        }
        Ok(ExchangeKind::AllToAll { input, output })
    }

    /// Packs the chunks along `dim` of `x` in the order of the group.
    fn pack(&mut self, x: &BufferSpec, chunk: &TensorType, dim: usize, at: Span) -> Result<(), String> {
        for (p, slot) in self.parts.slots.clone().into_iter().enumerate() {
            let packed = Packed { offset: at.chunk(slot as u64, self.parts.n()).offset, ty: chunk.clone() };
            self.move_before(block(x, packed, dim, p as u64, Side::From))?;
        }
        Ok(())
    }

    /// Unpacks chunks in the order of the group into the parts along `dim` of `y`.
    fn unpack(&mut self, y: &BufferSpec, chunk: &TensorType, dim: usize, at: Span) -> Result<(), String> {
        for (p, slot) in self.parts.slots.clone().into_iter().enumerate() {
            let packed = Packed { offset: at.chunk(slot as u64, self.parts.n()).offset, ty: chunk.clone() };
            self.move_after(block(y, packed, dim, p as u64, Side::To))?;
        }
        Ok(())
    }
}

/// Sums are of floats, all of one element type.
fn check_floats(buffers: &[BufferSpec]) -> Result<(), String> {
    let dtype = buffers[0].ty.dtype;
    match buffers.iter().find(|b| !b.ty.dtype.is_float() || b.ty.dtype != dtype) {
        None => Ok(()),
        Some(other) => Err(format!("sums are of f32 or of bf16, not of {dtype} and {}", other.ty.dtype)),
    }
}

/// Bytes of the f32 copies that a sum of bf16 needs.
fn widening_bytes(step: &ReshardStep, args: &[BufferSpec], results: &[BufferSpec]) -> u64 {
    let bytes = |buffers: &[BufferSpec]| buffers.iter().map(|b| widened_bytes(&b.ty)).sum::<u64>();
    match step {
        ReshardStep::AllReduce { .. } => bytes(args),
        ReshardStep::ReduceScatter { .. } => bytes(args) + bytes(results),
        _ => 0,
    }
}

fn apart(x: &BufferSpec, y: &BufferSpec) -> Result<(), String> {
    if x.span().overlaps(&y.span()) { Err("the result overlaps its operand in memory".into()) } else { Ok(()) }
}
