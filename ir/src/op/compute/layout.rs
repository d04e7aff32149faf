//! Ops that only move elements: reshape, transpose, slice, concat, cast.

use crate::id::ValueId;
use crate::mesh::{FactorKind, Linearity, RuleBuilder, ShardingRule};
use crate::op::attrs::to_ints;
use crate::op::{Alias, AttrReader, AttrValue, Attrs, GradCx, NoGradient, OpDef, Sample, Work, expect_args, traffic};
use crate::types::{DType, TensorType, element_count};

/// Work of an op that moves each element once.
fn movement(args: &[&TensorType], results: &[&TensorType]) -> Work {
    Work { matmul_flops: 0, flops: 0, bytes: traffic(args, results) }
}

/// Splits two shapes of one element count into their common factors: for each dimension of each shape the factor indices,
/// major first, and the factor extents. Extents of 1 have no factor. Dimensions without common refinement share one group
/// whose minor parts are separate factors, so that only what both sides start with can be sharded.
pub fn reshape_factors(from: &[u64], to: &[u64]) -> (Vec<u64>, Vec<Vec<usize>>, Vec<Vec<usize>>) {
    let (mut sizes, mut a, mut b) = (Vec::new(), vec![Vec::new(); from.len()], vec![Vec::new(); to.len()]);
    let (mut i, mut j) = (0, 0);
    let (mut left, mut right) = (1u64, 1u64);
    loop {
        while left == 1 && i < from.len() {
            left = from[i];
            i += 1;
        }
        while right == 1 && j < to.len() {
            right = to[j];
            j += 1;
        }
        if left == 1 || right == 1 {
            return (sizes, a, b);
        }
        let common = if left.is_multiple_of(right) {
            right
        } else if right.is_multiple_of(left) {
            left
        } else {
            return coarse(from, to, sizes, a, b, i - 1, j - 1);
        };
        sizes.push(common);
        a[i - 1].push(sizes.len() - 1);
        b[j - 1].push(sizes.len() - 1);
        left /= common;
        right /= common;
    }
}

/// Gives up the common refinement from dimensions `i`, `j` on: each remaining extent becomes a factor of its own side,
/// minor to a factor of extent 1, so that it cannot be sharded.
fn coarse(
    from: &[u64],
    to: &[u64],
    mut sizes: Vec<u64>,
    mut a: Vec<Vec<usize>>,
    mut b: Vec<Vec<usize>>,
    i: usize,
    j: usize,
) -> (Vec<u64>, Vec<Vec<usize>>, Vec<Vec<usize>>) {
    for (dims, shape, start) in [(&mut a, from, i), (&mut b, to, j)] {
        for (d, &extent) in shape.iter().enumerate().skip(start) {
            if dims[d].is_empty() {
                sizes.push(1);
                dims[d].push(sizes.len() - 1);
            }
            sizes.push(extent);
            dims[d].push(sizes.len() - 1);
        }
    }
    (sizes, a, b)
}

/// The same elements in row-major order under another shape; never a copy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reshape {
    /// Global shape of the result.
    pub shape: Vec<u64>,
}

impl OpDef for Reshape {
    named!("reshape");
    pure!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 1)?;
        if element_count(&self.shape) != args[0].elements() {
            return Err(format!("`{}` has not the elements of {:?}", args[0], self.shape));
        }
        Ok(vec![args[0].with_shape(self.shape.clone())])
    }

    fn rule(&self, args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
        let (sizes, from, to) = reshape_factors(&args[0].shape, &results[0].shape);
        let mut builder = RuleBuilder::new();
        for (i, size) in sizes.iter().enumerate() {
            // What only one side has cannot be cut.
            let is_shared = from.iter().flatten().any(|&f| f == i) && to.iter().flatten().any(|&f| f == i);
            let kind = if *size > 1 && is_shared { FactorKind::Plain } else { FactorKind::Whole };
            builder.factor_of(format!("d{i}"), *size, kind);
        }
        builder.operand_dims(from).result_dims(to).linear(Linearity::Joint(vec![0])).build()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        let dy = cx.dy()?;
        let shape = cx.ty(cx.args[0]).shape;
        Ok(vec![cx.emit_for(0, Reshape { shape }, &[dy])])
    }

    fn work(&self, _args: &[&TensorType], _results: &[&TensorType]) -> Work {
        Work::default()
    }

    fn alias(&self) -> Alias {
        Alias::View(0)
    }

    fn attrs(&self) -> Attrs {
        vec![("shape", to_ints(&self.shape))]
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(Reshape { shape: attrs.uints("shape")? })
    }

    fn samples() -> Vec<Sample> {
        let to = |shape: &[u64]| Reshape { shape: shape.to_vec() };
        vec![
            Sample::uniform(to(&[4, 8]), &[&[4, 2, 4]]),
            Sample::uniform(to(&[8, 4]), &[&[4, 2, 4]]),
            Sample::uniform(to(&[4, 1, 2, 2, 2]), &[&[4, 8]]),
            Sample::uniform(to(&[6, 4]), &[&[4, 6]]),
        ]
    }
}

