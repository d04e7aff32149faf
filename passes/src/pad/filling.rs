//! What stands behind a padded extent after each op, and where that would change a result or a gradient.

use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{BinaryKind, UnaryKind};

/// What the elements are that padding adds to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filling {
    /// 0.
    Zero,
    /// Some number.
    Finite,
}

use Filling::{Finite, Zero};

/// What padding adds to the results that carry it, from what it adds to the operands; `None` where it must not be.
///
/// Its gradients are zero: those of what is summed over the padded extent are products with zeros, what is cut off again has none, and every
/// other op here makes zeros of zeros, since its derivatives are finite.
pub(super) fn filling(op: &Op, operands: &[Option<Filling>], is_carried_on: bool) -> Option<Vec<Filling>> {
    let carrying = || operands.iter().flatten();
    let any_zero = if carrying().any(|f| *f == Zero) { Zero } else { Finite };
    let all_zero = if operands.iter().all(|f| *f == Some(Zero)) { Zero } else { Finite };
    let first = operands.first().copied().flatten();
    let result = match op {
        Op::Einsum(_) if is_carried_on => any_zero,
        // Each side meets zeros of the other one.
        Op::Einsum(_) | Op::Moe(_) => {
            return (!is_carried_on && carrying().count() > 1 && carrying().all(|f| *f == Zero)).then(Vec::new);
        }
        Op::Attention(_) => return Some(vec![operands[2]?, Finite]),
        Op::RmsNorm(op) if op.eps.get() as f32 > 0.0 => return Some(vec![first?, Finite]),
        Op::LayerNorm(op) if op.eps.get() as f32 > 0.0 => return Some(vec![Finite, Finite, Finite]),
        // Ids are rows that are stored.
        Op::Embedding(_) if !is_carried_on => return Some(Vec::new()),
        // Along another dimension: the padded one would have to stay whole.
        Op::Slice(_) => first?,
        Op::Concat(_) | Op::AddN(_) => all_zero,
        Op::Embedding(_) | Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_) | Op::Cast(_) | Op::Rotary(_) => first?,
        Op::Full(op) if op.value.get() == 0.0 => Zero,
        Op::Full(op) if op.value.get().is_finite() => Finite,
        Op::Softmax(_) => Finite,
        Op::Binary(op) => match op.kind {
            BinaryKind::Add | BinaryKind::Sub => all_zero,
            BinaryKind::Mul => any_zero,
            BinaryKind::Div if operands[1].is_none() => first?,
            _ => return None,
        },
        Op::Unary(op) => unary(op.kind, first?)?,
        _ => return None,
    };
    Some(vec![result])
}

fn unary(kind: UnaryKind, operand: Filling) -> Option<Filling> {
    use UnaryKind::{Cos, Erf, Gelu, GeluTanh, Neg, Relu, Sigmoid, Silu, Sin, Softplus, Tanh};
    match kind {
        Neg | Tanh | Erf | Relu | Gelu | GeluTanh | Silu | Sin => Some(operand),
        Sigmoid | Softplus | Cos => Some(Finite),
        _ => None,
    }
}
