//! The gradients of attention, with the probabilities recomputed tile by tile from the log-sum-exp.

use pulp::{Simd, WithSimd};

use super::super::math::{exp, sum2};
use super::super::threads::{Shared, Threads};
use super::attention::{
    AttentionDims, KEYS, Mask, QUERIES, QueryTile, hide, key_rows, pack, pack_transposed, row_of, rows, target,
    with_scratch,
};
use super::tile::{Target, View, padded, product};

/// What the gradient reads; shapes as in [`AttentionDims`], `grad` like `o`.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSaved<'a> {
    /// Queries.
    pub q: &'a [f32],
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
    /// The additive mask of the forward pass.
    pub mask: Option<Mask<'a>>,
    /// The output of the forward pass.
    pub o: &'a [f32],
    /// The log-sum-exp of the forward pass.
    pub lse: &'a [f32],
}

/// The gradients (dq, dk, dv) for the gradient `grad` of o. With p = e^(score - lse) and delta = sum(grad o):
/// dv = pᵀ grad,  ds = p (grad vᵀ - delta) scale,  dq = ds k,  dk = dsᵀ q.
///
/// Heads of keys are summed over their group of query heads, in order. All of the results is overwritten, or added to where it
/// continues.
///
/// # Panics
/// When a slice has not the length that `dims` says.
pub fn attention_grad(
    dims: &AttentionDims,
    saved: &AttentionSaved,
    grad: &[f32],
    (dq, dk, dv): (&mut [f32], &mut [f32], &mut [f32]),
    threads: Threads,
) {
    let s = saved;
    dims.check([(s.q.len(), s.o.len()), (s.k.len(), s.v.len()), (s.lse.len(), s.lse.len())], s.mask);
    dims.check([(dq.len(), grad.len()), (dk.len(), dv.len()), (s.lse.len(), s.lse.len())], s.mask);
    if !dims.continues {
        for x in [&mut *dq, &mut *dk, &mut *dv] {
            threads.for_each_chunk_mut(x, super::GRAIN, |_, chunk| chunk.fill(0.0));
        }
    }
    let (dq, dk, dv) = (Shared::new(dq), Shared::new(dk), Shared::new(dv));
    let len = Parts::len(dims);
    threads.for_each_chunk(dims.batch * dims.kv_heads, |task| {
        with_scratch(len, |scratch| {
            let (dq, dk, dv) = (&dq, &dk, &dv);
            let tiles = Tiles { dims, saved, grad };
            pulp::Arch::new().dispatch(Backward { tiles, dq, dk, dv, task, scratch });
        });
    });
}

/// What the gradients of the scores are computed from.
#[derive(Clone, Copy)]
pub(super) struct Tiles<'a> {
    pub(super) dims: &'a AttentionDims,
    pub(super) saved: &'a AttentionSaved<'a>,
    pub(super) grad: &'a [f32],
}

/// All query heads of one head of keys.
struct Backward<'a> {
    tiles: Tiles<'a>,
    dq: &'a Shared<'a, f32>,
    dk: &'a Shared<'a, f32>,
    dv: &'a Shared<'a, f32>,
    task: usize,
    scratch: &'a mut [f32],
}

/// The packed operands of one tile of queries, and the scratch of one tile of keys.
pub(super) struct Parts<'a> {
    /// Queries times scale, transposed: [d, QUERIES].
    qt: &'a mut [f32],
    /// The gradient of o, transposed: [dv, QUERIES].
    gt: &'a mut [f32],
    /// Queries: [QUERIES, padded d].
    q: &'a mut [f32],
    /// The gradient of o: [QUERIES, padded dv].
    g: &'a mut [f32],
    /// Keys: [KEYS, padded d].
    k: &'a mut [f32],
    /// Scores, then probabilities: [KEYS, QUERIES].
    p: &'a mut [f32],
    /// The gradient of the probabilities, then of the scores: [KEYS, QUERIES].
    pub(super) ds: &'a mut [f32],
}

impl<'a> Parts<'a> {
    /// Elements of the scratch.
    pub(super) fn len(dims: &AttentionDims) -> usize {
        let (wide_d, wide_v) = (padded(dims.d), padded(dims.dv));
        QUERIES * (dims.d + dims.dv + wide_d + wide_v) + KEYS * (wide_d + 2 * QUERIES)
    }

