//! `Attention` of operator set 23.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{Attention, Binary, Broadcast, CausalMask, Full, Where};
use galvatron_ir::types::{DType, Scalar, TensorType};

use super::super::lower::as_f64;
use super::super::statics;
use super::layout::transposed;
use super::{Call, Fault, Operator, Results, broadcast_shape, one};

/// The attributes of operator set 23.
const KNOWN: [&str; 7] =
    ["is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale", "softcap", "softmax_precision"];

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "Attention" => attention,
        _ => return None,
    })
}

/// Queries, keys and values [batch, heads, length, width], or [batch, length, heads · width] with attributes that say how
/// many heads there are; an optional mask, added to the scores, or truth values that say which keys are seen.
fn attention(call: &mut Call<'_, '_>) -> Results {
    refuse_options(call)?;
    let packed = call.shape(0)?.len() == 3;
    let q = operand(call, 0, "q_num_heads")?;
    let k = operand(call, 1, "kv_num_heads")?;
    let v = operand(call, 2, "kv_num_heads")?;
    let (queries, keys) = (call.ty(q).shape, call.ty(k).shape);
    let default = 1.0 / (queries[3] as f64).sqrt();
    let scale = match call.attributes().float("scale", 0.0) {
        0.0 => default,
        given => f64::from(given),
    };
    let is_causal = call.attributes().int("is_causal", 0) != 0;
    let scores = [queries[0], queries[2], queries[1], keys[1]];
    let (mut causal, mask) = mask(call, scores)?;
    let mut args = vec![q, k, v];
    args.extend(mask);
    if is_causal && queries[1] == keys[1] {
        causal = true;
    } else if is_causal {
        // The operator counts keys from the first, the op of the IR from the last.
        let shape = vec![1, 1, queries[1], keys[1]];
        let earlier = call.emit(CausalMask { shape, offset: 0, fill: Scalar::new(f64::NEG_INFINITY) }, &[])?;
        match args.get_mut(3) {
            Some(mask) => *mask = call.emit(Binary::ADD, &[*mask, earlier])?,
            None => args.push(earlier),
        }
    }
    let result = call.emit(Attention { scale: Scalar::new(scale), causal }, &args)?;
    let [b, s, h, d] = call.ty(result).shape[..] else { return Err("the result is not of rank 4".into()) };
    one(if packed { call.reshape(result, &[b, s, h * d])? } else { transposed(call, result, vec![0, 2, 1, 3])? })
}

fn refuse_options(call: &Call<'_, '_>) -> Result<(), Fault> {
    let unsupported = |what: &str| Err(Fault::Unsupported(what.into()));
    if let Some((name, _)) = call.attributes().iter().find(|(name, _)| !KNOWN.contains(name)) {
        return unsupported(&format!("with `{name}`"));
    }
    if (4..call.node.inputs.len()).any(|index| call.has(index)) {
        return unsupported("with a cache of keys and values");
    }
    if call.node.outputs.iter().skip(1).any(|output| !output.is_empty()) {
        return unsupported("with more results than one");
    }
    if call.attributes().float("softcap", 0.0) != 0.0 {
        return unsupported("with `softcap`");
    }
    Ok(())
}

/// An operand as [batch, length, heads, width].
fn operand(call: &mut Call<'_, '_>, index: usize, heads: &str) -> Result<ValueId, Fault> {
    let value = call.value(index)?;
    match call.ty(value).shape[..] {
        [_, _, _, _] => transposed(call, value, vec![0, 2, 1, 3]),
        [b, s, width] => {
            let n_heads = u64::try_from(call.attributes().int(heads, 0)).unwrap_or(0);
            let n_heads = Some(n_heads).filter(|&n| n > 0 && width.is_multiple_of(n));
            let n_heads = n_heads.ok_or_else(|| format!("`{heads}` does not divide the width {width}"))?;
            call.reshape(value, &[b, s, n_heads, width / n_heads])
        }
        ref shape => Err(format!("operand {index} has shape {shape:?}").into()),
    }
}

