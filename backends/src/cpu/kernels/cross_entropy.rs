//! Cross entropy over the last axis with integer labels, the squared error, and their gradients.

use super::super::math::{exp, max1, simd, sum1, sum2};
use super::super::threads::{Shared, Threads};
use super::GRAIN;

/// A label that is neither a class nor the ignored value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("label {label} of row {row} is not one of the {n_classes} classes")]
pub struct LabelError {
    /// The first such row.
    pub row: usize,
    /// Its label.
    pub label: i64,
    /// The number of classes.
    pub n_classes: usize,
}

/// Elements read in one go: the maximum and the sum of exponentials of a block take it from the cache.
const BLOCK: usize = 2048;

/// The sum over rows whose label is not `ignore_index` of lse - logits[label], and lse = ln sum e^logits of every row.
///
/// logits: [rows, v]   labels, lse: [rows]. The sum is made in f64, in the order of the rows.
///
/// # Errors
/// A label outside 0..v that is not `ignore_index`; then `lse` is untouched.
pub fn cross_entropy(
    logits: &[f32],
    labels: &[i64],
    ignore_index: i64,
    lse: &mut [f32],
    threads: Threads,
) -> Result<f32, LabelError> {
    let v = logits.len() / labels.len().max(1);
    check_labels(labels, v, ignore_index)?;
    threads.for_each_chunk_mut(lse, rows_per_task(v), |task, lse| {
        let first = task * rows_per_task(v);
        let rows = logits[first * v..(first + lse.len()) * v].chunks_exact(v);
        simd!({
            for (lse, row) in lse.iter_mut().zip(rows) {
                *lse = log_sum_exp(row);
            }
        });
    });
    let counted = labels.iter().enumerate().filter(|(_, label)| **label != ignore_index);
    let loss: f64 = counted.map(|(row, &label)| lse[row] as f64 - logits[row * v + label as usize] as f64).sum();
    Ok(loss as f32)
}

fn check_labels(labels: &[i64], n_classes: usize, ignore_index: i64) -> Result<(), LabelError> {
    let wrong = |label: i64| label != ignore_index && (label < 0 || label >= n_classes as i64);
    match labels.iter().position(|&label| wrong(label)) {
        Some(row) => Err(LabelError { row, label: labels[row], n_classes }),
        None => Ok(()),
    }
}

fn rows_per_task(v: usize) -> usize {
    (GRAIN / v.max(1)).clamp(1, 64)
}

/// ln sum e^x in one pass: the sum so far is rescaled whenever a block has a larger maximum (Milakov and Gimelshein 2018).
#[inline(always)]
fn log_sum_exp(row: &[f32]) -> f32 {
    let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0f64);
    for block in row.chunks(BLOCK) {
        let new_max = max1(block).max(max);
        if new_max == f32::NEG_INFINITY {
            continue;
        }
        let block_sum = sum1(
            block,
            #[inline(always)]
            |x| exp(x - new_max),
        );
        sum = sum * exp(max - new_max) as f64 + block_sum as f64;
        max = new_max;
    }
    max + sum.ln() as f32
}

/// dlogits = (e^(logits - lse) - onehot(label)) scale; zeros in rows whose label is `ignore_index`.
///
/// logits, dlogits: [rows, v]   labels, lse: [rows]. The labels have passed [`cross_entropy`].
pub fn cross_entropy_grad(
    logits: &[f32],
    labels: &[i64],
    lse: &[f32],
    (ignore_index, scale): (i64, f32),
    dlogits: &mut [f32],
    threads: Threads,
) {
    let v = logits.len() / labels.len().max(1);
    let per_task = rows_per_task(v);
    threads.for_each_chunk_mut(dlogits, per_task * v, |task, dlogits| {
        for (i, out) in dlogits.chunks_exact_mut(v).enumerate() {
            let row = task * per_task + i;
            grad_row(Some(&logits[row * v..(row + 1) * v]), labels[row], lse[row], (ignore_index, scale), out);
        }
    });
}

