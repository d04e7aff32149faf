//! `embedding`: rows of a table by index, and the gradient of the table.

use crate::id::ValueId;
use crate::mesh::{FactorKind, Linearity, RuleBuilder, ShardingRule};
use crate::op::attrs::to_ints;
use crate::op::{AttrReader, Attrs, Fill, GradCx, NoGradient, OpDef, Sample, Work, expect_args, traffic};
use crate::types::{DType, TensorType};

/// Factors: the index dimensions, the rows of the table (sharded by offset), the row's dimensions.
fn factors(b: &mut RuleBuilder, ids: &TensorType, table: &[u64]) -> (Vec<usize>, usize, Vec<usize>) {
    let index = ids.shape.iter().enumerate().map(|(i, &d)| b.factor(format!("d{i}"), d)).collect();
    let rows = b.factor_of("v", table[0], FactorKind::Offset);
    let width = table[1..].iter().enumerate().map(|(i, &d)| b.factor(format!("h{i}"), d)).collect();
    (index, rows, width)
}

fn join(a: &[usize], b: &[usize]) -> Vec<usize> {
    a.iter().chain(b).copied().collect()
}

/// out [ids.., width..] = table [v, width..] at the rows ids [..] (i64).
///
/// With the rows sharded, a rank contributes zeros for the rows that it does not hold: a partial sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Embedding;

impl OpDef for Embedding {
    named!("embedding");
    pure!();
    no_alias!();
    no_attrs!(Embedding);

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 2)?;
        if args[0].rank() == 0 || args[1].dtype != DType::I64 {
            return Err(format!("`{}` is no table for indices `{}`", args[0], args[1]));
        }
        let shape: Vec<u64> = args[1].shape.iter().chain(&args[0].shape[1..]).copied().collect();
        Ok(vec![args[0].with_shape(shape)])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut b = RuleBuilder::new();
        let (index, rows, width) = factors(&mut b, args[1], &args[0].shape);
        b.operand(&join(&[rows], &width))
            .operand(&index)
            .result(&join(&index, &width))
            .linear(Linearity::Each(vec![0]))
            .build()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        let (ids, dy) = (cx.args[1], cx.dy()?);
        let shape = cx.ty(cx.args[0]).shape;
        Ok(vec![cx.emit_for(0, EmbeddingGrad { shape }, &[ids, dy]), None])
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: 0, bytes: 2 * results[0].bytes() + args[1].bytes() }
    }

    fn samples() -> Vec<Sample> {
        let args = vec![(TensorType::f32([8, 4]), Fill::Uniform), (TensorType::i64([4, 2]), Fill::Index(8))];
        vec![Sample::new(Embedding, args)]
    }
}

/// dtable [shape] = the sum of dy [ids.., width..] into the rows ids; operands ids, dy. Sums in order of the indices.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EmbeddingGrad {
    /// Global shape of the table.
    pub shape: Vec<u64>,
}

impl OpDef for EmbeddingGrad {
    named!("embedding_grad");
    pure!();
    no_alias!();
    no_gradient!("second derivatives are not supported");

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 2)?;
        let n = args[0].rank();
        let fits = args[0].dtype == DType::I64
            && !self.shape.is_empty()
            && args[1].rank() == n + self.shape.len() - 1
            && args[1].shape[..n] == args[0].shape[..]
            && args[1].shape[n..] == self.shape[1..];
        if fits {
            Ok(vec![args[1].with_shape(self.shape.clone())])
        } else {
            Err(format!("indices `{}` and gradient `{}` do not fit a table of {:?}", args[0], args[1], self.shape))
        }
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut b = RuleBuilder::new();
        let (index, rows, width) = factors(&mut b, args[0], &self.shape);
        b.operand(&index)
            .operand(&join(&index, &width))
            .result(&join(&[rows], &width))
            .linear(Linearity::Each(vec![1]))
            .build()
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: args[1].elements(), bytes: traffic(args, results) + args[1].bytes() }
    }

    fn attrs(&self) -> Attrs {
        vec![("shape", to_ints(&self.shape))]
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(EmbeddingGrad { shape: attrs.uints("shape")? })
    }

    fn samples() -> Vec<Sample> {
        let args = vec![(TensorType::i64([4, 2]), Fill::Index(8)), (TensorType::f32([4, 2, 4]), Fill::Uniform)];
        vec![Sample::new(EmbeddingGrad { shape: vec![8, 4] }, args)]
    }
}
