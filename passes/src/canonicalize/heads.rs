//! Heads of attention stand in one dimension: keys are not repeated for the queries that share them, and heads that were split
//! into two dimensions for that are joined again, in the weights.

use super::elementwise::is_elementwise;
use super::groups::{ReshapeKind, groups, kind};
use super::raise::{keeps_last, reshaped};
use super::sweep::{Sweep, sweep};
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{Einsum, Reshape};
use galvatron_ir::{Program, ValueId};

/// Simplifies what attention reads, and the contraction that reads its result.
pub(super) fn join_heads(program: &mut Program) -> bool {
    sweep(program, |cx, node| {
        let args = cx.args(node);
        match cx.op(node).clone() {
            op @ Op::Attention(_) if cx.is_single(node) => {
                let operands = unrepeated(cx, &args).or_else(|| joined(cx, &args))?;
                Some(cx.emit(op, &operands))
            }
            Op::Einsum(spec) => [0, 1].into_iter().find_map(|side| contract_joined(cx, &spec, &args, side)),
            _ => None,
        }
    })
}

/// The operands with each head of keys and values once, if both are repeated equally often.
fn unrepeated(cx: &mut Sweep<'_>, args: &[ValueId]) -> Option<Vec<ValueId>> {
    let [(k, of_k), (v, of_v)] = [repeated(cx, args[1])?, repeated(cx, args[2])?];
    if of_k != of_v {
        return None;
    }
    let mut operands = args.to_vec();
    for (operand, source) in operands[1..3].iter_mut().zip([k, v]) {
        let mut shape = cx.shape(*operand);
        shape[2] /= of_k;
        *operand = reshaped(cx, source, &shape);
    }
    Some(operands)
}

/// What a value [b, s, g r, d] repeats r times for each of g heads, and r.
fn repeated(cx: &Sweep<'_>, value: ValueId) -> Option<(ValueId, u64)> {
    let Some((Op::Reshape(_), args)) = cx.def(value) else { return None };
    let Some((Op::Broadcast(broadcast), source)) = cx.def(args[0]) else { return None };
    let ([b, s, g, r, d], source) = (broadcast.shape[..].first_chunk::<5>()?, source[0]);
    let is_merge = broadcast.shape.len() == 5 && cx.shape(value) == [*b, *s, g * r, *d];
    let extents = cx.shape(source);
    let own = |i: usize| broadcast.dims.iter().position(|&to| to == i).map(|at| extents[at]);
    let keeps = [0, 1, 2, 4].into_iter().all(|i| own(i) == Some(broadcast.shape[i]));
    (is_merge && keeps && own(3).is_none_or(|n| n == 1)).then_some((source, *r))
}

/// The operands q, k, v without a reshape that merges heads, where the contraction above can merge them in its weight.
fn joined(cx: &mut Sweep<'_>, args: &[ValueId]) -> Option<Vec<ValueId>> {
    let mut operands = args.to_vec();
    for operand in &mut operands[..3] {
        let Some((Op::Reshape(_), inner)) = cx.def(*operand) else { continue };
        let (source, to) = (inner[0], cx.shape(*operand));
        if cx.uses(*operand) == 1 && kind(&cx.shape(source), &to) == ReshapeKind::Merge {
            *operand = merged(cx, source, &to).unwrap_or(*operand);
        }
    }
    (operands != args).then_some(operands)
}

/// The value with merged dimensions, if only weights and constants have to be reshaped for it.
fn merged(cx: &mut Sweep<'_>, value: ValueId, to: &[u64]) -> Option<ValueId> {
    let from = cx.shape(value);
    if from == to {
        return Some(value);
    }
    if cx.uses(value) != 1 || kind(&from, to) != ReshapeKind::Merge {
        return None;
    }
    if cx.is_weight(value) {
        return Some(cx.emit(Reshape { shape: to.to_vec() }, &[value]));
    }
    let (op, args) = cx.def(value).map(|(op, args)| (op.clone(), args.to_vec()))?;
    match &op {
        Op::Reshape(_) => (cx.shape(args[0]) == to).then_some(args[0]),
        Op::Einsum(spec) => merged_einsum(cx, spec, &args, to),
        Op::Rotary(_) if keeps_last(&from, to) => {
            let [cos, sin] = [merged_table(cx, args[1], &from, to)?, merged_table(cx, args[2], &from, to)?];
            let x = merged(cx, args[0], to)?;
            Some(cx.emit(op, &[x, cos, sin]))
        }
        op if is_elementwise(op) => {
            let mut operands = Vec::with_capacity(args.len());
            for &arg in &args {
                let shape = merged_shape(&cx.shape(arg), &from, to)?;
                operands.push(merged(cx, arg, &shape)?);
            }
            Some(cx.emit(op.clone(), &operands))
        }
        _ => None,
    }
}

