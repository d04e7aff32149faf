//! Rotary embedding, also over its operand.

use galvatron_ir::op::compute::Rotary;

use super::{Cx, Prepared};
use crate::cpu::kernels::rotary::{self as kernels, Angles, Turn};

pub(super) fn rotary(op: &Rotary, cx: &Cx<'_>) -> Prepared {
    let (x, cos, sin, y, threads) = (cx.f32(0)?, cx.f32(1)?, cx.f32(2)?, cx.out(0)?, cx.threads);
    let ((_, d), (_, pairs)) = (cx.args[0].rows(), cx.args[1].rows());
    let walk = walk(&cx.args[0].shape, &cx.args[1].shape);
    let (turn, in_place) = (Turn { interleaved: op.interleaved, inverse: op.inverse }, cx.in_place(0, 0));
    cx.kernel(move |arena| {
        let angles = Angles { cos: cos.get(arena), sin: sin.get(arena), pairs, walk: &walk };
        match in_place {
            true => kernels::rotary_inplace(y.get_mut(arena), d, angles, turn, threads),
            false => kernels::rotary(x.get(arena), d, angles, turn, y.get_mut(arena), threads),
        }
        Ok(())
    })
}

/// For each leading dimension of x its extent and the rows of a table that one step of it goes on.
fn walk(x: &[usize], table: &[usize]) -> Vec<(usize, usize)> {
    let (n, skip) = (x.len() - 1, x.len() - table.len());
    let mut steps = vec![(1, 0); n];
    let mut rows = 1;
    for i in (0..n).rev() {
        let own = if i < skip { 1 } else { table[i - skip] };
        steps[i] = (x[i].max(1), if own == 1 { 0 } else { rows });
        rows *= own;
    }
    steps
}
