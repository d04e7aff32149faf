//! Losses as sums, and their gradients.

use galvatron_ir::op::compute::{CountLabels, CrossEntropy, CrossEntropyGrad};

use super::{Cx, Prepared};
use crate::cpu::kernels::cross_entropy as kernels;

pub(super) fn cross_entropy(op: &CrossEntropy, cx: &Cx<'_>) -> Prepared {
    let (logits, labels, ignore) = (cx.f32(0)?, cx.i64(1)?, op.ignore);
    let (sum, lse, threads) = (cx.out(0)?, cx.out(1)?, cx.threads);
    cx.kernel(move |arena| {
        let lse = lse.get_mut(arena);
        let total = kernels::cross_entropy(logits.get(arena), labels.get(arena), ignore, lse, threads);
        sum.get_mut::<f32>(arena)[0] = total.map_err(|fault| fault.to_string())?;
        Ok(())
    })
}

pub(super) fn cross_entropy_grad(op: &CrossEntropyGrad, cx: &Cx<'_>) -> Prepared {
    let (logits, labels, lse, scale) = (cx.f32(0)?, cx.i64(1)?, cx.f32(2)?, cx.f32(3)?);
    let (out, threads, ignore) = (cx.out(0)?, cx.threads, op.ignore);
    if cx.in_place(0, 0) {
        return cx.kernel(move |arena| {
            let factor = (ignore, scale.get::<f32>(arena)[0]);
            let out = out.get_mut(arena);
            kernels::cross_entropy_grad_inplace(out, labels.get(arena), lse.get(arena), factor, threads);
            Ok(())
        });
    }
    cx.kernel(move |arena| {
        let factor = (ignore, scale.get::<f32>(arena)[0]);
        let (logits, out) = (logits.get(arena), out.get_mut(arena));
        kernels::cross_entropy_grad(logits, labels.get(arena), lse.get(arena), factor, out, threads);
        Ok(())
    })
}

pub(super) fn count_labels(op: &CountLabels, cx: &Cx<'_>) -> Prepared {
    let (labels, out, ignore) = (cx.i64(0)?, cx.out(0)?, op.ignore);
    cx.kernel(move |arena| {
        out.get_mut::<f32>(arena)[0] = kernels::count_labels(labels.get(arena), ignore);
        Ok(())
    })
}

pub(super) fn mse(cx: &Cx<'_>) -> Prepared {
    let (prediction, target, out) = (cx.f32(0)?, cx.f32(1)?, cx.out(0)?);
    cx.kernel(move |arena| {
        out.get_mut::<f32>(arena)[0] = kernels::mse(prediction.get(arena), target.get(arena));
        Ok(())
    })
}

pub(super) fn mse_grad(cx: &Cx<'_>) -> Prepared {
    let (prediction, target, scale) = (cx.f32(0)?, cx.f32(1)?, cx.f32(2)?);
    let (out, threads) = (cx.out(0)?, cx.threads);
    cx.kernel(move |arena| {
        let scale = scale.get::<f32>(arena)[0];
        kernels::mse_grad(prediction.get(arena), target.get(arena), scale, out.get_mut(arena), threads);
        Ok(())
    })
}
