//! Ops that move elements: reshape, transpose, slice, concat, broadcast, cast.

use galvatron_ir::op::compute::{Broadcast, Concat, Slice, Transpose};
use galvatron_ir::types::DType;

use super::{Cx, Prepared, Slot};
use crate::cpu::arena::{Arena, Element};
use crate::cpu::kernels::shape::{AxisRange, broadcast_to, copy_block, slice as slice_kernel, transpose_axes};
use crate::cpu::threads::Threads;
use galvatron_ir::types::bf16;

/// Calls a function generic over an element of the width of an element type.
macro_rules! by_width {
    ($dtype:expr, $function:ident($($arg:expr),*)) => {
        match $dtype {
            galvatron_ir::types::DType::F32 => $function::<u32>($($arg),*),
            galvatron_ir::types::DType::Bf16 => $function::<u16>($($arg),*),
            galvatron_ir::types::DType::I64 => $function::<u64>($($arg),*),
            galvatron_ir::types::DType::Bool => $function::<u8>($($arg),*),
        }
    };
}

pub(super) use by_width;

/// A view has its operand's place; a reshape with a place of its own is a copy.
pub(super) fn reshape(cx: &Cx<'_>) -> Prepared {
    if cx.in_place(0, 0) {
        return cx.kernel(|_| Ok(()));
    }
    copy(cx, 0, cx.results[0].slot())
}

/// Copies an operand to a slot.
pub(super) fn copy(cx: &Cx<'_>, arg: usize, to: Slot) -> Prepared {
    let bytes = cx.args[arg].span().bytes as usize;
    let (from, to) = (Slot { offset: cx.args[arg].offset, len: bytes }, Slot { offset: to.offset, len: bytes });
    cx.kernel(move |arena| {
        to.get_mut::<u8>(arena).copy_from_slice(from.get(arena));
        Ok(())
    })
}

pub(super) fn transpose(op: &Transpose, cx: &Cx<'_>) -> Prepared {
    by_width!(cx.args[0].dtype, transpose_of(op, cx))
}

fn transpose_of<T: Element>(op: &Transpose, cx: &Cx<'_>) -> Prepared {
    let (x, out, threads) = (cx.args[0].slot(), cx.results[0].slot(), cx.threads);
    let (shape, perm) = (cx.args[0].shape.clone(), op.perm.clone());
    cx.kernel(move |arena| {
        transpose_axes(x.get::<T>(arena), &shape, &perm, out.get_mut(arena), threads);
        Ok(())
    })
}

pub(super) fn slice(op: &Slice, cx: &Cx<'_>) -> Prepared {
    by_width!(cx.args[0].dtype, slice_of(op, cx))
}

fn slice_of<T: Element>(op: &Slice, cx: &Cx<'_>) -> Prepared {
    let (x, out, threads) = (cx.args[0].slot(), cx.results[0].slot(), cx.threads);
    let shape = cx.args[0].shape.clone();
    let mut ranges: Vec<AxisRange> = shape.iter().map(|&len| AxisRange { start: 0, len, step: 1 }).collect();
    ranges[op.dim] = AxisRange { start: op.start as usize, len: op.len as usize, step: 1 };
    cx.kernel(move |arena| {
        slice_kernel(x.get::<T>(arena), &shape, &ranges, out.get_mut(arena), threads);
        Ok(())
    })
}

pub(super) fn concat(op: &Concat, cx: &Cx<'_>) -> Prepared {
    by_width!(cx.results[0].dtype, concat_of(op, cx))
}

fn concat_of<T: Element>(op: &Concat, cx: &Cx<'_>) -> Prepared {
    let (out, shape, threads) = (cx.results[0].slot(), cx.results[0].shape.clone(), cx.threads);
    let (mut parts, mut first) = (Vec::new(), vec![0; shape.len()]);
    for arg in &cx.args {
        parts.push((arg.slot(), arg.shape.clone(), first.clone()));
        first[op.dim] += arg.shape[op.dim];
    }
    let origin = vec![0; shape.len()];
    cx.kernel(move |arena| {
        let out = out.get_mut::<T>(arena);
        for (part, part_shape, first) in &parts {
            copy_block((part.get(arena), part_shape, &origin), (out, &shape, first), part_shape, threads);
        }
        Ok(())
    })
}

pub(super) fn broadcast(op: &Broadcast, cx: &Cx<'_>) -> Prepared {
    by_width!(cx.args[0].dtype, broadcast_of(op, cx))
}

fn broadcast_of<T: Element>(op: &Broadcast, cx: &Cx<'_>) -> Prepared {
    let (x, out, threads) = (cx.args[0].slot(), cx.results[0].slot(), cx.threads);
    let shape = cx.results[0].shape.clone();
    let mut spread = vec![1; shape.len()];
    for (&to, &extent) in op.dims.iter().zip(&cx.args[0].shape) {
        spread[to] = extent;
    }
    cx.kernel(move |arena| {
        broadcast_to(x.get::<T>(arena), &spread, (out.get_mut(arena), &shape), threads);
        Ok(())
    })
}

pub(super) fn cast(cx: &Cx<'_>) -> Prepared {
    let (x, out) = (cx.args[0].slot(), cx.results[0].slot());
    use DType::{Bf16, Bool, F32, I64};
    let convert: fn(&Arena, Slot, Slot) = match (cx.args[0].dtype, cx.results[0].dtype) {
        (F32, F32) | (Bf16, Bf16) | (I64, I64) | (Bool, Bool) => return copy(cx, 0, out),
        (F32, Bf16) => return halve(cx, super::widen::round),
        (Bf16, F32) => return halve(cx, super::widen::widen),
        (F32, I64) => |arena, x, out| each(arena, x, out, |v: f32| v as i64),
        (F32, Bool) => |arena, x, out| each(arena, x, out, |v: f32| u8::from(v != 0.0)),
        (I64, F32) => |arena, x, out| each(arena, x, out, |v: i64| v as f32),
        (I64, Bool) => |arena, x, out| each(arena, x, out, |v: i64| u8::from(v != 0)),
        (I64, Bf16) => |arena, x, out| each(arena, x, out, |v: i64| bf16::round(v as f32)),
        (Bool, F32) => |arena, x, out| each(arena, x, out, |v: u8| f32::from(v)),
        (Bool, I64) => |arena, x, out| each(arena, x, out, |v: u8| i64::from(v)),
        (Bool, Bf16) => |arena, x, out| each(arena, x, out, |v: u8| bf16::round(f32::from(v))),
        (Bf16, I64) => |arena, x, out| each(arena, x, out, |v: u16| bf16::widen(v) as i64),
        (Bf16, Bool) => |arena, x, out| each(arena, x, out, |v: u16| u8::from(bf16::widen(v) != 0.0)),
    };
    cx.kernel(move |arena| {
        convert(arena, x, out);
        Ok(())
    })
}

/// Converts between f32 and bf16, on all threads.
fn halve(cx: &Cx<'_>, convert: fn(&Arena, Slot, Slot, Threads)) -> Prepared {
    let (x, out, threads) = (cx.args[0].slot(), cx.results[0].slot(), cx.threads);
    cx.kernel(move |arena| {
        convert(arena, x, out, threads);
        Ok(())
    })
}

fn each<A: Element, B: Element>(arena: &Arena, x: Slot, out: Slot, f: impl Fn(A) -> B) {
    out.get_mut::<B>(arena).iter_mut().zip(x.get::<A>(arena)).for_each(|(out, &x)| *out = f(x));
}
