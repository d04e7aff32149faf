//! The gradient of the mask of attention: the slopes of all scores that share an element of it, summed in a fixed order.

use pulp::{Simd, WithSimd};

use super::super::threads::{Shared, Threads};
use super::attention::{AttentionDims, KEYS, Mask, QUERIES, QueryTile, with_scratch};
use super::attention_grad::{AttentionSaved, Parts, Tiles};

/// dmask = the sum of p (grad vᵀ - delta) over the samples and heads that share an element of the mask, with p and delta as in
/// [`attention_grad`](super::attention_grad::attention_grad).
///
/// dmask: as the mask of `saved`, all of which is overwritten
///
/// # Panics
/// When `saved` has no mask, or a slice has not the length that `dims` says.
pub fn attention_mask_grad(
    dims: &AttentionDims,
    saved: &AttentionSaved,
    grad: &[f32],
    dmask: &mut [f32],
    threads: Threads,
) {
    let mask = saved.mask.expect("invariant: the attention has a mask");
    assert_eq!(dmask.len(), mask.values.len(), "invariant: mask and gradient have one length");
    threads.for_each_chunk_mut(dmask, super::GRAIN, |_, chunk| chunk.fill(0.0));
    let (tiles, dmask) = (dims.sq.div_ceil(QUERIES), Shared::new(dmask));
    threads.for_each_chunk(mask.batch * mask.heads * tiles, |task| {
        with_scratch(Parts::len(dims) + KEYS * QUERIES, |scratch| {
            let (plane, first, dmask) = (task / tiles, task % tiles * QUERIES, &dmask);
            let tiles = Tiles { dims, saved, grad };
            pulp::Arch::new().dispatch(MaskBackward { tiles, mask, dmask, plane, first, scratch });
        });
    });
}

/// A tile of queries in one plane [sq, sk] of the mask.
struct MaskBackward<'a> {
    tiles: Tiles<'a>,
    mask: Mask<'a>,
    dmask: &'a Shared<'a, f32>,
    plane: usize,
    first: usize,
    scratch: &'a mut [f32],
}

impl WithSimd for MaskBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (dims, mask) = (self.tiles.dims, self.mask);
        let (own_b, own_h) = (self.plane / mask.heads, self.plane % mask.heads);
        let (n_b, n_h) = (dims.batch / mask.batch, dims.heads / mask.heads);
        let n = QUERIES.min(dims.sq - self.first);
        let (sums, scratch) = self.scratch.split_at_mut(KEYS * QUERIES);
        let mut parts = Parts::new(dims, scratch);
        let end = dims.keys_seen(self.first + n);
        for first_key in (0..end).step_by(KEYS) {
            let n_keys = KEYS.min(end - first_key);
            sums.fill(0.0);
            for i in 0..n_b * n_h {
                let (b, h) = (own_b + i / n_h * mask.batch, own_h + i % n_h * mask.heads);
                let tile = QueryTile { b, h, first: self.first, n };
                let rows = self.tiles.load(&tile, &mut parts);
                self.tiles.slopes(simd, &tile, (first_key, n_keys), (&rows, 1.0), &mut parts);
                for (sum, &slope) in sums.iter_mut().zip(&parts.ds[..n_keys * QUERIES]) {
                    *sum += slope;
                }
            }
            store(self.dmask, sums, (self.plane * dims.sq + self.first, n), (first_key, n_keys), dims.sk);
        }
    }
}

/// Writes the sums of a tile, [keys, QUERIES], to `n` rows of dmask from row `first` on.
#[inline(always)]
fn store(
    dmask: &Shared<f32>,
    sums: &[f32],
    (first, n): (usize, usize),
    (first_key, n_keys): (usize, usize),
    sk: usize,
) {
    for i in 0..n {
        let at = (first + i) * sk + first_key;
        // SAFETY: the rows of a tile of queries belong to one task.
        let row = unsafe { dmask.slice(at..at + n_keys) };
        for (j, value) in row.iter_mut().enumerate() {
            *value = sums[j * QUERIES + i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::attention::tests::{Case, cases};
    use super::super::testing::{assert_close, in_pool, random};
    use super::*;

    fn run(c: &Case, grad: &[f32], mask: Mask<'_>, threads: Threads) -> Vec<f32> {
        let (o, lse) = c.run(threads);
        let mut dmask = vec![9.0; mask.values.len()];
        let saved = AttentionSaved { q: &c.q, k: &c.k, v: &c.v, mask: Some(mask), o: &o, lse: &lse };
        attention_mask_grad(&c.dims, &saved, grad, &mut dmask, threads);
        dmask
    }

    fn naive(c: &Case, grad: &[f32], mask: Mask<'_>) -> Vec<f64> {
        let d = &c.dims;
        let mut dmask = vec![0.0; mask.values.len()];
        for (b, h, i) in (0..d.batch * d.heads * d.sq).map(|x| (x / d.sq / d.heads, x / d.sq % d.heads, x % d.sq)) {
            let (p, q_at) = (c.probabilities(b, h, i).0, c.q_at(b, h, i));
            let product = |j: usize, e: usize| grad[q_at * d.dv + e] as f64 * c.v[c.kv_at(b, h, j) * d.dv + e] as f64;
            let dp = |j: usize| (0..d.dv).map(|e| product(j, e)).sum::<f64>();
            let delta: f64 = (0..d.sk).map(|j| p[j] * dp(j)).sum();
            let plane = b % mask.batch * mask.heads + h % mask.heads;
            (0..d.sk).for_each(|j| dmask[(plane * d.sq + i) * d.sk + j] += p[j] * (dp(j) - delta));
        }
        dmask
    }

    #[test]
    fn gradients_of_masks_match_f64() {
        let mut n_checked = 0;
        for c in cases() {
            let Some(mask) = c.mask() else { continue };
            let grad = random(c.dims.batch * c.dims.sq * c.dims.heads * c.dims.dv, 11);
            let got = run(&c, &grad, mask, Threads::ONE);
            assert_eq!(got, in_pool(3, || run(&c, &grad, mask, Threads::new(3))));
            assert_close(&got, &naive(&c, &grad, mask), 1e-5);
            n_checked += 1;
        }
        assert!(n_checked > 1, "{n_checked} cases with a mask");
    }
}
