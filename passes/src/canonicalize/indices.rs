//! Places that `top_k` gives are not negative: what counts negative ones from the end is left out.

use super::fold::splat;
use super::sweep::{Sweep, sweep};
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::CompareKind;
use galvatron_ir::{Program, ValueId};

/// where(i < 0, .., i) = i for places i of `top_k`.
pub(super) fn drop_wraps(program: &mut Program) -> bool {
    sweep(program, |cx, node| {
        let Op::Where(_) = cx.op(node) else { return None };
        let args = cx.args(node);
        let index = args[2];
        let Some((Op::Compare(compare), operands)) = cx.def(args[0]) else { return None };
        let asks = compare.kind == CompareKind::Less && operands[0] == index && splat(cx, operands[1]) == Some(0.0);
        let has_type = cx.ty(index) == cx.ty(cx.result(node));
        (asks && has_type && is_place(cx, index)).then_some(index)
    })
}

/// Whether the value holds places that `top_k` gives, perhaps under another shape.
fn is_place(cx: &Sweep<'_>, value: ValueId) -> bool {
    match cx.source(value) {
        Some((node, 1)) => matches!(cx.op(node), Op::TopK(_)),
        Some((node, 0)) => matches!(cx.op(node), Op::Reshape(_)) && is_place(cx, cx.args(node)[0]),
        _ => false,
    }
}
