//! `Attention` of operator sets 23 and later.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{
    Attention, Binary, Broadcast, Cast, CausalMask, Compare, Concat, Einsum, Iota, Softmax, Unary, UnaryKind, Where,
};
use galvatron_ir::types::{DType, Scalar};

use super::super::lower::as_f64;
use super::super::statics;
use super::layout::{expanded, transposed};
use super::pad::padded;
use super::{Call, Fault, Lowered, Operator, Results, broadcast_shape};

/// The attributes of operator set 25.
const KNOWN: [&str; 9] = [
    "is_causal",
    "kv_num_heads",
    "left_window_size",
    "q_num_heads",
    "qk_matmul_output_mode",
    "right_window_size",
    "scale",
    "softcap",
    "softmax_precision",
];

/// Places of the operands after the mask: earlier keys and values, and how many keys of each sample are no padding.
const PAST_KEY: usize = 4;
/// As [`PAST_KEY`].
const PAST_VALUE: usize = 5;
/// As [`PAST_KEY`].
const N_KEYS: usize = 6;

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "Attention" => attention,
        _ => return None,
    })
}

/// Queries, keys and values, and what an attention does with their scores.
struct Heads {
    /// [batch, queries, heads, width]
    q: ValueId,
    /// [batch, keys, groups, width]
    k: ValueId,
    /// [batch, keys, groups, width of values]
    v: ValueId,
    scale: f64,
    /// Whether query i sees the keys up to i + keys - queries.
    causal: bool,
    /// What is added to the scores, [1 or batch, 1 or heads, queries, keys].
    bias: Option<ValueId>,
}

/// Queries, keys and values [batch, heads, length, width], or [batch, length, heads · width] with attributes that say how
/// many heads there are; an optional mask, added to the scores, or truth values that say which keys are seen; earlier keys
/// and values, which come before the given ones. Further results are all keys, all values, and the scores.
fn attention(call: &mut Call<'_, '_>) -> Results {
    if let Some((name, _)) = call.attributes().iter().find(|(name, _)| !KNOWN.contains(name)) {
        return Err(Fault::Unsupported(format!("with `{name}`")));
    }
    let packed = call.shape(0)?.len() == 3;
    let heads = heads(call)?;
    let wants = |index: usize| call.node.outputs.get(index).is_some_and(|output| !output.is_empty());
    let (wants_cache, wants_scores) = (wants(1) || wants(2), wants(3));
    let softcap = f64::from(call.attributes().float("softcap", 0.0));
    let (y, scores) = if wants_scores || softcap != 0.0 {
        composed(call, &heads, softcap)?
    } else {
        let mut args = vec![heads.q, heads.k, heads.v];
        args.extend(heads.bias);
        let op = Attention { scale: Scalar::new(heads.scale), causal: heads.causal };
        let y = call.emit(op, &args)?;
        (y, y)
    };
    let [b, s, h, d] = call.ty(y).shape[..] else { return Err("the result is not of rank 4".into()) };
    let heads_first = |call: &mut Call<'_, '_>, value| transposed(call, value, vec![0, 2, 1, 3]);
    let mut results = vec![if packed { call.reshape(y, &[b, s, h * d])? } else { heads_first(call, y)? }];
    if wants_cache || wants_scores {
        results.push(heads_first(call, heads.k)?);
        results.push(heads_first(call, heads.v)?);
        results.push(scores);
    }
    Ok(results.into_iter().map(Lowered::Value).collect())
}

