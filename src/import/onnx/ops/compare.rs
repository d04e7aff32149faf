//! Comparisons, and what is told from them.

use galvatron_ir::op::compute::{Cast, Compare, Unary, UnaryKind};
use galvatron_ir::types::DType;

use super::elementwise::operands;
use super::layout::expanded;
use super::{Call, Operator, Results, broadcast_shape, one, unsupported_type};

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "Equal" => |c| compared(c, Compare::EQUAL, false),
        "Less" => |c| compared(c, Compare::LESS, false),
        "LessOrEqual" => |c| compared(c, Compare::LESS_EQUAL, false),
        "Greater" => |c| compared(c, Compare::LESS, true),
        "GreaterOrEqual" => |c| compared(c, Compare::LESS_EQUAL, true),
        "Xor" => xor,
        "IsInf" => is_inf,
        "OneHot" => one_hot,
        _ => return None,
    })
}

/// Two operands of one type, compared as they are or the other way round.
fn compared(call: &mut Call<'_, '_>, op: Compare, swapped: bool) -> Results {
    let [a, b] = operands(call)?;
    one(call.emit(op, &if swapped { [b, a] } else { [a, b] })?)
}

/// Whether two truth values differ.
fn xor(call: &mut Call<'_, '_>) -> Results {
    let args = operands(call)?;
    let same = call.emit(Compare::EQUAL, &args)?;
    let no = call.number(DType::Bool, 0.0)?;
    one(call.emit(Compare::EQUAL, &[same, no])?)
}

/// Whether x is infinite, above or below if the attributes leave one out.
fn is_inf(call: &mut Call<'_, '_>) -> Results {
    let x = call.float(0)?;
    let above = call.attributes().int("detect_positive", 1) != 0;
    let below = call.attributes().int("detect_negative", 1) != 0;
    let (searched, sign) = match (above, below) {
        (true, true) => (call.emit(Unary { kind: UnaryKind::Abs }, &[x])?, 1.0),
        (true, false) => (x, 1.0),
        (false, true) => (x, -1.0),
        (false, false) => {
            let shape = call.ty(x).shape;
            let no = call.number(DType::Bool, 0.0)?;
            return one(expanded(call, no, shape)?);
        }
    };
    let infinity = call.number(DType::F32, sign * f64::INFINITY)?;
    one(call.emit(Compare::EQUAL, &[searched, infinity])?)
}

/// Indices [..], a depth that is known, and the values [off, on]: [.., depth, ..], on where the place is the index.
fn one_hot(call: &mut Call<'_, '_>) -> Results {
    let mut indices = call.value(0)?;
    if call.ty(indices).dtype != DType::I64 {
        indices = call.emit(Cast { to: DType::I64 }, &[indices])?;
    }
    let depth =
        call.known_ints(1, "depth")?.first().copied().filter(|&n| n > 0).ok_or("a depth that is not positive")?;
    let mut shape = call.ty(indices).shape;
    let rank = shape.len() + 1;
    let axis = call.axis(-1, rank)?;
    shape.insert(axis, 1);
    let column = call.reshape(indices, &shape)?;
    let from_front = super::gather::from_front_of_data(call, column, depth as u64)?;
    let mut line = vec![1; rank];
    line[axis] = depth as u64;
    let places = galvatron_ir::op::compute::Iota { shape: line.clone(), dim: axis, start: 0, step: 1 };
    let places = call.emit(places, &[])?;
    let hit = call.emit(Compare::EQUAL, &[from_front, places])?;
    let values = call.value(2)?;
    if call.ty(values).dtype == DType::Bool {
        return Err(unsupported_type(DType::Bool));
    }
    let mut pair = [values; 2];
    for (i, value) in pair.iter_mut().enumerate() {
        let part = super::pieces::sliced(call, values, 0, i as u64, 1)?;
        *value = call.reshape(part, &[])?;
    }
    let whole = broadcast_shape(&[&shape, &line])?;
    let chosen = call.choose(hit, pair[1], pair[0])?;
    one(expanded(call, chosen, whole)?)
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{Builder, check};

    #[test]
    fn the_other_order_swaps_the_operands() {
        check(&["a = Greater x x", "y = GreaterOrEqual x x"], "less bool[2, 4]; less_equal bool[2, 4]");
        check(
            &["a = IsNaN x", "y = Xor a a"],
            "is_nan bool[2, 4]; equal bool[2, 4]; full<0.0> bool[]; equal bool[2, 4]",
        );
        check(&["y = IsInf{detect_negative=0} x"], "full<inf> f32[]; equal bool[2, 4]");
    }

    #[test]
    fn indices_become_rows_of_one_and_zero() {
        let builder = Builder::new(&["y = OneHot ids depth values"]).input("ids", 7, "batch").int("depth", 3);
        let ops = builder.f32("values", &[2]).ops();
        assert!(ops.ends_with("reshape f32[]; where f32[2, 3]"), "{ops}");
    }
}
