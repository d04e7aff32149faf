//! Attention without the matrix of scores: tiles of queries and keys with a running softmax.
//!
//! The method is FlashAttention (Dao et al. 2022) with the online softmax of Milakov and Gimelshein (2018). Scores of a
//! tile are kept transposed, [keys, queries], so that maxima, exponentials and sums run over vectors of queries.

use std::cell::RefCell;

use pulp::{Simd, WithSimd};

use super::super::math::exp;
use super::super::threads::{Shared, Threads};
use super::tile::{PAD, Target, View, padded, product};

/// The shapes and switches of an attention.
///
/// q, o: [batch, sq, heads, d or dv]   k, v: [batch, sk, kv_heads, d or dv]   lse: [batch, heads, sq]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionDims {
    /// Sequences.
    pub batch: usize,
    /// Queries of a sequence.
    pub sq: usize,
    /// Keys of a sequence.
    pub sk: usize,
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values; each serves `heads / kv_heads` consecutive query heads.
    pub kv_heads: usize,
    /// Elements of a query or key.
    pub d: usize,
    /// Elements of a value.
    pub dv: usize,
    /// Multiplies the scores.
    pub scale: f32,
    /// Query i sees the keys j <= i + sk - sq - later only.
    pub causal: bool,
    /// Queries of the sequence that come after these, on other ranks.
    pub later: usize,
    /// Whether results go on from what they hold: the keys are a block of the sequence, and others were seen before.
    pub continues: bool,
}

/// Added to the scaled scores. values: [batch, heads, sq, sk]; sample i has mask i mod batch, which divides the batch of the
/// attention.
#[derive(Clone, Copy, Debug)]
pub struct Mask<'a> {
    /// The numbers; -inf hides a key.
    pub values: &'a [f32],
    /// A divisor of the batch of the attention.
    pub batch: usize,
    /// 1 or the query heads of the attention.
    pub heads: usize,
}

/// Queries of a tile, a whole number of vectors.
pub(super) const QUERIES: usize = 32;
/// Keys of a tile.
pub(super) const KEYS: usize = 64;
const _: () = assert!(QUERIES.is_multiple_of(PAD));

impl AttentionDims {
    /// Multiplications and additions of the forward pass; a causal one counts half. The gradient has 2.5 times these.
    pub fn flops(&self) -> u64 {
        let all = 2 * (self.batch * self.heads * self.sq * self.sk * (self.d + self.dv)) as u64;
        if self.causal { all / 2 } else { all }
    }

    /// One past the last key that any query before `end` sees.
    pub(super) fn keys_seen(&self, end: usize) -> usize {
        if self.causal { (end + self.sk).saturating_sub(self.sq + self.later).min(self.sk) } else { self.sk }
    }

    pub(super) fn check(&self, lens: [(usize, usize); 3], mask: Option<Mask>) {
        let (q, kv) = (self.batch * self.sq * self.heads, self.batch * self.sk * self.kv_heads);
        let want = [(q * self.d, q * self.dv), (kv * self.d, kv * self.dv), (q, q)];
        assert_eq!(lens, want, "invariant: operands have the lengths of the attention");
        assert!(self.heads.is_multiple_of(self.kv_heads), "invariant: key heads divide query heads");
        if let Some(m) = mask {
            assert!(
                self.batch.is_multiple_of(m.batch) && [1, self.heads].contains(&m.heads),
                "invariant: mask broadcasts"
            );
            assert_eq!(m.values.len(), m.batch * m.heads * self.sq * self.sk, "invariant: mask has its length");
        }
    }
}

impl<'a> Mask<'a> {
    /// The numbers of one head. [sq, sk]
    pub(super) fn of(&self, b: usize, h: usize, sq: usize, sk: usize) -> &'a [f32] {
        let index = (b % self.batch) * self.heads + h % self.heads;
        &self.values[index * sq * sk..(index + 1) * sq * sk]
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Lends `len` elements of this thread's scratch.
pub(super) fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < len {
            scratch.resize(len, 0.0);
        }
        f(&mut scratch[..len])
    })
}

