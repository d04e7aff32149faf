//! Attention and its gradient, one query at a time.

use super::Tensor;
use super::norm::log_sum_exp;
use galvatron_ir::op::compute::{Attention, AttentionGrad, AttentionMaskGrad};

/// (o, lse); operands q [b, sq, h, d], k [b, sk, g, d], v [b, sk, g, e] and perhaps a mask [m, 1 or h, sq, sk], where
/// sample i has mask i mod m.
///
/// A query that sees no key gets zeros, and -inf as its lse.
pub fn attention(op: &Attention, args: &[&Tensor], later: u64) -> Vec<Tensor> {
    let heads = Heads::new(op.scale.get(), op.causal, later, args, args.get(3).copied());
    let v = args[2];
    let lse = Tensor::from_fn([heads.q.shape[0], heads.q.shape[2], heads.q.shape[1]], |at| {
        log_sum_exp(&heads.scores([at[0], at[2], at[1]]))
    });
    let o = Tensor::from_fn([heads.q.shape[0], heads.q.shape[1], heads.q.shape[2], v.shape[3]], |at| {
        let row = [at[0], at[1], at[2]];
        let value = |j: usize| v.at(&[at[0], j as u64, heads.group(at[2]), at[3]]);
        heads.probabilities(row, &lse).iter().enumerate().map(|(j, p)| p * value(j)).sum()
    });
    vec![o, lse]
}

/// (dq, dk, dv); operands q, k, v, o, lse, do and perhaps the mask.
///
/// With p the probabilities and D the sum of o do over e: ds = p (do v - D), dq = scale ds k, dk = scale ds q, dv = p do.
pub fn attention_grad(op: &AttentionGrad, args: &[&Tensor], later: u64) -> Vec<Tensor> {
    let heads = Heads::new(op.scale.get(), op.causal, later, args, args.get(6).copied());
    let [v, o, lse, d_o] = [args[2], args[3], args[4], args[5]];
    let mut grads: Vec<Tensor> = args[..3].iter().map(|t| Tensor::filled(t.shape.clone(), 0.0)).collect();
    for row in super::indices(&heads.q.shape[..3]) {
        let [b, i, h] = [row[0], row[1], row[2]];
        let g = heads.group(h);
        let dot = |x: &Tensor, at: [u64; 3]| (0..v.shape[3]).map(|e| x.at(&with(at, e)) * d_o.at(&[b, i, h, e])).sum();
        let mean: f64 = dot(o, [b, i, h]);
        for (j, p) in heads.probabilities([b, i, h], lse).into_iter().enumerate() {
            let key = [b, j as u64, g];
            let ds = heads.scale * p * (dot(v, key) - mean);
            for d in 0..heads.q.shape[3] {
                add(&mut grads[0], with([b, i, h], d), ds * heads.k.at(&with(key, d)));
                add(&mut grads[1], with(key, d), ds * heads.q.at(&[b, i, h, d]));
            }
            for e in 0..v.shape[3] {
                add(&mut grads[2], with(key, e), p * d_o.at(&[b, i, h, e]));
            }
        }
    }
    grads
}

/// dmask; operands q, k, v, o, lse, do and the mask. It is the sum of p (do v - D) over the samples and heads that share an
/// element, D the sum of o do.
pub fn attention_mask_grad(op: &AttentionMaskGrad, args: &[&Tensor], later: u64) -> Tensor {
    let heads = Heads::new(op.scale.get(), op.causal, later, args, Some(args[6]));
    let [v, o, lse, d_o] = [args[2], args[3], args[4], args[5]];
    let mut grad = Tensor::filled(args[6].shape.clone(), 0.0);
    for row in super::indices(&heads.q.shape[..3]) {
        let [b, i, h] = [row[0], row[1], row[2]];
        let dot = |x: &Tensor, at: [u64; 3]| (0..v.shape[3]).map(|e| x.at(&with(at, e)) * d_o.at(&[b, i, h, e])).sum();
        let mean: f64 = dot(o, [b, i, h]);
        for (j, p) in heads.probabilities([b, i, h], lse).into_iter().enumerate() {
            let slope: f64 = dot(v, [b, j as u64, heads.group(h)]);
            let index = mask_index(&grad, [b, h, i, j as u64]);
            add(&mut grad, index, p * (slope - mean));
        }
    }
    grad
}

/// Where a mask holds what is added to the score of (sample, head, query, key).
fn mask_index(mask: &Tensor, [b, h, i, j]: [u64; 4]) -> [u64; 4] {
    [b % mask.shape[0], h % mask.shape[1], i, j]
}

/// Queries, keys and what hides keys.
struct Heads<'a> {
    scale: f64,
    causal: bool,
    /// Queries of the sequence that come after those that are given.
    later: u64,
    q: &'a Tensor,
    k: &'a Tensor,
    mask: Option<&'a Tensor>,
}

impl<'a> Heads<'a> {
    fn new(scale: f64, causal: bool, later: u64, args: &[&'a Tensor], mask: Option<&'a Tensor>) -> Heads<'a> {
        Heads { scale, causal, later, q: args[0], k: args[1], mask }
    }

    /// The group of keys that a head of queries reads.
    fn group(&self, head: u64) -> u64 {
        head / (self.q.shape[2] / self.k.shape[2])
    }

    /// Scores of one query [batch, query, head] with all keys; -inf where a key is hidden.
    fn scores(&self, [b, i, h]: [u64; 3]) -> Vec<f64> {
        let score = |j: u64| {
            if self.causal && j + self.later + self.q.shape[1] > i + self.k.shape[1] {
                return f64::NEG_INFINITY;
            }
            let product = |d| self.q.at(&[b, i, h, d]) * self.k.at(&[b, j, self.group(h), d]);
            let sum: f64 = (0..self.q.shape[3]).map(product).sum();
            self.scale * sum + self.mask.map_or(0.0, |m| m.at(&mask_index(m, [b, h, i, j])))
        };
        (0..self.k.shape[1]).map(score).collect()
    }

    /// exp(score - lse) of one query [batch, query, head] with all keys.
    fn probabilities(&self, row: [u64; 3], lse: &Tensor) -> Vec<f64> {
        let lse = lse.at(&[row[0], row[2], row[1]]);
        let p = |s: f64| if lse == f64::NEG_INFINITY { 0.0 } else { (s - lse).exp() };
        self.scores(row).into_iter().map(p).collect()
    }
}

fn with([a, b, c]: [u64; 3], last: u64) -> [u64; 4] {
    [a, b, c, last]
}

fn add(to: &mut Tensor, index: [u64; 4], amount: f64) {
    let position = to.position(&index);
    to.data[position] += amount;
}

#[cfg(test)]
mod tests {
    use super::*;
    use galvatron_ir::types::Scalar;

    #[test]
    fn later_keys_are_hidden_and_a_query_without_keys_gives_zeros() {
        let op = Attention { scale: Scalar::new(1.0), causal: true };
        let (q, k) = (Tensor::filled([1, 3, 1, 1], 1.0), Tensor::filled([1, 2, 1, 1], 0.0));
        let v = Tensor::new([1, 2, 1, 1], vec![2.0, 4.0]);
        let found = attention(&op, &[&q, &k, &v], 0);
        let expected = Tensor::new([1, 3, 1, 1], vec![0.0, 2.0, 3.0]);
        assert!(found[0].distance(&expected) < 1e-12, "{found:?}");
        assert_eq!(found[1].data[0], f64::NEG_INFINITY);
    }
}
