//! `attention` and its gradient, each one op: the score matrix is never a value of the program.

use crate::id::ValueId;
use crate::mesh::{FactorKind, Linearity, RuleBuilder, ShardingRule};
use crate::op::{AttrReader, AttrValue, Attrs, GradCx, NoGradient, OpDef, Sample, Work, expect_args, traffic};
use crate::types::{Scalar, TensorType};

/// (o, lse) = attention(q [b, sq, h, d], k [b, sk, g, d], v [b, sk, g, e], mask?): o = softmax(scale q k + mask) v.
///
/// h is a multiple of g (grouped queries). With `causal`, query i sees the keys up to i + sk - sq. The optional mask is added
/// to the scores: [m, 1 or h, sq, sk] with m a divisor of b, where sample i has mask i mod m. o is [b, sq, h, e]; lse [b, h, sq] is the log of the sum of exponentials. A row
/// without any visible key gives zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attention {
    /// Factor on the scores.
    pub scale: Scalar,
    /// Whether later keys are hidden.
    pub causal: bool,
}

/// (dq, dk, dv) = attention_grad(q, k, v, o, lse, do, mask?).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttentionGrad {
    /// Factor on the scores.
    pub scale: Scalar,
    /// Whether later keys are hidden.
    pub causal: bool,
}

/// dmask = attention_mask_grad(q, k, v, o, lse, do, mask): the gradient of the mask, summed over what shares an element of it.
///
/// An op of its own: few models train what they add to the scores, and the gradients of q, k and v do without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttentionMaskGrad {
    /// Factor on the scores.
    pub scale: Scalar,
    /// Whether later keys are hidden.
    pub causal: bool,
}

fn check_qkv(args: &[&TensorType]) -> Result<(), String> {
    let [q, k, v] = [args[0], args[1], args[2]];
    let ranks = [q, k, v].iter().all(|t| t.rank() == 4 && t.dtype == q.dtype && t.dtype.is_float());
    let fits = ranks
        && q.shape[0] == k.shape[0]
        && q.shape[3] == k.shape[3]
        && k.shape[..3] == v.shape[..3]
        && k.shape[2] > 0
        && q.shape[2].is_multiple_of(k.shape[2]);
    if fits { Ok(()) } else { Err(format!("queries `{q}`, keys `{k}` and values `{v}` do not fit")) }
}

fn check_mask(mask: Option<&&TensorType>, q: &TensorType, k: &TensorType) -> Result<(), String> {
    let Some(mask) = mask else { return Ok(()) };
    let one_or = |d: u64, full: u64| d == 1 || d == full;
    let fits = mask.rank() == 4
        && mask.shape[0] > 0
        && q.shape[0].is_multiple_of(mask.shape[0])
        && one_or(mask.shape[1], q.shape[2])
        && mask.shape[2..] == [q.shape[1], k.shape[1]];
    if fits { Ok(()) } else { Err(format!("mask `{mask}` does not fit queries `{q}`")) }
}

/// Factors of the shared dimensions: batch, groups, heads of a group, lengths, widths.
struct Factors {
    /// One for the batch; two if it is made of runs of samples with masks of their own.
    b: Vec<usize>,
    heads: Vec<usize>,
    groups: Vec<usize>,
    sq: usize,
    sk: usize,
    d: usize,
    e: usize,
}

impl Factors {
    /// Each query is computed by itself; under a causal rule it must know its place in the sequence.
    fn new(builder: &mut RuleBuilder, args: &[&TensorType], mask: Option<&&TensorType>, causal: bool) -> Factors {
        let (q, k, v) = (args[0], args[1], args[2]);
        let batch = q.shape[0];
        let b = match mask.map_or(1, |mask| mask.shape[0]) {
            n if n == 1 || n == batch => vec![builder.factor("b", batch)],
            n => vec![builder.factor("b", batch / n), builder.factor("w", n)],
        };
        let h = builder.factor("h", k.shape[2]);
        let mut heads = vec![h];
        if q.shape[2] != k.shape[2] {
            heads.push(builder.factor("r", q.shape[2] / k.shape[2]));
        }
        let sq = builder.factor_of("q", q.shape[1], if causal { FactorKind::Offset } else { FactorKind::Plain });
        let mut whole = |label: &str, size| builder.factor_of(label, size, FactorKind::Whole);
        let sk = whole("k", k.shape[1]);
        let (d, e) = (whole("d", q.shape[3]), whole("e", v.shape[3]));
        Factors { b, heads, groups: vec![h], sq, sk, d, e }
    }

    fn q(&self) -> Vec<Vec<usize>> {
        vec![self.b.clone(), vec![self.sq], self.heads.clone(), vec![self.d]]
    }

    fn k(&self) -> Vec<Vec<usize>> {
        vec![self.b.clone(), vec![self.sk], self.groups.clone(), vec![self.d]]
    }