/// Where tile (first query, head) lies and how many queries it has.
#[derive(Clone, Copy)]
pub(super) struct QueryTile {
    pub(super) b: usize,
    pub(super) h: usize,
    pub(super) first: usize,
    pub(super) n: usize,
}

/// o = softmax(scale q kᵀ + mask) v and lse = ln sum e^score; queries that see no key get o = 0 and lse = -inf. Where it continues,
/// o and lse of the keys that were seen before become those of all.
///
/// # Panics
/// When a slice has not the length that `dims` says.
pub fn attention(
    dims: &AttentionDims,
    (q, k, v): (&[f32], &[f32], &[f32]),
    mask: Option<Mask>,
    (o, lse): (&mut [f32], &mut [f32]),
    threads: Threads,
) {
    dims.check([(q.len(), o.len()), (k.len(), v.len()), (lse.len(), lse.len())], mask);
    let tiles = dims.sq.div_ceil(QUERIES);
    let (o, lse) = (Shared::new(o), Shared::new(lse));
    let len = QUERIES * (dims.d + padded(dims.dv) + KEYS) + KEYS * padded(dims.dv);
    threads.for_each_chunk(dims.batch * dims.heads * tiles, |task| {
        let (head, first) = (task / tiles, task % tiles * QUERIES);
        let n = QUERIES.min(dims.sq - first);
        let tile = QueryTile { b: head / dims.heads, h: head % dims.heads, first, n };
        with_scratch(len, |scratch| {
            pulp::Arch::new().dispatch(Forward { dims, q, k, v, mask, o: &o, lse: &lse, tile, scratch });
        });
    });
}

/// One tile of queries against all its keys.
struct Forward<'a> {
    dims: &'a AttentionDims,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    mask: Option<Mask<'a>>,
    o: &'a Shared<'a, f32>,
    lse: &'a Shared<'a, f32>,
    tile: QueryTile,
    scratch: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let (dims, tile, width) = (self.dims, self.tile, padded(self.dims.dv));
        let scratch = std::mem::take(&mut self.scratch);
        let (qt, rest) = scratch.split_at_mut(dims.d * QUERIES);
        let (sums, rest) = rest.split_at_mut(QUERIES * width);
        let (scores, values) = rest.split_at_mut(KEYS * QUERIES);
        pack_transposed(self.q, row_of(dims, &tile, dims.d), tile.n, (dims.d, dims.scale), qt);
        sums.fill(0.0);
        let mut running = Running { max: [f32::NEG_INFINITY; QUERIES], sum: [0.0; QUERIES] };
        if dims.continues {
            self.resume(&mut running, sums, width);
        }
        let mask = self.mask.map(|m| m.of(tile.b, tile.h, dims.sq, dims.sk));
        let end = dims.keys_seen(tile.first + tile.n);
        for first_key in (0..end).step_by(KEYS) {
            let n_keys = KEYS.min(end - first_key);
            let (k_rows, v_rows) =
                (key_rows(dims, &tile, first_key, dims.d), key_rows(dims, &tile, first_key, dims.dv));
            pack(self.v, v_rows, n_keys, dims.dv, values);
            let keys = View { start: self.k[k_rows.0..].as_ptr(), row: k_rows.1, column: 1 };
            // SAFETY: the scratch parts have these sizes, and n_keys rows of k follow the first.
            unsafe {
                product::<S, false>(simd, (n_keys, QUERIES, dims.d), keys, rows(qt, QUERIES), target(scores, QUERIES))
            };
            let scores = &mut scores[..n_keys * QUERIES];
            hide(dims, mask, &tile, first_key, scores);
            running.exponentials(scores, sums, width);
            let weights = View { start: scores.as_ptr(), row: 1, column: QUERIES };
            // SAFETY: as above; `weights` is the transposed view of the scores.
            unsafe {
                product::<S, true>(simd, (QUERIES, width, n_keys), weights, rows(values, width), target(sums, width))
            };
        }
        self.finish(&running, sums, width);
    }
}

