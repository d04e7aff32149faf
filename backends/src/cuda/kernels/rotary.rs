//! Launches of rotary embedding.

use galvatron_ir::op::compute::Rotary;

use super::super::command::{Arg, Launch};
use super::super::walk::{Walk, broadcast};
use super::{Cx, Family, Lowered, rows};

pub(in super::super) fn rotary(op: &Rotary, cx: &Cx<'_>) -> Lowered {
    let ((n_rows, d), (_, pairs)) = (rows(cx.arg(0)), rows(cx.arg(1)));
    let leading = |i: usize| cx.arg(i).ty.shape.split_last().map_or(&[][..], |(_, rows)| rows);
    let walk = Walk::new(leading(0), &[broadcast(leading(1), leading(0))]);
    let float = cx.float(0)?;
    let pointers = [float.arg(0)?, cx.f32(1)?, cx.f32(2)?, float.out(0)?];
    let counts = [n_rows, d, pairs].map(|n| Arg::Int(n as i64));
    let sign = Arg::Float(if op.inverse { -1.0 } else { 1.0 });
    let rest = [walk.arg()?, Arg::Int(i64::from(op.interleaved)), sign];
    let args = pointers.into_iter().chain(counts).chain(rest).collect();
    Ok(vec![Launch::of(Family::Rotary, float.entry("rotary"), n_rows * (d - pairs), args)])
}
