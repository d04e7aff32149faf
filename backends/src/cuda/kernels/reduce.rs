//! Launches of sums.

use galvatron_ir::op::compute::{CountLabels, ReduceSum};

use super::super::command::{Arg, BLOCK, Command, Launch, Place};
use super::super::walk::{Walk, row_major};
use super::{Cx, Family, Float, Lowered, at, elements, row_grid, scratch};
use crate::device::Span;

const FAMILY: Family = Family::Reduce;

/// Elements that a thread of a total adds at least.
const PER_THREAD: u64 = 16;

/// Partial sums of a total at most.
const MAX_PARTIALS: u64 = 1024;

/// Blocks among which sums over columns are spread at most, all slices together.
const COLUMN_BLOCKS: u64 = 1024;

/// Rows that a slice has at least.
const ROWS_PER_SLICE: u64 = 64;

/// Elements of f32 that 16 bytes hold.
const PACK_OF_F32: u64 = 4;

/// How many slices `n_in` summed elements of `n_out` columns are cut into.
pub(in super::super) fn slices(n_out: u64, n_in: u64) -> u64 {
    let blocks = n_out.div_ceil(32).max(1);
    n_in.div_ceil(ROWS_PER_SLICE).min(COLUMN_BLOCKS.div_ceil(blocks)).max(1)
}

pub(in super::super) fn reduce_sum(op: &ReduceSum, cx: &Cx<'_>) -> Lowered {
    let float = cx.float(0)?;
    let (x, y) = (float.arg(0)?, float.out(0)?);
    let shape = &cx.arg(0).ty.shape;
    let steps = row_major(shape);
    let part = |summed: bool| {
        let dims: Vec<usize> = (0..shape.len()).filter(|d| op.dims.contains(d) == summed).collect();
        let pick = |all: &[u64]| dims.iter().map(|&d| all[d]).collect::<Vec<u64>>();
        Walk::new(&pick(shape), &[pick(&steps)])
    };
    let (kept, summed) = (part(false), part(true));
    let (n_out, n_in) = (kept.len(), summed.len());
    if n_out == 0 {
        return Ok(Vec::new());
    }
    let lies_as_matrix = kept.steps[0][..] == [1] && summed.steps[0][..] == [n_out];
    if lies_as_matrix && n_out.is_multiple_of(float.pack()) && cx.arg(0).offset.is_multiple_of(16) {
        return columns(&float, [x, y], n_out, n_in);
    }
    let numbers = [Arg::Int(n_out as i64), Arg::Int(n_in as i64), kept.arg()?, summed.arg()?];
    let is_row = summed.steps[0].last() == Some(&1) || summed.shape.is_empty() || n_out == 1;
    if is_row {
        let args = [x, y].into_iter().chain(numbers).collect();
        return Ok(vec![Launch::grid(FAMILY, float.entry("sum_rows"), row_grid(n_out), args)]);
    }
    let n_slices = slices(n_out, n_in);
    let grid = [n_out.div_ceil(32) as u32, n_slices as u32, 1];
    if n_slices == 1 {
        let args = [x, y].into_iter().chain(numbers).collect();
        return Ok(vec![Launch::grid(FAMILY, float.entry("sum_columns"), grid, args)]);
    }
    let partial = Arg::At(scratch(0, 4 * n_slices * n_out)?);
    let args = [x, partial.clone()].into_iter().chain(numbers).collect();
    let sum = vec![partial, y, Arg::Int(n_out as i64), Arg::Int(n_slices as i64)];
    Ok(vec![
        Launch::grid(FAMILY, float.entry("sum_column_slices"), grid, args),
        Launch::of(FAMILY, float.entry("sum_slices"), n_out, sum),
    ])
}

