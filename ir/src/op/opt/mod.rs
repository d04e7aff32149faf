//! Optimizer steps, as PyTorch defines them. Parameters and state are operands and results; the learning rate, the step count
//! and the clip scale are operands too, because they change while training.

use crate::mesh::{RuleBuilder, ShardingRule};
use crate::op::{Alias, AttrReader, AttrValue, Attrs, Fill, OpDef, Sample, Work, traffic};
use crate::types::{Scalar, TensorType};

/// Operands that all have the parameter's shape come first, then `n_scalars` scalars.
fn check(args: &[&TensorType], n_tensors: usize, n_scalars: std::ops::RangeInclusive<usize>) -> Result<(), String> {
    if args.len() < n_tensors || !n_scalars.contains(&(args.len() - n_tensors)) {
        return Err(format!("expected {n_tensors} tensors and {n_scalars:?} scalars, found {} operands", args.len()));
    }
    if let Some(t) = args[..n_tensors].iter().find(|t| **t != args[0]) {
        return Err(format!("`{t}` does not fit parameter `{}`", args[0]));
    }
    match args[n_tensors..].iter().find(|t| t.rank() != 0) {
        Some(t) => Err(format!("`{t}` is no scalar")),
        None => Ok(()),
    }
}

fn rule(args: &[&TensorType], n_tensors: usize, n_results: usize) -> ShardingRule {
    let mut b = RuleBuilder::new();
    let all: Vec<usize> = args[0].shape.iter().enumerate().map(|(i, &d)| b.factor(format!("d{i}"), d)).collect();
    for i in 0..args.len() {
        b = b.operand(if i < n_tensors { &all } else { &[] });
    }
    for _ in 0..n_results {
        b = b.result(&all);
    }
    b.build()
}

/// (w', buf') = sgd(w, g, buf, lr, clip?) with momentum, or w' = sgd(w, g, lr, clip?) without.
///
/// g is scaled by clip, then weight decay is added; buf' = momentum buf + g (buf is zero at first); w' = w - lr buf'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sgd {
    /// Factor on the momentum buffer; 0: there is none.
    pub momentum: Scalar,
    /// Factor of the parameter that is added to its gradient.
    pub weight_decay: Scalar,
}

impl Sgd {
    /// Parameter, gradient and, with momentum, the buffer.
    pub fn n_tensors(&self) -> usize {
        if self.momentum.get() == 0.0 { 2 } else { 3 }
    }
}

impl OpDef for Sgd {
    named!("opt.sgd");
    pure!();
    no_gradient!("optimizer steps are not differentiated");

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        check(args, self.n_tensors(), 1..=2)?;
        Ok(vec![args[0].clone(); self.n_tensors() - 1])
    }

    fn rule(&self, args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
        rule(args, self.n_tensors(), results.len())
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: 5 * args[0].elements(), bytes: traffic(args, results) }
    }

    fn alias(&self) -> Alias {
        Alias::MayReuse(if self.n_tensors() == 2 { vec![0] } else { vec![0, 2] })
    }

    fn attrs(&self) -> Attrs {
        vec![("momentum", AttrValue::Float(self.momentum)), ("weight_decay", AttrValue::Float(self.weight_decay))]
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(Sgd { momentum: attrs.float("momentum")?, weight_decay: attrs.float("weight_decay")? })
    }

    fn samples() -> Vec<Sample> {
        let op = |momentum| Sgd { momentum: Scalar::new(momentum), weight_decay: Scalar::new(0.1) };
        let s: &[u64] = &[4, 4];
        vec![Sample::uniform(op(0.0), &[s, s, &[]]), Sample::uniform(op(0.9), &[s, s, s, &[], &[]])]
    }
}

/// (w', m', v') = adamw(w, g, m, v, lr, step, clip?), decoupled weight decay; step counts from 1.
///
/// w1 = w (1 - lr decay); m' = b1 m + (1 - b1) g; v' = b2 v + (1 - b2) g²;
/// w' = w1 - lr / (1 - b1^step) m' / (sqrt(v') / sqrt(1 - b2^step) + eps).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Adamw {
    /// Decay rate of the first moment.
    pub beta1: Scalar,
    /// Decay rate of the second moment.
    pub beta2: Scalar,
    /// Added to the denominator.
    pub eps: Scalar,
    /// Decoupled weight decay.
    pub weight_decay: Scalar,
}

impl OpDef for Adamw {
    named!("opt.adamw");
    pure!();
    no_gradient!("optimizer steps are not differentiated");

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        check(args, 4, 2..=3)?;
        Ok(vec![args[0].clone(); 3])
    }

    fn rule(&self, args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
        rule(args, 4, results.len())
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: 14 * args[0].elements(), bytes: traffic(args, results) }
    }

    fn alias(&self) -> Alias {
        Alias::MayReuse(vec![0, 2, 3])
    }

    fn attrs(&self) -> Attrs {
        vec![
            ("beta1", AttrValue::Float(self.beta1)),
            ("beta2", AttrValue::Float(self.beta2)),
            ("eps", AttrValue::Float(self.eps)),
            ("weight_decay", AttrValue::Float(self.weight_decay)),
        ]
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(Adamw {
            beta1: attrs.float("beta1")?,
            beta2: attrs.float("beta2")?,
            eps: attrs.float("eps")?,
            weight_decay: attrs.float("weight_decay")?,
        })
    }

    fn samples() -> Vec<Sample> {
        let op = Adamw {
            beta1: Scalar::new(0.9),
            beta2: Scalar::new(0.99),
            eps: Scalar::new(1e-8),
            weight_decay: Scalar::new(0.1),
        };
        let t = || (TensorType::f32([4, 4]), Fill::Positive);
        let s = || (TensorType::f32([]), Fill::Positive);
        vec![Sample::new(op, vec![t(), t(), t(), t(), s(), s()])]
    }
}
