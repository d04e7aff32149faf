//! A mixture of experts and its gradient, one choice of one token at a time.

use super::elementwise::{unary, unary_grad};
use super::{Tensor, indices};
use galvatron_ir::op::compute::UnaryKind;

/// y [.., h]; operands x [.., h], w [.., k], i [.., k], gate and up [e, f, h], down [e, h, f]. The experts that the rank holds
/// start at `first`; others contribute nothing.
pub fn moe(activation: UnaryKind, args: &[&Tensor], first: u64) -> Tensor {
    let experts = Experts::new(activation, args, first);
    let mut y = Tensor::filled(args[0].shape.clone(), 0.0);
    experts.each_choice(|choice| {
        let inner = experts.inner(choice);
        for h in 0..experts.h {
            let product = |f: u64| experts.down.at(&[choice.expert, h, f]) * inner[f as usize].value();
            add(&mut y, choice.token, h, choice.weight * (0..experts.f).map(product).sum::<f64>());
        }
    });
    y
}

/// (dx, dw, dgate, dup, ddown); operands as of [`moe`], and dy.
pub fn moe_grad(activation: UnaryKind, args: &[&Tensor], first: u64) -> Vec<Tensor> {
    let experts = Experts::new(activation, args, first);
    let mut grads: Vec<Tensor> =
        [0, 1, 3, 4, 5].iter().map(|&i: &usize| Tensor::filled(args[i].shape.clone(), 0.0)).collect();
    experts.each_choice(|choice| {
        let (e, token) = (choice.expert, choice.token);
        for (f, inner) in (0u64..).zip(experts.inner(choice)) {
            let of_down = |h: u64| experts.down.at(&[e, h, f]) * args[6].at(&with(token, h));
            let z: f64 = (0..experts.h).map(of_down).sum();
            add(&mut grads[1], token, choice.k, inner.value() * z);
            let (dgate, dup) = (choice.weight * z * inner.up * inner.slope, choice.weight * z * inner.activated);
            for h in 0..experts.h {
                let (x, dy) = (args[0].at(&with(token, h)), args[6].at(&with(token, h)));
                let through = dgate * experts.gate.at(&[e, f, h]) + dup * experts.up.at(&[e, f, h]);
                add(&mut grads[0], token, h, through);
                add(&mut grads[2], &[e, f], h, dgate * x);
                add(&mut grads[3], &[e, f], h, dup * x);
                add(&mut grads[4], &[e, h], f, choice.weight * dy * inner.value());
            }
        }
    });
    grads
}

/// One choice of a token.
#[derive(Clone, Copy)]
struct Choice<'a> {
    /// Index of the token.
    token: &'a [u64],
    /// Number of the choice.
    k: u64,
    /// The expert among those of the rank.
    expert: u64,
    weight: f64,
}

/// One inner element of an expert.
struct Inner {
    /// a(gate x)
    activated: f64,
    /// a'(gate x)
    slope: f64,
    /// up x
    up: f64,
}

impl Inner {
    fn value(&self) -> f64 {
        self.activated * self.up
    }
}

struct Experts<'a> {
    activation: UnaryKind,
    x: &'a Tensor,
    w: &'a Tensor,
    i: &'a Tensor,
    gate: &'a Tensor,
    up: &'a Tensor,
    down: &'a Tensor,
    first: u64,
    f: u64,
    h: u64,
}

impl<'a> Experts<'a> {
    fn new(activation: UnaryKind, args: &[&'a Tensor], first: u64) -> Experts<'a> {
        let [x, w, i, gate, up, down] = [args[0], args[1], args[2], args[3], args[4], args[5]];
        Experts { activation, x, w, i, gate, up, down, first, f: gate.shape[1], h: gate.shape[2] }
    }

    /// Visits the choices of all tokens whose experts the rank holds.
    fn each_choice(&self, mut visit: impl FnMut(Choice<'_>)) {
        for index in indices(&self.w.shape) {
            let expert = self.i.at(&index) - self.first as f64;
            if expert >= 0.0 && expert < self.gate.shape[0] as f64 {
                let (&k, token) = index.split_last().expect("invariant: choices have a dimension");
                visit(Choice { token, k, expert: expert as u64, weight: self.w.at(&index) });
            }
        }
    }

    fn inner(&self, choice: Choice<'_>) -> Vec<Inner> {
        let product = |weights: &Tensor, f: u64| -> f64 {
            (0..self.h).map(|h| weights.at(&[choice.expert, f, h]) * self.x.at(&with(choice.token, h))).sum()
        };
        let inner = |f: u64| {
            let gate = Tensor::scalar(product(self.gate, f));
            let activated = unary(self.activation, &gate).data[0];
            let slope = unary_grad(self.activation, &gate, &Tensor::scalar(1.0)).data[0];
            Inner { activated, slope, up: product(self.up, f) }
        };
        (0..self.f).map(inner).collect()
    }
}

fn with(row: &[u64], last: u64) -> Vec<u64> {
    row.iter().copied().chain([last]).collect()
}

fn add(to: &mut Tensor, row: &[u64], last: u64, amount: f64) {
    let position = to.position(&with(row, last));
    to.data[position] += amount;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_sees_its_experts_by_weight_and_those_of_other_ranks_are_zero() {
        let (x, w) = (Tensor::new([1, 1], vec![2.0]), Tensor::new([1, 2], vec![0.25, 0.75]));
        let i = Tensor::new([1, 2], vec![2.0, 1.0]);
        let up = Tensor::new([2, 1, 1], vec![1.0, 10.0]);
        let (gate, down) = (Tensor::filled([2, 1, 1], 1.0), Tensor::filled([2, 1, 1], 1.0));
        let y = |first| moe(UnaryKind::Relu, &[&x, &w, &i, &gate, &up, &down], first).data[0];
        // An expert gives relu(2) * 2 up.
        assert_eq!((y(1), y(2), y(3)), (0.75 * 4.0 + 0.25 * 40.0, 0.25 * 4.0, 0.0));
    }
}