    fn v(&self) -> Vec<Vec<usize>> {
        vec![self.b.clone(), vec![self.sk], self.groups.clone(), vec![self.e]]
    }

    fn o(&self) -> Vec<Vec<usize>> {
        vec![self.b.clone(), vec![self.sq], self.heads.clone(), vec![self.e]]
    }

    fn lse(&self) -> Vec<Vec<usize>> {
        vec![self.b.clone(), self.heads.clone(), vec![self.sq]]
    }

    fn mask(&self, mask: &TensorType) -> Vec<Vec<usize>> {
        let one_or = |d: u64, fs: Vec<usize>| if d == 1 { Vec::new() } else { fs };
        vec![
            one_or(mask.shape[0], self.b[self.b.len() - 1..].to_vec()),
            one_or(mask.shape[1], self.heads.clone()),
            vec![self.sq],
            vec![self.sk],
        ]
    }
}

/// Multiply-adds of one product of the score matrix with vectors of width `width`.
fn score_flops(q: &TensorType, k: &TensorType, width: u64, causal: bool) -> u64 {
    seen(q, k, 2 * q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1] * width, causal)
}

/// What is left under a causal rule of work on all pairs of queries and keys: half of it for as many keys as queries. Of queries that
/// are cut over ranks it is the work of the last ones, which see all keys but half of their own length.
fn seen(q: &TensorType, k: &TensorType, all: u64, causal: bool) -> u64 {
    let (queries, keys) = (u128::from(q.shape[1]), u128::from(k.shape[1]));
    let share = |part: u128, whole: u128| (u128::from(all) * part / whole.max(1)) as u64;
    match (causal, queries <= keys) {
        (false, _) => all,
        (true, true) => share(2 * keys - queries, 2 * keys),
        (true, false) => share(keys, 2 * queries),
    }
}

fn attrs_of(scale: Scalar, causal: bool) -> Attrs {
    let mut attrs = vec![("scale", AttrValue::Float(scale))];
    if causal {
        attrs.push(("causal", AttrValue::Flag));
    }
    attrs
}

impl OpDef for Attention {
    named!("attention");
    pure!();
    no_alias!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        if args.len() != 4 {
            expect_args(args, 3)?;
        }
        check_qkv(args)?;
        check_mask(args.get(3), args[0], args[1])?;
        let q = args[0];
        let o = q.with_shape([q.shape[0], q.shape[1], q.shape[2], args[2].shape[3]]);
        Ok(vec![o, TensorType::f32([q.shape[0], q.shape[2], q.shape[1]])])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut b = RuleBuilder::new();
        let f = Factors::new(&mut b, args, args.get(3), self.causal);
        b = b.operand_dims(f.q()).operand_dims(f.k()).operand_dims(f.v());
        if let Some(mask) = args.get(3) {
            b = b.operand_dims(f.mask(mask));
        }
        b.result_dims(f.o()).result_dims(f.lse()).build()
    }

    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        if cx.grads[1].is_some() {
            return Err(NoGradient("the log-sum-exp of `attention` has no gradient".into()));
        }
        let mut args = vec![cx.args[0], cx.args[1], cx.args[2], cx.results[0], cx.results[1], cx.dy()?];
        args.extend(cx.args.get(3));
        let (scale, causal) = (self.scale, self.causal);
        let mut all = vec![None; cx.args.len()];
        if cx.needs[..3].contains(&true) {
            let grads = cx.emit_all(AttentionGrad { scale, causal }, &args);
            all.iter_mut().zip(grads).for_each(|(slot, grad)| *slot = Some(grad));
        }
        if cx.needs.get(3) == Some(&true) {
            all[3] = Some(cx.emit(AttentionMaskGrad { scale, causal }, &args));
        }
        Ok(all)
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        let (q, k, v) = (args[0], args[1], args[2]);
        let matmul_flops = score_flops(q, k, q.shape[3], self.causal) + score_flops(q, k, v.shape[3], self.causal);
        let flops = seen(q, k, 8 * q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1], self.causal);
        Work { matmul_flops, flops, bytes: traffic(args, results) }
    }

    fn attrs(&self) -> Attrs {
        attrs_of(self.scale, self.causal)
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(Attention { scale: attrs.float("scale")?, causal: attrs.flag("causal") })
    }

    fn samples() -> Vec<Sample> {
        let op = |causal| Attention { scale: Scalar::new(0.5), causal };
        let qkv: [&[u64]; 3] = [&[4, 6, 4, 2], &[4, 6, 4, 2], &[4, 6, 4, 2]];
        vec![
            Sample::uniform(op(true), &qkv),
            Sample::uniform(op(false), &[&[2, 3, 4, 4], &[2, 5, 2, 4], &[2, 5, 2, 3]]),
            Sample::uniform(op(false), &[&[2, 3, 4, 2], &[2, 3, 4, 2], &[2, 3, 4, 2], &[2, 1, 3, 3]]),
            Sample::uniform(op(false), &[&[4, 3, 2, 2], &[4, 3, 2, 2], &[4, 3, 2, 2], &[2, 2, 3, 3]]),
        ]
    }
}

