//! Lists of tensors, which exporters make of a split whose parts are picked one by one.

use super::super::statics::Scalar;
use super::pieces::sliced;
use super::{Call, Fault, Lowered, Operator, Results};

/// Most parts of a list.
const MAX_PARTS: u64 = 1 << 16;

/// The operators of this family.
pub(super) fn operator(op_type: &str) -> Option<Operator> {
    Some(match op_type {
        "SplitToSequence" => split,
        "SequenceConstruct" => construct,
        "SequenceAt" => at,
        "ConcatFromSequence" => concat,
        _ => return None,
    })
}

/// Parts of given lengths, of one length, or of one element each.
fn split(call: &mut Call<'_, '_>) -> Results {
    let x = call.value(0)?;
    let mut shape = call.ty(x).shape;
    let dim = call.axis(0, shape.len())?;
    let extent = shape[dim];
    let is_scalar = call.has(1) && call.shape(1)?.is_empty();
    let lengths = match call.ints(1, "")? {
        Some(lengths) if !is_scalar => lengths.iter().map(|&n| n.max(0) as u64).collect(),
        length => parts(extent, length.and_then(|n| n.first().copied()).unwrap_or(1).max(1) as u64)?,
    };
    if lengths.iter().try_fold(0u64, |sum, &n| sum.checked_add(n)) != Some(extent) {
        return Err(format!("parts {lengths:?} of an extent of {extent}").into());
    }
    let keep = call.has(1) || call.attributes().int("keepdims", 1) != 0;
    let (mut start, mut list) = (0, Vec::with_capacity(lengths.len()));
    if !keep {
        shape.remove(dim);
    }
    for len in lengths {
        let part = sliced(call, x, dim, start, len)?;
        list.push(Lowered::Value(if keep { part } else { call.reshape(part, &shape)? }));
        start += len;
    }
    Ok(vec![Lowered::Sequence(list)])
}

/// Equal lengths, the last the rest.
fn parts(extent: u64, length: u64) -> Result<Vec<u64>, Fault> {
    let n_parts = extent.div_ceil(length);
    if n_parts > MAX_PARTS {
        return Err(format!("{n_parts} parts, more than {MAX_PARTS}").into());
    }
    Ok((0..n_parts).map(|i| length.min(extent - i * length)).collect())
}

fn construct(call: &mut Call<'_, '_>) -> Results {
    let item = |i: usize| match call.lowered(i)? {
        Lowered::Sequence(_) => Err(format!("operand {i} is a list, not a tensor").into()),
        tensor => Ok(tensor.clone()),
    };
    let list = (0..call.node.inputs.len()).map(item).collect::<Result<_, Fault>>()?;
    Ok(vec![Lowered::Sequence(list)])
}

fn list(call: &Call<'_, '_>) -> Result<Vec<Lowered>, Fault> {
    match call.lowered(0)? {
        Lowered::Sequence(list) => Ok(list.clone()),
        _ => Err("operand 0 is no list".into()),
    }
}

fn at(call: &mut Call<'_, '_>) -> Results {
    let list = list(call)?;
    let Some(Some(Scalar::I64(place))) = call.known(1).map(|t| t.as_splat()) else {
        return Err(Fault::Unsupported("with a place that depends on the data".into()));
    };
    let index = if place < 0 { place + list.len() as i64 } else { place };
    let item = usize::try_from(index).ok().and_then(|index| list.get(index));
    Ok(vec![item.cloned().ok_or_else(|| format!("place {place} of a list of {}", list.len()))?])
}

fn concat(call: &mut Call<'_, '_>) -> Results {
    let mut values = Vec::new();
    for item in list(call)? {
        let Lowered::Value(value) = item else { return Err(Fault::Unsupported("of constants".into())) };
        values.push(value);
    }
    let &first = values.first().ok_or("an empty list")?;
    if call.attributes().int("new_axis", 0) != 0 {
        return Err(Fault::Unsupported("along a new axis".into()));
    }
    let dim = call.axis(0, call.ty(first).rank())?;
    super::one(call.emit(galvatron_ir::op::compute::Concat { dim }, &values)?)
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::Builder;

    #[test]
    fn parts_of_a_list_are_slices() {
        let nodes = ["l = SplitToSequence{axis=1} x n", "y = SequenceAt l at"];
        let builder = Builder::new(&nodes).int("n", 2).int("at", -1);
        assert_eq!(builder.ops(), "slice<1: 0, 2> f32[2, 2]; slice<1: 2, 2> f32[2, 2]");
    }
}
