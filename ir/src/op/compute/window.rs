//! `unfold`: windows along a dimension, from which convolutions and pooling are made; `fold` adds them up again.

use crate::id::ValueId;
use crate::mesh::{FactorKind, Linearity, RuleBuilder, ShardingRule};
use crate::op::{AttrReader, AttrValue, Attrs, GradCx, NoGradient, OpDef, Sample, Work, expect_args, traffic};
use crate::types::TensorType;

/// Where windows lie along a dimension: element j of window i is element i · stride + j · dilation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Windows {
    /// The dimension.
    pub dim: usize,
    /// Elements of a window.
    pub size: u64,
    /// Distance of neighbouring windows.
    pub stride: u64,
    /// Distance of neighbouring elements of a window.
    pub dilation: u64,
}

impl Windows {
    /// How many windows lie within `len` elements; `None` if none does, or if a number makes no sense.
    pub fn count(&self, len: u64) -> Option<u64> {
        let reach = self.size.checked_sub(1)?.checked_mul(self.dilation)?;
        let last = len.checked_sub(1)?.checked_sub(reach)?;
        Some(last.checked_div(self.stride)? + 1).filter(|_| self.dilation > 0)
    }

    /// The elements and the windows of a dimension of that length, as a rule.
    fn rule(&self, whole: &TensorType, n_windows: u64, unfolds: bool) -> ShardingRule {
        let mut b = RuleBuilder::new();
        let kind = |i| if i == self.dim { FactorKind::Whole } else { FactorKind::Plain };
        let all: Vec<usize> =
            whole.shape.iter().enumerate().map(|(i, &d)| b.factor_of(format!("d{i}"), d, kind(i))).collect();
        let window =
            [b.factor_of("out", n_windows, FactorKind::Whole), b.factor_of("window", self.size, FactorKind::Whole)];
        let cut = [&all[..self.dim], &window, &all[self.dim + 1..]].concat();
        let b = if unfolds { b.operand(&all).result(&cut) } else { b.operand(&cut).result(&all) };
        b.linear(Linearity::Joint(vec![0])).build()
    }

    fn attrs(&self) -> Attrs {
        vec![
            ("dim", AttrValue::Int(self.dim as i64)),
            ("size", AttrValue::Int(self.size as i64)),
            ("stride", AttrValue::Int(self.stride as i64)),
            ("dilation", AttrValue::Int(self.dilation as i64)),
        ]
    }

    fn parse(attrs: &mut AttrReader) -> Result<Windows, String> {
        let dim = attrs.uint("dim")? as usize;
        let (size, stride, dilation) = (attrs.uint("size")?, attrs.uint("stride")?, attrs.uint("dilation")?);
        Ok(Windows { dim, size, stride, dilation })
    }
}

/// out [.., windows, size, ..]: the windows of x [.., n, ..] along a dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unfold {
    /// Where the windows lie.
    pub windows: Windows,
}

impl OpDef for Unfold {
    named!("unfold");
    pure!();
    no_alias!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 1)?;
        let w = &self.windows;
        let n_windows = args[0].shape.get(w.dim).and_then(|&len| w.count(len));
        let n_windows = n_windows.ok_or_else(|| format!("`{}` has no {w:?}", args[0]))?;
        let shape = &args[0].shape;
        Ok(vec![args[0].with_shape([&shape[..w.dim], &[n_windows, w.size], &shape[w.dim + 1..]].concat())])
    }

    fn rule(&self, args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
        self.windows.rule(args[0], results[0].shape[self.windows.dim], true)
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        let dy = cx.dy()?;
        let len = cx.ty(cx.args[0]).shape[self.windows.dim];
        Ok(vec![cx.emit_for(0, Fold { len, windows: self.windows }, &[dy])])
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: 0, bytes: traffic(args, results) }
    }

    fn attrs(&self) -> Attrs {
        self.windows.attrs()
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(Unfold { windows: Windows::parse(attrs)? })
    }

    fn samples() -> Vec<Sample> {
        let op = |dim, size, stride, dilation| Unfold { windows: Windows { dim, size, stride, dilation } };
        vec![
            Sample::uniform(op(1, 3, 1, 1), &[&[4, 6, 2]]),
            Sample::uniform(op(2, 2, 2, 3), &[&[2, 4, 9]]),
            Sample::uniform(op(0, 1, 3, 1), &[&[7, 4]]),
        ]
    }
}

/// x [.., len, ..] from y [.., windows, size, ..]: each element is the sum of the window elements that stand for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fold {
    /// Extent of the folded dimension.
    pub len: u64,
    /// Where the windows lie.
    pub windows: Windows,
}

impl OpDef for Fold {
    named!("fold");
    pure!();
    no_alias!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 1)?;
        let (w, shape) = (&self.windows, &args[0].shape);
        let fits = w.dim + 1 < shape.len()
            && Some(shape[w.dim]) == w.count(self.len)
            && shape[w.dim + 1] == w.size
            && args[0].dtype.is_float();
        if !fits {
            return Err(format!("`{}` are no {w:?} of {} elements", args[0], self.len));
        }
        Ok(vec![args[0].with_shape([&shape[..w.dim], &[self.len], &shape[w.dim + 2..]].concat())])
    }

    fn rule(&self, args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
        self.windows.rule(results[0], args[0].shape[self.windows.dim], false)
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        let dy = cx.dy()?;
        Ok(vec![cx.emit_for(0, Unfold { windows: self.windows }, &[dy])])
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: args[0].elements(), bytes: traffic(args, results) }
    }

    fn attrs(&self) -> Attrs {
        let mut attrs = self.windows.attrs();
        attrs.push(("len", AttrValue::Int(self.len as i64)));
        attrs
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(Fold { windows: Windows::parse(attrs)?, len: attrs.uint("len")? })
    }

    fn samples() -> Vec<Sample> {
        let op = |len, dim, size, stride, dilation| Fold { len, windows: Windows { dim, size, stride, dilation } };
        vec![
            Sample::uniform(op(6, 1, 3, 1, 1), &[&[4, 4, 3, 2]]),
            Sample::uniform(op(9, 1, 2, 2, 3), &[&[4, 3, 2]]),
            Sample::uniform(op(7, 0, 1, 3, 1), &[&[3, 1, 4]]),
        ]
    }
}