/// Whether the mask is the causal one, and otherwise the mask to add to the scores [batch, heads, queries, keys].
fn mask(call: &mut Call<'_, '_>, scores: [u64; 4]) -> Result<(bool, Option<ValueId>), Fault> {
    if !call.has(3) {
        return Ok((false, None));
    }
    let offset = scores[3] as i64 - scores[2] as i64;
    let hides = |fill| added(fill) == f64::NEG_INFINITY;
    let causal = call.lowering.causal_mask(&call.node.inputs[3]);
    if causal.is_some_and(|mask| mask.offset == offset && hides(mask.fill)) {
        return Ok((true, None));
    }
    if call.known(3).and_then(|t| t.as_splat()).is_some_and(|everywhere| added(everywhere) == 0.0) {
        return Ok((false, None));
    }
    let mut value = match call.known(3).cloned() {
        Some(tensor) => {
            let stored = tensor.stored().iter().map(|&d| d as u64).collect();
            call.lowering.materialize_as(&call.node.inputs[3], &tensor, stored)?
        }
        None => call.value(3)?,
    };
    if call.ty(value).dtype == DType::Bool {
        let full = |value| Full { ty: TensorType::f32([]), value: Scalar::new(value) };
        let (zero, hidden) = (call.emit(full(0.0), &[])?, call.emit(full(f64::NEG_INFINITY), &[])?);
        value = call.emit(Where, &[value, zero, hidden])?;
    }
    let own = call.ty(value).shape;
    let aligned = broadcast_shape(&[&own, &[1; 4]])?;
    let value = call.reshape(value, &aligned)?;
    let whole = vec![aligned[0], aligned[1], scores[2], scores[3]];
    if whole == aligned {
        return Ok((false, Some(value)));
    }
    let dims = (0..4).collect();
    Ok((false, Some(call.emit(Broadcast { shape: whole, dims }, &[value])?)))
}

/// What a mask's element adds to a score.
fn added(value: statics::Scalar) -> f64 {
    match value {
        statics::Scalar::Bool(true) => 0.0,
        statics::Scalar::Bool(false) => f64::NEG_INFINITY,
        other => as_f64(other),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::Builder;

    fn attention(attributes: &str, operands: &str) -> Builder {
        let builder = Builder::new(&[&format!("y = Attention{{{attributes}}} {operands}")]).opset(23);
        builder.input("q", 1, "batch 6 8").input("k", 1, "batch 6 4").input("v", 1, "batch 6 4").input("x", 1, "batch")
    }

    const PACKED: &str = "reshape f32[2, 6, 4, 2]; reshape f32[2, 6, 2, 2]; reshape f32[2, 6, 2, 2]; ";

    #[test]
    fn packed_heads_are_split() {
        let ops = attention("q_num_heads=4, kv_num_heads=2, is_causal=1", "q k v").ops();
        assert_eq!(ops, format!("{PACKED}attention<causal> f32[2, 6, 4, 2]; reshape f32[2, 6, 8]"));
    }

    #[test]
    fn heads_before_the_length_are_transposed() {
        let builder = Builder::new(&["y = Attention x x x"]).opset(23).input("x", 1, "batch 3 6 4");
        let to = "transpose<[0, 2, 1, 3]> f32[2, 6, 3, 4]; ";
        let back = "attention f32[2, 6, 3, 4]; transpose<[0, 2, 1, 3]> f32[2, 3, 6, 4]";
        assert_eq!(builder.ops(), format!("{to}{to}{to}{back}"));
    }

    #[test]
    fn masks_are_recognised() {
        let builder = attention("q_num_heads=4, kv_num_heads=2", "q k v m").node("m = Cast{to=9} seen");
        let causal = builder.clone().matrix("seen", 6, |row, column| i64::from(column <= row));
        assert_eq!(causal.ops(), format!("{PACKED}attention<causal> f32[2, 6, 4, 2]; reshape f32[2, 6, 8]"));
        let all = builder.clone().matrix("seen", 6, |_, _| 1);
        assert_eq!(all.ops(), format!("{PACKED}attention f32[2, 6, 4, 2]; reshape f32[2, 6, 8]"));
        let other = builder.matrix("seen", 6, |row, column| i64::from(column != row)).ops();
        assert!(other.contains("where f32[6, 6]; reshape f32[1, 1, 6, 6]; attention f32[2, 6, 4, 2]"), "{other}");
    }

    #[test]
    fn options_are_refused_by_name() {
        let refused = |attributes: &str| attention(attributes, "q k v").import().unwrap_err();
        assert!(refused("q_num_heads=4, kv_num_heads=2, softcap=3.5").contains("`Attention` with `softcap`"));
        assert!(refused("q_num_heads=4, kv_num_heads=2, left_window=2").contains("with `left_window`"));
        assert!(refused("q_num_heads=3, kv_num_heads=2").contains("`q_num_heads` does not divide the width 8"));
    }
}
