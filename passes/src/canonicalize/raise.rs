//! Reshapes that split dimensions move up, through element-wise ops and contractions, until a weight or a merge takes them.

use super::elementwise::is_elementwise;
use super::groups::{ReshapeKind, groups, kind, refinement, reshaped_operand};
use super::sweep::{Sweep, sweep};
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{CausalMask, Concat, Constant, Full, Iota, Reshape, Slice, Transpose};
use galvatron_ir::types::TensorType;
use galvatron_ir::{Program, ValueId};

/// Moves splits up and puts every other reshape into the form split, then merge.
pub(super) fn raise_reshapes(program: &mut Program) -> bool {
    sweep(program, |cx, node| {
        let Op::Reshape(Reshape { shape }) = cx.op(node) else { return None };
        let (to, operand) = (shape.clone(), cx.args(node)[0]);
        if cx.shape(operand) == to {
            return Some(operand);
        }
        if let Some(value) = raised(cx, operand, &to) {
            return Some(value);
        }
        let (source, through) = match cx.def(operand) {
            Some((Op::Reshape(_), args)) => (args[0], Some(cx.shape(operand))),
            _ => (operand, None),
        };
        normal_form(cx, source, through, &to)
    })
}

/// Replaces chains of reshapes by one.
pub(super) fn join_reshapes(program: &mut Program) -> bool {
    sweep(program, |cx, node| {
        let Op::Reshape(Reshape { shape }) = cx.op(node) else { return None };
        let (to, operand) = (shape.clone(), cx.args(node)[0]);
        let Some((Op::Reshape(_), args)) = cx.def(operand) else { return None };
        let source = args[0];
        Some(if cx.shape(source) == to { source } else { cx.emit(Reshape { shape: to }, &[source]) })
    })
}

/// The value under another shape: raised where possible.
pub(super) fn reshaped(cx: &mut Sweep<'_>, value: ValueId, to: &[u64]) -> ValueId {
    if cx.shape(value) == to {
        return value;
    }
    if let Some(raised) = raised(cx, value, to) {
        return raised;
    }
    if let Some((Op::Reshape(_), args)) = cx.def(value) {
        let source = args[0];
        if cx.shape(source) == to {
            return source;
        }
        if kind(&cx.shape(source), to) != ReshapeKind::Mixed {
            return reshaped(cx, source, to);
        }
    }
    cx.emit(Reshape { shape: to.to_vec() }, &[value])
}

/// One reshape where it only splits or only merges, otherwise a split and a merge; `None` if `through` says it is so.
fn normal_form(cx: &mut Sweep<'_>, source: ValueId, through: Option<Vec<u64>>, to: &[u64]) -> Option<ValueId> {
    let from = cx.shape(source);
    if from == to {
        return Some(source);
    }
    let one = |cx: &mut Sweep<'_>| cx.emit(Reshape { shape: to.to_vec() }, &[source]);
    match (kind(&from, to), refinement(&from, to)) {
        (ReshapeKind::Mixed, Some(middle)) if through.as_ref() != Some(&middle) => {
            let split = reshaped(cx, source, &middle);
            Some(cx.emit(Reshape { shape: to.to_vec() }, &[split]))
        }
        (ReshapeKind::Mixed, Some(_)) => None,
        _ => through.map(|_| one(cx)),
    }
}

/// The reshape moved above the op that computes the value, whose name the reshaped result takes over; only splits move.
fn raised(cx: &mut Sweep<'_>, value: ValueId, to: &[u64]) -> Option<ValueId> {
    let new = raised_unnamed(cx, value, to)?;
    if cx.uses(value) == 1 {
        cx.take_name(value, new);
    }
    Some(new)
}

