//! Losses as sums, their gradients, and what the gradient norm needs.

use super::Tensor;
use super::norm::log_sum_exp;

/// (s [], lse [..]) of logits [.., v] and labels [..]; each label is a class or `ignore`.
pub fn cross_entropy(ignore: i64, logits: &Tensor, labels: &Tensor) -> Vec<Tensor> {
    let lse: Vec<f64> = logits.rows().map(log_sum_exp).collect();
    let rows = logits.rows().zip(&lse).zip(&labels.data).filter(|(_, label)| counts(ignore, **label));
    let sum = rows.map(|((row, lse), &label)| lse - row[label as usize]).sum();
    vec![Tensor::scalar(sum), Tensor::new(labels.shape.clone(), lse)]
}

/// (softmax(logits) - one_hot(labels)) ds, zero where the label is ignored; operands logits, labels, lse, ds [].
pub fn cross_entropy_grad(ignore: i64, args: &[&Tensor]) -> Tensor {
    let ([logits, labels, lse], ds) = ([args[0], args[1], args[2]], args[3].data[0]);
    let row = |(i, row): (usize, &[f64])| {
        let label = labels.data[i];
        let weight = if counts(ignore, label) { ds } else { 0.0 };
        let hit = |v: usize| f64::from(v as f64 == label);
        row.iter().enumerate().map(|(v, x)| weight * ((x - lse.data[i]).exp() - hit(v))).collect::<Vec<f64>>()
    };
    Tensor::new(logits.shape.clone(), logits.rows().enumerate().flat_map(row).collect())
}

/// The number of labels that are not `ignore`.
pub fn count_labels(ignore: i64, labels: &Tensor) -> Tensor {
    Tensor::scalar(labels.data.iter().filter(|label| counts(ignore, **label)).count() as f64)
}

/// The sum of (prediction - target)².
pub fn mse(prediction: &Tensor, target: &Tensor) -> Tensor {
    Tensor::scalar(prediction.data.iter().zip(&target.data).map(|(p, t)| (p - t).powi(2)).sum())
}

/// 2 (prediction - target) ds.
pub fn mse_grad(prediction: &Tensor, target: &Tensor, ds: &Tensor) -> Tensor {
    let data = prediction.data.iter().zip(&target.data).map(|(p, t)| 2.0 * (p - t) * ds.data[0]).collect();
    Tensor::new(prediction.shape.clone(), data)
}

/// The sum of x².
pub fn sum_squares(x: &Tensor) -> Tensor {
    Tensor::scalar(x.data.iter().map(|x| x * x).sum())
}

/// min(1, max_norm / (norm + 1e-6)), as PyTorch's `clip_grad_norm_`.
pub fn clip_scale(max_norm: f64, norm: &Tensor) -> Tensor {
    norm.map(|norm| (max_norm / (norm + 1e-6)).min(1.0))
}

fn counts(ignore: i64, label: f64) -> bool {
    label != ignore as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_labels_count_for_nothing() {
        let logits = Tensor::new([2, 2], vec![0.0, 3f64.ln(), 7.0, 7.0]);
        let labels = Tensor::new([2], vec![1.0, -100.0]);
        let found = cross_entropy(-100, &logits, &labels);
        assert!((found[0].data[0] - (4.0f64 / 3.0).ln()).abs() < 1e-12);
        let grad = cross_entropy_grad(-100, &[&logits, &labels, &found[1], &Tensor::scalar(2.0)]);
        assert!(grad.distance(&Tensor::new([2, 2], vec![0.5, -0.5, 0.0, 0.0])) < 1e-12, "{grad:?}");
        assert_eq!(count_labels(-100, &labels).data, [1.0]);
    }

    #[test]
    fn small_norms_are_not_scaled() {
        assert_eq!(clip_scale(1.0, &Tensor::scalar(0.5)).data, [1.0]);
        assert!((clip_scale(1.0, &Tensor::scalar(4.0)).data[0] - 0.25).abs() < 1e-6);
    }
}
