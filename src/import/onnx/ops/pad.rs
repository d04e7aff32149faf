//! `Pad`: more elements before and after a tensor, or fewer.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{Concat, Full};
use galvatron_ir::types::Scalar;

use super::super::lower::as_f64;
use super::super::statics::StaticTensor;
use super::super::weights::MAX_ELEMENTS;
use super::gather::looked_up;
use super::pieces::sliced;
use super::{Call, Fault, Operator, Results, axis_index, one};

/// Most places of a dimension that are looked up one by one.
const MAX_PLACES: i64 = 1 << 16;

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "Pad" => pad,
        _ => return None,
    })
}

/// With a constant, or with elements of the tensor itself; a negative pad cuts.
fn pad(call: &mut Call<'_, '_>) -> Results {
    let mut value = call.value(0)?;
    let mode = call.attributes().string("mode", "constant").to_string();
    let pads = call.ints(1, "pads")?.ok_or("no pads")?;
    let rank = call.ty(value).rank();
    let axes = call.ints(3, "")?.unwrap_or_else(|| (0..rank as i64).collect());
    if pads.len() != 2 * axes.len() {
        return Err(format!("{} pads for {} dimensions", pads.len(), axes.len()).into());
    }
    if pads.iter().any(|pad| pad.unsigned_abs() > MAX_ELEMENTS) {
        return Err(format!("pads {pads:?} are more than any tensor has elements").into());
    }
    let fill = if mode == "constant" { fill(call)? } else { 0.0 };
    for (i, &axis) in axes.iter().enumerate() {
        let (dim, pads) = (axis_index(axis, rank)?, [pads[i], pads[i + axes.len()]]);
        value = match mode.as_str() {
            "constant" => padded(call, value, dim, pads, fill)?,
            _ => repeated(call, value, dim, pads, &mode)?,
        };
    }
    one(value)
}

fn fill(call: &Call<'_, '_>) -> Result<f64, Fault> {
    match call.known(2).map(|t| t.as_splat()) {
        Some(Some(fill)) => Ok(as_f64(fill)),
        None if !call.has(2) => Ok(f64::from(call.attributes().float("value", 0.0))),
        _ => Err(Fault::Unsupported("with a value that depends on the data".into())),
    }
}

/// The value with places before and after dimension `dim` that hold `fill`.
pub(super) fn padded(
    call: &mut Call<'_, '_>,
    value: ValueId,
    dim: usize,
    [before, after]: [i64; 2],
    fill: f64,
) -> Result<ValueId, Fault> {
    let extent = call.ty(value).shape[dim] as i64;
    let cut = |pad: i64| (-pad).max(0);
    let len = extent - cut(before) - cut(after);
    if len <= 0 {
        return Err(Fault::Unsupported("without any element".into()));
    }
    let value = sliced(call, value, dim, cut(before) as u64, len as u64)?;
    let mut parts = vec![value];
    for (pad, at) in [(before, 0), (after, 1)] {
        if pad > 0 {
            let mut ty = call.ty(value);
            ty.shape[dim] = pad as u64;
            let filled = call.emit(Full { ty, value: Scalar::new(fill) }, &[])?;
            parts.insert(if at == 0 { 0 } else { parts.len() }, filled);
        }
    }
    if parts.len() == 1 { Ok(value) } else { call.emit(Concat { dim }, &parts) }
}

/// The value looked up along a dimension at the places that a mode names for each place of the result.
fn repeated(
    call: &mut Call<'_, '_>,
    value: ValueId,
    dim: usize,
    [before, after]: [i64; 2],
    mode: &str,
) -> Result<ValueId, Fault> {
    if (before, after) == (0, 0) {
        return Ok(value);
    }
    let n = call.ty(value).shape[dim] as i64;
    let n_places = before + n + after;
    if n < 1 || !(1..=MAX_PLACES).contains(&n_places) {
        return Err(Fault::Unsupported(format!("from {n} places to {n_places} in the mode `{mode}`")));
    }
    let place = |at: i64| match mode {
        "edge" => Ok(at.clamp(0, n - 1)),
        "wrap" => Ok(at.rem_euclid(n)),
        "reflect" if n == 1 => Ok(0),
        "reflect" => Ok((n - 1) - (at.rem_euclid(2 * (n - 1)) - (n - 1)).abs()),
        other => Err(format!("the mode `{other}` is not one of `constant`, `edge`, `reflect` and `wrap`")),
    };
    let places: Vec<i64> = (-before..n + after).map(place).collect::<Result<_, _>>()?;
    let name = format!("{}.places{dim}", call.node.outputs.first().map_or("", String::as_str));
    let places = call.lowering.materialize(&name, &StaticTensor::from_ints(&places))?;
    looked_up(call, value, dim, places)
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::Builder;

    #[test]
    fn constants_are_joined_and_negative_pads_cut() {
        let padded = Builder::new(&["y = Pad x n"]).ints("n", &[0, 1, 0, -1]);
        assert_eq!(padded.ops(), "slice<1: 0, 3> f32[2, 3]; full<0.0> f32[2, 1]; concat f32[2, 4]");
    }

    #[test]
    fn other_modes_look_their_elements_up() {
        let padded = |mode: &str| Builder::new(&[&format!("y = Pad{{mode={mode}}} x n")]).ints("n", &[1, 0, 0, 0]);
        assert_eq!(padded("reflect").ops(), "constant i64[3]; embedding f32[3, 4]");
        assert!(padded("mirror").import().unwrap_err().contains("the mode `mirror`"));
    }
}