/// As [`cross_entropy_grad`], with the gradient in place of the logits.
pub fn cross_entropy_grad_inplace(
    logits: &mut [f32],
    labels: &[i64],
    lse: &[f32],
    (ignore_index, scale): (i64, f32),
    threads: Threads,
) {
    let v = logits.len() / labels.len().max(1);
    let per_task = rows_per_task(v);
    threads.for_each_chunk_mut(logits, per_task * v, |task, logits| {
        for (i, out) in logits.chunks_exact_mut(v).enumerate() {
            let row = task * per_task + i;
            grad_row(None, labels[row], lse[row], (ignore_index, scale), out);
        }
    });
}

/// One row of the gradient; the logits are in `out` when they are not given.
fn grad_row(logits: Option<&[f32]>, label: i64, lse: f32, (ignore_index, scale): (i64, f32), out: &mut [f32]) {
    if label == ignore_index {
        return out.fill(0.0);
    }
    simd!(match logits {
        Some(x) => {
            for (o, &x) in out.iter_mut().zip(x) {
                *o = exp(x - lse) * scale;
            }
        }
        None => {
            for o in out.iter_mut() {
                *o = exp(*o - lse) * scale;
            }
        }
    });
    out[label as usize] -= scale;
}

/// How many labels are not `ignore_index`.
pub fn count_labels(labels: &[i64], ignore_index: i64) -> f32 {
    labels.iter().filter(|&&label| label != ignore_index).count() as f32
}

/// What one shard of the classes knows of each row: the largest logit, the sum of e^(logit - largest), and the logit of
/// the label where the shard holds it (0 elsewhere). The shards combine by max, by rescaled sums, and by sums.
///
/// logits: [rows, v] for the classes from `first_class` on   labels, max, sum, picked: [rows]
pub fn cross_entropy_shard(
    logits: &[f32],
    labels: &[i64],
    first_class: i64,
    (max, sum, picked): (&mut [f32], &mut [f32], &mut [f32]),
    threads: Threads,
) {
    let v = logits.len() / labels.len().max(1);
    let (max, sum, picked) = (Shared::new(max), Shared::new(sum), Shared::new(picked));
    threads.for_each_range(labels.len(), rows_per_task(v), |rows| {
        // SAFETY: tasks have disjoint rows.
        let (max, sum, picked) =
            unsafe { (max.slice(rows.clone()), sum.slice(rows.clone()), picked.slice(rows.clone())) };
        for (i, row) in rows.enumerate() {
            let x = &logits[row * v..(row + 1) * v];
            (max[i], sum[i]) = simd!(shard_row(x));
            let local = usize::try_from(labels[row].wrapping_sub(first_class)).ok();
            picked[i] = local.and_then(|class| x.get(class)).copied().unwrap_or(0.0);
        }
    });
}

#[inline(always)]
fn shard_row(x: &[f32]) -> (f32, f32) {
    let max = max1(x);
    (
        max,
        if max == f32::NEG_INFINITY {
            0.0
        } else {
            sum1(
                x,
                #[inline(always)]
                |x| exp(x - max),
            )
        },
    )
}

/// The sum of (pred - target)², in blocks whose sums are added in f64 in order.
pub fn mse(pred: &[f32], target: &[f32]) -> f32 {
    assert_eq!(pred.len(), target.len(), "invariant: prediction and target have one length");
    let squares = |(p, t): (&[f32], &[f32])| simd!(sum2(p, t, |p, t| (p - t) * (p - t))) as f64;
    pred.chunks(BLOCK).zip(target.chunks(BLOCK)).map(squares).sum::<f64>() as f32
}

