//! `rms_norm` over the last dimension (Zhang and Sennrich, 2019), and its gradients.

use super::layer_norm::{pass, row_factors, with};
use crate::id::ValueId;
use crate::mesh::{Linearity, RuleBuilder, ShardingRule};
use crate::op::{AttrReader, AttrValue, Attrs, GradCx, NoGradient, OpDef, Sample, Work, expect_args};
use crate::types::{Scalar, TensorType};

/// (y, rstd) = rms_norm(x [.., h], gamma [h]): y = x rstd gamma, rstd [..] = 1 / sqrt(mean of x² + eps).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RmsNorm {
    /// Added to the mean of the squares.
    pub eps: Scalar,
}

impl OpDef for RmsNorm {
    named!("rms_norm");
    pure!();
    no_alias!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 2)?;
        let Some((&h, rows)) = args[0].shape.split_last() else { return Err("operand 0 is a scalar".into()) };
        if !args[0].dtype.is_float() || *args[1] != TensorType::f32([h]) {
            return Err(format!("gain `{}` does not fit `{}`", args[1], args[0]));
        }
        Ok(vec![args[0].clone(), TensorType::f32(rows.to_vec())])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut b = RuleBuilder::new();
        let (rows, h) = row_factors(&mut b, args[0]);
        b.operand(&with(&rows, h)).operand(&[h]).result(&with(&rows, h)).result(&rows).build()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        if cx.grads[1].is_some() {
            return Err(NoGradient("the statistics of `rms_norm` have no gradient".into()));
        }
        let (x, gamma, rstd, dy) = (cx.args[0], cx.args[1], cx.results[1], cx.dy()?);
        let dx = cx.emit_for(0, RmsNormGrad, &[x, gamma, rstd, dy]);
        let dgamma = cx.emit_for(1, RmsNormParamGrad, &[x, rstd, dy]);
        Ok(vec![dx, dgamma])
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        pass(args, results, 4)
    }

    fn attrs(&self) -> Attrs {
        vec![("eps", AttrValue::Float(self.eps))]
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(RmsNorm { eps: attrs.float("eps")? })
    }

    fn samples() -> Vec<Sample> {
        let op = RmsNorm { eps: Scalar::new(1e-6) };
        vec![Sample::uniform(op, &[&[4, 2, 8], &[8]]), Sample::uniform(op, &[&[4, 6], &[6]])]
    }
}

/// dx = rms_norm_grad(x, gamma, rstd, dy).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RmsNormGrad;

impl OpDef for RmsNormGrad {
    named!("rms_norm_grad");
    pure!();
    no_alias!();
    no_attrs!(RmsNormGrad);
    no_gradient!("second derivatives are not supported");

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 4)?;
        if args[0] != args[3] || args[2].rank() + 1 != args[0].rank() {
            return Err("expected x, gamma, rstd, dy".into());
        }
        Ok(vec![args[0].clone()])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut b = RuleBuilder::new();
        let (rows, h) = row_factors(&mut b, args[0]);
        let full = with(&rows, h);
        let b = b.operand(&full).operand(&[h]).operand(&rows).operand(&full);
        b.result(&full).linear(Linearity::Each(vec![3])).build()
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        pass(args, results, 8)
    }

    fn samples() -> Vec<Sample> {
        vec![Sample::uniform(RmsNormGrad, &[&[4, 2, 8], &[8], &[4, 2], &[4, 2, 8]])]
    }
}

/// dgamma [h] = rms_norm_param_grad(x, rstd, dy): the sum over all rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RmsNormParamGrad;

impl OpDef for RmsNormParamGrad {
    named!("rms_norm_param_grad");
    pure!();
    no_alias!();
    no_attrs!(RmsNormParamGrad);
    no_gradient!("second derivatives are not supported");

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 3)?;
        let h = *args[0].shape.last().ok_or("operand 0 is a scalar")?;
        if args[0] != args[2] || args[1].rank() + 1 != args[0].rank() {
            return Err("expected x, rstd, dy".into());
        }
        Ok(vec![TensorType::f32([h])])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut b = RuleBuilder::new();
        let (rows, h) = row_factors(&mut b, args[0]);
        let full = with(&rows, h);
        let b = b.operand(&full).operand(&rows).operand(&full);
        b.result(&[h]).linear(Linearity::Each(vec![2])).build()
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        pass(args, results, 3)
    }

    fn samples() -> Vec<Sample> {
        vec![Sample::uniform(RmsNormParamGrad, &[&[4, 2, 8], &[4, 2], &[4, 2, 8]])]
    }
}