/// The operands with what stands before them, and everything that hides keys.
fn heads(call: &mut Call<'_, '_>) -> Result<Heads, Fault> {
    let q = operand(call, 0, "q_num_heads")?;
    let k = cached(call, 1, PAST_KEY)?;
    let v = cached(call, 2, PAST_VALUE)?;
    let (queries, keys) = (call.ty(q).shape, call.ty(k).shape);
    let scale = match call.attributes().float("scale", 0.0) {
        0.0 => 1.0 / (queries[3] as f64).sqrt(),
        given => f64::from(given),
    };
    let scores = [queries[0], queries[2], queries[1], keys[1]];
    let (is_causal, mask) = mask(call, scores)?;
    let window = Window::of(call);
    let n_past = if call.has(PAST_KEY) { call.shape(PAST_KEY)?.get(2).map_or(0, |&n| n as i64) } else { 0 };
    // The op of the IR counts keys from the last, the operator from the first of those that are not earlier ones.
    let ends_together = n_past == keys[1] as i64 - queries[1] as i64;
    let mut heads = Heads { q, k, v, scale, causal: is_causal, bias: mask };
    let hidden = match (call.has(N_KEYS), window) {
        (true, _) => Some(hidden_by_data(call, window, n_past, scores)?),
        (false, Window { left: None, right: None }) => None,
        (false, Window { left: None, right: Some(0) }) if ends_together => {
            heads.causal = true;
            None
        }
        (false, _) => hidden_by_place(call, window, n_past, scores)?,
    };
    heads.bias = match (heads.bias, hidden) {
        (Some(mask), Some(hidden)) => Some(call.emit(Binary::ADD, &[mask, hidden])?),
        (mask, hidden) => mask.or(hidden),
    };
    Ok(heads)
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

/// Keys or values with the earlier ones [batch, groups, length, width] before them, as [batch, length, groups, width].
fn cached(call: &mut Call<'_, '_>, index: usize, past: usize) -> Result<ValueId, Fault> {
    let new = operand(call, index, "kv_num_heads")?;
    if !call.has(past) || call.shape(past)?.contains(&0) {
        return Ok(new);
    }
    let past = call.value(past)?;
    if call.ty(past).rank() != 4 {
        return Err(format!("earlier keys or values of shape {:?}", call.ty(past).shape).into());
    }
    let past = transposed(call, past, vec![0, 2, 1, 3])?;
    call.emit(Concat { dim: 1 }, &[past, new])
}

/// Whether the mask is the causal one, and otherwise the mask to add to the scores [batch, heads, queries, keys].
fn mask(call: &mut Call<'_, '_>, scores: [u64; 4]) -> Result<(bool, Option<ValueId>), Fault> {
    if !call.has(3) {
        return Ok((false, None));
    }
    let offset = scores[3] as i64 - scores[2] as i64;
    let hides = |fill| added(fill) == f64::NEG_INFINITY;
    let is_whole = call.shape(3)?.last() == Some(&scores[3]);
    let causal = call.lowering.causal_mask(&call.node.inputs[3]);
    if is_whole && causal.is_some_and(|mask| mask.offset == offset && hides(mask.fill)) {
        return Ok((true, None));
    }
    if is_whole && call.known(3).and_then(|t| t.as_splat()).is_some_and(|everywhere| added(everywhere) == 0.0) {
        return Ok((false, None));
    }
    let mut value = match call.known(3).cloned() {
        Some(tensor) if is_whole => {
            let stored = tensor.stored().iter().map(|&d| d as u64).collect();
            call.lowering.materialize_as(&call.node.inputs[3], &tensor, stored)?
        }
        _ => call.value(3)?,
    };
    if call.ty(value).dtype == DType::Bool {
        value = added_where(call, value)?;
    }
    if !is_whole {
        let last = call.ty(value).rank().checked_sub(1).ok_or("a mask that is one number")?;
        let missing = scores[3] as i64 - call.ty(value).shape[last] as i64;
        value = padded(call, value, last, [0, missing], f64::NEG_INFINITY)?;
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

/// 0 where a key is seen, -inf elsewhere.
fn added_where(call: &mut Call<'_, '_>, seen: ValueId) -> Result<ValueId, Fault> {
    let (zero, hidden) = (call.scalar(0.0)?, call.scalar(f64::NEG_INFINITY)?);
    call.choose(seen, zero, hidden)
}

/// How many keys before and after its own place a query sees; none: all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    left: Option<i64>,
    right: Option<i64>,
}

impl Window {
    fn of(call: &Call<'_, '_>) -> Window {
        let size = |name: &str| Some(call.attributes().int(name, -1)).filter(|&n| n >= 0);
        let is_causal = call.attributes().int("is_causal", 0) != 0;
        Window { left: size("left_window_size"), right: if is_causal { Some(0) } else { size("right_window_size") } }
    }
}

/// What a window hides where query i stands at the place i + `offset` among the keys, whatever the data are.
fn hidden_by_place(
    call: &mut Call<'_, '_>,
    window: Window,
    offset: i64,
    scores: [u64; 4],
) -> Result<Option<ValueId>, Fault> {
    let shape = vec![1, 1, scores[2], scores[3]];
    let mut bias = None;
    if let Some(right) = window.right {
        let fill = Scalar::new(f64::NEG_INFINITY);
        bias = Some(call.emit(CausalMask { shape: shape.clone(), offset: offset.saturating_add(right), fill }, &[])?);
    }
    if let Some(left) = window.left {
        let (offset, fill) = (offset.saturating_sub(left).saturating_sub(1), Scalar::new(1.0));
        let later = call.emit(CausalMask { shape, offset, fill }, &[])?;
        let seen = call.emit(Cast { to: DType::Bool }, &[later])?;
        let earlier = added_where(call, seen)?;
        bias = Some(match bias {
            Some(bias) => call.emit(Binary::ADD, &[bias, earlier])?,
            None => earlier,
        });
    }
    Ok(bias)
}

/// What padding and a window hide where operand 6 says how many keys a sample has. Without earlier keys the last query stands
/// at the last of them.
fn hidden_by_data(call: &mut Call<'_, '_>, window: Window, n_past: i64, scores: [u64; 4]) -> Result<ValueId, Fault> {
    let [batch, _, n_queries, n_keys] = scores;
    let n = call.value(N_KEYS)?;
    let n = call.reshape(n, &[batch, 1, 1, 1])?;
    let ramp = |n: u64, dim: usize, start: i64| {
        let mut shape = vec![1; 4];
        shape[dim] = n;
        Iota { shape, dim, start, step: 1 }
    };
    let key = call.emit(ramp(n_keys, 3, 0), &[])?;
    let mut seen = call.emit(Compare::LESS, &[key, n])?;
    let place = if call.has(PAST_KEY) {
        call.emit(ramp(n_queries, 2, n_past), &[])?
    } else {
        let from_end = call.emit(ramp(n_queries, 2, -(n_queries as i64)), &[])?;
        call.emit(Binary::ADD, &[n, from_end])?
    };
    for (size, is_right) in [(window.right, true), (window.left, false)] {
        let Some(size) = size else { continue };
        let step = call.number(DType::I64, if is_right { size } else { -size } as f64)?;
        let end = call.emit(Binary::ADD, &[place, step])?;
        let within = call.emit(Compare::LESS_EQUAL, &if is_right { [key, end] } else { [end, key] })?;
        let no = call.number(DType::Bool, 0.0)?;
        seen = call.emit(Where, &[within, seen, no])?;
    }
    let bias = added_where(call, seen)?;
    expanded(call, bias, vec![batch, 1, n_queries, n_keys])
}

/// The result [batch, queries, heads, width] from its parts, and the scores as `qk_matmul_output_mode` wants them.
fn composed(call: &mut Call<'_, '_>, heads: &Heads, softcap: f64) -> Result<(ValueId, ValueId), Fault> {
    let mode = call.attributes().int("qk_matmul_output_mode", 0);
    let (queries, keys) = (call.ty(heads.q).shape, call.ty(heads.k).shape);
    let [b, s, h, d] = queries[..] else { return Err("queries that are not of rank 4".into()) };
    let (n_keys, groups) = (keys[1], keys[2]);
    let q = call.reshape(heads.q, &[b, s, groups, h / groups.max(1), d])?;
    let products = call.emit(einsum("bsgrd", "bkgd", "bgrsk"), &[q, heads.k])?;
    let products = call.reshape(products, &[b, h, s, n_keys])?;
    let scale = call.scalar(heads.scale)?;
    let mut stages = vec![call.emit(Binary::MUL, &[products, scale])?];
    let capped = capped(call, stages[0], softcap)?;
    stages.push(capped);
    let mut biased = capped;
    if heads.causal {
        let (shape, offset) = (vec![1, 1, s, n_keys], n_keys as i64 - s as i64);
        let later = call.emit(CausalMask { shape, offset, fill: Scalar::new(f64::NEG_INFINITY) }, &[])?;
        biased = call.emit(Binary::ADD, &[biased, later])?;
    }
    if let Some(bias) = heads.bias {
        biased = call.emit(Binary::ADD, &[biased, bias])?;
    }
    let p = call.emit(Softmax, &[biased])?;
    stages.extend([biased, p]);
    let shared = call.reshape(p, &[b, groups, h / groups.max(1), s, n_keys])?;
    let y = call.emit(einsum("bgrsk", "bkge", "bsgre"), &[shared, heads.v])?;
    let width = call.ty(heads.v).shape[3];
    let y = call.reshape(y, &[b, s, h, width])?;
    let stage = usize::try_from(mode).ok().and_then(|mode| stages.get(mode));
    Ok((y, *stage.ok_or_else(|| format!("`qk_matmul_output_mode` is {mode}"))?))
}

fn einsum(lhs: &str, rhs: &str, out: &str) -> Einsum {
    Einsum { lhs: lhs.into(), rhs: rhs.into(), out: out.into() }
}

/// c tanh(x / c), or x where c is 0.
fn capped(call: &mut Call<'_, '_>, x: ValueId, cap: f64) -> Result<ValueId, Fault> {
    if cap == 0.0 {
        return Ok(x);
    }
    let (inverse, cap) = (call.scalar(1.0 / cap)?, call.scalar(cap)?);
    let small = call.emit(Binary::MUL, &[x, inverse])?;
    let bent = call.emit(Unary { kind: UnaryKind::Tanh }, &[small])?;
    call.emit(Binary::MUL, &[bent, cap])
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
    fn windows_hide_keys_on_both_sides() {
        let windowed = attention("q_num_heads=4, kv_num_heads=2, is_causal=1, left_window_size=2", "q k v").ops();
        let hidden = "causal_mask f32[1, 1, 6, 6]; causal_mask f32[1, 1, 6, 6]; cast bool[1, 1, 6, 6]; full<0.0> f32[]; \
                      full<-inf> f32[]; where f32[1, 1, 6, 6]; add f32[1, 1, 6, 6]; attention f32[2, 6, 4, 2]";
        assert!(windowed.contains(hidden), "{windowed}");
    }

    #[test]
    fn earlier_keys_come_first_and_are_returned() {
        let builder = Builder::new(&["y k2 v2 = Attention{is_causal=1} x x x _ p p"]).opset(23);
        let ops = builder.input("x", 1, "batch 3 2 4").input("p", 1, "batch 3 5 4").ops();
        let expected = "attention<causal> f32[2, 2, 3, 4]; transpose<[0, 2, 1, 3]> f32[2, 3, 2, 4]; \
                        transpose<[0, 2, 1, 3]> f32[2, 3, 7, 4]; transpose<[0, 2, 1, 3]> f32[2, 3, 7, 4]";
        assert!(ops.contains("concat f32[2, 7, 3, 4]") && ops.ends_with(expected), "{ops}");
    }

    #[test]
    fn capped_scores_are_made_of_their_parts() {
        let capped = attention("q_num_heads=4, kv_num_heads=2, softcap=2.0", "q k v").ops();
        assert!(capped.contains("tanh f32[2, 4, 6, 6]; mul f32[2, 4, 6, 6]; softmax f32[2, 4, 6, 6]"), "{capped}");
    }

    #[test]
    fn options_are_refused_by_name() {
        let refused = |attributes: &str| attention(attributes, "q k v").import().unwrap_err();
        assert!(refused("q_num_heads=4, kv_num_heads=2, sinks=2").contains("`Attention` with `sinks`"));
        assert!(refused("q_num_heads=3, kv_num_heads=2").contains("`q_num_heads` does not divide the width 8"));
    }
}
