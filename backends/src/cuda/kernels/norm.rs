//! Launches of layer norm, rms norm, softmax and their gradients.

use galvatron_ir::op::compute::{LayerNorm, RmsNorm};

use super::super::command::{Arg, BLOCK, Launch};
use super::reduce::slices;
use super::{Cx, Family, Lowered, row_grid, rows, scratch};

const FAMILY: Family = Family::Norm;

/// Rows of at most so many elements have a warp each, not a block (`SHORT_ROW` of the sources).
const SHORT_ROW: u64 = 2048;

/// The grid of kernels with a team of threads for each row.
fn team_grid(n_rows: u64, h: u64) -> [u32; 3] {
    row_grid(if h <= SHORT_ROW { n_rows.div_ceil(u64::from(BLOCK) / 32) } else { n_rows })
}

fn counts(cx: &Cx<'_>) -> ([u32; 3], [Arg; 2]) {
    let (n_rows, h) = rows(cx.arg(0));
    (row_grid(n_rows), [Arg::Int(n_rows as i64), Arg::Int(h as i64)])
}

fn team_counts(cx: &Cx<'_>) -> ([u32; 3], [Arg; 2]) {
    let (n_rows, h) = rows(cx.arg(0));
    (team_grid(n_rows, h), counts(cx).1)
}

pub(in super::super) fn layer_norm(op: &LayerNorm, cx: &Cx<'_>) -> Lowered {
    let float = cx.float(0)?;
    let pointers = [float.arg(0)?, cx.f32(1)?, cx.f32(2)?, float.out(0)?, cx.out(1)?, cx.out(2)?];
    let (grid, counts) = team_counts(cx);
    let args = pointers.into_iter().chain(counts).chain([Arg::Float(op.eps.get() as f32)]).collect();
    Ok(vec![Launch::grid(FAMILY, float.entry("layer_norm"), grid, args)])
}

pub(in super::super) fn layer_norm_grad(cx: &Cx<'_>) -> Lowered {
    let float = cx.float(0)?;
    let pointers = [float.arg(0)?, cx.f32(1)?, cx.f32(2)?, cx.f32(3)?, float.arg(4)?, float.out(0)?];
    let (grid, counts) = team_counts(cx);
    let args = pointers.into_iter().chain(counts).collect();
    Ok(vec![Launch::grid(FAMILY, float.entry("layer_norm_grad"), grid, args)])
}

pub(in super::super) fn layer_norm_param_grad(cx: &Cx<'_>) -> Lowered {
    let (n_rows, h) = rows(cx.arg(0));
    let n_slices = slices(h, n_rows);
    let partial = Arg::At(scratch(0, 8 * n_slices * h)?);
    let float = cx.float(0)?;
    let pointers = [float.arg(0)?, cx.f32(1)?, cx.f32(2)?, float.arg(3)?, partial.clone()];
    let args = pointers.into_iter().chain([Arg::Int(n_rows as i64), Arg::Int(h as i64)]).collect();
    let grid = [h.div_ceil(32).max(1) as u32, n_slices as u32, 1];
    let sum = vec![partial, cx.out(0)?, cx.out(1)?, Arg::Int(h as i64), Arg::Int(n_slices as i64)];
    Ok(vec![
        Launch::grid(FAMILY, float.entry("layer_norm_param_grad"), grid, args),
        Launch::of(FAMILY, "layer_norm_param_sum", 2 * h, sum),
    ])
}

pub(in super::super) fn softmax(cx: &Cx<'_>) -> Lowered {
    let ((grid, counts), float) = (counts(cx), cx.float(0)?);
    let args = [float.arg(0)?, float.out(0)?].into_iter().chain(counts).collect();
    Ok(vec![Launch::grid(FAMILY, float.entry("softmax"), grid, args)])
}

pub(in super::super) fn softmax_grad(cx: &Cx<'_>) -> Lowered {
    let ((grid, counts), float) = (counts(cx), cx.float(0)?);
    let args = [float.arg(0)?, float.arg(1)?, float.out(0)?].into_iter().chain(counts).collect();
    Ok(vec![Launch::grid(FAMILY, float.entry("softmax_grad"), grid, args)])
}

pub(in super::super) fn rms_norm(op: &RmsNorm, cx: &Cx<'_>) -> Lowered {
    let float = cx.float(0)?;
    let pointers = [float.arg(0)?, cx.f32(1)?, float.out(0)?, cx.out(1)?];
    let (grid, counts) = team_counts(cx);
    let args = pointers.into_iter().chain(counts).chain([Arg::Float(op.eps.get() as f32)]).collect();
    Ok(vec![Launch::grid(FAMILY, float.entry("rms_norm"), grid, args)])
}

pub(in super::super) fn rms_norm_grad(cx: &Cx<'_>) -> Lowered {
    let float = cx.float(0)?;
    let pointers = [float.arg(0)?, cx.f32(1)?, cx.f32(2)?, float.arg(3)?, float.out(0)?];
    let (grid, counts) = team_counts(cx);
    let args = pointers.into_iter().chain(counts).collect();
    Ok(vec![Launch::grid(FAMILY, float.entry("rms_norm_grad"), grid, args)])
}

pub(in super::super) fn rms_norm_param_grad(cx: &Cx<'_>) -> Lowered {
    let (n_rows, h) = rows(cx.arg(0));
    let n_slices = slices(h, n_rows);
    let partial = Arg::At(scratch(0, 4 * n_slices * h)?);
    let float = cx.float(0)?;
    let pointers = [float.arg(0)?, cx.f32(1)?, float.arg(2)?, partial.clone()];
    let args = pointers.into_iter().chain([Arg::Int(n_rows as i64), Arg::Int(h as i64)]).collect();
    let grid = [h.div_ceil(32).max(1) as u32, n_slices as u32, 1];
    let sum = vec![partial, cx.out(0)?, Arg::Int(h as i64), Arg::Int(n_slices as i64)];
    Ok(vec![
        Launch::grid(FAMILY, float.entry("rms_norm_param_grad"), grid, args),
        Launch::of(Family::Reduce, "sum_slices", h, sum),
    ])
}
