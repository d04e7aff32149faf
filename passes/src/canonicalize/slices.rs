//! Slices that partition a value move up, so that a fused projection becomes one projection per part.

use super::elementwise::is_elementwise;
use super::groups::{ReshapeKind, groups, kind};
use super::raise::reshaped;
use super::sweep::{Sweep, sweep};
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{Reshape, Slice};
use galvatron_ir::{NodeId, Program, ValueId};

/// Moves slices above the op that computes the sliced value, where slices are all that reads it and nothing is lost.
pub(super) fn raise_slices(program: &mut Program) -> bool {
    let partitioned = partitioned_values(program);
    sweep(program, |cx, node| {
        let Op::Slice(slice) = *cx.op(node) else { return None };
        let value = cx.args(node)[0];
        if cx.shape(value)[slice.dim] == slice.len {
            return Some(value);
        }
        if !partitioned.get(value.index()).copied().unwrap_or(false) {
            return None;
        }
        if !cuts_weight(cx, value, slice.dim, MAX_DEPTH) {
            return None;
        }
        let (op, args) = cx.def(value).map(|(op, args)| (op.clone(), args.to_vec()))?;
        match &op {
            Op::Einsum(spec) => {
                let label = spec.out.chars().nth(slice.dim)?;
                let dims = [spec.lhs.find(label), spec.rhs.find(label)];
                let operands = dims.into_iter().zip(&args).map(|(dim, &arg)| match dim {
                    Some(dim) => cx.emit(Slice { dim, ..slice }, &[arg]),
                    None => arg,
                });
                let operands: Vec<ValueId> = operands.collect();
                Some(cx.emit(op, &operands))
            }
            Op::Transpose(t) => {
                let part = cx.emit(Slice { dim: t.perm[slice.dim], ..slice }, &[args[0]]);
                Some(cx.emit(op, &[part]))
            }
            Op::Reshape(_) => raise_over_reshape(cx, slice, args[0], value),
            op if is_elementwise(op) => {
                let rank = cx.ty(value).rank();
                let operands: Vec<ValueId> = args.iter().map(|&a| slice_operand(cx, slice, a, rank)).collect();
                Some(cx.emit(op.clone(), &operands))
            }
            _ => None,
        }
    })
}

/// Ops that are looked through, at most.
const MAX_DEPTH: usize = 64;

/// Whether slices of the value along `dim` can be moved up until they cut a weight: that of a fused projection.
fn cuts_weight(cx: &Sweep<'_>, value: ValueId, dim: usize, depth: usize) -> bool {
    if cx.is_weight(value) || depth == 0 {
        return cx.is_weight(value);
    }
    let Some((op, args)) = cx.def(value) else { return false };
    match op {
        Op::Einsum(spec) => {
            let Some(label) = spec.out.chars().nth(dim) else { return false };
            let dims = [spec.lhs.find(label), spec.rhs.find(label)];
            dims.iter().zip(args).any(|(dim, &arg)| dim.is_some_and(|d| cuts_weight(cx, arg, d, depth - 1)))
        }
        Op::Transpose(t) => cuts_weight(cx, args[0], t.perm[dim], depth - 1),
        Op::Reshape(_) => {
            let (from, to) = (cx.shape(args[0]), cx.shape(value));
            let group = groups(&from, &to).into_iter().find(|g| g.to.contains(&dim));
            let above = group.filter(|g| g.from.len() == 1 && g.to.start == dim).map(|g| g.from.start);
            above.is_some_and(|d| cuts_weight(cx, args[0], d, depth - 1))
        }
        op if is_elementwise(op) => {
            let rank = cx.ty(value).rank();
            let own = |a: ValueId| dim.checked_sub(rank - cx.ty(a).rank()).filter(|&d| cx.shape(a)[d] != 1);
            args.iter().filter_map(|&a| Some((a, own(a)?))).all(|(a, d)| cuts_weight(cx, a, d, depth - 1))
        }
        _ => false,
    }
}

/// The slice of an operand that is broadcast to a result of rank `rank`.
fn slice_operand(cx: &mut Sweep<'_>, slice: Slice, operand: ValueId, rank: usize) -> ValueId {
    let shape = cx.shape(operand);
    match slice.dim.checked_sub(rank - shape.len()) {
        Some(dim) if shape[dim] != 1 => cx.emit(Slice { dim, ..slice }, &[operand]),
        _ => operand,
    }
}

/// slice(reshape x) = reshape(slice x), if the sliced dimension is the first that its dimension of x was split into. A split of
/// other dimensions stays above the slice.
fn raise_over_reshape(cx: &mut Sweep<'_>, slice: Slice, x: ValueId, value: ValueId) -> Option<ValueId> {
    let (from, to) = (cx.shape(x), cx.shape(value));
    let group = groups(&from, &to).into_iter().find(|g| g.to.contains(&slice.dim))?;
    let splits_others = group.to.len() == 1 && kind(&from, &to) == ReshapeKind::Split;
    if group.from.len() != 1 || group.to.start != slice.dim || splits_others {
        return None;
    }
    let inner: u64 = to[group.to.start + 1..group.to.end].iter().product();
    let above = Slice { dim: group.from.start, start: slice.start * inner, len: slice.len * inner };
    let part = cx.emit(above, &[x]);
    let mut shape = to;
    shape[slice.dim] = slice.len;
    let result = reshaped(cx, part, &shape);
    Some(if result == part { cx.emit(Reshape { shape }, &[part]) } else { result })
}

/// For each value whether all its readers are slices of one dimension that together hold every element once.
fn partitioned_values(program: &Program) -> Vec<bool> {
    let mut users = program.graph.users(&program.body);
    for (_, output) in &program.outputs {
        users[output.index()].clear();
    }
    let values = program.graph.value_ids();
    values.map(|v| is_partition(program, &program.graph.value(v).ty.shape, &users[v.index()])).collect()
}

/// Whether these nodes are slices of one dimension of a value of that shape that together hold every element once.
pub(super) fn is_partition(program: &Program, shape: &[u64], users: &[NodeId]) -> bool {
    let mut parts = Vec::with_capacity(users.len());
    for &user in users {
        let Op::Slice(slice) = program.graph.node(user).op else { return false };
        parts.push((slice.dim, slice.start, slice.len));
    }
    parts.sort();
    let Some(&(dim, ..)) = parts.first() else { return false };
    let mut end = 0;
    for (d, start, len) in parts {
        if d != dim || start != end {
            return false;
        }
        end += len;
    }
    shape.get(dim) == Some(&end)
}
