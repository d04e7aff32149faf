//! Parts of a mixture of experts whose tokens travel between ranks.

use std::sync::Arc;

use galvatron_ir::op::Op;
use galvatron_ir::op::compute::UnaryKind;
use galvatron_ir::types::{DType, bf16};

use super::elementwise::unary_kind;
use super::widen::{round, widen};
use super::{Prepared, Slot};
use crate::cpu::arena::Arena;
use crate::cpu::device::kernel;
use crate::cpu::kernels::moe::{MoeArgs, MoeDims, moe, more_moe_grad};
use crate::cpu::kernels::routed::{add, count, list, pack};
use crate::cpu::threads::Threads;
use crate::device::{BufferSpec, Routing, RowBlock, Span};

pub(super) fn prepare(arena: &Arc<Arena>, threads: Threads, task: &Routing<'_>) -> Prepared {
    match task.clone() {
        Routing::Count { choices, experts, counts } => {
            let (i, k, experts) = (slot(choices, DType::I64)?, width(choices), experts.to_vec());
            Ok(kernel(arena, move |arena| {
                let i = i.get::<i64>(arena);
                let of = arena.view_mut::<i64>(counts).iter_mut().zip(&experts);
                of.for_each(|(n, experts)| *n = count(i, k, experts) as i64);
                Ok(())
            }))
        }
        Routing::Pack { choices, experts, tensors, rows, to } => {
            let (i, k) = (slot(choices, DType::I64)?, width(choices));
            let tensors: Vec<(Span, usize)> =
                tensors.iter().map(|t| (t.span(), width(t) * bytes_of(t.ty.dtype))).collect();
            Ok(kernel(arena, move |arena| {
                let all = arena.view_mut::<u32>(rows);
                let n = list(i.get(arena), k, &experts, all);
                let mut message = arena.view_mut::<u8>(to);
                for &(tensor, row_bytes) in &tensors {
                    let (out, rest) = message.split_at_mut(n * row_bytes);
                    pack(arena.view(tensor), row_bytes, &all[..n], out);
                    message = rest;
                }
                Ok(())
            }))
        }
        Routing::Compute(block) => compute(arena, threads, &block),
        Routing::Add { count, rows, from, dtype, to } => {
            let to = to.iter().map(|t| Ok((slot(t, DType::F32)?, width(t)))).collect::<Result<Vec<_>, String>>()?;
            Ok(kernel(arena, move |arena| {
                let rows = &arena.view::<u32>(rows)[..number(arena, count)];
                let mut message = Message { at: from.offset, rows: rows.len(), dtype };
                for &(to, width) in &to {
                    let (from, to) = (message.next(width), to.get_mut(arena));
                    match dtype {
                        DType::Bf16 => add(from.get::<u16>(arena), width, rows, to, bf16::widen),
                        _ => add(from.get::<f32>(arena), width, rows, to, |x| x),
                    }
                }
                Ok(())
            }))
        }
    }
}

/// A number in the arena.
fn number(arena: &Arena, at: Span) -> usize {
    arena.view::<i64>(at)[0] as usize
}

fn slot(buffer: &BufferSpec, dtype: DType) -> Result<Slot, String> {
    if buffer.ty.dtype == dtype {
        return Ok(Slot { offset: buffer.offset, len: buffer.ty.elements() as usize });
    }
    Err(format!("a buffer is {}, the CPU kernel takes {dtype}", buffer.ty.dtype))
}

fn width(buffer: &BufferSpec) -> usize {
    buffer.ty.shape.last().map_or(1, |&width| width as usize)
}

fn bytes_of(dtype: DType) -> usize {
    dtype.bytes() as usize
}

/// A message that is taken apart tensor by tensor.
struct Message {
    at: u64,
    rows: usize,
    dtype: DType,
}

impl Message {
    /// The next tensor, with rows of so many elements.
    fn next(&mut self, width: usize) -> Slot {
        self.next_of(width, self.dtype)
    }

    fn next_of(&mut self, width: usize, dtype: DType) -> Slot {
        let slot = Slot { offset: self.at, len: self.rows * width };
        self.at += dtype.bytes() * slot.len as u64;
        slot
    }
}

/// A [`RowBlock`] with its places.
struct Block {
    dims: MoeDims,
    dtype: DType,
    count: Span,
    from: Span,
    to: Span,
    experts: [Slot; 3],
    gradients: Option<[Slot; 3]>,
    copies: Vec<Slot>,
    order: Slot,
    scratch: Slot,
}

