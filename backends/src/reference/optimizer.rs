//! Optimizer steps as their ops define them.

use super::Tensor;
use galvatron_ir::op::opt::{Adamw, Sgd};

/// (w', buf') or w'; operands w, g, buf (with momentum), lr and perhaps the clip scale.
pub fn sgd(op: &Sgd, args: &[&Tensor]) -> Vec<Tensor> {
    let n = op.n_tensors();
    let (lr, clip) = (args[n].data[0], args.get(n + 1).map_or(1.0, |c| c.data[0]));
    let step = |i: usize| {
        let g = clip * args[1].data[i] + op.weight_decay.get() * args[0].data[i];
        let buffer = if n == 3 { op.momentum.get() * args[2].data[i] + g } else { g };
        [args[0].data[i] - lr * buffer, buffer]
    };
    each_element(args[0], step)[..n - 1].to_vec()
}

/// (w', m', v'); operands w, g, m, v, lr, step (from 1) and perhaps the clip scale.
pub fn adamw(op: &Adamw, args: &[&Tensor]) -> Vec<Tensor> {
    let (b1, b2) = (op.beta1.get(), op.beta2.get());
    let (lr, steps, clip) = (args[4].data[0], args[5].data[0], args.get(6).map_or(1.0, |c| c.data[0]));
    let (bias1, bias2) = (1.0 - b1.powf(steps), 1.0 - b2.powf(steps));
    let step = |i: usize| {
        let g = clip * args[1].data[i];
        let m = b1 * args[2].data[i] + (1.0 - b1) * g;
        let v = b2 * args[3].data[i] + (1.0 - b2) * g * g;
        let decayed = args[0].data[i] * (1.0 - lr * op.weight_decay.get());
        [decayed - lr / bias1 * m / (v.sqrt() / bias2.sqrt() + op.eps.get()), m, v]
    };
    each_element(args[0], step).to_vec()
}

/// N tensors like `like` from a function that gives the N elements at a position.
fn each_element<const N: usize>(like: &Tensor, f: impl Fn(usize) -> [f64; N]) -> [Tensor; N] {
    let elements: Vec<[f64; N]> = (0..like.data.len()).map(f).collect();
    std::array::from_fn(|k| Tensor::new(like.shape.clone(), elements.iter().map(|e| e[k]).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use galvatron_ir::types::Scalar;

    #[test]
    fn momentum_adds_to_the_clipped_gradient_with_decay() {
        let op = Sgd { momentum: Scalar::new(0.5), weight_decay: Scalar::new(0.1) };
        let args = [10.0, 4.0, 6.0, 0.1, 0.5].map(Tensor::scalar);
        let found = sgd(&op, &args.each_ref());
        assert!((found[1].data[0] - 6.0).abs() < 1e-12 && (found[0].data[0] - 9.4).abs() < 1e-12, "{found:?}");
        let plain = Sgd { momentum: Scalar::new(0.0), weight_decay: Scalar::new(0.0) };
        assert_eq!(sgd(&plain, &[&args[0], &args[1], &args[3]])[0].data, [9.6]);
    }

    #[test]
    fn the_first_step_of_adamw_moves_by_the_learning_rate() {
        let number = Scalar::new;
        let op = Adamw { beta1: number(0.9), beta2: number(0.99), eps: number(0.0), weight_decay: number(0.5) };
        let args = [2.0, -3.0, 0.0, 0.0, 0.1, 1.0].map(Tensor::scalar);
        let found = adamw(&op, &args.each_ref());
        assert!((found[0].data[0] - (2.0 * 0.95 + 0.1)).abs() < 1e-12, "{found:?}");
    }
}
