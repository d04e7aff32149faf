//! `dropout`: elements that are set to zero by chance, drawn from their place in the whole tensor and from nothing else.

use super::broadcasting::elementwise_rule;
use crate::id::ValueId;
use crate::mesh::{Linearity, ShardingRule};
use crate::op::{
    Alias, AttrReader, AttrValue, Attrs, Fill, GradCx, NoGradient, OpDef, Sample, Work, expect_args, traffic,
};
use crate::types::{DType, Scalar, TensorType};

/// y = dropout(x, step): an element is kept and divided by 1 - p, or 0 with probability p (Srivastava et al. 2014).
///
/// Element i, counted in row-major order in the *global* tensor of the whole optimizer step, is kept if a word of 32 bits is at
/// least [`Dropout::threshold`]: word i mod 4 of Philox4x32-10 (Salmon et al., *Parallel Random Numbers: As Easy as 1, 2, 3*,
/// SC 2011) with the seed as key and the counter (⌊i / 4⌋, its upper half, step, number), each low word first. So the elements
/// that are kept are the same under every plan: whatever the ranks, placements and micro-batches are, and when it is
/// computed again.
///
/// `step` is a scalar of f32 that counts from 1; it is exact below 2^24.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dropout {
    /// Probability of a zero, at least 0 and below 1.
    pub p: Scalar,
    /// The seed of the training.
    pub seed: u64,
    /// Which dropout of the model it is: those of one program have different ones.
    pub number: u32,
}

impl Dropout {
    /// The words below it are those of zeros: p 2^32, rounded; at most 2^32.
    pub fn threshold(&self) -> u64 {
        (self.p.get() * 4_294_967_296.0).round() as u64
    }
}

impl OpDef for Dropout {
    named!("dropout");
    pure!();

    fn infer(&self, args: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        expect_args(args, 2)?;
        if !(0.0..1.0).contains(&self.p.get()) {
            return Err(format!("the probability of a zero is {}, it must be at least 0 and below 1", self.p));
        }
        if !args[0].dtype.is_float() {
            return Err(format!("operand `{}` must be a float", args[0]));
        }
        if *args[1] != TensorType::new(DType::F32, []) {
            return Err(format!("the step `{}` is no f32 scalar", args[1]));
        }
        Ok(vec![args[0].clone()])
    }

    /// Every dimension may be cut, because a rank knows where its part lies. Partial sums pass: all summands of an element lie at
    /// the same index, so that they are kept or dropped together, and the sum of y is y of the sum.
    fn rule(&self, args: &[&TensorType], results: &[&TensorType]) -> ShardingRule {
        elementwise_rule(args, results[0], Linearity::Joint(vec![0]))
    }

    /// dx = dropout(dy, step), of the same seed and number.
    fn gradient(&self, cx: &mut GradCx<'_>) -> Result<Vec<Option<ValueId>>, NoGradient> {
        if cx.needs[1] {
            return Err(NoGradient("no gradient flows into the number of the step".into()));
        }
        let (dy, step) = (cx.dy()?, cx.args[1]);
        Ok(vec![cx.emit_for(0, *self, &[dy, step]), None])
    }

    fn work(&self, args: &[&TensorType], results: &[&TensorType]) -> Work {
        Work { matmul_flops: 0, flops: 16 * results[0].elements(), bytes: traffic(args, results) }
    }

    fn alias(&self) -> Alias {
        Alias::MayReuse(vec![0])
    }

    fn attrs(&self) -> Attrs {
        vec![
            ("p", AttrValue::Float(self.p)),
            ("seed", AttrValue::Int(self.seed.cast_signed())),
            ("number", AttrValue::Int(i64::from(self.number))),
        ]
    }

    /// Seeds above 2^63 are written as negative numbers.
    fn parse(_mnemonic: &str, attrs: &mut AttrReader) -> Result<Self, String> {
        let number = attrs.uint("number")?;
        let number = u32::try_from(number).map_err(|_| format!("attribute `number` is {number}, above 2^32"))?;
        Ok(Dropout { p: attrs.float("p")?, seed: attrs.int("seed")?.cast_unsigned(), number })
    }

    fn samples() -> Vec<Sample> {
        let op = |p, seed, number| Dropout { p: Scalar::new(p), seed, number };
        let step = || (TensorType::f32([]), Fill::Index(100));
        let x = |shape: &[u64]| (TensorType::f32(shape), Fill::Uniform);
        vec![
            Sample::new(op(0.5, 7, 0), vec![x(&[4, 8]), step()]),
            Sample::new(op(0.1, u64::MAX, 3), vec![x(&[2, 4, 6]), step()]),
            Sample::new(op(0.25, 0, u32::MAX), vec![x(&[4, 3, 2, 4]), step()]),
            Sample::new(op(0.0, 1, 1), vec![x(&[5]), step()]),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_below_1_and_steps_of_f32_are_taken() {
        let (x, step) = (TensorType::f32([4]), TensorType::f32([]));
        let infer = |p, x: &TensorType, step: &TensorType| {
            Dropout { p: Scalar::new(p), seed: 0, number: 0 }.infer(&[x, step]).is_ok()
        };
        assert!(infer(0.0, &x, &step) && infer(0.999, &x, &step));
        assert!(!infer(1.0, &x, &step) && !infer(-0.1, &x, &step) && !infer(f64::NAN, &x, &step));
        assert!(!infer(0.5, &TensorType::i64([4]), &step) && !infer(0.5, &x, &x));
    }

    #[test]
    fn thresholds_are_parts_of_all_words() {
        let threshold = |p| Dropout { p: Scalar::new(p), seed: 0, number: 0 }.threshold();
        assert_eq!([0.0, 0.5, 1.0 - 1e-17].map(threshold), [0, 1 << 31, 1 << 32]);
    }
}
