//! `reduce_max`, `reduce_min` and `reduce_prod`: over some dimensions, which disappear.

use super::{Binary, Broadcast, Cast, Compare, Full, ReduceSum, Where};
use crate::id::ValueId;
use crate::mesh::{FactorKind, Linearity, RuleBuilder, ShardingRule};
use crate::op::{AttrReader, AttrValue, Attrs, Fill, GradCx, NoGradient, OpDef, Sample, Work, expect_args, traffic};
use crate::types::{DType, Scalar, TensorType};

/// What becomes of the elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReduceKind {
    /// The largest, NaN if there is one; elements that share it share the gradient.
    Max,
    /// The smallest, NaN if there is one; elements that share it share the gradient.
    Min,
    /// Their product.
    Prod,
}

const KINDS: [(ReduceKind, &str); 3] =
    [(ReduceKind::Max, "reduce_max"), (ReduceKind::Min, "reduce_min"), (ReduceKind::Prod, "reduce_prod")];

/// Largest, smallest or product over `dims`, of floats or integers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reduce {
    /// Which of them.
    pub kind: ReduceKind,
    /// The dimensions, ascending.
    pub dims: Vec<usize>,
}

impl Reduce {
    fn kept(&self, rank: usize) -> Vec<usize> {
        (0..rank).filter(|d| !self.dims.contains(d)).collect()
    }

    /// A value of the result's shape repeated to that of the operand.
    fn spread(&self, cx: &mut GradCx<'_>, value: ValueId) -> ValueId {
        let shape = cx.ty(cx.args[0]).shape;
        let dims = self.kept(shape.len());
        cx.emit(Broadcast { shape, dims }, &[value])
    }

    /// How many elements of each sum hold, in the element type of x.
    fn count(&self, cx: &mut GradCx<'_>, holds: ValueId) -> ValueId {
        let to = cx.ty(cx.args[0]).dtype;
        let ones = cx.emit(Cast { to }, &[holds]);
        cx.emit(ReduceSum { dims: self.dims.clone() }, &[ones])
    }

    /// dy over the number of elements that are y, at those elements.
    fn grad_of_extreme(&self, cx: &mut GradCx<'_>, dy: ValueId) -> ValueId {
        let (x, y) = (cx.args[0], cx.results[0]);
        let extreme = self.spread(cx, y);
        let chosen = cx.emit(Compare::EQUAL, &[x, extreme]);
        let n = self.count(cx, chosen);
        let share = cx.emit(Binary::DIV, &[dy, n]);
        let share = self.spread(cx, share);
        let zero = number(cx, 0.0);
        cx.emit(Where, &[chosen, share, zero])
    }

    /// dy times the product of the other elements: with p the product of those that are not 0, p / x without zeros, p at
    /// the only zero, 0 where another element is.
    fn grad_of_product(&self, cx: &mut GradCx<'_>, dy: ValueId) -> ValueId {
        let x = cx.args[0];
        let (zero, one) = (number(cx, 0.0), number(cx, 1.0));
        let vanishes = cx.emit(Compare::EQUAL, &[x, zero]);
        let n = self.count(cx, vanishes);
        let n_zeros = self.spread(cx, n);
        let safe = cx.emit(Where, &[vanishes, one, x]);
        let product = cx.emit(Reduce { kind: ReduceKind::Prod, dims: self.dims.clone() }, &[safe]);
        let scaled = cx.emit(Binary::MUL, &[dy, product]);
        let scaled = self.spread(cx, scaled);
        let ratio = cx.emit(Binary::DIV, &[scaled, safe]);
        let (without, single) = (cx.emit(Compare::EQUAL, &[n_zeros, zero]), cx.emit(Compare::EQUAL, &[n_zeros, one]));
        let at_zero = cx.emit(Where, &[single, scaled, zero]);
        let elsewhere = cx.emit(Where, &[without, ratio, zero]);
        cx.emit(Where, &[vanishes, at_zero, elsewhere])
    }
}

/// A scalar of the element type of x.
fn number(cx: &mut GradCx<'_>, value: f64) -> ValueId {
    let ty = cx.ty(cx.args[0]).with_shape([]);
    cx.emit(Full { ty, value: Scalar::new(value) }, &[])
}

impl OpDef for Reduce {
    pure!();
    no_alias!();

    fn mnemonics() -> Vec<&'static str> {
        KINDS.iter().map(|(_, n)| *n).collect()
    }

    fn mnemonic(&self) -> &'static str {
        KINDS.iter().find(|(k, _)| *k == self.kind).map_or("reduce", |(_, n)| n)
    }

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 1)?;
        let in_range = self.dims.is_sorted() && self.dims.iter().all(|&d| d < args[0].rank());
        if args[0].dtype == DType::Bool || !in_range {
            return Err(format!("dimensions {:?} of `{}` cannot be reduced", self.dims, args[0]));
        }
        let shape: Vec<u64> = self.kept(args[0].rank()).iter().map(|&d| args[0].shape[d]).collect();
        Ok(vec![args[0].with_shape(shape)])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut b = RuleBuilder::new();
        let kind = |i| if self.dims.contains(&i) { FactorKind::Whole } else { FactorKind::Plain };
        let all: Vec<usize> =
            args[0].shape.iter().enumerate().map(|(i, &d)| b.factor_of(format!("d{i}"), d, kind(i))).collect();
        b.operand(&all).result(&self.kept(all.len())).linear(Linearity::None).build()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        let dy = cx.dy()?;
        if !cx.needs[0] {
            return Ok(vec![None]);
        }
        Ok(vec![Some(match self.kind {
            ReduceKind::Max | ReduceKind::Min => self.grad_of_extreme(cx, dy),
            ReduceKind::Prod => self.grad_of_product(cx, dy),
        })])
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: args[0].elements(), bytes: traffic(args, results) }
    }

    fn attrs(&self) -> Attrs {
        vec![("dims", AttrValue::Ints(self.dims.iter().map(|&d| d as i64).collect()))]
    }

    fn parse(mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        let kind = KINDS.iter().find(|(_, n)| *n == mnemonic).map(|(k, _)| *k);
        let kind = kind.ok_or_else(|| format!("`{mnemonic}` is no reduction"))?;
        Ok(Reduce { kind, dims: attrs.uints("dims")?.into_iter().map(|d| d as usize).collect() })
    }

    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        for (kind, _) in KINDS {
            for dims in [&[0usize, 1][..], &[2], &[1], &[0, 1, 2]] {
                samples.push(Sample::uniform(Reduce { kind, dims: dims.to_vec() }, &[&[4, 2, 4]]));
            }
            let integers = (TensorType::i64([4, 3, 4]), Fill::Index(5));
            samples.push(Sample::new(Reduce { kind, dims: vec![1] }, vec![integers]));
        }
        samples
    }
}
