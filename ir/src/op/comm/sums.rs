//! Sums of bf16 between ranks: elements travel as they are and are added in f32, in the order of the ranks, rounded once.

use crate::types::{DType, TensorType};

/// What is received begins at multiples of this many bytes.
const ALIGNMENT: u64 = 64;

/// How `n` ranks sum the elements of their tensors: those at the front in equal parts, one a rank, and the few that are left
/// over by every rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SumParts {
    /// Elements at the front: each rank gets its part of everyone, sums it, and gives it to all.
    pub scattered: u64,
    /// Elements behind them, fewer than ranks: each rank gets those of everyone and sums them.
    pub rest: u64,
    n: u64,
}

impl SumParts {
    /// The parts of so many elements.
    pub fn new(elements: u64, n: u64) -> SumParts {
        let rest = elements % n.max(1);
        SumParts { scattered: elements - rest, rest, n }
    }

    /// Bytes in which a rank receives its part from all ranks.
    pub fn received_bytes(&self) -> u64 {
        (DType::Bf16.bytes() * self.scattered).next_multiple_of(ALIGNMENT)
    }

    /// Bytes of all memory for what is received: first the parts, then the copies of the rest.
    pub fn bytes(&self) -> u64 {
        self.received_bytes() + (DType::Bf16.bytes() * self.rest * self.n).next_multiple_of(ALIGNMENT)
    }
}

/// Bytes in which the sum of some tensors over `n` ranks receives; 0 for what is not bf16.
pub fn sum_bytes(types: &[&TensorType], n: u64) -> u64 {
    let elements = types.iter().filter(|t| t.dtype == DType::Bf16).map(|t| t.elements()).sum();
    SumParts::new(elements, n).bytes()
}

/// Bytes in which a rank receives its part of a tensor whose sum is scattered; 0 for what is not bf16.
pub fn scattered_sum_bytes(ty: &TensorType) -> u64 {
    if ty.dtype == DType::Bf16 { ty.bytes().next_multiple_of(ALIGNMENT) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_divide_is_summed_by_all() {
        let parts = SumParts::new(103, 4);
        assert_eq!((parts.scattered, parts.rest), (100, 3));
        assert_eq!((parts.received_bytes(), parts.bytes()), (256, 256 + 64));
        assert_eq!(SumParts::new(3, 4).received_bytes(), 0);
    }

    #[test]
    fn sums_of_f32_need_no_memory() {
        assert_eq!((sum_bytes(&[&TensorType::f32([7])], 2), scattered_sum_bytes(&TensorType::f32([8]))), (0, 0));
        assert_eq!(scattered_sum_bytes(&TensorType::new(DType::Bf16, [40])), 128);
    }
}
