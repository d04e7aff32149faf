//! Optimizer steps, and the writes of resident values.

use galvatron_ir::op::opt::{Adamw, Sgd};

use super::{Cx, Prepared, Slot};
use crate::cpu::arena::Arena;
use crate::cpu::kernels::optimizer as kernels;
use crate::cpu::kernels::{GRAIN, binary};

/// An operand that is updated in place, after a copy where the result has another place.
#[derive(Clone, Copy)]
struct Updated {
    from: Slot,
    to: Slot,
}

impl Updated {
    fn new(cx: &Cx<'_>, arg: usize, result: usize) -> Result<Updated, String> {
        Ok(Updated { from: cx.f32(arg)?, to: cx.out(result)? })
    }

    #[allow(clippy::mut_from_ref)]
    fn take(self, arena: &Arena) -> &mut [f32] {
        if self.from != self.to {
            self.to.get_mut::<f32>(arena).copy_from_slice(self.from.get(arena));
        }
        self.to.get_mut(arena)
    }
}

fn scalar(slot: Slot, arena: &Arena) -> f64 {
    f64::from(slot.get::<f32>(arena)[0])
}

/// The factor on the gradient: the optional last operand.
fn clip(cx: &Cx<'_>, index: usize) -> Result<Option<Slot>, String> {
    if index < cx.args.len() { cx.f32(index).map(Some) } else { Ok(None) }
}

fn clip_scale(clip: Option<Slot>, arena: &Arena) -> f32 {
    clip.map_or(1.0, |clip| clip.get::<f32>(arena)[0])
}

/// Operands w, g, buf with momentum, lr, clip?.
pub(super) fn sgd(op: &Sgd, cx: &Cx<'_>) -> Prepared {
    let n = op.n_tensors();
    let (w, g, lr, clip, threads) = (Updated::new(cx, 0, 0)?, cx.f32(1)?, cx.f32(n)?, clip(cx, n + 1)?, cx.threads);
    let buf = if n == 3 { Some(Updated::new(cx, 2, 1)?) } else { None };
    let (momentum, weight_decay) = (op.momentum.get(), op.weight_decay.get());
    cx.kernel(move |arena| {
        let grad_scale = clip_scale(clip, arena);
        let step = kernels::Sgd { lr: scalar(lr, arena), momentum, weight_decay, grad_scale };
        match buf {
            Some(buf) => kernels::sgd_momentum(&step, w.take(arena), g.get(arena), buf.take(arena), threads),
            None => kernels::sgd(&step, w.take(arena), g.get(arena), threads),
        }
        Ok(())
    })
}

/// Operands w, g, m, v, lr, step, clip?.
pub(super) fn adamw(op: &Adamw, cx: &Cx<'_>) -> Prepared {
    let (w, m, v) = (Updated::new(cx, 0, 0)?, Updated::new(cx, 2, 1)?, Updated::new(cx, 3, 2)?);
    let (g, lr, step, clip, threads) = (cx.f32(1)?, cx.f32(4)?, cx.f32(5)?, clip(cx, 6)?, cx.threads);
    let [beta1, beta2, eps, weight_decay] = [op.beta1, op.beta2, op.eps, op.weight_decay].map(|s| s.get());
    cx.kernel(move |arena| {
        let step = kernels::AdamW {
            lr: scalar(lr, arena),
            beta1,
            beta2,
            eps,
            weight_decay,
            step: scalar(step, arena) as u64,
            grad_scale: clip_scale(clip, arena),
        };
        kernels::adamw(&step, w.take(arena), g.get(arena), m.take(arena), v.take(arena), threads);
        Ok(())
    })
}

/// Operand 0 += operand 1.
pub(super) fn accumulate(cx: &Cx<'_>) -> Prepared {
    if cx.args[0].span().overlaps(&cx.args[1].span()) {
        return Err("an accumulator overlaps what is added to it in memory".into());
    }
    let (sum, x, threads) = (cx.f32(0)?, cx.f32(1)?, cx.threads);
    cx.kernel(move |arena| {
        let (sum, x) = (sum.get_mut(arena), x.get(arena));
        let n = [sum.len()];
        binary::binary_inplace(binary::BinaryKind::Add, (sum, &n), (x, &n), threads);
        Ok(())
    })
}

/// Operand 0 = operand 1; nothing where they have one place.
pub(super) fn update(cx: &Cx<'_>) -> Prepared {
    let bytes = |arg: usize| Slot { offset: cx.args[arg].offset, len: cx.args[arg].span().bytes as usize };
    let (to, from, threads) = (bytes(0), bytes(1), cx.threads);
    if to == from {
        return cx.kernel(|_| Ok(()));
    }
    if cx.args[0].span().overlaps(&cx.args[1].span()) {
        return Err("a resident overlaps its new value in memory".into());
    }
    cx.kernel(move |arena| {
        let from = from.get::<u8>(arena);
        let grain = GRAIN * size_of::<f32>();
        threads.for_each_chunk_mut(to.get_mut::<u8>(arena), grain, |i, to| {
            to.copy_from_slice(&from[i * grain..i * grain + to.len()]);
        });
        Ok(())
    })
}
