//! Rotary embedding, one row at a time.

use super::Tensor;
use galvatron_ir::op::compute::Rotary;

/// Operands x [.., d], cos and sin [.., p]: pair i of a row, (a, b), becomes (a cos - b sin, a sin + b cos); the elements behind
/// the first 2p stay. Inverse: with -sin.
pub fn rotary(op: &Rotary, args: &[&Tensor]) -> Tensor {
    let [x, cos, sin] = [args[0], args[1], args[2]];
    let n_pairs = cos.shape[cos.shape.len() - 1];
    let sign = if op.inverse { -1.0 } else { 1.0 };
    Tensor::from_fn(x.shape.clone(), |at| {
        let (&last, row) = at.split_last().expect("invariant: the operand has a last dimension");
        let element = |i: u64| x.at(&[row, &[i]].concat());
        if last >= 2 * n_pairs {
            return element(last);
        }
        let (pair, is_second) = if op.interleaved { (last / 2, last % 2) } else { (last % n_pairs, last / n_pairs) };
        let (a, b) = if op.interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + n_pairs) };
        let angle = |table: &Tensor| table.at_broadcast(&[row, &[pair]].concat());
        let (cos, sin) = (angle(cos), sign * angle(sin));
        if is_second == 1 { element(a) * sin + element(b) * cos } else { element(a) * cos - element(b) * sin }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_turn_takes_the_second_element_of_a_pair_to_the_front() {
        let x = Tensor::new([1, 5], vec![1.0, 2.0, 3.0, 4.0, 5.0]);
        let (cos, sin) = (Tensor::filled([2], 0.0), Tensor::filled([2], 1.0));
        let turned = |interleaved| rotary(&Rotary { interleaved, inverse: false }, &[&x, &cos, &sin]).data;
        assert_eq!(turned(false), [-3.0, -4.0, 1.0, 2.0, 5.0]);
        assert_eq!(turned(true), [-2.0, 1.0, -4.0, 3.0, 5.0]);
    }
}
