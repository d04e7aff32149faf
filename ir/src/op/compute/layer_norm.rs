//! `layer_norm` over the last dimension, and its gradients.

use crate::id::ValueId;
use crate::mesh::{FactorKind, Linearity, RuleBuilder, ShardingRule};
use crate::op::{AttrReader, AttrValue, Attrs, GradCx, NoGradient, OpDef, Sample, Work, expect_args, traffic};
use crate::types::{Scalar, TensorType};

/// Factors of the rows (one each) and of the normalised last dimension, which must be whole.
pub(super) fn row_factors(builder: &mut RuleBuilder, x: &TensorType) -> (Vec<usize>, usize) {
    let last = x.rank() - 1;
    let rows = (0..last).map(|i| builder.factor(format!("d{i}"), x.shape[i])).collect();
    (rows, builder.factor_of("h", x.shape[last], FactorKind::Whole))
}

/// The factors of a whole row tensor.
pub(super) fn with(rows: &[usize], last: usize) -> Vec<usize> {
    rows.iter().copied().chain([last]).collect()
}

/// The work of a pass over operand 0 that does so many operations for each of its elements.
pub(super) fn pass(args: &[&TensorType], results: &[&TensorType], flops_per_element: u64) -> Work {
    Work { matmul_flops: 0, flops: flops_per_element * args[0].elements(), bytes: traffic(args, results) }
}

/// (y, mean, rstd) = layer_norm(x [.., h], gamma [h], beta [h]): y = (x - mean) rstd gamma + beta, mean and rstd [..].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerNorm {
    /// Added to the variance.
    pub eps: Scalar,
}

impl OpDef for LayerNorm {
    named!("layer_norm");
    pure!();
    no_alias!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 3)?;
        let Some((&h, rows)) = args[0].shape.split_last() else { return Err("operand 0 is a scalar".into()) };
        if *args[1] != TensorType::f32([h]) || args[2] != args[1] {
            return Err(format!("gain `{}` and bias `{}` do not fit `{}`", args[1], args[2], args[0]));
        }
        let stat = TensorType::f32(rows.to_vec());
        Ok(vec![args[0].clone(), stat.clone(), stat])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut b = RuleBuilder::new();
        let (rows, h) = row_factors(&mut b, args[0]);
        b.operand(&with(&rows, h))
            .operand(&[h])
            .operand(&[h])
            .result(&with(&rows, h))
            .result(&rows)
            .result(&rows)
            .build()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        if cx.grads[1].is_some() || cx.grads[2].is_some() {
            return Err(NoGradient("the statistics of `layer_norm` have no gradient".into()));
        }
        let (x, gamma, dy) = (cx.args[0], cx.args[1], cx.dy()?);
        let (mean, rstd) = (cx.results[1], cx.results[2]);
        let dx = cx.emit_for(0, LayerNormGrad, &[x, gamma, mean, rstd, dy]);
        if !cx.needs[1] && !cx.needs[2] {
            return Ok(vec![dx, None, None]);
        }
        let params = cx.emit_all(LayerNormParamGrad, &[x, mean, rstd, dy]);
        Ok(vec![dx, Some(params[0]), Some(params[1])])
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        pass(args, results, 8)
    }

    fn attrs(&self) -> Attrs {
        vec![("eps", AttrValue::Float(self.eps))]
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(LayerNorm { eps: attrs.float("eps")? })
    }

    fn samples() -> Vec<Sample> {
        vec![Sample::uniform(LayerNorm { eps: Scalar::new(1e-5) }, &[&[4, 2, 8], &[8], &[8]])]
    }
}

/// dx = layer_norm_grad(x, gamma, mean, rstd, dy).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerNormGrad;

impl OpDef for LayerNormGrad {
    named!("layer_norm_grad");
    pure!();
    no_alias!();
    no_attrs!(LayerNormGrad);
    no_gradient!("second derivatives are not supported");

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 5)?;
        if args[0] != args[4] || args[2].rank() + 1 != args[0].rank() || args[3] != args[2] {
            return Err("expected x, gamma, mean, rstd, dy".into());
        }
        Ok(vec![args[0].clone()])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut b = RuleBuilder::new();
        let (rows, h) = row_factors(&mut b, args[0]);
        let full = with(&rows, h);
        let b = b.operand(&full).operand(&[h]).operand(&rows).operand(&rows).operand(&full);
        b.result(&full).linear(Linearity::Each(vec![4])).build()
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        pass(args, results, 12)
    }

    fn samples() -> Vec<Sample> {
        vec![Sample::uniform(LayerNormGrad, &[&[4, 2, 8], &[8], &[4, 2], &[4, 2], &[4, 2, 8]])]
    }
}

/// (dgamma, dbeta) = layer_norm_param_grad(x, mean, rstd, dy): sums over all rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerNormParamGrad;

impl OpDef for LayerNormParamGrad {
    named!("layer_norm_param_grad");
    pure!();
    no_alias!();
    no_attrs!(LayerNormParamGrad);
    no_gradient!("second derivatives are not supported");

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 4)?;
        let h = *args[0].shape.last().ok_or("operand 0 is a scalar")?;
        if args[0] != args[3] || args[1].rank() + 1 != args[0].rank() || args[1] != args[2] {
            return Err("expected x, mean, rstd, dy".into());
        }
        Ok(vec![TensorType::f32([h]), TensorType::f32([h])])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut b = RuleBuilder::new();
        let (rows, h) = row_factors(&mut b, args[0]);
        let full = with(&rows, h);
        let b = b.operand(&full).operand(&rows).operand(&rows).operand(&full);
        b.result(&[h]).result(&[h]).linear(Linearity::Each(vec![3])).build()
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        pass(args, results, 6)
    }

    fn samples() -> Vec<Sample> {
        vec![Sample::uniform(LayerNormParamGrad, &[&[4, 2, 8], &[4, 2], &[4, 2], &[4, 2, 8]])]
    }
}