/// The sums over the columns of a matrix [n_in, n_out] as it lies.
fn columns(float: &Float<'_>, [x, y]: [Arg; 2], n_out: u64, n_in: u64) -> Lowered {
    let across = |pack: u64| n_out.div_ceil(32 * pack);
    let n_slices = n_in.div_ceil(2 * ROWS_PER_SLICE).min(COLUMN_BLOCKS.div_ceil(across(float.pack()))).max(1);
    let numbers = |n: u64| [n_out, n].map(|v| Arg::Int(v as i64));
    let launch = |entry: &str, [from, to]: [Arg; 2], pack, n: u64, n_slices: u64| {
        let args = [from, to].into_iter().chain(numbers(n)).collect();
        Launch::grid(FAMILY, float.entry(entry), [across(pack) as u32, n_slices as u32, 1], args)
    };
    if n_slices == 1 {
        return Ok(vec![launch("sum_packed_columns", [x, y], float.pack(), n_in, 1)]);
    }
    let partial = Arg::At(scratch(0, 4 * n_slices * n_out)?);
    Ok(vec![
        launch("sum_packed_column_slices", [x, partial.clone()], float.pack(), n_in, n_slices),
        launch("sum_packed_slices", [partial, y], PACK_OF_F32, n_slices, 1),
    ])
}

/// Blocks that add up `n` elements, each of which gives a partial sum.
pub(in super::super) fn summing_blocks(n: u64) -> u64 {
    n.div_ceil(u64::from(BLOCK) * PER_THREAD).clamp(1, MAX_PARTIALS)
}

/// The sum of a function of `n` elements: partial sums, then theirs. Scratch memory before `start` is left alone.
pub(in super::super) fn total(name: &str, args: Vec<Arg>, n: u64, to: Arg, start: u64) -> Lowered {
    partials([name, "total"], args, n, to, start)
}

/// As [`total`], by the kernels of partial sums and of theirs.
fn partials([name, total]: [&str; 2], args: Vec<Arg>, n: u64, to: Arg, start: u64) -> Lowered {
    let n_partials = summing_blocks(n);
    let partial = Arg::At(scratch(start, 8 * n_partials)?);
    let args = args.into_iter().chain([Arg::Int(n as i64), partial.clone()]).collect();
    let first = Launch::grid(FAMILY, format!("total_{name}"), [n_partials as u32, 1, 1], args);
    let second: Command = Launch::of(FAMILY, total, 1, vec![partial, Arg::Int(n_partials as i64), to]);
    Ok(vec![first, second])
}

pub(in super::super) fn sum_squares(cx: &Cx<'_>) -> Lowered {
    total_of_floats("squares", cx)
}

pub(in super::super) fn mse(cx: &Cx<'_>) -> Lowered {
    total_of_floats("differences", cx)
}

/// The sum of a function of all operands, in their type.
fn total_of_floats(name: &str, cx: &Cx<'_>) -> Lowered {
    let float = cx.float(0)?;
    let args = (0..cx.spec.args.len()).map(|i| float.arg(i)).collect::<Result<_, _>>()?;
    let [function, total] = [name, "total"].map(|name| float.entry(name));
    partials([&function, &total], args, elements(cx.arg(0)) as u64, float.out(0)?, 0)
}

/// The sum of equal parts of bf16 that lie one after the other, in their order, in f32 and rounded once.
pub(in super::super) fn sum_parts(parts: Span, to: Span) -> Lowered {
    if parts.overlaps(&to) {
        return Err("a sum overlaps its parts in memory".into());
    }
    let (n, pointer) = (to.bytes / 2, |span: Span| Arg::At(Place::Arena(span.offset)));
    let numbers = [n, parts.bytes / to.bytes.max(1)].map(|v| Arg::Int(v as i64));
    let args = [pointer(parts), pointer(to)].into_iter().chain(numbers).collect();
    Ok(vec![Launch::of(FAMILY, "sum_parts_bf16", n.div_ceil(8), args)])
}

pub(in super::super) fn count_labels(op: &CountLabels, cx: &Cx<'_>) -> Lowered {
    let args = vec![cx.i64(0)?, Arg::Int(op.ignore)];
    total("labels", args, elements(cx.arg(0)) as u64, at(cx.result(0)), 0)
}
