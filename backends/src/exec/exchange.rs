//! Collective nodes as moves inside the arena around exchanges between ranks.
//!
//! Chunk p of a value belongs to the rank at position p of the group, row-major over the node's axes. On the wire chunks lie
//! in the order of the group's ranks; where the two orders differ, chunks are packed, or permuted in place.
//!
//! Devices sum f32. A sum of bf16 is an exchange of chunks, a sum of what was received in f32 and in the order of ranks, rounded
//! once, and for an all-reduce an exchange of the sums: the same bits on every device, with bf16 on the wire.

use galvatron_ir::AxisId;
use galvatron_ir::mesh::ReshardStep;
use galvatron_ir::op::comm::{SumParts, scattered_sum_bytes, sum_bytes};
use galvatron_ir::types::{DType, TensorType};

use super::layout::Layout;
use crate::comm::{Collective, GroupId};
use crate::device::{BufferSpec, Corner, Device, Exchange, ExchangeKind, Kernel, Move, Span};

/// A step of a collective node.
pub(super) enum Step {
    /// A move inside the arena.
    Run(Box<dyn Kernel>),
    /// An exchange with the other ranks.
    Exchange(Exchange),
    /// A message to another rank.
    Send(Hop),
    /// A message from another rank.
    Recv(Hop),
}

/// One end of a message between two ranks of a group.
pub(super) struct Hop {
    /// The other rank.
    pub(super) peer: usize,
    pub(super) tag: u64,
    pub(super) at: Span,
    /// How much of it is sent, where that is known during the step only.
    pub(super) counted: Option<Counted>,
}

/// A number of rows from the start of a part of the arena.
pub(super) struct Counted {
    /// Where the number stands, an i64.
    pub(super) count: Span,
    pub(super) row_bytes: u64,
}

impl Hop {
    /// What is sent: all, or the rows that there are; nothing where there are none.
    ///
    /// # Errors
    /// When there are more rows than there is room for.
    pub(super) fn part(&self, device: &dyn Device) -> Result<Option<Span>, String> {
        let Some(Counted { count, row_bytes }) = &self.counted else { return Ok(Some(self.at)) };
        let mut bytes = [0; size_of::<i64>()];
        device.read(*count, &mut bytes);
        let (n, room) = (i64::from_ne_bytes(bytes), self.at.bytes / row_bytes.max(&1));
        match u64::try_from(n).ok().filter(|&n| n <= room) {
            Some(n) => Ok(Some(Span { bytes: n * row_bytes, ..self.at }).filter(|_| n > 0)),
            None => Err(format!("a message with rank {} has {n} rows, there is room for {room}", self.peer)),
        }
    }
}