impl Forward<'_> {
    /// Takes up the softmax where the results left it: with their log-sum-exp as maximum the sum of exponentials is 1.
    #[inline(always)]
    fn resume(&self, running: &mut Running, sums: &mut [f32], width: usize) {
        let (dims, tile) = (self.dims, self.tile);
        let (start, step) = row_of(dims, &tile, dims.dv);
        let lse_start = (tile.b * dims.heads + tile.h) * dims.sq + tile.first;
        // SAFETY: the rows of o and lse of a tile belong to one task.
        let lse = unsafe { self.lse.slice(lse_start..lse_start + tile.n) };
        for (i, &lse) in lse.iter().enumerate().filter(|(_, lse)| **lse > f32::NEG_INFINITY) {
            (running.max[i], running.sum[i]) = (lse, 1.0);
            // SAFETY: as above.
            let o = unsafe { self.o.slice(start + i * step..start + i * step + dims.dv) };
            sums[i * width..i * width + dims.dv].copy_from_slice(o);
        }
    }

    #[inline(always)]
    fn finish(&self, running: &Running, sums: &[f32], width: usize) {
        let (dims, tile) = (self.dims, self.tile);
        let (start, step) = row_of(dims, &tile, dims.dv);
        let lse_start = (tile.b * dims.heads + tile.h) * dims.sq + tile.first;
        // SAFETY: the rows of o and lse of a tile belong to one task.
        let lse = unsafe { self.lse.slice(lse_start..lse_start + tile.n) };
        for (i, lse) in lse.iter_mut().enumerate() {
            let sum = running.sum[i];
            let scale = if sum > 0.0 { 1.0 / sum } else { 0.0 };
            *lse = running.max[i] + sum.ln();
            // SAFETY: as above.
            let o = unsafe { self.o.slice(start + i * step..start + i * step + dims.dv) };
            {
                for (o, &s) in o.iter_mut().zip(&sums[i * width..]) {
                    *o = s * scale;
                }
            }
        }
    }
}

/// The maximum and the sum of exponentials of every query so far.
struct Running {
    max: [f32; QUERIES],
    sum: [f32; QUERIES],
}

impl Running {
    /// Turns scores into e^(score - maximum), and rescales what was summed under the old maximum.
    #[inline(always)]
    fn exponentials(&mut self, scores: &mut [f32], outputs: &mut [f32], width: usize) {
        let mut max = self.max;
        for row in scores.chunks_exact(QUERIES) {
            for i in 0..QUERIES {
                max[i] = if row[i] > max[i] { row[i] } else { max[i] };
            }
        }
        let (mut base, mut rescale) = ([0.0f32; QUERIES], [0.0f32; QUERIES]);
        for i in 0..QUERIES {
            // A query without any key so far has maximum -inf; its exponentials must be 0, not NaN.
            base[i] = if max[i] == f32::NEG_INFINITY { 0.0 } else { max[i] };
            rescale[i] = exp(self.max[i] - base[i]);
            self.sum[i] *= rescale[i];
        }
        for row in scores.chunks_exact_mut(QUERIES) {
            for i in 0..QUERIES {
                row[i] = exp(row[i] - base[i]);
                self.sum[i] += row[i];
            }
        }
        for (row, &factor) in outputs.chunks_exact_mut(width).zip(&rescale) {
            {
                for v in row.iter_mut() {
                    *v *= factor;
                }
            }
        }
        self.max = max;
    }
}

/// Adds the mask to the scores of a tile and hides the keys that the causal rule forbids. scores: [keys, QUERIES]
#[inline(always)]
pub(super) fn hide(dims: &AttentionDims, mask: Option<&[f32]>, tile: &QueryTile, first_key: usize, scores: &mut [f32]) {
    if let Some(mask) = mask {
        let n_keys = scores.len() / QUERIES;
        for i in 0..tile.n {
            let at = (tile.first + i) * dims.sk + first_key;
            for (j, &m) in mask[at..at + n_keys].iter().enumerate() {
                scores[j * QUERIES + i] += m;
            }
        }
    }
    // Only a tile on the diagonal has keys that its first query does not see.
    if dims.causal && dims.keys_seen(tile.first + 1) < first_key + scores.len() / QUERIES {
        for (j, row) in scores.chunks_exact_mut(QUERIES).enumerate() {
            let first_query = (first_key + j + dims.sq + dims.later).saturating_sub(dims.sk + tile.first).min(QUERIES);
            row[..first_query].fill(f32::NEG_INFINITY);
        }
    }
}

