//! Layer and root-mean-square normalisation, softmax and their gradients: functions of each row.

use super::Tensor;

/// (y, mean, rstd) of the rows of x [.., h] with gamma [h] and beta [h]; the variance is the biased one.
pub fn layer_norm(eps: f64, x: &Tensor, gamma: &Tensor, beta: &Tensor) -> Vec<Tensor> {
    let (mut y, mut means, mut rstds) = (Vec::new(), Vec::new(), Vec::new());
    for row in x.rows() {
        let mu = mean(row.iter().copied());
        let rstd = 1.0 / (mean(row.iter().map(|x| (x - mu).powi(2))) + eps).sqrt();
        y.extend(row.iter().zip(gamma.data.iter().zip(&beta.data)).map(|(x, (g, b))| (x - mu) * rstd * g + b));
        means.push(mu);
        rstds.push(rstd);
    }
    let stat = &x.shape[..x.shape.len() - 1];
    vec![Tensor::new(x.shape.clone(), y), Tensor::new(stat, means), Tensor::new(stat, rstds)]
}

/// dx; operands x, gamma, mean, rstd, dy. With n = (x - mean) rstd and g = dy gamma, means over the row:
/// dx = rstd (g - mean(g) - n mean(g n)).
pub fn layer_norm_grad(args: &[&Tensor]) -> Tensor {
    let [x, gamma, means, rstds, dy] = [args[0], args[1], args[2], args[3], args[4]];
    let mut dx = Vec::new();
    for (i, (row, dy)) in x.rows().zip(dy.rows()).enumerate() {
        let n: Vec<f64> = row.iter().map(|x| (x - means.data[i]) * rstds.data[i]).collect();
        let g: Vec<f64> = dy.iter().zip(&gamma.data).map(|(dy, gamma)| dy * gamma).collect();
        let (plain, along) = (mean(g.iter().copied()), mean(g.iter().zip(&n).map(|(g, n)| g * n)));
        dx.extend(g.iter().zip(&n).map(|(g, n)| rstds.data[i] * (g - plain - n * along)));
    }
    Tensor::new(x.shape.clone(), dx)
}

/// (dgamma, dbeta), sums over the rows; operands x, mean, rstd, dy.
pub fn layer_norm_param_grad(args: &[&Tensor]) -> Vec<Tensor> {
    let [x, means, rstds, dy] = [args[0], args[1], args[2], args[3]];
    let width = x.shape[x.shape.len() - 1];
    let (mut dgamma, mut dbeta) = (Tensor::filled([width], 0.0), Tensor::filled([width], 0.0));
    for (i, (row, dy)) in x.rows().zip(dy.rows()).enumerate() {
        for (h, (x, dy)) in row.iter().zip(dy).enumerate() {
            dgamma.data[h] += dy * (x - means.data[i]) * rstds.data[i];
            dbeta.data[h] += dy;
        }
    }
    vec![dgamma, dbeta]
}

/// (y, rstd) of the rows of x [.., h] with gamma [h]: y = x rstd gamma, rstd = 1 / sqrt(mean of x² + eps).
pub fn rms_norm(eps: f64, x: &Tensor, gamma: &Tensor) -> Vec<Tensor> {
    let (mut y, mut rstds) = (Vec::new(), Vec::new());
    for row in x.rows() {
        let rstd = 1.0 / (mean(row.iter().map(|x| x * x)) + eps).sqrt();
        y.extend(row.iter().zip(&gamma.data).map(|(x, g)| x * rstd * g));
        rstds.push(rstd);
    }
    let stat = &x.shape[..x.shape.len() - 1];
    vec![Tensor::new(x.shape.clone(), y), Tensor::new(stat, rstds)]
}