fn raised_unnamed(cx: &mut Sweep<'_>, value: ValueId, to: &[u64]) -> Option<ValueId> {
    let from = cx.shape(value);
    if kind(&from, to) != ReshapeKind::Split {
        return None;
    }
    let (op, args) = cx.def(value)?;
    let (op, args) = (op.clone(), args.to_vec());
    if let Some(source) = reshaped_source(&op, &from, to) {
        return Some(cx.emit(source, &[]));
    }
    let node = cx.producer(value)?;
    if cx.uses(value) != 1 || !cx.is_single(node) {
        return None;
    }
    match &op {
        Op::Einsum(spec) => super::einsums::raise_split(cx, spec, &args, to),
        Op::Transpose(t) => Some(raise_over_transpose(cx, t, args[0], to)),
        Op::Softmax(_) | Op::LayerNorm(_) | Op::RmsNorm(_) if keeps_last(&from, to) => {
            let mut operands = args.clone();
            operands[0] = reshaped(cx, args[0], to);
            Some(cx.emit(op, &operands))
        }
        Op::Rotary(_) if keeps_last(&from, to) => {
            let [cos, sin] = [args[1], args[2]].map(|table| reshaped_table(cx, table, &from, to));
            let x = reshaped(cx, args[0], to);
            Some(cx.emit(op, &[x, cos, sin]))
        }
        Op::Slice(slice) if takes_split(cx, args[0], MAX_DEPTH) => {
            let (dim, shape) = beside(cx, slice.dim, args[0], (&from, to))?;
            let x = reshaped(cx, args[0], &shape);
            Some(cx.emit(Slice { dim, ..*slice }, &[x]))
        }
        Op::Concat(concat) if args.iter().all(|&a| takes_split(cx, a, MAX_DEPTH)) => {
            let parts: Option<Vec<_>> = args.iter().map(|&a| beside(cx, concat.dim, a, (&from, to))).collect();
            let parts = parts?;
            let dim = parts.first()?.0;
            let parts: Vec<ValueId> = args.iter().zip(&parts).map(|(&a, (_, shape))| reshaped(cx, a, shape)).collect();
            Some(cx.emit(Concat { dim }, &parts))
        }
        Op::Embedding(_) => raise_over_embedding(cx, &args, to),
        op if is_elementwise(op) && (moves_units(&from, to) || any_takes_split(cx, &args, &from)) => {
            let operands = args.iter().map(|&a| reshaped_operand(&cx.shape(a), &from, to)).collect::<Vec<_>>();
            let operands: Vec<ValueId> = args.iter().zip(operands).map(|(&a, s)| reshaped(cx, a, &s)).collect();
            Some(cx.emit(op.clone(), &operands))
        }
        _ => None,
    }
}

/// Ops that are looked through, at most.
const MAX_DEPTH: usize = 64;

/// Whether the reshape only inserts and drops unit dimensions.
fn moves_units(from: &[u64], to: &[u64]) -> bool {
    groups(from, to).iter().all(|g| g.from.len() <= 1 && g.to.len() <= 1)
}

/// Whether one of the operands of the whole shape can be split.
fn any_takes_split(cx: &Sweep<'_>, args: &[ValueId], whole: &[u64]) -> bool {
    args.iter().any(|&a| cx.shape(a) == whole && takes_split(cx, a, MAX_DEPTH))
}

/// Whether something that computes the value can be split: a contraction, a weight, a merge.
fn takes_split(cx: &Sweep<'_>, value: ValueId, depth: usize) -> bool {
    if depth == 0 || cx.is_weight(value) {
        return cx.is_weight(value);
    }
    let Some((op, args)) = cx.def(value) else { return false };
    match op {
        Op::Einsum(_) | Op::Reshape(_) | Op::Embedding(_) | Op::Constant(_) | Op::CausalMask(_) | Op::Iota(_) => true,
        Op::Transpose(_) | Op::Softmax(_) | Op::LayerNorm(_) | Op::RmsNorm(_) | Op::Rotary(_) | Op::Slice(_) => {
            takes_split(cx, args[0], depth - 1)
        }
        Op::Concat(_) => args.iter().all(|&a| takes_split(cx, a, depth - 1)),
        op if is_elementwise(op) => args.iter().any(|&a| takes_split(cx, a, depth - 1)),
        _ => false,
    }
}

/// A table of `rotary`, whose last dimension is its own, for an operand that is reshaped from `from` to `to`.
fn reshaped_table(cx: &mut Sweep<'_>, table: ValueId, from: &[u64], to: &[u64]) -> ValueId {
    let own = cx.shape(table);
    let (last, pairs) = (own.len() - 1, own[own.len() - 1]);
    let mut whole = own;
    whole[last] = from[from.len() - 1];
    let mut shape = reshaped_operand(&whole, from, to);
    if let Some(d) = shape.last_mut() {
        *d = pairs;
    }
    reshaped(cx, table, &shape)
}

