//! Normalisations and softmax.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{Binary, Full, LayerNorm, ReduceSum, RmsNorm, Softmax, Unary, UnaryKind};
use galvatron_ir::types::{Scalar, TensorType};

use super::layout::transposed;
use super::{Call, Fault, Lowered, Operator, Results, axis_index, one};

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "LayerNormalization" => layer_norm,
        "RMSNormalization" | "SimplifiedLayerNormalization" => rms_norm,
        "Softmax" => softmax,
        "InstanceNormalization" => instance_norm,
        "GroupNormalization" => group_norm,
        "BatchNormalization" => batch_norm,
        "LpNormalization" => lp_norm,
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

fn softmax(call: &mut Call<'_, '_>) -> Results {
    over_rows(call, |call, rows| call.emit(Softmax, &[rows]))
}

/// A function of rows over one axis; before operator set 13 over all dimensions from the axis on, by default from the second.
pub(super) fn over_rows(
    call: &mut Call<'_, '_>,
    of_rows: impl FnOnce(&mut Call<'_, '_>, ValueId) -> Result<ValueId, Fault>,
) -> Results {
    let x = call.float(0)?;
    let shape = call.ty(x).shape;
    let old = call.node.opset < 13;
    let axis = axis_index(call.attributes().int("axis", if old { 1 } else { -1 }), shape.len())?;
    let last = shape.len() - 1;
    if axis == last {
        return one(of_rows(call, x)?);
    }
    if old {
        let rows = call.reshape(x, &[shape[..axis].iter().product(), shape[axis..].iter().product()])?;
        let y = of_rows(call, rows)?;
        return one(call.reshape(y, &shape)?);
    }
    let mut swap: Vec<usize> = (0..shape.len()).collect();
    swap.swap(axis, last);
    let x = transposed(call, x, swap.clone())?;
    let y = of_rows(call, x)?;
    one(transposed(call, y, swap)?)
}

/// Image [batch, channels, ..] and a number of groups: each group of channels of each sample normalised by itself.
fn grouped(call: &mut Call<'_, '_>, groups: u64) -> Result<ValueId, Fault> {
    let x = call.float(0)?;
    let shape = call.ty(x).shape;
    if shape.len() < 2 || groups == 0 || !shape[1].is_multiple_of(groups) {
        return Err(format!("{groups} groups of channels in a tensor of shape {shape:?}").into());
    }
    let eps = Scalar::new(f64::from(call.attributes().float("epsilon", 1e-5)));
    let n = shape[1..].iter().product::<u64>() / groups;
    let rows = call.reshape(x, &[shape[0], groups, n])?;
    let full = |value| Full { ty: TensorType::f32([n]), value: Scalar::new(value) };
    let (gain, bias) = (call.emit(full(1.0), &[])?, call.emit(full(0.0), &[])?);
    let normalised = call.emit_all(LayerNorm { eps }, &[rows, gain, bias])?[0];
    call.reshape(normalised, &shape)
}

/// The value times operand 1 plus operand 2, one element of each a channel, or (`of_groups`) one a group of channels.
fn affine(call: &mut Call<'_, '_>, value: ValueId, of_groups: Option<u64>) -> Results {
    let shape = call.ty(value).shape;
    if shape.len() < 2 {
        return Err(format!("no channels in a tensor of shape {shape:?}").into());
    }
    let mut split = shape.clone();
    if let Some(groups) = of_groups {
        split[1] = shape[1] / groups;
        split.insert(1, groups);
    }
    let mut column = vec![1; split.len() - 1];
    column[0] = split[1];
    let mut value = call.reshape(value, &split)?;
    for (index, op) in [(1, Binary::MUL), (2, Binary::ADD)] {
        let operand = call.value(index)?;
        let operand = call.reshape(operand, &column)?;
        value = call.emit(op, &[value, operand])?;
    }
    one(call.reshape(value, &shape)?)
}

fn instance_norm(call: &mut Call<'_, '_>) -> Results {
    let channels = call.shape(0)?.get(1).copied().unwrap_or(0);
    let value = grouped(call, channels)?;
    affine(call, value, None)
}

