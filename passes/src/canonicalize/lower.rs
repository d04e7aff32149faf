//! Reshapes that merge dimensions, transposes and repetitions move down, through whatever works on the other dimensions.

use super::einsums::{absorb_broadcast, absorb_merge};
use super::elementwise::{is_elementwise, permute_operands, permute_tables};
use super::groups::{Group, ReshapeKind, groups, kind, reshaped_operand};
use super::raise::{keeps_last, reshaped};
use super::sweep::{Sweep, sweep};
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{Broadcast, Embedding, ReduceSum, Reshape, TopK, Transpose};
use galvatron_ir::{NodeId, Program, ValueId};

/// Moves merges and transposes of operands below the op that reads them.
pub(super) fn lower_layouts(program: &mut Program) -> bool {
    sweep(program, |cx, node| {
        if let Op::TopK(top_k) = *cx.op(node) {
            return lower_over_top_k(cx, node, top_k);
        }
        if !cx.is_single(node) {
            return None;
        }
        let args = cx.args(node);
        match cx.op(node).clone() {
            Op::Einsum(spec) => [0, 1].into_iter().find_map(|side| {
                let merged = merge_of(cx, args[side]).and_then(|_| absorb_merge(cx, &spec, &args, side));
                merged.or_else(|| absorb_broadcast(cx, &spec, &args, side))
            }),
            Op::Softmax(_) | Op::LayerNorm(_) | Op::RmsNorm(_) => lower_over_rows(cx, node, &args),
            Op::Rotary(_) => lower_over_rotary(cx, node, &args),
            Op::Embedding(_) => lower_over_embedding(cx, &args),
            Op::CrossEntropy(_) if cx.is_single(node) => lower_over_loss(cx, node, &args),
            Op::CountLabels(_) => {
                let (op, source) = (cx.op(node).clone(), merge_of(cx, args[0])?);
                Some(cx.emit(op, &[source]))
            }
            Op::ReduceSum(sum) => unit_sum(cx, &sum, args[0]).or_else(|| lower_over_sum(cx, &sum, args[0])),
            Op::Transpose(t) => lower_over_transpose(cx, &t, args[0]).or_else(|| lower_repetition(cx, &t, args[0])),
            op if is_elementwise(&op) => lower_merge(cx, node, &args)
                .or_else(|| lower_transpose(cx, node, &args))
                .or_else(|| lower_broadcast(cx, node, &args)),

            _ => None,
        }
    })
}

/// The operand of the merge that computes the value.
fn merge_of(cx: &Sweep<'_>, value: ValueId) -> Option<ValueId> {
    match cx.def(value) {
        Some((Op::Reshape(_), args)) => {
            (kind(&cx.shape(args[0]), &cx.shape(value)) == ReshapeKind::Merge).then_some(args[0])
        }
        _ => None,
    }
}

/// The transpose that computes the value, and its operand.
fn transpose_of(cx: &Sweep<'_>, value: ValueId) -> Option<(Transpose, ValueId)> {
    match cx.def(value) {
        Some((Op::Transpose(t), args)) => Some((t.clone(), args[0])),
        _ => None,
    }
}

fn lower_merge(cx: &mut Sweep<'_>, node: NodeId, args: &[ValueId]) -> Option<ValueId> {
    let out = cx.shape(cx.result(node));
    let source = args.iter().filter(|&&a| cx.shape(a) == out).find_map(|&a| merge_of(cx, a))?;
    let whole = cx.shape(source);
    let shapes: Vec<Vec<u64>> = args.iter().map(|&a| reshaped_operand(&cx.shape(a), &out, &whole)).collect();
    if !args.iter().zip(&shapes).all(|(&a, shape)| splits_for_free(cx, a, shape)) {
        return None;
    }
    let operands: Vec<ValueId> = args.iter().zip(&shapes).map(|(&a, shape)| reshaped(cx, a, shape)).collect();
    let value = cx.emit(cx.op(node).clone(), &operands);
    Some(cx.emit(Reshape { shape: out }, &[value]))
}