/// The start and step of the rows of a tile in a [batch, sq, heads, len] tensor.
pub(super) fn row_of(dims: &AttentionDims, tile: &QueryTile, len: usize) -> (usize, usize) {
    (((tile.b * dims.sq + tile.first) * dims.heads + tile.h) * len, dims.heads * len)
}

/// The start and step of the rows from `first_key` on in a [batch, sk, kv_heads, len] tensor.
pub(super) fn key_rows(dims: &AttentionDims, tile: &QueryTile, first_key: usize, len: usize) -> (usize, usize) {
    let kv_head = tile.h / (dims.heads / dims.kv_heads);
    (((tile.b * dims.sk + first_key) * dims.kv_heads + kv_head) * len, dims.kv_heads * len)
}

/// Scratch as a matrix with contiguous rows of `width`.
pub(super) fn rows(x: &[f32], width: usize) -> View {
    View { start: x.as_ptr(), row: width, column: 1 }
}

/// Scratch to write, with rows of `width`.
pub(super) fn target(x: &mut [f32], width: usize) -> Target {
    Target { start: x.as_mut_ptr(), row: width }
}

/// Copies `n` rows of `len` elements into rows padded with zeros.
#[inline(always)]
pub(super) fn pack(x: &[f32], (start, step): (usize, usize), n: usize, len: usize, out: &mut [f32]) {
    for (i, row) in out.chunks_exact_mut(padded(len)).take(n).enumerate() {
        row[..len].copy_from_slice(&x[start + i * step..start + i * step + len]);
        row[len..].fill(0.0);
    }
}

