//! Layer norm, rms norm and softmax over the last dimension.

use galvatron_ir::op::compute::{LayerNorm, RmsNorm};

use super::{Cx, Prepared};
use crate::cpu::kernels::{layer_norm as kernels, rms_norm as rms, softmax as rows};

pub(super) fn layer_norm(op: &LayerNorm, cx: &Cx<'_>) -> Prepared {
    let (x, gamma, beta, threads) = (cx.f32(0)?, cx.f32(1)?, cx.f32(2)?, cx.threads);
    let (y, mean, rstd, eps) = (cx.out(0)?, cx.out(1)?, cx.out(2)?, op.eps.get() as f32);
    cx.kernel(move |arena| {
        let results = (y.get_mut(arena), mean.get_mut(arena), rstd.get_mut(arena));
        kernels::layer_norm(x.get(arena), gamma.get(arena), Some(beta.get(arena)), eps, results, threads);
        Ok(())
    })
}

pub(super) fn layer_norm_grad(cx: &Cx<'_>) -> Prepared {
    let (x, gamma, mean, rstd, dy) = (cx.f32(0)?, cx.f32(1)?, cx.f32(2)?, cx.f32(3)?, cx.f32(4)?);
    let (dx, threads) = (cx.out(0)?, cx.threads);
    cx.kernel(move |arena| {
        let statistics = (mean.get(arena), rstd.get(arena));
        let dx = dx.get_mut(arena);
        kernels::layer_norm_grad(x.get(arena), gamma.get(arena), statistics, dy.get(arena), dx, threads);
        Ok(())
    })
}

pub(super) fn layer_norm_param_grad(cx: &Cx<'_>) -> Prepared {
    let (x, mean, rstd, dy) = (cx.f32(0)?, cx.f32(1)?, cx.f32(2)?, cx.f32(3)?);
    let (dgamma, dbeta, threads) = (cx.out(0)?, cx.out(1)?, cx.threads);
    cx.kernel(move |arena| {
        let (statistics, results) = ((mean.get(arena), rstd.get(arena)), (dgamma.get_mut(arena), dbeta.get_mut(arena)));
        kernels::layer_norm_param_grad(x.get(arena), statistics, dy.get(arena), results, threads);
        Ok(())
    })
}

pub(super) fn rms_norm(op: &RmsNorm, cx: &Cx<'_>) -> Prepared {
    let (x, gamma, y, rstd, threads) = (cx.f32(0)?, cx.f32(1)?, cx.out(0)?, cx.out(1)?, cx.threads);
    let eps = op.eps.get() as f32;
    cx.kernel(move |arena| {
        rms::rms_norm(x.get(arena), gamma.get(arena), eps, (y.get_mut(arena), rstd.get_mut(arena)), threads);
        Ok(())
    })
}

pub(super) fn rms_norm_grad(cx: &Cx<'_>) -> Prepared {
    let (x, gamma, rstd, dy) = (cx.f32(0)?, cx.f32(1)?, cx.f32(2)?, cx.f32(3)?);
    let (dx, threads) = (cx.out(0)?, cx.threads);
    cx.kernel(move |arena| {
        let dx = dx.get_mut(arena);
        rms::rms_norm_grad(x.get(arena), gamma.get(arena), rstd.get(arena), dy.get(arena), dx, threads);
        Ok(())
    })
}

pub(super) fn rms_norm_param_grad(cx: &Cx<'_>) -> Prepared {
    let (x, rstd, dy, dgamma, threads) = (cx.f32(0)?, cx.f32(1)?, cx.f32(2)?, cx.out(0)?, cx.threads);
    cx.kernel(move |arena| {
        rms::rms_norm_param_grad(x.get(arena), rstd.get(arena), dy.get(arena), dgamma.get_mut(arena), threads);
        Ok(())
    })
}

pub(super) fn softmax(cx: &Cx<'_>) -> Prepared {
    let (x, y, threads, (_, n)) = (cx.f32(0)?, cx.out(0)?, cx.threads, cx.args[0].rows());
    if cx.in_place(0, 0) {
        return cx.kernel(move |arena| {
            rows::softmax_inplace(y.get_mut(arena), n, threads);
            Ok(())
        });
    }
    cx.kernel(move |arena| {
        rows::softmax(x.get(arena), n, y.get_mut(arena), threads);
        Ok(())
    })
}

pub(super) fn log_softmax(cx: &Cx<'_>) -> Prepared {
    let (x, y, threads, (_, n)) = (cx.f32(0)?, cx.out(0)?, cx.threads, cx.args[0].rows());
    let in_place = cx.in_place(0, 0);
    cx.kernel(move |arena| {
        if !in_place {
            y.get_mut::<f32>(arena).copy_from_slice(x.get(arena));
        }
        rows::log_softmax_inplace(y.get_mut(arena), n, threads);
        Ok(())
    })
}

pub(super) fn softmax_grad(cx: &Cx<'_>) -> Prepared {
    let (y, dy, dx, threads, (_, n)) = (cx.f32(0)?, cx.f32(1)?, cx.out(0)?, cx.threads, cx.args[0].rows());
    cx.kernel(move |arena| {
        rows::softmax_grad(y.get(arena), dy.get(arena), n, dx.get_mut(arena), threads);
        Ok(())
    })
}