/// dpred = 2 (pred - target) scale; all have one length.
pub fn mse_grad(pred: &[f32], target: &[f32], scale: f32, dpred: &mut [f32], threads: Threads) {
    assert_eq!([pred.len(), target.len()], [dpred.len(); 2], "invariant: operands and result have one length");
    threads.for_each_chunk_mut(dpred, GRAIN, |i, d| {
        let at = i * GRAIN..i * GRAIN + d.len();
        let (pred, target) = (&pred[at.clone()], &target[at]);
        simd!({
            for ((d, &p), &t) in d.iter_mut().zip(pred).zip(target) {
                *d = 2.0 * (p - t) * scale;
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, in_pool, random, wide};
    use super::*;

    const IGNORE: i64 = -100;

    fn labels(rows: usize, v: usize) -> Vec<i64> {
        (0..rows).map(|r| if r % 4 == 3 { IGNORE } else { (r * 31 % v) as i64 }).collect()
    }

    fn check(rows: usize, v: usize) {
        let logits: Vec<f32> = random(rows * v, 1).iter().map(|x| 30.0 * x).collect();
        let labels = labels(rows, v);
        let mut lse = vec![0.0; rows];
        let loss = in_pool(2, || cross_entropy(&logits, &labels, IGNORE, &mut lse, Threads::new(2))).unwrap();
        let (mut want_loss, mut want_lse, mut want_grad) = (0.0, vec![], vec![]);
        for (x, &label) in wide(&logits).chunks(v).zip(&labels) {
            let l = x.iter().map(|x| x.exp()).sum::<f64>().ln();
            let on = |i: usize| (i as i64 == label) as u8 as f64;
            want_loss += if label == IGNORE { 0.0 } else { l - x[label as usize] };
            want_grad.extend((0..v).map(|i| if label == IGNORE { 0.0 } else { 0.25 * ((x[i] - l).exp() - on(i)) }));
            want_lse.push(l);
        }
        assert_close(&[loss], &[want_loss], 1e-6);
        assert_close(&lse, &want_lse, 1e-6);
        let mut grad = vec![0.0; logits.len()];
        cross_entropy_grad(&logits, &labels, &lse, (IGNORE, 0.25), &mut grad, Threads::ONE);
        assert_close(&grad, &want_grad, 2e-6);
        let mut in_place = logits.clone();
        in_pool(2, || cross_entropy_grad_inplace(&mut in_place, &labels, &lse, (IGNORE, 0.25), Threads::new(2)));
        assert_eq!(in_place, grad);
    }

    #[test]
    fn loss_and_gradient_match_f64() {
        check(1, 2);
        check(9, 67);
        check(70, 5003);
    }

    #[test]
    fn shards_combine_to_the_whole() {
        let (rows, v) = (5, 10);
        let (logits, labels) = (random(rows * v, 3), labels(rows, v));
        let mut lse = vec![0.0; rows];
        let want = cross_entropy(&logits, &labels, IGNORE, &mut lse, Threads::ONE).unwrap();
        let shard = |first: usize, end: usize| {
            let part: Vec<f32> = logits.chunks(v).flat_map(|r| r[first..end].to_vec()).collect();
            let (mut m, mut s, mut p) = (vec![0.0; rows], vec![0.0; rows], vec![0.0; rows]);
            cross_entropy_shard(&part, &labels, first as i64, (&mut m, &mut s, &mut p), Threads::ONE);
            (m, s, p)
        };
        let (a, b) = (shard(0, 4), shard(4, v));
        let row = |r: usize| {
            let max = a.0[r].max(b.0[r]);
            let sum = a.1[r] * (a.0[r] - max).exp() + b.1[r] * (b.0[r] - max).exp();
            max + sum.ln() - a.2[r] - b.2[r]
        };
        let got: f32 = (0..rows).filter(|&r| labels[r] != IGNORE).map(row).sum();
        assert_close(&[got], &[want as f64], 1e-6);
    }

    #[test]
    fn labels_outside_the_classes_are_errors() {
        let wrong = |label| cross_entropy(&[0.0; 6], &[0, label], IGNORE, &mut [0.0; 2], Threads::ONE);
        assert_eq!(wrong(3), Err(LabelError { row: 1, label: 3, n_classes: 3 }));
        assert_eq!(wrong(-1), Err(LabelError { row: 1, label: -1, n_classes: 3 }));
        assert!(wrong(IGNORE).is_ok());
        assert_eq!(count_labels(&[0, IGNORE, 2], IGNORE), 2.0);
    }

    #[test]
    fn squared_error_and_gradient() {
        let (p, t) = (random(5001, 1), random(5001, 2));
        let want: f64 = wide(&p).iter().zip(wide(&t)).map(|(p, t)| (p - t) * (p - t)).sum();
        assert_close(&[mse(&p, &t)], &[want], 1e-6);
        let mut d = vec![0.0; p.len()];
        mse_grad(&p, &t, 0.5, &mut d, Threads::ONE);
        assert!(d.iter().zip(p.iter().zip(&t)).all(|(d, (p, t))| *d == p - t));
    }
}
