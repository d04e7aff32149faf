//! Normalisations and softmax.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{Full, LayerNorm, RmsNorm, Softmax};
use galvatron_ir::types::{Scalar, TensorType};

use super::layout::transposed;
use super::{Call, Fault, Lowered, Operator, Results, axis_index, one};

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "LayerNormalization" => layer_norm,
        "RMSNormalization" | "SimplifiedLayerNormalization" => rms_norm,
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
    with_statistics(call, &results, &shape, axis)
}

/// Results: the normalised tensor and the inverse root of the mean square. Not all forms of the operator have a second
/// result; where it is asked for, it is this one.
fn rms_norm(call: &mut Call<'_, '_>) -> Results {
    let eps = Scalar::new(f64::from(call.attributes().float("epsilon", 1e-5)));
    let (x, shape, axis) = rows(call)?;
    let gain = vector(call, 1, &shape[axis..], 1.0)?;
    let results = call.emit_all(RmsNorm { eps }, &[x, gain])?;
    with_statistics(call, &results, &shape, axis)
}

/// The normalised tensor in its own shape, and those of the statistics that the node asks for, one for each row.
fn with_statistics(call: &mut Call<'_, '_>, results: &[ValueId], shape: &[u64], axis: usize) -> Results {
    let mut lowered = vec![Lowered::Value(call.reshape(results[0], shape)?)];
    let wanted = call.node.outputs.iter().skip(1).take(results.len() - 1).cloned().collect::<Vec<_>>();
    for (name, &result) in wanted.iter().zip(&results[1..]) {
        let stat = |d: usize| if d < axis { shape[d] } else { 1 };
        let stats: Vec<u64> = (0..shape.len()).map(stat).collect();
        let value = if name.is_empty() { result } else { call.reshape(result, &stats)? };
        lowered.push(Lowered::Value(value));
    }
    Ok(lowered)
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
    fn rms_norm_is_one_op_under_both_names() {
        for name in ["RMSNormalization", "SimplifiedLayerNormalization"] {
            let builder = Builder::new(&[&format!("y = {name} x g")]).f32("g", &[4]);
            assert_eq!(builder.ops(), "rms_norm f32[2, 4]");
        }
        let builder = Builder::new(&["y = RMSNormalization{axis=1} x g"]).f32("g", &[3, 4]);
        let expected = "reshape f32[2, 12]; reshape f32[12]; rms_norm f32[2, 12]; reshape f32[2, 3, 4]";
        assert_eq!(builder.input("x", 1, "batch 3 4").ops(), expected);
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