/// Prepares a collective as steps in order; the communicator of its group is created here, on all ranks in the same order.
///
/// # Errors
/// Why the node cannot be run.
pub(super) fn prepare(
    step: &ReshardStep,
    layout: &Layout<'_>,
    device: &dyn Device,
    comm: &mut dyn Collective,
    buffers: Buffers<'_>,
) -> Result<Vec<Step>, String> {
    buffers.check()?;
    let parts = Parts::new(layout, comm, step.axes())?;
    let (room, workspace) = (room_bytes(step, buffers.args, parts.n()), buffers.workspace);
    let mut plan = Plan { device, parts, workspace, room, steps: Vec::new(), after: Vec::new() };
    let (x, y) = (&buffers.args[0], &buffers.results[0]);
    match *step {
        ReshardStep::AllReduce { .. } => plan.all_reduce(buffers.args, buffers.results),
        ReshardStep::ReduceScatter { dim, .. } => plan.reduce_scatter(x, y, dim),
        ReshardStep::AllGather { dim, .. } => plan.all_gather(x, y, dim),
        ReshardStep::AllToAll { from, to, .. } => plan.all_to_all(x, y, from, to),
        ReshardStep::Shard { dim, .. } => plan.move_now(block(x, whole(y), dim, plan.parts.position, Side::From)),
    }?;
    plan.steps.append(&mut plan.after);
    Ok(plan.steps)
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
pub(super) struct Parts {
    pub(super) group: GroupId,
    /// For each position its place in the order of the group's ranks.
    pub(super) slots: Vec<usize>,
    /// This rank's position.
    position: u64,
}

impl Parts {
    pub(super) fn new(layout: &Layout<'_>, comm: &mut dyn Collective, axes: &[AxisId]) -> Result<Parts, String> {
        if axes.contains(&galvatron_ir::mesh::Mesh::MB) {
            return Err("no collective runs over micro-batches".into());
        }
        let ranks = layout.group(axes);
        let group = comm.group(&ranks);
        let members = comm.members(group);
        let slot = |&rank: &usize| members.index_of(rank).expect("invariant: the group has these ranks");
        Ok(Parts { group, slots: ranks.iter().map(slot).collect(), position: layout.index_along(axes) })
    }

    fn n(&self) -> u64 {
        self.slots.len() as u64
    }

    /// This rank's place in the order of the group's ranks.
    fn own_slot(&self) -> usize {
        self.slots[self.position as usize]
    }

    fn is_in_order(&self) -> bool {
        self.slots.iter().enumerate().all(|(p, &slot)| p == slot)
    }

    /// For each slot the position of its rank.
    pub(super) fn positions(&self) -> Vec<usize> {
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
    /// Bytes at the start of the workspace in which sums of bf16 receive.
    room: u64,
    steps: Vec<Step>,
    /// Moves after all exchanges.
    after: Vec<Step>,
}

impl Plan<'_> {
    fn move_now(&mut self, spec: Move) -> Result<(), String> {
        self.steps.push(Step::Run(self.device.prepare_move(&spec)?));
        Ok(())
    }

    fn move_after(&mut self, spec: Move) -> Result<(), String> {
        self.after.push(Step::Run(self.device.prepare_move(&spec)?));
        Ok(())
    }

    fn exchange(&mut self, kind: ExchangeKind) {
        self.steps.push(Step::Exchange(Exchange { kind, group: self.parts.group }));
    }

    /// A part of the workspace.
    fn part(&self, first: u64, bytes: u64) -> Result<Span, String> {
        let at = self.workspace.filter(|ws| ws.bytes >= first + bytes);
        let at = at.map(|ws| Span { offset: ws.offset + first, bytes });
        at.ok_or_else(|| format!("it needs {} bytes of workspace", first + bytes))
    }

    /// Room to pack messages, after that in which sums receive.
    fn scratch(&self, bytes: u64) -> Result<Span, String> {
        self.part(self.room, bytes)
    }

    fn all_reduce(&mut self, args: &[BufferSpec], results: &[BufferSpec]) -> Result<(), String> {
        check_floats(args)?;
        let dtype = args[0].ty.dtype;
        if let ([x], [y]) = (args, results) {
            if x.offset != y.offset {
                self.move_now(Move::whole(&x.ty, x.offset, y.offset))?;
            }
            return self.sum_everywhere(y.span(), dtype);
        }
        let bucket = self.scratch(args.iter().map(|a| a.ty.bytes()).sum())?;
        let mut offset = bucket.offset;
        for (x, y) in args.iter().zip(results) {
            self.move_now(Move::whole(&x.ty, x.offset, offset))?;
            self.move_after(Move::whole(&y.ty, offset, y.offset))?;
            offset += x.ty.bytes();
        }
        self.sum_everywhere(bucket, dtype)
    }

    /// Replaces elements by their sum over the group.
    fn sum_everywhere(&mut self, at: Span, dtype: DType) -> Result<(), String> {
        if dtype != DType::Bf16 {
            self.exchange(ExchangeKind::AllReduce(at));
            return Ok(());
        }
        let n = self.parts.n();
        let sums = SumParts::new(at.bytes / dtype.bytes(), n);
        let front = Span { bytes: sums.scattered * dtype.bytes(), ..at };
        let rest = Span { offset: at.offset + front.bytes, bytes: at.bytes - front.bytes };
        if front.bytes > 0 {
            let received = self.part(0, front.bytes)?;
            let own = front.chunk(self.parts.own_slot() as u64, n);
            self.exchange(ExchangeKind::AllToAll { input: front, output: received });
            self.move_now(Move::Sum { parts: received, to: own })?;
            self.exchange(ExchangeKind::AllGather { input: own, output: front });
        }
        if rest.bytes > 0 {
            let copies = self.part(sums.received_bytes(), n * rest.bytes)?;
            self.exchange(ExchangeKind::AllGather { input: rest, output: copies });
            self.move_now(Move::Sum { parts: copies, to: rest })?;
        }
        Ok(())
    }

    fn reduce_scatter(&mut self, x: &BufferSpec, y: &BufferSpec, dim: usize) -> Result<(), String> {
        check_floats(std::slice::from_ref(x))?;
        apart(x, y)?;
        let (mut input, output) = (x.span(), y.span());
        if !is_leading(x, dim) {
            input = self.scratch(input.bytes)?;
            self.pack(x, &y.ty, dim, input)?;
        } else if !self.parts.is_in_order() {
            self.move_now(Move::Permute { at: input, to: self.parts.slots.clone() })?;
            self.move_after(Move::Permute { at: input, to: self.parts.positions() })?;
        }
        if x.ty.dtype == DType::Bf16 {
            let received = self.part(0, input.bytes)?;
            self.exchange(ExchangeKind::AllToAll { input, output: received });
            return self.move_now(Move::Sum { parts: received, to: output });
        }
        self.exchange(ExchangeKind::ReduceScatter { input, output });
        Ok(())
    }

    fn all_gather(&mut self, x: &BufferSpec, y: &BufferSpec, dim: usize) -> Result<(), String> {
        let (input, mut output) = (x.span(), y.span());
        let slot = self.parts.own_slot();
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
        self.exchange(ExchangeKind::AllGather { input, output });
        Ok(())
    }

    fn all_to_all(&mut self, x: &BufferSpec, y: &BufferSpec, from: usize, to: usize) -> Result<(), String> {
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
        self.exchange(ExchangeKind::AllToAll { input, output });
        Ok(())
    }

    /// Packs the chunks along `dim` of `x` in the order of the group.
    fn pack(&mut self, x: &BufferSpec, chunk: &TensorType, dim: usize, at: Span) -> Result<(), String> {
        for (p, slot) in self.parts.slots.clone().into_iter().enumerate() {
            let packed = Packed { offset: at.chunk(slot as u64, self.parts.n()).offset, ty: chunk.clone() };
            self.move_now(block(x, packed, dim, p as u64, Side::From))?;
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

/// Bytes at the start of the workspace in which a sum of bf16 over `n` ranks receives.
fn room_bytes(step: &ReshardStep, args: &[BufferSpec], n: u64) -> u64 {
    let types: Vec<&TensorType> = args.iter().map(|arg| &arg.ty).collect();
    match step {
        ReshardStep::AllReduce { .. } => sum_bytes(&types, n),
        ReshardStep::ReduceScatter { .. } => scattered_sum_bytes(types[0]),
        _ => 0,
    }
}

fn apart(x: &BufferSpec, y: &BufferSpec) -> Result<(), String> {
    if x.span().overlaps(&y.span()) { Err("the result overlaps its operand in memory".into()) } else { Ok(()) }
}