    #[inline(always)]
    pub(super) fn new(dims: &AttentionDims, scratch: &'a mut [f32]) -> Self {
        let (qt, rest) = scratch.split_at_mut(dims.d * QUERIES);
        let (gt, rest) = rest.split_at_mut(dims.dv * QUERIES);
        let (q, rest) = rest.split_at_mut(QUERIES * padded(dims.d));
        let (g, rest) = rest.split_at_mut(QUERIES * padded(dims.dv));
        let (k, rest) = rest.split_at_mut(KEYS * padded(dims.d));
        let (p, ds) = rest.split_at_mut(KEYS * QUERIES);
        Parts { qt, gt, q, g, k, p, ds }
    }
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let dims = self.tiles.dims;
        let group = dims.heads / dims.kv_heads;
        let (b, kv_head) = (self.task / dims.kv_heads, self.task % dims.kv_heads);
        let mut parts = Parts::new(dims, std::mem::take(&mut self.scratch));
        let tiles = dims.sq.div_ceil(QUERIES);
        // One loop over heads and tiles, so that the body is compiled once.
        for i in 0..group * tiles {
            let first = i % tiles * QUERIES;
            let tile = QueryTile { b, h: kv_head * group + i / tiles, first, n: QUERIES.min(dims.sq - first) };
            let rows = self.tiles.load(&tile, &mut parts);
            let end = dims.keys_seen(tile.first + tile.n);
            for first_key in (0..end).step_by(KEYS) {
                let n_keys = KEYS.min(end - first_key);
                self.tiles.slopes(simd, &tile, (first_key, n_keys), (&rows, dims.scale), &mut parts);
                self.sums(simd, &tile, first_key, n_keys, &mut parts);
            }
        }
    }
}

/// The log-sum-exp and delta of each query of a tile.
pub(super) type Rows = ([f32; QUERIES], [f32; QUERIES]);

impl Tiles<'_> {
    /// Packs a tile of queries with the gradient of its results.
    #[inline(always)]
    pub(super) fn load(&self, tile: &QueryTile, parts: &mut Parts) -> Rows {
        let dims = self.dims;
        let (q_rows, g_rows) = (row_of(dims, tile, dims.d), row_of(dims, tile, dims.dv));
        pack_transposed(self.saved.q, q_rows, tile.n, (dims.d, dims.scale), parts.qt);
        pack_transposed(self.grad, g_rows, tile.n, (dims.dv, 1.0), parts.gt);
        parts.q.fill(0.0);
        parts.g.fill(0.0);
        pack(self.saved.q, q_rows, tile.n, dims.d, parts.q);
        pack(self.grad, g_rows, tile.n, dims.dv, parts.g);
        self.row_numbers(tile, g_rows)
    }

    /// The probabilities p of a tile, and ds = p (grad vᵀ - delta) factor.
    #[inline(always)]
    pub(super) fn slopes<S: Simd>(
        &self,
        simd: S,
        tile: &QueryTile,
        (first_key, n_keys): (usize, usize),
        ((lse, delta), factor): (&Rows, f32),
        parts: &mut Parts,
    ) {
        self.scores(simd, tile, first_key, n_keys, parts);
        for (p, ds) in parts.p[..n_keys * QUERIES].chunks_exact_mut(QUERIES).zip(parts.ds.chunks_exact_mut(QUERIES)) {
            for i in 0..QUERIES {
                p[i] = exp(p[i] - lse[i]);
                ds[i] = p[i] * (ds[i] - delta[i]) * factor;
            }
        }
    }

    /// The log-sum-exp and delta of each query; +inf and 0 where there is none or it sees no key, so that p = 0.
    #[inline(always)]
    fn row_numbers(&self, tile: &QueryTile, (start, step): (usize, usize)) -> ([f32; QUERIES], [f32; QUERIES]) {
        let (dims, mut lse, mut delta) = (self.dims, [f32::INFINITY; QUERIES], [0.0; QUERIES]);
        let first = (tile.b * dims.heads + tile.h) * dims.sq + tile.first;
        for i in 0..tile.n {
            let saved = self.saved.lse[first + i];
            if saved > f32::NEG_INFINITY {
                let row = start + i * step..start + i * step + dims.dv;
                lse[i] = saved;
                delta[i] = sum2(
                    &self.grad[row.clone()],
                    &self.saved.o[row],
                    #[inline(always)]
                    |g, o| g * o,
                );
            }
        }
        (lse, delta)
    }

    /// p = masked scores k qᵀ, ds = v gradᵀ.
    #[inline(always)]
    fn scores<S: Simd>(&self, simd: S, tile: &QueryTile, first_key: usize, n_keys: usize, parts: &mut Parts) {
        let dims = self.dims;
        let (k_rows, v_rows) = (key_rows(dims, tile, first_key, dims.d), key_rows(dims, tile, first_key, dims.dv));
        pack(self.saved.k, k_rows, n_keys, dims.d, parts.k);
        let values = View { start: self.saved.v[v_rows.0..].as_ptr(), row: v_rows.1, column: 1 };
        let (keys, qt, gt) = (rows(parts.k, padded(dims.d)), rows(parts.qt, QUERIES), rows(parts.gt, QUERIES));
        // SAFETY: the scratch parts have these sizes, and n_keys rows of v follow the first.
        unsafe {
            product::<S, false>(simd, (n_keys, QUERIES, dims.d), keys, qt, target(parts.p, QUERIES));
            product::<S, false>(simd, (n_keys, QUERIES, dims.dv), values, gt, target(parts.ds, QUERIES));
        }
        let mask = self.saved.mask.map(|m| m.of(tile.b, tile.h, dims.sq, dims.sk));
        hide(dims, mask, tile, first_key, &mut parts.p[..n_keys * QUERIES]);
    }
}