/// Dimension i of the result is dimension `perm[i]` of the operand.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Transpose {
    /// The permutation.
    pub perm: Vec<usize>,
}

impl Transpose {
    /// The permutation that undoes this one.
    pub fn inverse(&self) -> Transpose {
        let mut perm = vec![0; self.perm.len()];
        for (i, &p) in self.perm.iter().enumerate() {
            perm[p] = i;
        }
        Transpose { perm }
    }
}

impl OpDef for Transpose {
    named!("transpose");
    pure!();
    no_alias!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 1)?;
        let mut sorted = self.perm.clone();
        sorted.sort();
        if sorted != (0..args[0].rank()).collect::<Vec<_>>() {
            return Err(format!("{:?} is no permutation of the dimensions of `{}`", self.perm, args[0]));
        }
        let shape: Vec<u64> = self.perm.iter().map(|&p| args[0].shape[p]).collect();
        Ok(vec![args[0].with_shape(shape)])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut builder = RuleBuilder::new();
        let all: Vec<usize> =
            args[0].shape.iter().enumerate().map(|(i, &d)| builder.factor(format!("d{i}"), d)).collect();
        builder.operand(&all).result(&self.perm).linear(Linearity::Joint(vec![0])).build()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        let dy = cx.dy()?;
        Ok(vec![cx.emit_for(0, self.inverse(), &[dy])])
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        movement(args, results)
    }

    fn attrs(&self) -> Attrs {
        vec![("perm", AttrValue::Ints(self.perm.iter().map(|&p| p as i64).collect()))]
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(Transpose { perm: attrs.uints("perm")?.into_iter().map(|d| d as usize).collect() })
    }

    fn samples() -> Vec<Sample> {
        let by = |perm: &[usize]| Transpose { perm: perm.to_vec() };
        vec![Sample::uniform(by(&[0, 2, 1]), &[&[4, 2, 4]]), Sample::uniform(by(&[2, 0, 1]), &[&[4, 2, 4]])]
    }
}

/// Elements start, start + step, … of one dimension; `len` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slice {
    /// The dimension.
    pub dim: usize,
    /// First element.
    pub start: u64,
    /// Number of elements.
    pub len: u64,
}

impl OpDef for Slice {
    named!("slice");
    pure!();
    no_alias!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 1)?;
        let end = self.start.saturating_add(self.len);
        let fits = args[0].shape.get(self.dim).is_some_and(|&d| end <= d);
        if !fits {
            return Err(format!(
                "elements {} to {} are not in dimension {} of `{}`",
                self.start, end, self.dim, args[0]
            ));
        }
        let mut shape = args[0].shape.clone();
        shape[self.dim] = self.len;
        Ok(vec![args[0].with_shape(shape)])
    }

    fn rule(&self, args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
        let mut builder = RuleBuilder::new();
        let mut operand = Vec::new();
        for (i, &d) in args[0].shape.iter().enumerate() {
            let kind = if i == self.dim { FactorKind::Whole } else { FactorKind::Plain };
            operand.push(builder.factor_of(format!("d{i}"), d, kind));
        }
        let mut result = operand.clone();
        result[self.dim] = builder.factor_of("out", results[0].shape[self.dim], FactorKind::Whole);
        builder.operand(&operand).result(&result).linear(Linearity::Joint(vec![0])).build()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        let dy = cx.dy()?;
        if !cx.needs[0] {
            return Ok(vec![None]);
        }
        let whole = cx.ty(cx.args[0]);
        let mut parts = Vec::new();
        let after = whole.shape[self.dim] - self.start - self.len;
        for (i, len) in [self.start, self.len, after].into_iter().enumerate() {
            if i == 1 {
                parts.push(dy);
            } else if len > 0 {
                let mut shape = whole.shape.clone();
                shape[self.dim] = len;
                parts.push(
                    cx.emit(super::Full { ty: whole.with_shape(shape), value: crate::types::Scalar::new(0.0) }, &[]),
                );
            }
        }
        Ok(vec![Some(if parts.len() == 1 { dy } else { cx.emit(Concat { dim: self.dim }, &parts) })])
    }

    fn work(&self, _args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: 0, bytes: 2 * results[0].bytes() }
    }

    fn attrs(&self) -> Attrs {
        vec![
            ("dim", AttrValue::Int(self.dim as i64)),
            ("start", AttrValue::Int(self.start as i64)),
            ("len", AttrValue::Int(self.len as i64)),
        ]
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(Slice { dim: attrs.uint("dim")? as usize, start: attrs.uint("start")?, len: attrs.uint("len")? })
    }

    fn samples() -> Vec<Sample> {
        vec![
            Sample::uniform(Slice { dim: 1, start: 2, len: 3 }, &[&[4, 8, 2]]),
            Sample::uniform(Slice { dim: 2, start: 0, len: 1 }, &[&[4, 8, 2]]),
        ]
    }
}

