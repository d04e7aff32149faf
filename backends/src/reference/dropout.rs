//! Elements that are dropped by chance, and the generator that says which.

use super::{Part, Tensor};
use galvatron_ir::op::compute::Dropout;

/// y = x / (1 - p), or 0, by the word of the element's index in the whole tensor.
pub fn dropout(op: &Dropout, x: &Tensor, step: &Tensor, part: &Part) -> Tensor {
    let whole = if part.of.is_empty() { &x.shape } else { &part.of };
    Tensor::from_fn(x.shape.as_slice(), |index| {
        let first = |d: usize| part.first.get(d).copied().unwrap_or(0);
        let global = (0..index.len()).fold(0, |at, d| at * whole[d] + first(d) + index[d]);
        let block = [global / 4, (global / 4) >> 32, step.data[0] as u64, u64::from(op.number)];
        let words = philox4x32(block, [op.seed, op.seed >> 32]);
        let is_kept = words[(global % 4) as usize] >= op.threshold();
        if is_kept { x.at(&index) / (1.0 - op.p.get()) } else { 0.0 }
    })
}

/// Ten rounds of Philox4x32, as in section 3.2 of Salmon et al. (SC 2011); of all numbers the lower 32 bits count.
fn philox4x32(counter: [u64; 4], key: [u64; 2]) -> [u64; 4] {
    const WORD: u64 = 0xFFFF_FFFF;
    let (mut c, mut k) = (counter.map(|v| v & WORD), key.map(|v| v & WORD));
    for _ in 0..10 {
        let (left, right) = (0xD251_1F53 * c[0], 0xCD9E_8D57 * c[2]);
        c = [(right >> 32) ^ c[1] ^ k[0], right & WORD, (left >> 32) ^ c[3] ^ k[1], left & WORD];
        k = [(k[0] + 0x9E37_79B9) & WORD, (k[1] + 0xBB67_AE85) & WORD];
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;
    use galvatron_ir::types::Scalar;

    /// The known answers of the Random123 library.
    #[test]
    fn philox_gives_its_known_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = 0xffff_ffff;
        assert_eq!(philox4x32([ones; 4], [ones; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let found = philox4x32(pi, [0xa409_3822, 0x299f_31d0]);
        assert_eq!(found, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn a_part_is_a_part_of_the_whole() {
        let op = Dropout { p: Scalar::new(0.5), seed: 3, number: 1 };
        let (x, step) = (Tensor::filled([4, 6], 1.0), Tensor::scalar(2.0));
        let whole = dropout(&op, &x, &step, &Part::default());
        let part = Part { first: vec![2, 3], of: vec![4, 6] };
        let found = dropout(&op, &Tensor::filled([2, 3], 1.0), &step, &part);
        assert_eq!(found, Tensor::from_fn([2, 3], |i| whole.at(&[2 + i[0], 3 + i[1]])));
    }
}
