//! Attention and its gradients.

use galvatron_ir::op::compute::{Attention, AttentionGrad, AttentionMaskGrad};

use std::sync::Arc;

use super::{Buffer, Cx, Prepared, Slot, buffers};
use crate::cpu::arena::Arena;
use crate::cpu::device::kernel;
use crate::cpu::kernels::attention::{AttentionDims, Mask, attention as forward};
use crate::cpu::kernels::attention_grad::{AttentionSaved, attention_grad as backward};
use crate::cpu::kernels::attention_mask_grad::attention_mask_grad as mask_backward;
use crate::cpu::threads::Threads;
use crate::device::{AttentionBlock, BlockTask};

/// q [b, sq, h, d], k [b, sk, g, d], v [b, sk, g, e].
fn dims(q: &Buffer, k: &Buffer, v: &Buffer, scale: f64, causal: bool) -> AttentionDims {
    let [batch, sq, heads, d] = [0, 1, 2, 3].map(|i| q.shape[i]);
    let [sk, kv_heads, dv] = [k.shape[1], k.shape[2], v.shape[3]];
    let later = q.global[1] - q.first[1] as usize - sq;
    AttentionDims { batch, sq, sk, heads, kv_heads, d, dv, scale: scale as f32, causal, later, continues: false }
}

/// The additive mask among the operands: where it lies, its extents of batch and heads.
#[derive(Clone, Copy)]
struct MaskSlot {
    slot: Slot,
    batch: usize,
    heads: usize,
}

impl MaskSlot {
    fn new(cx: &Cx<'_>, index: usize) -> Result<Option<MaskSlot>, String> {
        let Some(mask) = cx.args.get(index) else { return Ok(None) };
        Ok(Some(MaskSlot { slot: cx.f32(index)?, batch: mask.shape[0], heads: mask.shape[1] }))
    }

    fn get(self, arena: &Arena) -> Mask<'_> {
        Mask { values: self.slot.get(arena), batch: self.batch, heads: self.heads }
    }
}

pub(super) fn attention(op: &Attention, cx: &Cx<'_>) -> Prepared {
    let (q, k, v, mask) = (cx.f32(0)?, cx.f32(1)?, cx.f32(2)?, MaskSlot::new(cx, 3)?);
    let (o, lse, threads) = (cx.out(0)?, cx.out(1)?, cx.threads);
    let dims = dims(&cx.args[0], &cx.args[1], &cx.args[2], op.scale.get(), op.causal);
    cx.kernel(move |arena| {
        let qkv = (q.get(arena), k.get(arena), v.get(arena));
        forward(&dims, qkv, mask.map(|m| m.get(arena)), (o.get_mut(arena), lse.get_mut(arena)), threads);
        Ok(())
    })
}

/// The operands q, k, v, o, lse of a gradient and its mask, which is operand 6.
#[derive(Clone, Copy)]
struct SavedSlots {
    slots: [Slot; 5],
    mask: Option<MaskSlot>,
}

impl SavedSlots {
    fn new(cx: &Cx<'_>) -> Result<SavedSlots, String> {
        let slots = [cx.f32(0)?, cx.f32(1)?, cx.f32(2)?, cx.f32(3)?, cx.f32(4)?];
        Ok(SavedSlots { slots, mask: MaskSlot::new(cx, 6)? })
    }

    fn get(self, arena: &Arena) -> AttentionSaved<'_> {
        let [q, k, v, o, lse] = self.slots.map(|slot| slot.get(arena));
        AttentionSaved { q, k, v, mask: self.mask.map(|m| m.get(arena)), o, lse }
    }
}

pub(super) fn attention_grad(op: &AttentionGrad, cx: &Cx<'_>) -> Prepared {
    let (saved, grad) = (SavedSlots::new(cx)?, cx.f32(5)?);
    let (dq, dk, dv, threads) = (cx.out(0)?, cx.out(1)?, cx.out(2)?, cx.threads);
    let dims = dims(&cx.args[0], &cx.args[1], &cx.args[2], op.scale.get(), op.causal);
    cx.kernel(move |arena| {
        let results = (dq.get_mut(arena), dk.get_mut(arena), dv.get_mut(arena));
        backward(&dims, &saved.get(arena), grad.get(arena), results, threads);
        Ok(())
    })
}

pub(super) fn attention_mask_grad(op: &AttentionMaskGrad, cx: &Cx<'_>) -> Prepared {
    let (saved, grad, dmask, threads) = (SavedSlots::new(cx)?, cx.f32(5)?, cx.out(0)?, cx.threads);
    let dims = dims(&cx.args[0], &cx.args[1], &cx.args[2], op.scale.get(), op.causal);
    cx.kernel(move |arena| {
        mask_backward(&dims, &saved.get(arena), grad.get(arena), dmask.get_mut(arena), threads);
        Ok(())
    })
}

/// One block of a sequence; results go on from what they hold.
pub(super) fn block(arena: &Arc<Arena>, threads: Threads, block: &AttentionBlock<'_>) -> Prepared {
    let all = [block.q, block.k, block.v, block.o, block.lse].map(Clone::clone);
    let all = buffers(&all);
    if all.iter().any(|buffer| buffer.dtype != galvatron_ir::types::DType::F32) {
        return Err("blocks of attention are of f32".into());
    }
    let mut dims = dims(&all[0], &all[1], &all[2], block.scale, block.causal);
    (dims.later, dims.continues) = (0, true);
    let mask = block.mask.map(|mask| {
        let mask = &buffers(std::slice::from_ref(mask))[0];
        MaskSlot { slot: mask.slot(), batch: mask.shape[0], heads: mask.shape[1] }
    });
    let slots = [0, 1, 2, 3, 4].map(|i| all[i].slot());
    let saved = SavedSlots { slots, mask };
    Ok(match block.task {
        BlockTask::Forward => kernel(arena, move |arena| {
            let [q, k, v, o, lse] = slots;
            let qkv = (q.get(arena), k.get(arena), v.get(arena));
            let results = (o.get_mut(arena), lse.get_mut(arena));
            forward(&dims, qkv, mask.map(|m| m.get(arena)), results, threads);
            Ok(())
        }),
        BlockTask::Backward { grad, dq, dk, dv } => {
            let all = buffers(&[grad, dq, dk, dv].map(Clone::clone));
            let [grad, dq, dk, dv] = [0, 1, 2, 3].map(|i| all[i].slot());
            kernel(arena, move |arena| {
                let results = (dq.get_mut(arena), dk.get_mut(arena), dv.get_mut(arena));
                backward(&dims, &saved.get(arena), grad.get(arena), results, threads);
                Ok(())
            })
        }
    })
}