/// Writes `n` rows, times `scale`, as columns of out: [len, QUERIES]; the missing columns are zeros.
#[inline(always)]
pub(super) fn pack_transposed(
    x: &[f32],
    (start, step): (usize, usize),
    n: usize,
    (len, scale): (usize, f32),
    out: &mut [f32],
) {
    if n < QUERIES {
        out.fill(0.0);
    }
    for i in 0..n {
        let row = &x[start + i * step..start + i * step + len];
        for (column, &value) in out.chunks_exact_mut(QUERIES).zip(row) {
            column[i] = value * scale;
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::testing::{assert_close, in_pool, random};
    use super::*;

    /// A plain attention: shapes, switches, and the kind of mask.
    pub(crate) struct Case {
        pub(crate) dims: AttentionDims,
        pub(crate) q: Vec<f32>,
        pub(crate) k: Vec<f32>,
        pub(crate) v: Vec<f32>,
        pub(crate) mask: Option<(Vec<f32>, usize, usize)>,
    }

    impl Case {
        pub(crate) fn mask(&self) -> Option<Mask<'_>> {
            self.mask.as_ref().map(|(values, batch, heads)| Mask { values, batch: *batch, heads: *heads })
        }

        pub(crate) fn run(&self, threads: Threads) -> (Vec<f32>, Vec<f32>) {
            let d = &self.dims;
            let n = d.batch * d.sq * d.heads;
            let (mut o, mut lse) = (vec![9.0; n * d.dv], vec![9.0; n]);
            attention(d, (&self.q, &self.k, &self.v), self.mask(), (&mut o, &mut lse), threads);
            (o, lse)
        }

        /// The scaled, masked score of a pair in f64.
        pub(crate) fn score(&self, b: usize, h: usize, i: usize, j: usize) -> f64 {
            let d = &self.dims;
            if d.causal && j + d.sq + d.later > i + d.sk {
                return f64::NEG_INFINITY;
            }
            let (q, k) = (self.q_at(b, h, i), self.kv_at(b, h, j));
            let dot: f64 = (0..d.d).map(|e| self.q[q * d.d + e] as f64 * self.k[k * d.d + e] as f64).sum();
            let mask = self.mask().map_or(0.0, |m| m.of(b, h, d.sq, d.sk)[i * d.sk + j] as f64);
            dot * d.scale as f64 + mask
        }

        pub(crate) fn q_at(&self, b: usize, h: usize, i: usize) -> usize {
            (b * self.dims.sq + i) * self.dims.heads + h
        }

        pub(crate) fn kv_at(&self, b: usize, h: usize, j: usize) -> usize {
            (b * self.dims.sk + j) * self.dims.kv_heads + h / (self.dims.heads / self.dims.kv_heads)
        }

        /// (probabilities over the keys, lse); zeros and -inf when all is hidden.
        pub(crate) fn probabilities(&self, b: usize, h: usize, i: usize) -> (Vec<f64>, f64) {
            let s: Vec<f64> = (0..self.dims.sk).map(|j| self.score(b, h, i, j)).collect();
            let lse = s.iter().map(|s| s.exp()).sum::<f64>().ln();
            let p = |s: &f64| if lse == f64::NEG_INFINITY { 0.0 } else { (s - lse).exp() };
            (s.iter().map(p).collect(), lse)
        }
    }

    /// Cases with odd sizes, grouped heads, all kinds of masks, and rows that see nothing.
    pub(crate) fn cases() -> Vec<Case> {
        let case = |(batch, sq, sk): (usize, usize, usize), (heads, kv_heads): (usize, usize), d, dv, causal, mask| {
            let scale = 1.0 / (d as f32).sqrt();
            let dims = AttentionDims {
                batch,
                sq,
                sk,
                heads,
                kv_heads,
                d,
                dv,
                scale,
                causal,
                later: sk.saturating_sub(sq) / 3,
                continues: false,
            };
            let mask = match mask {
                0 => None,
                1 => Some((
                    random(sq * sk, 7).iter().map(|&x| if x > 0.5 { f32::NEG_INFINITY } else { x }).collect(),
                    1,
                    1,
                )),
                2 => Some((random(2 * heads * sq * sk, 9), 2, heads)),
                _ => {
                    let mut values = random(batch * heads * sq * sk, 8);
                    values[..sk].fill(f32::NEG_INFINITY);
                    Some((values, batch, heads))
                }
            };
            let spread = |n, seed| random(n, seed).iter().map(|x| 2.0 * x).collect::<Vec<f32>>();
            Case {
                dims,
                q: spread(batch * sq * heads * d, 1),
                k: spread(batch * sk * kv_heads * d, 2),
                v: spread(batch * sk * kv_heads * dv, 3),
                mask,
            }
        };
        vec![
            case((2, 33, 33), (4, 4), 16, 16, true, 0),
            case((1, 100, 100), (2, 2), 8, 24, false, 0),
            case((2, 70, 131), (4, 2), 20, 7, true, 0),
            case((1, 131, 70), (3, 1), 5, 33, true, 0),
            case((2, 40, 65), (2, 1), 64, 64, false, 1),
            case((2, 37, 37), (2, 2), 12, 12, true, 3),
            case((4, 40, 33), (2, 2), 8, 8, false, 2),
            case((1, 1, 200), (2, 1), 32, 32, true, 0),
            case((1, 3, 1), (1, 1), 1, 1, false, 0),
        ]
    }

    #[test]
    fn outputs_match_f64_and_hidden_rows_are_zero() {
        for c in cases() {
            let d = &c.dims;
            let (o, lse) = c.run(Threads::ONE);
            assert_eq!(
                (&o, &lse),
                (&in_pool(3, || c.run(Threads::new(3))).0, &in_pool(2, || c.run(Threads::new(2))).1)
            );
            let mut want = vec![0.0; o.len()];
            for (b, h, i) in (0..d.batch * d.heads * d.sq).map(|x| (x / d.sq / d.heads, x / d.sq % d.heads, x % d.sq)) {
                let (p, l) = c.probabilities(b, h, i);
                let got = lse[(b * d.heads + h) * d.sq + i] as f64;
                assert!(got == l || (got - l).abs() < 3e-6 * l.abs().max(1.0), "{d:?}: lse {got}, want {l}");
                for (j, p) in p.iter().enumerate() {
                    let (o_at, v_at) = (c.q_at(b, h, i) * d.dv, c.kv_at(b, h, j) * d.dv);
                    (0..d.dv).for_each(|e| want[o_at + e] += p * c.v[v_at + e] as f64);
                }
            }
            assert_close(&o, &want, 3e-6);
        }
    }
}