/// Where dimension `dim` stands after a reshape that leaves it alone, and the shape of an operand that differs in it only.
fn beside(cx: &Sweep<'_>, dim: usize, operand: ValueId, (from, to): (&[u64], &[u64])) -> Option<(usize, Vec<u64>)> {
    let group = groups(from, to).into_iter().find(|g| g.from.contains(&dim))?;
    if group.from.len() != 1 || group.to.len() != 1 {
        return None;
    }
    let mut shape = to.to_vec();
    shape[group.to.start] = cx.shape(operand)[dim];
    Some((group.to.start, shape))
}

/// A constant under another shape.
fn reshaped_source(op: &Op, from: &[u64], to: &[u64]) -> Option<Op> {
    match op {
        Op::Full(full) => Some(Full { ty: full.ty.with_shape(to), value: full.value }.into()),
        Op::Constant(constant) => Some(Constant { ty: constant.ty.with_shape(to), ..constant.clone() }.into()),
        Op::CausalMask(mask) if to.len() >= 2 && from[from.len() - 2..] == to[to.len() - 2..] => {
            Some(CausalMask { shape: to.to_vec(), ..mask.clone() }.into())
        }
        Op::Iota(iota) => {
            let group = groups(from, to).into_iter().find(|g| g.from.contains(&iota.dim))?;
            let single = group.to.len() == 1;
            single.then(|| Iota { shape: to.to_vec(), dim: group.to.start, ..iota.clone() }.into())
        }
        _ => None,
    }
}

/// Whether a reshape leaves the last dimension alone.
pub(super) fn keeps_last(from: &[u64], to: &[u64]) -> bool {
    groups(from, to).last().is_some_and(|g| g.from.len() == 1 && g.to.len() == 1)
}

/// reshape(transpose x) = transpose(reshape x): the blocks that the dimensions are split into are permuted as a whole.
fn raise_over_transpose(cx: &mut Sweep<'_>, t: &Transpose, x: ValueId, to: &[u64]) -> ValueId {
    let from = cx.ty(x).with_shape(t.perm.iter().map(|&p| cx.shape(x)[p]).collect::<Vec<_>>());
    let blocks = blocks(&from, to);
    let inverse = t.inverse().perm;
    let order: Vec<usize> = inverse.iter().flat_map(|&i| blocks[i].iter().copied()).collect();
    let shape: Vec<u64> = order.iter().map(|&d| to[d]).collect();
    let split = reshaped(cx, x, &shape);
    let perm = (0..to.len()).map(|d| order.iter().position(|&o| o == d).unwrap_or(d)).collect();
    cx.emit(Transpose { perm }, &[split])
}

/// For each dimension before a split, those that it becomes; inserted unit dimensions go with the one that follows.
fn blocks(from: &TensorType, to: &[u64]) -> Vec<Vec<usize>> {
    let mut blocks = vec![Vec::new(); from.rank()];
    for group in groups(&from.shape, to) {
        let owner = group.from.start.min(from.rank().saturating_sub(1));
        blocks[owner].extend(group.to);
    }
    blocks
}

/// reshape(embedding(table, ids)) = embedding(table, reshape ids), if the table's own dimensions stay.
fn raise_over_embedding(cx: &mut Sweep<'_>, args: &[ValueId], to: &[u64]) -> Option<ValueId> {
    let width = cx.shape(args[0])[1..].to_vec();
    let from: Vec<u64> = cx.shape(args[1]).iter().chain(&width).copied().collect();
    let n_index = to.len().checked_sub(width.len())?;
    let kept = groups(&from, to).iter().rev().take(width.len()).all(|g| g.from.len() == 1 && g.to.len() == 1);
    if !kept || to[n_index..] != width {
        return None;
    }
    let ids = reshaped(cx, args[1], &to[..n_index]);
    Some(cx.emit(galvatron_ir::op::compute::Embedding, &[args[0], ids]))
}