/// Whether the value takes the finer shape without a new reshape among computed values.
fn splits_for_free(cx: &Sweep<'_>, value: ValueId, to: &[u64]) -> bool {
    let from = cx.shape(value);
    let units_only = groups(&from, to).iter().all(|g| g.to.len() <= 1);
    units_only
        || (cx.is_weight(value) && cx.uses(value) == 1)
        || match cx.def(value) {
            Some((Op::Reshape(_), args)) => kind(&cx.shape(args[0]), to) != ReshapeKind::Mixed,
            Some((Op::Full(_) | Op::CausalMask(_), _)) => true,
            _ => false,
        }
}

fn lower_transpose(cx: &mut Sweep<'_>, node: NodeId, args: &[ValueId]) -> Option<ValueId> {
    let out = cx.shape(cx.result(node));
    let (t, _) = args.iter().filter(|&&a| cx.shape(a) == out).find_map(|&a| transpose_of(cx, a))?;
    let operands = permute_operands(cx, args, &t.inverse().perm)?;
    let operands: Vec<ValueId> = operands.into_iter().map(|o| o.emit(cx)).collect();
    let value = cx.emit(cx.op(node).clone(), &operands);
    Some(cx.emit(t, &[value]))
}

/// f(broadcast x) = broadcast f(x), where the other operands of f are single elements.
fn lower_broadcast(cx: &mut Sweep<'_>, node: NodeId, args: &[ValueId]) -> Option<ValueId> {
    let out = cx.shape(cx.result(node));
    let whole = args.iter().position(|&a| cx.ty(a).elements() != 1)?;
    if args.iter().enumerate().any(|(i, &a)| i != whole && !cx.shape(a).is_empty()) || cx.shape(args[whole]) != out {
        return None;
    }
    let Some((Op::Broadcast(broadcast), inner)) = cx.def(args[whole]) else { return None };
    let (broadcast, source) = (broadcast.clone(), inner[0]);
    let mut operands = args.to_vec();
    operands[whole] = source;
    let value = cx.emit(cx.op(node).clone(), &operands);
    Some(cx.emit(broadcast, &[value]))
}

/// Softmax and the norms work on the last dimension; the others may change.
fn lower_over_rows(cx: &mut Sweep<'_>, node: NodeId, args: &[ValueId]) -> Option<ValueId> {
    let out = cx.shape(args[0]);
    let (source, back): (ValueId, Op) = if let Some(source) = merge_of(cx, args[0]) {
        keeps_last(&cx.shape(source), &out).then(|| (source, Reshape { shape: out }.into()))?
    } else {
        let (t, source) = transpose_of(cx, args[0])?;
        (t.perm.last() == Some(&(out.len() - 1))).then(|| (source, t.into()))?
    };
    let mut operands = args.to_vec();
    operands[0] = source;
    let value = cx.emit(cx.op(node).clone(), &operands);
    Some(cx.emit(back, &[value]))
}

/// rotary(transpose x) = transpose(rotary x), with the tables' dimensions in the order of x.
fn lower_over_rotary(cx: &mut Sweep<'_>, node: NodeId, args: &[ValueId]) -> Option<ValueId> {
    let (t, source) = transpose_of(cx, args[0])?;
    let [cos, sin] = permute_tables(cx, args, &t.inverse().perm)?;
    let (cos, sin) = (cos.emit(cx), sin.emit(cx));
    let value = cx.emit(cx.op(node).clone(), &[source, cos, sin]);
    Some(cx.emit(t, &[value]))
}

/// transpose(broadcast x) = broadcast(transpose x), for a broadcast that keeps the rank.
fn lower_repetition(cx: &mut Sweep<'_>, t: &Transpose, x: ValueId) -> Option<ValueId> {
    let Some((Op::Broadcast(broadcast), args)) = cx.def(x) else { return None };
    if broadcast.dims.len() != broadcast.shape.len() {
        return None;
    }
    let (broadcast, source) = (broadcast.clone(), args[0]);
    let shape = t.perm.iter().map(|&p| broadcast.shape[p]).collect();
    let value = cx.emit(t.clone(), &[source]);
    Some(cx.emit(Broadcast { shape, ..broadcast }, &[value]))
}

