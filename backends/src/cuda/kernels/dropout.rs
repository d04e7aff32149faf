//! Launches of dropout.

use galvatron_ir::op::compute::Dropout;

use super::super::command::{Arg, Launch};
use super::super::walk::{Walk, row_major};
use super::{Cx, Family, Lowered, elements};

/// Elements that one call of the generator serves.
const WORDS: u64 = 4;

pub(in super::super) fn dropout(op: &Dropout, cx: &Cx<'_>) -> Lowered {
    let (float, y) = (cx.float(0)?, cx.result(0));
    let steps = row_major(&y.global_shape);
    let first: u64 = y.first.iter().zip(&steps).map(|(index, step)| index * step).sum();
    let walk = Walk::new(&y.ty.shape, &[steps]);
    let group = if is_in_blocks(&walk, first) { WORDS } else { 1 };
    let n_groups = elements(y) as u64 / group;
    let scale = (1.0 / (1.0 - op.p.get())) as f32;
    let numbers = [n_groups as i64, group as i64, first as i64, op.seed.cast_signed(), i64::from(op.number)];
    let pointers = [float.arg(0)?, cx.f32(1)?, float.out(0)?];
    let threshold = [Arg::Int(op.threshold() as i64), Arg::Float(scale), walk.arg()?];
    let args = pointers.into_iter().chain(numbers.map(Arg::Int)).chain(threshold).collect();
    Ok(vec![Launch::of(Family::Dropout, float.entry("dropout"), n_groups, args)])
}

/// Whether the part consists of whole blocks of elements that share a call of the generator.
fn is_in_blocks(walk: &Walk, first: u64) -> bool {
    let Some((inner, outer)) = walk.steps[0].split_last() else { return false };
    let is_multiple = |n: &u64| n.is_multiple_of(WORDS);
    let is_whole = walk.shape.last().is_some_and(is_multiple) && is_multiple(&first);
    *inner == 1 && is_whole && outer.iter().all(is_multiple)
}
