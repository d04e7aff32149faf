//! Slices that partition a value move up, so that a fused projection becomes one projection per part.

use super::elementwise::is_elementwise;
use super::groups::groups;
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

/// The slice of an operand that is broadcast to a result of rank `rank`.
fn slice_operand(cx: &mut Sweep<'_>, slice: Slice, operand: ValueId, rank: usize) -> ValueId {
    let shape = cx.shape(operand);
    match slice.dim.checked_sub(rank - shape.len()) {
        Some(dim) if shape[dim] != 1 => cx.emit(Slice { dim, ..slice }, &[operand]),
        _ => operand,
    }
}

/// slice(reshape x) = reshape(slice x), if the sliced dimension is the first that its dimension of x was split into.
fn raise_over_reshape(cx: &mut Sweep<'_>, slice: Slice, x: ValueId, value: ValueId) -> Option<ValueId> {
    let (from, to) = (cx.shape(x), cx.shape(value));
    let group = groups(&from, &to).into_iter().find(|g| g.to.contains(&slice.dim))?;
    if group.from.len() != 1 || group.to.start != slice.dim {
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
