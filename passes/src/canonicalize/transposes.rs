//! Transposes disappear into the labels of the contraction that computes or reads the value.

use super::einsums::absorb_transposed_operand;
use super::elementwise::{is_elementwise, permute_operand, permute_tables};
use super::sweep::{Sweep, sweep};
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{Einsum, Transpose};
use galvatron_ir::{Program, ValueId};

/// Absorbs transposes of operands and of results; composes and cancels those that meet.
pub(super) fn absorb_transposes(program: &mut Program) -> bool {
    sweep(program, |cx, node| {
        let args = cx.args(node);
        match cx.op(node).clone() {
            Op::Einsum(spec) => absorb_transposed_operand(cx, &spec, &args),
            Op::Transpose(t) => simplify(cx, &t, args[0]),
            _ => None,
        }
    })
}

fn simplify(cx: &mut Sweep<'_>, t: &Transpose, x: ValueId) -> Option<ValueId> {
    if t.perm.is_sorted() {
        return Some(x);
    }
    if let Some((Op::Transpose(before), args)) = cx.def(x) {
        let (perm, source): (Vec<usize>, _) = (t.perm.iter().map(|&p| before.perm[p]).collect(), args[0]);
        return Some(if perm.is_sorted() { source } else { cx.emit(Transpose { perm }, &[source]) });
    }
    can_raise(cx, x, &t.perm).then(|| raise(cx, x, &t.perm))
}

/// Whether a transpose of the value can be absorbed by the contraction that it is computed from, element-wise ops between.
fn can_raise(cx: &Sweep<'_>, value: ValueId, perm: &[usize]) -> bool {
    let Some((op, args)) = cx.def(value) else { return false };
    if cx.uses(value) != 1 {
        return false;
    }
    match op {
        Op::Einsum(_) => true,
        Op::Rotary(_) => permute_tables(cx, args, perm).is_some() && can_raise(cx, args[0], perm),
        op if is_elementwise(op) => {
            let shape = cx.shape(value);
            let whole = args.iter().position(|&a| cx.shape(a) == shape && can_raise(cx, a, perm));
            let others = |w: usize| (0..args.len()).filter(move |&i| i != w);
            whole.is_some_and(|w| others(w).all(|i| permute_operand(cx, args[i], perm).is_some()))
        }
        _ => false,
    }
}

/// The transpose of a value for which `can_raise` holds.
fn raise(cx: &mut Sweep<'_>, value: ValueId, perm: &[usize]) -> ValueId {
    let (op, args) =
        cx.def(value).map(|(op, args)| (op.clone(), args.to_vec())).expect("invariant: can_raise was asked");
    if let Op::Einsum(spec) = &op {
        let letters: Vec<char> = spec.out.chars().collect();
        let out = perm.iter().map(|&p| letters[p]).collect();
        return cx.emit(Einsum { out, ..spec.clone() }, &args);
    }
    if let Op::Rotary(_) = &op {
        let x = raise(cx, args[0], perm);
        let [cos, sin] = permute_tables(cx, &args, perm).expect("invariant: can_raise was asked");
        let (cos, sin) = (cos.emit(cx), sin.emit(cx));
        return cx.emit(op, &[x, cos, sin]);
    }
    let shape = cx.shape(value);
    let whole = args.iter().position(|&a| cx.shape(a) == shape && can_raise(cx, a, perm));
    let mut operands = Vec::with_capacity(args.len());
    for (i, &arg) in args.iter().enumerate() {
        operands.push(if Some(i) == whole {
            raise(cx, arg, perm)
        } else {
            permute_operand(cx, arg, perm).expect("invariant: can_raise was asked").emit(cx)
        });
    }
    cx.emit(op, &operands)
}