/// Shape of an operand that is broadcast to `out`, after dimensions of the result are merged: each run whole, or all ones.
pub(crate) fn merged_shape(operand: &[u64], out: &[u64], to: &[u64]) -> Option<Vec<u64>> {
    let skip = out.len() - operand.len();
    let mut shape = Vec::new();
    for group in groups(out, to).into_iter().filter(|g| g.from.end > skip) {
        let own = operand.get(group.from.start.checked_sub(skip)?..group.from.end - skip)?;
        let is_whole = *own == out[group.from.clone()];
        if !is_whole && own.iter().any(|&d| d != 1) {
            return None;
        }
        shape.push(if is_whole { own.iter().product() } else { 1 });
    }
    Some(shape)
}

/// A table of `rotary` for an operand whose dimensions before the last are merged.
fn merged_table(cx: &mut Sweep<'_>, table: ValueId, from: &[u64], to: &[u64]) -> Option<ValueId> {
    let own = cx.shape(table);
    let (&pairs, leading) = own.split_last()?;
    let mut shape = merged_shape(leading, &from[..from.len() - 1], &to[..to.len() - 1])?;
    shape.push(pairs);
    let units_only = groups(&own, &shape).iter().all(|g| own[g.from.clone()].iter().filter(|&&d| d != 1).count() <= 1);
    units_only.then(|| reshaped(cx, table, &shape))
}

/// An einsum whose merged dimensions lie side by side in one operand.
fn merged_einsum(cx: &mut Sweep<'_>, spec: &Einsum, args: &[ValueId], to: &[u64]) -> Option<ValueId> {
    let out: Vec<char> = spec.out.chars().collect();
    let from = Op::from(spec.clone()).infer(&[cx.ty(args[0]), cx.ty(args[1])]).ok()?.remove(0).shape;
    let (mut spec, mut operands) = (spec.clone(), args.to_vec());
    for group in groups(&from, to) {
        if group.to.len() != 1 || group.from.is_empty() {
            return None;
        }
        let run: String = out[group.from].iter().collect();
        if run.len() > 1 {
            let side = usize::from(spec.rhs.contains(&run));
            operands[side] = merged_labels(cx, &mut spec, operands[side], side, &run)?;
            spec.out = spec.out.replace(&run, &run[..1]);
        }
    }
    Einsum::new(&spec.spec()).ok()?;
    Some(cx.emit(spec, &operands))
}

/// The operand with a run of labels merged into the first; the other operand must have none of them.
fn merged_labels(cx: &mut Sweep<'_>, spec: &mut Einsum, operand: ValueId, side: usize, run: &str) -> Option<ValueId> {
    let (own, other) = if side == 0 { (&mut spec.lhs, &spec.rhs) } else { (&mut spec.rhs, &spec.lhs) };
    let at = own.find(run).filter(|_| !run.chars().any(|c| other.contains(c)))?;
    let shape = with_merged(&cx.shape(operand), at, run.len());
    *own = own.replace(run, &run[..1]);
    merged(cx, operand, &shape)
}

fn with_merged(shape: &[u64], at: usize, n: usize) -> Vec<u64> {
    let run = shape[at..at + n].iter().product();
    [&shape[..at], &[run], &shape[at + n..]].concat()
}

/// einsum(split o, w) = einsum(o, merge w) for the result o of an attention whose split dimensions are summed.
fn contract_joined(cx: &mut Sweep<'_>, spec: &Einsum, args: &[ValueId], side: usize) -> Option<ValueId> {
    let Some((Op::Reshape(_), inner)) = cx.def(args[side]) else { return None };
    let source = inner[0];
    let Some((Op::Attention(_), _)) = cx.def(source) else { return None };
    let (from, to) = (cx.shape(source), cx.shape(args[side]));
    let (mut spec, mut operands) = (spec.clone(), args.to_vec());
    let labels: Vec<char> = if side == 0 { &spec.lhs } else { &spec.rhs }.chars().collect();
    for group in groups(&from, &to) {
        if group.from.len() != 1 || group.to.is_empty() {
            return None;
        }
        let run: String = labels[group.to].iter().collect();
        if run.len() > 1 {
            let own = if side == 0 { &mut spec.lhs } else { &mut spec.rhs };
            *own = own.replace(&run, &run[..1]);
            operands[1 - side] = contract_run(cx, &mut spec, operands[1 - side], 1 - side, &run)?;
        }
    }
    operands[side] = source;
    Some(cx.emit(spec, &operands))
}

/// The other operand with the run merged; it must be summed.
fn contract_run(cx: &mut Sweep<'_>, spec: &mut Einsum, operand: ValueId, side: usize, run: &str) -> Option<ValueId> {
    if run.chars().any(|c| spec.out.contains(c)) {
        return None;
    }
    let own = if side == 0 { &mut spec.lhs } else { &mut spec.rhs };
    let at = own.find(run)?;
    *own = own.replace(run, &run[..1]);
    let shape = with_merged(&cx.shape(operand), at, run.len());
    merged(cx, operand, &shape)
}
