//! The contraction of two tensors, summed over one index after the other.

use super::{Tensor, indices};
use galvatron_ir::op::compute::Einsum;

/// out[labels] = sum over the labels that the result lacks of lhs[labels] * rhs[labels].
pub fn einsum(op: &Einsum, lhs: &Tensor, rhs: &Tensor, shape: &[u64]) -> Tensor {
    let summed: String = op.lhs.chars().filter(|&c| !op.out.contains(c)).collect();
    let labels: Vec<char> = op.out.chars().chain(summed.chars()).collect();
    let inner: Vec<u64> = summed.chars().map(|c| extent(&op.lhs, lhs, c)).collect();
    Tensor::from_fn(shape, |outer| {
        let product = |inner: Vec<u64>| {
            let index: Vec<u64> = outer.iter().chain(&inner).copied().collect();
            lhs.at(&pick(&op.lhs, &labels, &index)) * rhs.at(&pick(&op.rhs, &labels, &index))
        };
        indices(&inner).map(product).sum()
    })
}

fn extent(operand: &str, tensor: &Tensor, label: char) -> u64 {
    tensor.shape[operand.chars().position(|c| c == label).expect("invariant: summed labels are in both operands")]
}

/// Index of an operand from the index over all labels.
fn pick(operand: &str, labels: &[char], index: &[u64]) -> Vec<u64> {
    let of = |c: char| index[labels.iter().position(|&l| l == c).expect("invariant: labels of operands are listed")];
    operand.chars().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_with_a_transposed_matrix() {
        let (a, b) = (Tensor::new([1, 2], vec![1.0, 2.0]), Tensor::new([2, 2], vec![3.0, 4.0, 5.0, 6.0]));
        assert_eq!(einsum(&Einsum::new("mk,nk->nm").unwrap(), &a, &b, &[2, 1]).data, [11.0, 17.0]);
    }
}
