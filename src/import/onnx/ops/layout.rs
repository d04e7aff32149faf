//! Operators that change the shape or the order of dimensions.

use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{Broadcast, Transpose};
use galvatron_ir::types::element_count;

use super::{Call, Fault, Operator, Results, axis_index, broadcast_shape, one};

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "Identity" => |c| Ok(vec![c.lowered(0)?.clone()]),
        "Reshape" => reshape,
        "Flatten" => flatten,
        "Squeeze" => squeeze,
        "Unsqueeze" => unsqueeze,
        "Transpose" => transpose,
        "Expand" => expand,
        _ => return None,
    })
}

fn reshape(call: &mut Call<'_, '_>) -> Results {
    let x = call.value(0)?;
    let target = call.ints(1, "shape")?.ok_or("no shape")?;
    let zero_copies = call.attributes().int("allowzero", 0) == 0;
    let shape = reshaped(&call.ty(x).shape, &target, zero_copies)?;
    one(call.reshape(x, &shape)?)
}

/// The shape that a reshape to `target` gives: -1 stands for what is left, 0 for the extent of the operand.
fn reshaped(from: &[u64], target: &[i64], zero_copies: bool) -> Result<Vec<u64>, Fault> {
    let bad = || Fault::Wrong(format!("a tensor of shape {from:?} cannot get the shape {target:?}"));
    let mut shape = Vec::with_capacity(target.len());
    for (d, &extent) in target.iter().enumerate() {
        shape.push(match extent {
            -1 => 1,
            0 if zero_copies => *from.get(d).ok_or_else(bad)?,
            _ => u64::try_from(extent).map_err(|_| bad())?,
        });
    }
    if let Some(d) = target.iter().position(|&extent| extent == -1) {
        let (total, known) = (element_count(from), element_count(&shape));
        shape[d] = total.checked_div(known).filter(|n| n.checked_mul(known) == Some(total)).ok_or_else(bad)?;
    }
    Ok(shape)
}

/// Two dimensions: those before the axis and those from it on.
fn flatten(call: &mut Call<'_, '_>) -> Results {
    let x = call.value(0)?;
    let shape = call.ty(x).shape;
    let axis = call.attributes().int("axis", 1);
    let axis = if axis == shape.len() as i64 { shape.len() } else { axis_index(axis, shape.len())? };
    let rows = shape[..axis].iter().product();
    one(call.reshape(x, &[rows, shape[axis..].iter().product()])?)
}

fn axes(call: &Call<'_, '_>, rank: usize) -> Result<Option<Vec<usize>>, Fault> {
    let axes = call.ints(1, "axes")?;
    axes.map(|axes| axes.iter().map(|&axis| axis_index(axis, rank)).collect()).transpose()
}

fn squeeze(call: &mut Call<'_, '_>) -> Results {
    let x = call.value(0)?;
    let shape = call.ty(x).shape;
    let axes = axes(call, shape.len())?;
    let axes = axes.unwrap_or_else(|| (0..shape.len()).filter(|&d| shape[d] == 1).collect());
    if let Some(d) = axes.iter().find(|&&d| shape[d] != 1) {
        return Err(format!("dimension {d} of a tensor of shape {shape:?} is not 1").into());
    }
    let kept: Vec<u64> = (0..shape.len()).filter(|d| !axes.contains(d)).map(|d| shape[d]).collect();
    one(call.reshape(x, &kept)?)
}

/// The axes are those of the result.
fn unsqueeze(call: &mut Call<'_, '_>) -> Results {
    let x = call.value(0)?;
    let mut rest = call.ty(x).shape.into_iter();
    let n_axes = call.ints(1, "axes")?.ok_or("no axes")?.len();
    let rank = rest.len() + n_axes;
    let axes = axes(call, rank)?.unwrap_or_default();
    let shape: Vec<u64> = (0..rank)
        .map(|d| if axes.contains(&d) { Some(1) } else { rest.next() })
        .collect::<Option<_>>()
        .ok_or("an axis is given twice")?;
    one(call.reshape(x, &shape)?)
}

fn transpose(call: &mut Call<'_, '_>) -> Results {
    let x = call.value(0)?;
    let rank = call.ty(x).rank();
    let perm = match call.attributes().ints("perm") {
        Some(perm) => perm.iter().map(|&p| axis_index(p, rank)).collect::<Result<Vec<_>, _>>()?,
        None => (0..rank).rev().collect(),
    };
    one(transposed(call, x, perm)?)
}

/// The value with its dimensions in another order; the value itself if the order is the same.
pub(super) fn transposed(call: &mut Call<'_, '_>, value: ValueId, perm: Vec<usize>) -> Result<ValueId, Fault> {
    if perm.iter().copied().eq(0..call.ty(value).rank()) {
        return Ok(value);
    }
    call.emit(Transpose { perm }, &[value])
}

/// NumPy broadcasting with a shape.
fn expand(call: &mut Call<'_, '_>) -> Results {
    let target = call.ints(1, "shape")?.ok_or("no shape")?;
    let target: Vec<u64> =
        target.iter().map(|&d| u64::try_from(d)).collect::<Result<_, _>>().map_err(|_| format!("shape {target:?}"))?;
    let x = call.value(0)?;
    let shape = broadcast_shape(&[&call.ty(x).shape, &target])?;
    one(expanded(call, x, shape)?)
}

/// The value repeated to a shape, its dimensions aligned from the right.
pub(super) fn expanded(call: &mut Call<'_, '_>, value: ValueId, shape: Vec<u64>) -> Result<ValueId, Fault> {
    let own = call.ty(value).shape;
    if own == shape {
        return Ok(value);
    }
    if own.len() > shape.len() {
        return Err(format!("a tensor of shape {own:?} where {shape:?} was expected").into());
    }
    if element_count(&own) == element_count(&shape) {
        return call.reshape(value, &shape);
    }
    let dims = (shape.len() - own.len()..shape.len()).collect();
    call.emit(Broadcast { shape, dims }, &[value])
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{Builder, check};

    #[test]
    fn reshape_reads_0_and_minus_1() {
        let builder =
            |attributes: &str| Builder::new(&[&format!("y = Reshape{attributes} x s")]).ints("s", &[0, 2, -1]);
        assert_eq!(builder("").ops(), "reshape f32[2, 2, 2]");
        assert!(builder("{allowzero=1}").import().unwrap_err().contains("cannot get the shape [0, 2, -1]"));
    }

    #[test]
    fn axes_come_and_go() {
        let nodes = ["a = Unsqueeze x axes", "b = Squeeze a", "c = Flatten{axis=0} b", "y = Transpose c"];
        let builder = Builder::new(&nodes).ints("axes", &[0, -1]);
        let expected = "reshape f32[1, 2, 4, 1]; reshape f32[2, 4]; reshape f32[1, 8]; transpose<[1, 0]> f32[8, 1]";
        assert_eq!(builder.ops(), expected);
    }

    #[test]
    fn identities_disappear() {
        check(&["a = Dropout x", "b = Transpose{perm=[0 1]} a", "c = Flatten b", "y = Relu c"], "relu f32[2, 4]");
    }

    #[test]
    fn expand_repeats_or_reshapes() {
        let builder = |shape: &[i64]| Builder::new(&["y = Expand x s"]).ints("s", shape).ops();
        assert_eq!(builder(&[3, 1, 4]), "broadcast<[1, 2]> f32[3, 2, 4]");
        assert_eq!((builder(&[1, 2, 1]).as_str(), builder(&[1]).as_str()), ("reshape f32[1, 2, 4]", ""));
    }
}
