//! Kernels on bf16: operands are copied into f32, the f32 kernel runs on the copies, results are rounded once.

use galvatron_ir::mesh::Mesh;
use galvatron_ir::op::widened_bytes;
use galvatron_ir::types::{DType, TensorType};

use super::{Buffer, Cx, Prepared, Slot, dispatch};
use crate::cpu::arena::Arena;
use crate::cpu::threads::Threads;
use crate::device::Span;
use galvatron_ir::types::bf16;

/// Elements that a task converts.
const GRAIN: usize = 1 << 14;

/// Prepares a node with bf16 operands or results; its f32 copies lie at the start of its workspace, or in the device's scratch
/// memory where the plan has no room for them.
pub(super) fn prepare(cx: &Cx<'_>, scratch: Span) -> Prepared {
    let halves = cx.args.iter().chain(&cx.results).filter(|buffer| buffer.dtype == DType::Bf16);
    let bytes: u64 = halves.map(|b| widened_bytes(&TensorType::new(DType::Bf16, [b.len as u64]))).sum();
    let (room, own) =
        rooms(cx, bytes, scratch).ok_or_else(|| format!("its f32 copies need {bytes} bytes of workspace"))?;
    let mut at = room.offset;
    let mut copies = Vec::new();
    let mut wide = |buffers: &[Buffer], is_arg: bool| {
        let copy = |buffer: &Buffer| {
            if buffer.dtype != DType::Bf16 {
                return buffer.clone();
            }
            let copy = Buffer { offset: at, dtype: DType::F32, ..buffer.clone() };
            at += widened_bytes(&TensorType::new(DType::Bf16, [buffer.len as u64]));
            copies.push((is_arg, buffer.slot(), copy.slot()));
            copy
        };
        buffers.iter().map(copy).collect::<Vec<Buffer>>()
    };
    let (args, results) = (wide(&cx.args, true), wide(&cx.results, false));
    let inner = dispatch(cx.op, &Cx { args, results, workspace: own, ..*cx })?;
    let threads = cx.threads;
    cx.kernel(move |arena| {
        copies.iter().filter(|(is_arg, ..)| *is_arg).for_each(|&(_, half, wide)| widen(arena, half, wide, threads));
        inner.run()?;
        copies.iter().filter(|(is_arg, ..)| !is_arg).for_each(|&(_, half, wide)| round(arena, wide, half, threads));
        Ok(())
    })
}

/// Where the f32 copies lie, and the op's own scratch memory, which follows them in a workspace that is made for both.
fn rooms(cx: &Cx<'_>, bytes: u64, scratch: Span) -> Option<(Span, Option<Span>)> {
    let types = |all: &[Buffer]| -> Vec<TensorType> {
        let extents = |b: &Buffer| b.shape.iter().map(|&d| d as u64).collect::<Vec<u64>>();
        all.iter().map(|b| TensorType::new(b.dtype, extents(b))).collect()
    };
    let (args, results) = (types(&cx.args), types(&cx.results));
    let mesh = Mesh::new(1, Vec::new());
    let own = cx.op.own_workspace(&args.iter().collect::<Vec<_>>(), &results.iter().collect::<Vec<_>>(), &mesh);
    match cx.workspace.filter(|room| room.bytes >= bytes + own) {
        Some(room) => Some((room, Some(Span { offset: room.offset + bytes, bytes: room.bytes - bytes }))),
        None => (scratch.bytes >= bytes).then_some((scratch, cx.workspace)),
    }
}

/// Copies bf16 elements into f32.
pub(in crate::cpu) fn widen(arena: &Arena, from: Slot, to: Slot, threads: Threads) {
    convert(from.get::<u16>(arena), to.get_mut::<f32>(arena), threads, bf16::widen);
}

/// Rounds f32 elements to bf16.
pub(in crate::cpu) fn round(arena: &Arena, from: Slot, to: Slot, threads: Threads) {
    convert(from.get::<f32>(arena), to.get_mut::<u16>(arena), threads, bf16::round);
}

fn convert<A: Copy + Sync, B: Send>(from: &[A], to: &mut [B], threads: Threads, f: fn(A) -> B) {
    threads.for_each_chunk_mut(to, GRAIN, |i, chunk| {
        let start = i * GRAIN;
        let from = &from[start..start + chunk.len()];
        chunk.iter_mut().zip(from).for_each(|(to, &from)| *to = f(from));
    });
}