/// top_k works on the last dimension; the others may be split.
fn lower_over_top_k(cx: &mut Sweep<'_>, node: NodeId, top_k: TopK) -> Option<ValueId> {
    let x = cx.args(node)[0];
    let source = merge_of(cx, x).filter(|&source| keeps_last(&cx.shape(source), &cx.shape(x)))?;
    let shape = cx.shape(cx.result(node));
    let values = cx.emit(top_k, &[source]);
    let indices = cx.result_at(values, 1);
    let indices = cx.emit(Reshape { shape: shape.clone() }, &[indices]);
    cx.replace_result(node, 1, indices);
    Some(cx.emit(Reshape { shape }, &[values]))
}

fn lower_over_embedding(cx: &mut Sweep<'_>, args: &[ValueId]) -> Option<ValueId> {
    let source = merge_of(cx, args[1])?;
    let shape: Vec<u64> = cx.shape(args[1]).iter().chain(&cx.shape(args[0])[1..]).copied().collect();
    let value = cx.emit(Embedding, &[args[0], source]);
    Some(cx.emit(Reshape { shape }, &[value]))
}

/// reduce_sum(merge x) sums the dimensions that were merged into the summed ones.
/// The loss of merged rows is that of the rows, if logits and labels are merged alike.
fn lower_over_loss(cx: &mut Sweep<'_>, node: NodeId, args: &[ValueId]) -> Option<ValueId> {
    let [logits, labels] = [merge_of(cx, args[0])?, merge_of(cx, args[1])?];
    let is_alike = cx.shape(logits).split_last().is_some_and(|(_, rows)| rows == cx.shape(labels));
    let op = cx.op(node).clone();
    (is_alike && keeps_last(&cx.shape(logits), &cx.shape(args[0]))).then(|| cx.emit(op, &[logits, labels]))
}

/// A sum over dimensions of extent 1 only drops them.
fn unit_sum(cx: &mut Sweep<'_>, sum: &ReduceSum, x: ValueId) -> Option<ValueId> {
    let shape = cx.shape(x);
    let kept: Vec<usize> = (0..shape.len()).filter(|d| shape[*d] != 1 || !sum.dims.contains(d)).collect();
    if kept.len() == shape.len() {
        return None;
    }
    let to: Vec<u64> = kept.iter().map(|&d| shape[d]).collect();
    let dims: Vec<usize> = (0..kept.len()).filter(|&i| sum.dims.contains(&kept[i])).collect();
    let source = reshaped(cx, x, &to);
    Some(if dims.is_empty() { source } else { cx.emit(ReduceSum { dims }, &[source]) })
}

fn lower_over_sum(cx: &mut Sweep<'_>, sum: &ReduceSum, x: ValueId) -> Option<ValueId> {
    let source = merge_of(cx, x)?;
    let (from, to) = (cx.shape(source), cx.shape(x));
    let summed = |g: &Group| g.to.clone().any(|d| sum.dims.contains(&d));
    let dims = groups(&from, &to).into_iter().filter(summed).flat_map(|g| g.from).collect();
    let shape = (0..to.len()).filter(|d| !sum.dims.contains(d)).map(|d| to[d]).collect::<Vec<_>>();
    let value = cx.emit(ReduceSum { dims }, &[source]);
    Some(reshaped(cx, value, &shape))
}

/// transpose(merge x) = merge(transpose x): the merged dimensions are permuted as blocks.
fn lower_over_transpose(cx: &mut Sweep<'_>, t: &Transpose, x: ValueId) -> Option<ValueId> {
    let source = merge_of(cx, x)?;
    let (from, to) = (cx.shape(source), cx.shape(x));
    let mut blocks = vec![Vec::new(); to.len()];
    for group in groups(&from, &to) {
        blocks[group.to.start.min(to.len() - 1)].extend(group.from);
    }
    let perm: Vec<usize> = t.perm.iter().flat_map(|&p| blocks[p].iter().copied()).collect();
    let shape = t.perm.iter().map(|&p| to[p]).collect();
    let value = cx.emit(Transpose { perm }, &[source]);
    Some(cx.emit(Reshape { shape }, &[value]))
}