/// Gain and bias have one element a channel; before operator set 21 one a group.
fn group_norm(call: &mut Call<'_, '_>) -> Results {
    let groups = u64::try_from(call.attributes().int("num_groups", 0)).unwrap_or(0);
    let value = grouped(call, groups)?;
    affine(call, value, (call.node.opset < 21).then_some(groups))
}

/// In inference: with a mean and a variance for each channel, which are operands.
fn batch_norm(call: &mut Call<'_, '_>) -> Results {
    let is_trained = call.attributes().int("training_mode", 0) != 0;
    if is_trained || call.node.outputs.iter().skip(1).any(|output| !output.is_empty()) {
        return Err(Fault::Unsupported("in training mode, with statistics of the batch".into()));
    }
    let x = call.float(0)?;
    let rank = call.ty(x).rank();
    let eps = call.scalar(f64::from(call.attributes().float("epsilon", 1e-5)))?;
    let mut statistics = [x; 2];
    for (statistic, index) in statistics.iter_mut().zip([3, 4]) {
        let value = call.value(index)?;
        let mut column = vec![1; rank.max(2) - 1];
        column[0] = call.ty(value).elements();
        *statistic = call.reshape(value, &column)?;
    }
    let shifted = call.emit(Binary::SUB, &[x, statistics[0]])?;
    let variance = call.emit(Binary::ADD, &[statistics[1], eps])?;
    let deviation = call.emit(Unary { kind: UnaryKind::Sqrt }, &[variance])?;
    let value = call.emit(Binary::DIV, &[shifted, deviation])?;
    affine(call, value, None)
}

/// x over its norm along an axis: the sum of sizes, or the root of the sum of squares.
fn lp_norm(call: &mut Call<'_, '_>) -> Results {
    let x = call.float(0)?;
    let axis = call.axis(-1, call.ty(x).rank())?;
    let norm = match call.attributes().int("p", 2) {
        1 => {
            let size = call.emit(Unary { kind: UnaryKind::Abs }, &[x])?;
            call.emit(ReduceSum { dims: vec![axis] }, &[size])?
        }
        2 => super::reduce::l2(call, x, &[axis])?,
        p => return Err(format!("`p` is {p}, not 1 or 2").into()),
    };
    let norm = super::reduce::kept(call, norm, x, &[axis])?;
    one(call.emit(Binary::DIV, &[x, norm])?)
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
    fn channels_are_normalised_in_groups() {
        let builder = |node: &str, opset| {
            let builder = Builder::new(&[node]).opset(opset).input("x", 1, "batch 4 3");
            builder.f32("g", &[4]).f32("b", &[4]).f32("g2", &[2]).f32("b2", &[2])
        };
        let instance = builder("y = InstanceNormalization x g b", 20).ops();
        assert!(
            instance.contains("reshape f32[2, 4, 3]") || instance.contains("layer_norm f32[2, 4, 3]"),
            "{instance}"
        );
        let by_channel = builder("y = GroupNormalization{num_groups=2} x g b", 21).ops();
        let expected = "layer_norm f32[2, 2, 6]; reshape f32[2, 4, 3]; reshape f32[4, 1]; mul f32[2, 4, 3]; \
                        reshape f32[4, 1]; add f32[2, 4, 3]";
        assert!(by_channel.ends_with(expected), "{by_channel}");
        let by_group = builder("y = GroupNormalization{num_groups=2} x g2 b2", 20).ops();
        assert!(by_group.ends_with("reshape f32[2, 1, 1]; add f32[2, 2, 2, 3]; reshape f32[2, 4, 3]"), "{by_group}");
    }

    #[test]
    fn statistics_of_batches_are_refused() {
        let node = "y = BatchNormalization{training_mode=1} x g g g g";
        let fault = Builder::new(&[node]).f32("g", &[4]).import().unwrap_err();
        assert!(fault.contains("`BatchNormalization` in training mode"), "{fault}");
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
