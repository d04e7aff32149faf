//! Launches of cross entropy and its gradient.

use galvatron_ir::op::compute::{CrossEntropy, CrossEntropyGrad};

use super::super::command::{Arg, Launch, Place};
use super::reduce::total;
use super::{Cx, Family, Lowered, row_grid, rows, scratch};

const FAMILY: Family = Family::CrossEntropy;

/// The losses of the rows, then their sum.
pub(in super::super) fn cross_entropy(op: &CrossEntropy, cx: &Cx<'_>) -> Lowered {
    let (n_rows, classes) = rows(cx.arg(0));
    let losses = Arg::At(scratch(0, 4 * n_rows)?);
    let numbers = [n_rows as i64, classes as i64, op.ignore].map(Arg::Int);
    let float = cx.float(0)?;
    let pointers = [float.arg(0)?, cx.i64(1)?, cx.out(1)?, losses.clone()];
    let args = pointers.into_iter().chain(numbers).chain([Arg::At(Place::Fault)]).collect();
    let mut commands = vec![Launch::grid(FAMILY, float.entry("cross_entropy"), row_grid(n_rows), args)];
    commands.extend(total("values", vec![losses], n_rows, cx.out(0)?, (4 * n_rows).next_multiple_of(16))?);
    Ok(commands)
}

pub(in super::super) fn cross_entropy_grad(op: &CrossEntropyGrad, cx: &Cx<'_>) -> Lowered {
    let (n_rows, classes) = rows(cx.arg(0));
    let float = cx.float(0)?;
    let pointers = [float.arg(0)?, cx.i64(1)?, cx.f32(2)?, cx.f32(3)?, float.out(0)?];
    let numbers = [n_rows as i64, classes as i64, op.ignore].map(Arg::Int);
    let args = pointers.into_iter().chain(numbers).collect();
    Ok(vec![Launch::grid(FAMILY, float.entry("cross_entropy_grad"), row_grid(n_rows), args)])
}