impl Backward<'_> {
    /// dv += p grad, dk += ds q, dq += dsᵀ k.
    #[inline(always)]
    fn sums<S: Simd>(&self, simd: S, tile: &QueryTile, first_key: usize, n_keys: usize, parts: &mut Parts) {
        let dims = self.tiles.dims;
        let (k_rows, v_rows) = (key_rows(dims, tile, first_key, dims.d), key_rows(dims, tile, first_key, dims.dv));
        let q_rows = row_of(dims, tile, dims.d);
        let transposed = View { start: parts.ds.as_ptr(), row: 1, column: QUERIES };
        // SAFETY: rows start + i * step of a result, for i below n_keys or tile.n, are within it and belong to this task.
        unsafe {
            let out = |x: &Shared<f32>, (start, row)| Target { start: x.as_mut_ptr().add(start), row };
            let (p, ds) = (rows(parts.p, QUERIES), rows(parts.ds, QUERIES));
            let (q, g) = (rows(parts.q, padded(dims.d)), rows(parts.g, padded(dims.dv)));
            product::<S, true>(simd, (n_keys, dims.dv, QUERIES), p, g, out(self.dv, v_rows));
            product::<S, true>(simd, (n_keys, dims.d, QUERIES), ds, q, out(self.dk, k_rows));
            let k = rows(parts.k, padded(dims.d));
            product::<S, true>(simd, (tile.n, dims.d, n_keys), transposed, k, out(self.dq, q_rows));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::attention::tests::{Case, cases};
    use super::super::testing::{assert_close, in_pool, random};
    use super::*;

    fn run(c: &Case, grad: &[f32], threads: Threads) -> [Vec<f32>; 3] {
        let (o, lse) = c.run(threads);
        let (mut dq, mut dk, mut dv) = (vec![9.0; c.q.len()], vec![9.0; c.k.len()], vec![9.0; c.v.len()]);
        let saved = AttentionSaved { q: &c.q, k: &c.k, v: &c.v, mask: c.mask(), o: &o, lse: &lse };
        attention_grad(&c.dims, &saved, grad, (&mut dq, &mut dk, &mut dv), threads);
        [dq, dk, dv]
    }

    fn naive(c: &Case, grad: &[f32]) -> [Vec<f64>; 3] {
        let d = &c.dims;
        let (mut dq, mut dk, mut dv) = (vec![0.0; c.q.len()], vec![0.0; c.k.len()], vec![0.0; c.v.len()]);
        for (b, h, i) in (0..d.batch * d.heads * d.sq).map(|x| (x / d.sq / d.heads, x / d.sq % d.heads, x % d.sq)) {
            let (p, q_at) = (c.probabilities(b, h, i).0, c.q_at(b, h, i));
            let g = |e: usize| grad[q_at * d.dv + e] as f64;
            let dp = |j: usize| (0..d.dv).map(|e| g(e) * c.v[c.kv_at(b, h, j) * d.dv + e] as f64).sum::<f64>();
            let delta: f64 = (0..d.sk).map(|j| p[j] * dp(j)).sum();
            for (j, p) in p.iter().enumerate() {
                let (k_at, ds) = (c.kv_at(b, h, j), p * (dp(j) - delta) * d.scale as f64);
                (0..d.dv).for_each(|e| dv[k_at * d.dv + e] += p * g(e));
                (0..d.d).for_each(|e| dq[q_at * d.d + e] += ds * c.k[k_at * d.d + e] as f64);
                (0..d.d).for_each(|e| dk[k_at * d.d + e] += ds * c.q[q_at * d.d + e] as f64);
            }
        }
        [dq, dk, dv]
    }

    #[test]
    fn gradients_match_f64() {
        for c in cases() {
            let grad = random(c.dims.batch * c.dims.sq * c.dims.heads * c.dims.dv, 11);
            let got = run(&c, &grad, Threads::ONE);
            assert_eq!(got, in_pool(3, || run(&c, &grad, Threads::new(3))));
            for (got, want) in got.iter().zip(&naive(&c, &grad)) {
                assert_close(got, want, 1e-5);
            }
        }
    }
}
