//! Elements along one dimension by index: `take_along` reads them, `put_along` and `add_along` write them.

use super::Full;
use crate::id::ValueId;
use crate::mesh::{FactorKind, Linearity, RuleBuilder, ShardingRule};
use crate::op::{AttrReader, AttrValue, Attrs, Fill, GradCx, NoGradient, OpDef, Sample, Work, expect_args, traffic};
use crate::types::{DType, Scalar, TensorType};

/// Factors of x and of the indices, which agree but for the indexed dimension.
fn factors(b: &mut RuleBuilder, x: &TensorType, ids: &TensorType, dim: usize) -> (Vec<usize>, Vec<usize>) {
    let kind = |i| if i == dim { FactorKind::Whole } else { FactorKind::Plain };
    let own: Vec<usize> = x.shape.iter().enumerate().map(|(i, &d)| b.factor_of(format!("d{i}"), d, kind(i))).collect();
    let mut picked = own.clone();
    picked[dim] = b.factor_of("k", ids.shape[dim], FactorKind::Whole);
    (own, picked)
}

fn check_ids(x: &TensorType, ids: &TensorType, dim: usize) -> Result<(), String> {
    let same = |i: usize| i == dim || x.shape[i] == ids.shape[i];
    let fits = ids.dtype == DType::I64 && x.rank() == ids.rank() && dim < x.rank() && (0..x.rank()).all(same);
    if fits { Ok(()) } else { Err(format!("`{ids}` does not index dimension {dim} of `{x}`")) }
}

fn dim_attr(dim: usize) -> Attrs {
    vec![("dim", AttrValue::Int(dim as i64))]
}

/// out[.., i, ..] = x[.., ids[.., i, ..], ..] along `dim`; x and ids (i64) agree in all other dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TakeAlong {
    /// The indexed dimension.
    pub dim: usize,
}

impl OpDef for TakeAlong {
    named!("take_along");
    pure!();
    no_alias!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 2)?;
        check_ids(args[0], args[1], self.dim)?;
        Ok(vec![args[0].with_shape(args[1].shape.clone())])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut b = RuleBuilder::new();
        let (own, picked) = factors(&mut b, args[0], args[1], self.dim);
        b.operand(&own).operand(&picked).result(&picked).linear(Linearity::Each(vec![0])).build()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        let (ids, dy) = (cx.args[1], cx.dy()?);
        if !cx.needs[0] {
            return Ok(vec![None, None]);
        }
        let ty = cx.ty(cx.args[0]);
        let zeros = cx.emit(Full { ty, value: Scalar::new(0.0) }, &[]);
        Ok(vec![Some(cx.emit(PutAlong { dim: self.dim, adds: true }, &[zeros, ids, dy])), None])
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: 0, bytes: 2 * results[0].bytes() + args[1].bytes() }
    }

    fn attrs(&self) -> Attrs {
        dim_attr(self.dim)
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(TakeAlong { dim: attrs.uint("dim")? as usize })
    }

    fn samples() -> Vec<Sample> {
        let ids = |shape: &[u64], n| (TensorType::i64(shape.to_vec()), Fill::Index(n));
        let float = |shape: &[u64]| (TensorType::f32(shape.to_vec()), Fill::Uniform);
        vec![
            Sample::new(TakeAlong { dim: 1 }, vec![float(&[4, 6, 2]), ids(&[4, 3, 2], 6)]),
            Sample::new(TakeAlong { dim: 2 }, vec![float(&[2, 4, 5]), ids(&[2, 4, 1], 5)]),
            Sample::new(TakeAlong { dim: 0 }, vec![ids(&[3, 4], 9), ids(&[5, 4], 3)]),
        ]
    }
}

/// x with y written to (or, if it `adds`, added at) the places ids (i64) along `dim`; operands x, ids, y.
///
/// Where places repeat, the later one stays, and all are added, in the order of the indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PutAlong {
    /// The indexed dimension.
    pub dim: usize,
    /// Whether elements are added to those of x.
    pub adds: bool,
}

impl OpDef for PutAlong {
    pure!();

    fn mnemonics() -> Vec<&'static str> {
        vec!["put_along", "add_along"]
    }

    fn mnemonic(&self) -> &'static str {
        if self.adds { "add_along" } else { "put_along" }
    }

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 3)?;
        check_ids(args[0], args[1], self.dim)?;
        if *args[2] != args[0].with_shape(args[1].shape.clone()) || (self.adds && args[0].dtype == DType::Bool) {
            return Err(format!("`{}` does not go to the places `{}` of `{}`", args[2], args[1], args[0]));
        }
        Ok(vec![args[0].clone()])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut b = RuleBuilder::new();
        let (own, picked) = factors(&mut b, args[0], args[1], self.dim);
        let b = b.operand(&own).operand(&picked).operand(&picked).result(&own);
        b.linear(Linearity::Joint(vec![0, 2])).build()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        let (ids, dy) = (cx.args[1], cx.dy()?);
        let dx = match (cx.needs[0], self.adds) {
            (false, _) => None,
            (true, true) => Some(dy),
            (true, false) => {
                let ty = cx.ty(cx.args[2]);
                let zeros = cx.emit(Full { ty, value: Scalar::new(0.0) }, &[]);
                Some(cx.emit(*self, &[dy, ids, zeros]))
            }
        };
        Ok(vec![dx, None, cx.emit_for(2, TakeAlong { dim: self.dim }, &[dy, ids])])
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        let flops = if self.adds { args[2].elements() } else { 0 };
        Work { matmul_flops: 0, flops, bytes: traffic(args, results) }
    }

    fn alias(&self) -> crate::op::Alias {
        crate::op::Alias::MayReuse(vec![0])
    }

    fn attrs(&self) -> Attrs {
        dim_attr(self.dim)
    }

    fn parse(mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(PutAlong { dim: attrs.uint("dim")? as usize, adds: mnemonic == "add_along" })
    }

    fn samples() -> Vec<Sample> {
        let ids = |shape: &[u64], n| (TensorType::i64(shape.to_vec()), Fill::Index(n));
        let float = |shape: &[u64]| (TensorType::f32(shape.to_vec()), Fill::Uniform);
        let op = |dim, adds| PutAlong { dim, adds };
        vec![
            Sample::new(op(1, true), vec![float(&[4, 6, 2]), ids(&[4, 8, 2], 6), float(&[4, 8, 2])]),
            Sample::new(op(2, true), vec![float(&[2, 4, 5]), ids(&[2, 4, 3], 5), float(&[2, 4, 3])]),
            Sample::new(op(1, false), vec![float(&[4, 6]), ids(&[4, 1], 6), float(&[4, 1])]),
            Sample::new(op(0, false), vec![ids(&[3, 4], 9), ids(&[2, 4], 3), ids(&[2, 4], 9)]),
        ]
    }
}
