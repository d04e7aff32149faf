//! Launches of optimizer steps.

use galvatron_ir::op::opt::{Adamw, Sgd};

use super::super::command::{Arg, Launch};
use super::{Cx, Family, Lowered, elements};

const FAMILY: Family = Family::Optimizer;

/// Operands w, g, buf with momentum, lr, clip?.
pub(in super::super) fn sgd(op: &Sgd, cx: &Cx<'_>) -> Lowered {
    let (n_tensors, n) = (op.n_tensors(), elements(cx.arg(0)));
    let (lr, clip, decay) = (cx.f32(n_tensors)?, cx.optional(n_tensors + 1)?, op.weight_decay.get() as f32);
    let rest = [Arg::Float(decay), Arg::Int(n)];
    if n_tensors == 2 {
        let args = [cx.f32(0)?, cx.f32(1)?, cx.out(0)?, lr, clip].into_iter().chain(rest).collect();
        return Ok(vec![Launch::of(FAMILY, "sgd", n as u64, args)]);
    }
    let pointers = [cx.f32(0)?, cx.f32(1)?, cx.f32(2)?, cx.out(0)?, cx.out(1)?, lr, clip];
    let momentum = Arg::Float(op.momentum.get() as f32);
    let args = pointers.into_iter().chain([momentum]).chain(rest).collect();
    Ok(vec![Launch::of(FAMILY, "sgd_momentum", n as u64, args)])
}

/// Operands w, g, m, v, lr, step, clip?.
pub(in super::super) fn adamw(op: &Adamw, cx: &Cx<'_>) -> Lowered {
    let n = elements(cx.arg(0));
    let tensors = [cx.f32(0)?, cx.f32(1)?, cx.f32(2)?, cx.f32(3)?, cx.out(0)?, cx.out(1)?, cx.out(2)?];
    let scalars = [cx.f32(4)?, cx.f32(5)?, cx.optional(6)?];
    let numbers = [op.beta1, op.beta2, op.eps, op.weight_decay].map(|s| Arg::Double(s.get()));
    let args = tensors.into_iter().chain(scalars).chain(numbers).chain([Arg::Int(n)]).collect();
    Ok(vec![Launch::of(FAMILY, "adamw", (n as u64).div_ceil(4), args)])
}