/// Operands one after the other along a dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Concat {
    /// The dimension.
    pub dim: usize,
}

impl OpDef for Concat {
    named!("concat");
    pure!();
    no_alias!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let first = *args.first().ok_or("expected at least one operand")?;
        let mut shape = first.shape.clone();
        if self.dim >= shape.len() {
            return Err(format!("`{first}` has no dimension {}", self.dim));
        }
        for arg in &args[1..] {
            let same = |(i, (a, b)): (usize, (&u64, &u64))| i == self.dim || a == b;
            if arg.rank() != first.rank()
                || arg.dtype != first.dtype
                || !arg.shape.iter().zip(&first.shape).enumerate().all(same)
            {
                return Err(format!("`{arg}` does not fit `{first}` along dimension {}", self.dim));
            }
            shape[self.dim] += arg.shape[self.dim];
        }
        Ok(vec![first.with_shape(shape)])
    }

    fn rule(&self, args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
        let mut builder = RuleBuilder::new();
        let mut result = Vec::new();
        for (i, &d) in results[0].shape.iter().enumerate() {
            let kind = if i == self.dim { FactorKind::Whole } else { FactorKind::Plain };
            result.push(builder.factor_of(format!("d{i}"), d, kind));
        }
        for (i, arg) in args.iter().enumerate() {
            let mut operand = result.clone();
            operand[self.dim] = builder.factor_of(format!("in{i}"), arg.shape[self.dim], FactorKind::Whole);
            builder = builder.operand(&operand);
        }
        builder.result(&result).linear(Linearity::Joint((0..args.len()).collect())).build()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        let dy = cx.dy()?;
        let (mut grads, mut start) = (Vec::new(), 0);
        for i in 0..cx.args.len() {
            let len = cx.ty(cx.args[i]).shape[self.dim];
            grads.push(cx.emit_for(i, Slice { dim: self.dim, start, len }, &[dy]));
            start += len;
        }
        Ok(grads)
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        movement(args, results)
    }

    fn attrs(&self) -> Attrs {
        vec![("dim", AttrValue::Int(self.dim as i64))]
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(Concat { dim: attrs.uint("dim")? as usize })
    }

    fn samples() -> Vec<Sample> {
        vec![Sample::uniform(Concat { dim: 1 }, &[&[4, 3, 2], &[4, 1, 2]])]
    }
}

/// Another element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cast {
    /// The new element type.
    pub to: DType,
}

impl OpDef for Cast {
    named!("cast");
    pure!();
    no_alias!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 1)?;
        Ok(vec![TensorType::new(self.to, args[0].shape.clone())])
    }

    fn rule(&self, args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
        // No bit is lost on the way to f32: a sum can be converted part by part.
        let is_exact = self.to == DType::F32 && args[0].dtype.is_float();
        let linearity = if is_exact { Linearity::Each(vec![0]) } else { Linearity::None };
        super::broadcasting::elementwise_rule(args, results[0], linearity)
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        let dy = cx.dy()?;
        let to = cx.ty(cx.args[0]).dtype;
        Ok(vec![cx.emit_for(0, Cast { to }, &[dy])])
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        movement(args, results)
    }

    fn attrs(&self) -> Attrs {
        vec![("to", AttrValue::Word(self.to.to_string()))]
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(Cast { to: attrs.dtype("to")? })
    }

    fn samples() -> Vec<Sample> {
        vec![Sample::new(Cast { to: DType::F32 }, vec![(TensorType::i64([4, 4]), crate::op::Fill::Index(9))])]
    }
}
