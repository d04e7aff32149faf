//! Which ops work element by element, and how their operands follow a permutation of the result.

use super::sweep::Sweep;
use galvatron_ir::ValueId;
use galvatron_ir::op::Op;

/// Whether every operand is broadcast to the result and each element of the result depends on one element of each.
pub(super) fn is_elementwise(op: &Op) -> bool {
    matches!(op, Op::Binary(_) | Op::Compare(_) | Op::AddN(_) | Op::Unary(_) | Op::Where(_) | Op::Cast(_))
}

/// An operand of an element-wise op whose result is permuted.
#[derive(Clone, Debug)]
pub(super) enum Permuted {
    /// This value as it is.
    Value(ValueId),
    /// A reshape of this value.
    Reshape(ValueId, Vec<u64>),
}

impl Permuted {
    /// The value, with the reshape emitted.
    pub(super) fn emit(self, cx: &mut Sweep<'_>) -> ValueId {
        match self {
            Permuted::Value(value) => value,
            Permuted::Reshape(value, shape) => super::raise::reshaped(cx, value, &shape),
        }
    }
}

/// The operand to use when dimension i of the result becomes dimension `perm[i]` of the old one, without moving elements:
/// an operand whose own transpose undoes it, one whose dimensions keep their order, or one element.
pub(super) fn permute_operand(cx: &Sweep<'_>, operand: ValueId, perm: &[usize]) -> Option<Permuted> {
    let shape = cx.shape(operand);
    if shape.iter().all(|&d| d == 1) {
        return Some(Permuted::Value(operand));
    }
    if let Some((Op::Transpose(t), args)) = cx.def(operand)
        && t.perm.len() == perm.len()
        && t.inverse().perm == perm
    {
        return Some(Permuted::Value(args[0]));
    }
    let skip = perm.len() - shape.len();
    let moved: Vec<u64> = perm.iter().map(|&p| if p < skip { 1 } else { shape[p - skip] }).collect();
    let kept: Vec<usize> = perm.iter().copied().filter(|&p| p >= skip && shape[p - skip] != 1).collect();
    if !kept.is_sorted() {
        return None;
    }
    let first = moved.iter().position(|&d| d != 1).unwrap_or(moved.len());
    let moved = moved[first..].to_vec();
    Some(if moved == shape { Permuted::Value(operand) } else { Permuted::Reshape(operand, moved) })
}

/// All operands permuted, or `None` if one of them would have to move.
pub(super) fn permute_operands(cx: &Sweep<'_>, operands: &[ValueId], perm: &[usize]) -> Option<Vec<Permuted>> {
    operands.iter().map(|&o| permute_operand(cx, o, perm)).collect()
}

/// The tables of `rotary` on these operands, when dimension i of the result becomes dimension `perm[i]` of the old one; the last
/// dimension must stay.
pub(super) fn permute_tables(cx: &Sweep<'_>, args: &[ValueId], perm: &[usize]) -> Option<[Permuted; 2]> {
    if perm.last() != Some(&(perm.len() - 1)) {
        return None;
    }
    Some([permute_operand(cx, args[1], perm)?, permute_operand(cx, args[2], perm)?])
}
