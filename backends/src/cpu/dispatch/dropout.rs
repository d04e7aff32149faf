//! Dropout, also over its operand.

use galvatron_ir::op::compute::Dropout;

use super::{Cx, Prepared};
use crate::cpu::kernels::dropout::{Draw, Runs, dropout as kernel};

pub(super) fn dropout(op: &Dropout, cx: &Cx<'_>) -> Prepared {
    let (x, step, out, threads) = (cx.f32(0)?, cx.f32(1)?, cx.out(0)?, cx.threads);
    let (y, is_over) = (&cx.results[0], cx.in_place(0, 0));
    let runs = Runs::new(&y.shape, &y.global, &y.first);
    let (seed, number, threshold) = (op.seed, op.number, op.threshold());
    let scale = (1.0 / (1.0 - op.p.get())) as f32;
    cx.kernel(move |arena| {
        let step = step.get::<f32>(arena)[0] as u32;
        let draw = Draw { seed, step, number, threshold, scale };
        let x = (!is_over).then(|| x.get::<f32>(arena));
        kernel(draw, &runs, x, out.get_mut(arena), threads);
        Ok(())
    })
}