/// dx; operands x, gamma, rstd, dy. With n = x rstd and g = dy gamma, the mean over the row: dx = rstd (g - n mean(g n)).
pub fn rms_norm_grad(args: &[&Tensor]) -> Tensor {
    let [x, gamma, rstds, dy] = [args[0], args[1], args[2], args[3]];
    let mut dx = Vec::new();
    for ((row, dy), rstd) in x.rows().zip(dy.rows()).zip(&rstds.data) {
        let g: Vec<f64> = dy.iter().zip(&gamma.data).map(|(dy, gamma)| dy * gamma).collect();
        let along = mean(g.iter().zip(row).map(|(g, x)| g * x * rstd));
        dx.extend(g.iter().zip(row).map(|(g, x)| rstd * (g - x * rstd * along)));
    }
    Tensor::new(x.shape.clone(), dx)
}

/// dgamma, the sum of dy x rstd over the rows; operands x, rstd, dy.
pub fn rms_norm_param_grad(args: &[&Tensor]) -> Tensor {
    let [x, rstds, dy] = [args[0], args[1], args[2]];
    let mut dgamma = Tensor::filled([x.shape[x.shape.len() - 1]], 0.0);
    for ((row, dy), rstd) in x.rows().zip(dy.rows()).zip(&rstds.data) {
        for ((sum, x), dy) in dgamma.data.iter_mut().zip(row).zip(dy) {
            *sum += dy * x * rstd;
        }
    }
    dgamma
}

/// exp(x) / sum of exp(x) over each row; a row of -inf gives zeros.
pub fn softmax(x: &Tensor) -> Tensor {
    let row = |row: &[f64]| {
        let lse = log_sum_exp(row);
        let p = |x: &f64| if lse == f64::NEG_INFINITY { 0.0 } else { (x - lse).exp() };
        row.iter().map(p).collect::<Vec<f64>>()
    };
    Tensor::new(x.shape.clone(), x.rows().flat_map(row).collect())
}

/// x - ln of the sum of exp(x) over each row.
pub fn log_softmax(x: &Tensor) -> Tensor {
    let row = |row: &[f64]| {
        let lse = log_sum_exp(row);
        row.iter().map(|x| x - lse).collect::<Vec<f64>>()
    };
    Tensor::new(x.shape.clone(), x.rows().flat_map(row).collect())
}

/// y (dy - sum of y dy over the row).
pub fn softmax_grad(y: &Tensor, dy: &Tensor) -> Tensor {
    let row = |(y, dy): (&[f64], &[f64])| {
        let along: f64 = y.iter().zip(dy).map(|(y, dy)| y * dy).sum();
        y.iter().zip(dy).map(|(y, dy)| y * (dy - along)).collect::<Vec<f64>>()
    };
    Tensor::new(y.shape.clone(), y.rows().zip(dy.rows()).flat_map(row).collect())
}

/// ln of the sum of exp(x), shifted by the largest x so that nothing overflows; -inf if all are.
pub fn log_sum_exp(row: &[f64]) -> f64 {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return max;
    }
    max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    values.sum::<f64>() / n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_normalised() {
        let x = Tensor::new([1, 2], vec![1.0, 3.0]);
        let found = layer_norm(0.0, &x, &Tensor::new([2], vec![2.0, 1.0]), &Tensor::new([2], vec![0.5, 0.0]));
        assert_eq!(found[0].data, [-1.5, 1.0]);
        assert_eq!((found[1].data[0], found[2].data[0]), (2.0, 1.0));
    }

    #[test]
    fn rows_are_scaled_by_their_root_mean_square() {
        let x = Tensor::new([1, 2], vec![1.0, 7.0]);
        let found = rms_norm(0.0, &x, &Tensor::new([2], vec![10.0, 1.0]));
        assert!(found[0].distance(&Tensor::new([1, 2], vec![2.0, 1.4])) < 1e-12);
        assert_eq!(found[1].data, [0.2]);
    }

    #[test]
    fn softmax_stands_large_values() {
        let y = softmax(&Tensor::new([2], vec![1000.0, 1000.0 + 3f64.ln()]));
        assert!(y.distance(&Tensor::new([2], vec![0.25, 0.75])) < 1e-12);
        assert_eq!(softmax(&Tensor::filled([2], f64::NEG_INFINITY)).data, [0.0, 0.0]);
    }
}
