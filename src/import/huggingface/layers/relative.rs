//! Biases on scores that depend on the distance of key and query alone.

use galvatron_ir::diagnostic::Diagnostic;
use galvatron_ir::id::ValueId;
use galvatron_ir::module::Normal;
use galvatron_ir::op::compute::{Broadcast, Concat, Constant, Embedding, Full};
use galvatron_ir::types::{Scalar, TensorType};

use super::super::builder::{Builder, Built};

/// Distances in buckets (Raffel et al. 2020): near ones each in its own, far ones by their logarithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Buckets {
    /// Number of buckets.
    pub n: u64,
    /// Distance from which on all share the last bucket.
    pub farthest: u64,
    /// Whether keys after the query have buckets of their own; otherwise all of them count as distance 0.
    pub is_bidirectional: bool,
}

impl Buckets {
    /// The bucket of a key that stands `distance` positions after the query.
    pub fn of(&self, distance: i64) -> u64 {
        let (n, first) = match self.is_bidirectional {
            true => (self.n / 2, if distance > 0 { self.n / 2 } else { 0 }),
            false => (self.n, 0),
        };
        let far = if self.is_bidirectional { distance.unsigned_abs() } else { (-distance).max(0) as u64 };
        let n_exact = n / 2;
        if far < n_exact {
            return first + far;
        }
        let share = (far as f32 / n_exact as f32).ln() / (self.farthest as f64 / n_exact as f64).ln() as f32;
        first + (n_exact + (share * (n - n_exact) as f32) as u64).min(n - 1)
    }
}

impl Builder {
    /// A trained bias [1, heads, n, m] for n queries and m keys, by `NAME.weight` [buckets, heads].
    ///
    /// Only the n + m - 1 distances are looked up. The vector of distances is repeated for every query with one element more
    /// than there are distances; read again without that element, each row is shifted by one against the one before.
    pub fn relative_bias(
        &mut self,
        name: &str,
        buckets: Buckets,
        n_heads: u64,
        [n, m]: [u64; 2],
        std: f64,
    ) -> Result<ValueId, Diagnostic> {
        self.enter(name);
        let table = self.parameter(&format!("{name}.weight"), &[buckets.n, n_heads], Normal::new(0.0, std));
        let n_distances = n + m - 1;
        let bucket = |i: u64| Scalar::new(buckets.of(i as i64 - (n as i64 - 1)) as f64);
        let values = (0..n_distances).map(bucket).collect();
        let ids = self.emit(Constant { ty: TensorType::i64([n_distances]), values }, &[])?;
        let vectors = self.emit(Embedding, &[table, ids])?;
        let by_head = self.transpose(vectors, &[1, 0])?;
        self.skew(by_head, [n, m])
    }

    /// [1, h, n, m] with the element of key k and query q at k - q + n - 1 of the last dimension of x [h, n + m - 1].
    fn skew(&mut self, x: ValueId, [n, m]: [u64; 2]) -> Built {
        let (n_heads, n_distances) = (self.shape(x)[0], n + m - 1);
        let end = self.emit(Full { ty: TensorType::f32([n_heads, 1]), value: Scalar::new(0.0) }, &[])?;
        let padded = self.emit(Concat { dim: 1 }, &[x, end])?;
        let shape = vec![n_heads, n, n_distances + 1];
        let repeated = self.emit(Broadcast { shape, dims: vec![0, 2] }, &[padded])?;
        let flat = self.reshape(repeated, &[n_heads, n * (n_distances + 1)])?;
        let shifted = self.slice(flat, 1, n - 1, n * n_distances)?;
        let rows = self.reshape(shifted, &[n_heads, n, n_distances])?;
        let bias = self.slice(rows, 2, 0, m)?;
        self.reshape(bias, &[1, n_heads, n, m])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_distances_share_buckets() {
        let both = Buckets { n: 32, farthest: 128, is_bidirectional: true };
        let of = [-200, -128, -20, -8, -7, 0, 1, 7, 8, 200].map(|distance| both.of(distance));
        assert_eq!(of, [15, 15, 10, 8, 7, 0, 17, 23, 24, 31]);
        let back = Buckets { is_bidirectional: false, ..both };
        assert_eq!([-200, -17, -16, -15, 0, 5].map(|distance| back.of(distance)), [31, 16, 16, 15, 0, 0]);
    }
}