impl Block {
    fn new(block: &RowBlock<'_>) -> Result<Block, String> {
        let (activation, widths) = match block.op {
            Op::Moe(op) => (op.activation, [2, 2]),
            Op::MoeGrad(op) => (op.activation, [3, 5]),
            other => return Err(format!("`{}` is no mixture", other.mnemonic())),
        };
        let dims = dims(block, activation)?;
        let order_bytes = (size_of::<u32>() * dims.order_len()).next_multiple_of(64);
        let len = dims.scratch_len(widths[0], widths[1]);
        let needed = (order_bytes + size_of::<f32>() * len) as u64;
        if block.scratch.bytes < needed {
            return Err(format!("it needs {needed} bytes of workspace"));
        }
        let floats = |all: &[BufferSpec]| all.iter().map(|b| slot(b, DType::F32)).collect::<Result<Vec<_>, _>>();
        let three = |all: &[BufferSpec]| {
            let slots = floats(all)?;
            <[Slot; 3]>::try_from(slots).map_err(|_| "a mixture has three weights".to_string())
        };
        Ok(Block {
            dims,
            dtype: block.dtype,
            count: block.count,
            from: block.from,
            to: block.to,
            experts: three(block.experts)?,
            gradients: if block.gradients.is_empty() { None } else { Some(three(block.gradients)?) },
            copies: floats(block.copies)?,
            order: Slot { offset: block.scratch.offset, len: dims.order_len() },
            scratch: Slot { offset: block.scratch.offset + order_bytes as u64, len },
        })
    }

    /// Where the rows of messages lie as f32: themselves, or copies of them.
    fn wide<const N: usize>(&self, narrow: [Slot; N], first: usize) -> [Slot; N] {
        let copy = |index: usize| self.copies.get(first + index).map(|copy| Slot { len: narrow[index].len, ..*copy });
        std::array::from_fn(|index| copy(index).unwrap_or(narrow[index]))
    }

    fn run(&self, arena: &Arena, threads: Threads) {
        let rows = number(arena, self.count);
        if rows == 0 {
            return;
        }
        let (h, k) = (self.dims.h, self.dims.choices);
        let mut come = Message { at: self.from.offset, rows, dtype: self.dtype };
        let mut go = Message { at: self.to.offset, rows, dtype: self.dtype };
        let i = come.next_of(k, DType::I64);
        match self.gradients {
            None => {
                let (args, results) = ([k, h].map(|width| come.next(width)), [go.next(h)]);
                let (wide, out) = (self.wide(args, 0), self.wide(results, 2));
                self.load(arena, &args, &wide, threads);
                let scratch = (self.order.get_mut(arena), self.scratch.get_mut(arena));
                moe(&self.dims, &self.args(arena, i, wide), out[0].get_mut(arena), scratch, threads);
                self.store(arena, &out, &results, threads);
            }
            Some(gradients) => {
                let (args, results) = ([k, h, h].map(|width| come.next(width)), [h, k].map(|width| go.next(width)));
                let (wide, out) = (self.wide(args, 0), self.wide(results, 3));
                self.load(arena, &args, &wide, threads);
                let scratch = (self.order.get_mut(arena), self.scratch.get_mut(arena));
                let [dgate, dup, ddown] = gradients.map(|slot| slot.get_mut(arena));
                let sums = [out[0].get_mut(arena), out[1].get_mut(arena), dgate, dup, ddown];
                let (x, dy) = (self.args(arena, i, [wide[0], wide[1]]), wide[2].get(arena));
                more_moe_grad(&self.dims, &x, dy, sums, scratch, threads);
                self.store(arena, &out, &results, threads);
            }
        }
    }

    fn args<'a>(&self, arena: &'a Arena, i: Slot, [w, x]: [Slot; 2]) -> MoeArgs<'a> {
        let [gate, up, down] = self.experts.map(|slot| slot.get(arena));
        MoeArgs { x: x.get(arena), w: w.get(arena), i: i.get(arena), gate, up, down }
    }

    fn load(&self, arena: &Arena, narrow: &[Slot], wide: &[Slot], threads: Threads) {
        if self.dtype == DType::Bf16 {
            narrow.iter().zip(wide).for_each(|(&narrow, &wide)| widen(arena, narrow, wide, threads));
        }
    }

    fn store(&self, arena: &Arena, wide: &[Slot], narrow: &[Slot], threads: Threads) {
        if self.dtype == DType::Bf16 {
            wide.iter().zip(narrow).for_each(|(&wide, &narrow)| round(arena, wide, narrow, threads));
        }
    }
}

/// The extents, with as many rows as a message may hold.
fn dims(block: &RowBlock<'_>, activation: UnaryKind) -> Result<MoeDims, String> {
    let activation = unary_kind(activation).ok_or("`is_nan` is no activation")?;
    let gate = block.experts.first().ok_or("a mixture has three weights")?;
    let [experts, f, h] = [0, 1, 2].map(|d| gate.ty.shape[d] as usize);
    let choices = width(block.choices);
    let rows = block.choices.ty.elements() as usize / choices.max(1);
    let at_once = (galvatron_ir::op::compute::ROWS_AT_ONCE as usize).min(rows * choices);
    Ok(MoeDims { rows, choices, h, f, experts, first: gate.first[0] as usize, block: at_once, activation })
}

fn compute(arena: &Arc<Arena>, threads: Threads, block: &RowBlock<'_>) -> Prepared {
    let block = Block::new(block)?;
    Ok(kernel(arena, move |arena| {
        block.run(arena, threads);
        Ok(())
    }))
}