/// Checks q, k, v, o, lse, do, mask?.
fn check_saved(args: &[&TensorType]) -> Result<(), String> {
    check_mask(args.get(6), args[0], args[1])?;
    if args[3] != args[5] || args[4].rank() != 3 {
        return Err("expected q, k, v, o, lse, do".into());
    }
    Ok(())
}

/// Adds the operands q, k, v, o, lse, do, mask?.
fn saved_operands(mut b: RuleBuilder, f: &Factors, args: &[&TensorType]) -> RuleBuilder {
    b = b.operand_dims(f.q()).operand_dims(f.k()).operand_dims(f.v());
    b = b.operand_dims(f.o()).operand_dims(f.lse()).operand_dims(f.o());
    match args.get(6) {
        Some(mask) => b.operand_dims(f.mask(mask)),
        None => b,
    }
}

impl OpDef for AttentionGrad {
    named!("attention_grad");
    pure!();
    no_alias!();
    no_gradient!("second derivatives are not supported");

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        if args.len() != 7 {
            expect_args(args, 6)?;
        }
        check_qkv(args)?;
        check_saved(args)?;
        Ok(args[..3].iter().map(|t| (*t).clone()).collect())
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut b = RuleBuilder::new();
        let f = Factors::new(&mut b, args, args.get(6), self.causal);
        b = saved_operands(b, &f, args);
        b.result_dims(f.q()).result_dims(f.k()).result_dims(f.v()).linear(Linearity::None).build()
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        let (q, k, v) = (args[0], args[1], args[2]);
        let matmul_flops =
            3 * score_flops(q, k, q.shape[3], self.causal) + 2 * score_flops(q, k, v.shape[3], self.causal);
        let flops = seen(q, k, 12 * q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1], self.causal);
        Work { matmul_flops, flops, bytes: traffic(args, results) }
    }

    fn attrs(&self) -> Attrs {
        attrs_of(self.scale, self.causal)
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(AttentionGrad { scale: attrs.float("scale")?, causal: attrs.flag("causal") })
    }

    fn samples() -> Vec<Sample> {
        let op = |causal| AttentionGrad { scale: Scalar::new(0.5), causal };
        let qkv: &[u64] = &[4, 6, 4, 2];
        vec![Sample::uniform(op(true), &[qkv, qkv, qkv, qkv, &[4, 4, 6], qkv])]
    }
}

impl OpDef for AttentionMaskGrad {
    named!("attention_mask_grad");
    pure!();
    no_alias!();
    no_gradient!("second derivatives are not supported");

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 7)?;
        check_qkv(args)?;
        check_saved(args)?;
        Ok(vec![args[6].clone()])
    }

    fn rule(&self, args: &[&TensorType], _results: &[&TensorType]) -> ShardingRule {
        let mut b = RuleBuilder::new();
        let f = Factors::new(&mut b, args, args.get(6), self.causal);
        b = saved_operands(b, &f, args);
        b.result_dims(f.mask(args[6])).linear(Linearity::None).build()
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        let (q, k, v) = (args[0], args[1], args[2]);
        let matmul_flops = score_flops(q, k, q.shape[3], self.causal) + score_flops(q, k, v.shape[3], self.causal);
        let flops = seen(q, k, 8 * q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1], self.causal);
        Work { matmul_flops, flops, bytes: traffic(args, results) }
    }

    fn attrs(&self) -> Attrs {
        attrs_of(self.scale, self.causal)
    }

    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        Ok(AttentionMaskGrad { scale: attrs.float("scale")?, causal: attrs.flag("causal") })
    }

    fn samples() -> Vec<Sample> {
        let op = |causal| AttentionMaskGrad { scale: Scalar::new(0.5), causal };
        let qkv: &[u64] = &[4, 6, 4, 2];
        let saved = [qkv, qkv, qkv, qkv, &[4, 4, 6], qkv];
        let sample = |causal, mask: &[u64]| Sample::uniform(op(causal), &[&saved[..], &[mask]].concat());
        vec![sample(true, &[1, 4, 6, 6]), sample(false, &[2, 1, 6, 6])]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_causal_rule_leaves_half_of_a_square_and_more_of_the_last_queries() {
        let t = |sequence: u64| TensorType::f32([1, sequence, 1, 1]);
        assert_eq!(seen(&t(8), &t(8), 64, false), 64);
        assert_eq!(seen(&t(8), &t(8), 64, true), 32);
        assert_eq!(seen(&t(2), &t(8), 16, true), 14);
        assert_eq!(seen(&t(8), &t(2), 16, true), 2);
        assert_eq!(seen(&t(0), &t(0), 0, true), 0);
    }
}
