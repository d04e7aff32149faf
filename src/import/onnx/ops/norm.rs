//! Normalisations and softmax.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{Binary, Full, LayerNorm, ReduceSum, Softmax, Unary, UnaryKind};
use galvatron_ir::types::{Scalar, TensorType};

use super::layout::transposed;
use super::{Call, Fault, Lowered, Operator, Results, axis_index, one};

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "LayerNormalization" => layer_norm,
        "RMSNormalization" => rms_norm,
        "Softmax" => softmax,
        _ => return None,
    })
}

/// The operand with the dimensions from the axis on merged, and its shape before.
fn rows(call: &mut Call<'_, '_>) -> Result<(ValueId, Vec<u64>, usize), Fault> {
    let x = call.value(0)?;
    let shape = call.ty(x).shape;
    let axis = call.axis(-1, shape.len())?;
    let merged: Vec<u64> = shape[..axis].iter().copied().chain([shape[axis..].iter().product()]).collect();
    Ok((call.reshape(x, &merged)?, shape, axis))
}

/// A gain or bias as a vector over the merged dimensions; ones or zeros if it is absent.
fn vector(call: &mut Call<'_, '_>, index: usize, normalised: &[u64], default: f64) -> Result<ValueId, Fault> {
    let n: u64 = normalised.iter().product();
    if !call.has(index) {
        return call.emit(Full { ty: TensorType::f32([n]), value: Scalar::new(default) }, &[]);
    }
    let value = call.value(index)?;
    if call.ty(value).elements() == n {
        return call.reshape(value, &[n]);
    }
    let whole = super::layout::expanded(call, value, normalised.to_vec())?;
    call.reshape(whole, &[n])
}

/// Results: the normalised tensor, the mean and the inverse standard deviation.
fn layer_norm(call: &mut Call<'_, '_>) -> Results {
    let eps = Scalar::new(f64::from(call.attributes().float("epsilon", 1e-5)));
    let (x, shape, axis) = rows(call)?;
    let gain = vector(call, 1, &shape[axis..], 1.0)?;
    let bias = vector(call, 2, &shape[axis..], 0.0)?;
    let results = call.emit_all(LayerNorm { eps }, &[x, gain, bias])?;
    let mut lowered = vec![Lowered::Value(call.reshape(results[0], &shape)?)];
    let wanted = call.node.outputs.iter().skip(1).take(2).cloned().collect::<Vec<_>>();
    for (i, name) in wanted.iter().enumerate() {
        let stat = |d: usize| if d < axis { shape[d] } else { 1 };
        let stats: Vec<u64> = (0..shape.len()).map(stat).collect();
        let value = if name.is_empty() { results[i + 1] } else { call.reshape(results[i + 1], &stats)? };
        lowered.push(Lowered::Value(value));
    }
    Ok(lowered)
}

/// x / sqrt(mean of x² + epsilon) times the gain.
fn rms_norm(call: &mut Call<'_, '_>) -> Results {
    let eps = f64::from(call.attributes().float("epsilon", 1e-5));
    let (x, shape, axis) = rows(call)?;
    let gain = vector(call, 1, &shape[axis..], 1.0)?;
    let last = call.ty(x).rank() - 1;
    let mut stats = call.ty(x).shape;
    let n = std::mem::replace(&mut stats[last], 1);
    let square = call.emit(Binary::MUL, &[x, x])?;
    let sum = call.emit(ReduceSum { dims: vec![last] }, &[square])?;
    let per_element = call.scalar(1.0 / n as f64)?;
    let mean = call.emit(Binary::MUL, &[sum, per_element])?;
    let mean = call.reshape(mean, &stats)?;
    let eps = call.scalar(eps)?;
    let shifted = call.emit(Binary::ADD, &[mean, eps])?;
    let root = call.emit(Unary { kind: UnaryKind::Sqrt }, &[shifted])?;
    let normalised = call.emit(Binary::DIV, &[x, root])?;
    let scaled = call.emit(Binary::MUL, &[normalised, gain])?;
    one(call.reshape(scaled, &shape)?)
}

/// Over one axis; before operator set 13 over all dimensions from the axis on, by default from the second.
fn softmax(call: &mut Call<'_, '_>) -> Results {
    let x = call.value(0)?;
    let shape = call.ty(x).shape;
    let old = call.node.opset < 13;
    let axis = axis_index(call.attributes().int("axis", if old { 1 } else { -1 }), shape.len())?;
    let last = shape.len() - 1;
    if axis == last {
        return one(call.emit(Softmax, &[x])?);
    }
    if old {
        let rows = call.reshape(x, &[shape[..axis].iter().product(), shape[axis..].iter().product()])?;
        let y = call.emit(Softmax, &[rows])?;
        return one(call.reshape(y, &shape)?);
    }
    let mut swap: Vec<usize> = (0..shape.len()).collect();
    swap.swap(axis, last);
    let x = transposed(call, x, swap.clone())?;
    let y = call.emit(Softmax, &[x])?;
    one(transposed(call, y, swap)?)
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{Builder, check};

    #[test]
    fn layer_norm_over_the_last_dimension_is_one_op() {
        let builder = Builder::new(&["y = LayerNormalization x g b"]).f32("g", &[4]).f32("b", &[4]);
        assert_eq!(builder.ops(), "layer_norm f32[2, 4]");
    }

    #[test]
    fn other_axes_are_merged_and_a_missing_bias_is_zero() {
        let builder = Builder::new(&["y _ r = LayerNormalization{axis=1} x g"]).f32("g", &[3, 4]);
        let expected = "reshape f32[2, 12]; reshape f32[12]; full<0.0> f32[12]; layer_norm f32[2, 12]; \
                        reshape f32[2, 3, 4]; reshape f32[2, 1, 1]; reshape f32[2, 1, 1]";
        assert_eq!(builder.input("x", 1, "batch 3 4").ops(), expected);
    }

    #[test]
    fn rms_norm_is_made_of_its_parts() {
        let builder = Builder::new(&["y = RMSNormalization x g"]).f32("g", &[4]);
        let expected = "mul f32[2, 4]; reduce_sum f32[2]; full<0.25> f32[]; mul f32[2]; reshape f32[2, 1]; \
                        full<9.999999747378752e-6> f32[]; add f32[2, 1]; sqrt f32[2, 1]; div f32[2, 4]; mul f32[2, 4]";
        assert_eq!(builder.ops(), expected);
    }

    #[test]
    fn softmax_moves_its_axis_to_the_end() {
        check(&["y = Softmax x"], "softmax f32[2, 4]");
        let other = "transpose<[1, 0]> f32[4, 2]; softmax f32[4, 2]; transpose<[1, 0]> f32[2, 4]";
        check(&["y = Softmax{axis=0} x"], other);
    }

    #[test]
    fn softmax_of_old_operator_sets_merges_dimensions() {
        let builder = Builder::new(&["y = Softmax x"]).opset(11).input("x", 1, "batch 3 4");
        assert_eq!(builder.ops(), "reshape f32[2, 12]; softmax f32[2, 12]; reshape f32[2, 3, 4]");
    }
}
