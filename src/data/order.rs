//! The order of samples: as they lie in the data, or permuted by (seed, epoch).

/// Rounds of the Feistel network; four make it a pseudo-random permutation, small domains need more.
const ROUNDS: u64 = 8;

/// Maps the running sample number to a row of the data, the same under every plan.
#[derive(Clone, Debug)]
pub(super) struct Order {
    n_samples: u64,
    /// Seed of the permutation; `None`: in order.
    seed: Option<u64>,
}

impl Order {
    pub(super) fn new(n_samples: u64, seed: Option<u64>) -> Self {
        assert!(n_samples > 0, "invariant: data has at least one sample");
        Order { n_samples, seed }
    }

    pub(super) fn n_samples(&self) -> u64 {
        self.n_samples
    }

    /// The row of a sample that runs on over all epochs.
    pub(super) fn row(&self, sample: u64) -> u64 {
        let (epoch, index) = (sample / self.n_samples, sample % self.n_samples);
        match self.seed {
            Some(seed) => permute(index, self.n_samples, mix(mix(seed) ^ epoch)),
            None => index,
        }
    }
}

/// A permutation of `0..n` by cycle walking: a Feistel network permutes the next power of four, and is applied until
/// the result lies below `n`. Needs no memory, so every rank can ask for any sample. (Black and Rogaway, 2002.)
fn permute(index: u64, n: u64, key: u64) -> u64 {
    let half_bits = (u64::BITS - (n - 1).leading_zeros()).div_ceil(2).max(1);
    let mut value = feistel(index, half_bits, key);
    while value >= n {
        value = feistel(value, half_bits, key);
    }
    value
}

fn feistel(value: u64, half_bits: u32, key: u64) -> u64 {
    let mask = (1u64 << half_bits) - 1;
    let (mut left, mut right) = (value >> half_bits, value & mask);
    for round in 0..ROUNDS {
        let next = left ^ (mix(mix(key ^ round) ^ right) & mask);
        (left, right) = (right, next);
    }
    left << half_bits | right
}

/// The output function of SplitMix64 (Steele, Lea and Flood, 2014).
fn mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(order: &Order, epoch: u64) -> Vec<u64> {
        (0..order.n_samples).map(|index| order.row(epoch * order.n_samples + index)).collect()
    }

    #[test]
    fn in_order_cycles() {
        let order = Order::new(3, None);
        assert_eq!((0..7).map(|s| order.row(s)).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn every_epoch_is_a_permutation() {
        for n in [1, 2, 3, 5, 16, 17, 1000] {
            for e in 0..4 {
                let mut rows = epoch(&Order::new(n, Some(7)), e);
                rows.sort_unstable();
                assert!(rows.into_iter().eq(0..n), "n = {n}, epoch {e}");
            }
        }
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let (a, b) = (Order::new(100, Some(1)), Order::new(100, Some(2)));
        assert_eq!(epoch(&a, 3), epoch(&a.clone(), 3));
        assert_ne!(epoch(&a, 0), epoch(&a, 1));
        assert_ne!(epoch(&a, 0), epoch(&b, 0));
        assert_ne!(epoch(&a, 0), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn small_orders_are_spread_evenly() {
        let mut first = [0; 5];
        (0..5000).for_each(|e| first[Order::new(5, Some(3)).row(e * 5) as usize] += 1);
        assert!(first.iter().all(|&count| (850..1150).contains(&count)), "{first:?}");
    }

    #[test]
    fn the_permutation_is_stable() {
        assert_eq!(mix(0), 0xE220_A839_7B1D_CDAF);
        let order = Order::new(u64::MAX / 2, Some(0));
        assert!(order.row(12345) < u64::MAX / 2);
    }
}
