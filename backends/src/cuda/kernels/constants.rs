//! Launches that write tensors known when compiling.

use galvatron_ir::op::compute::{CausalMask, Constant, Full, Iota};
use galvatron_ir::types::{DType, bf16};

use super::super::command::{Arg, Command, Launch, Place};
use super::{Cx, Family, Lowered, at, elements};
use crate::device::BufferSpec;

const FAMILY: Family = Family::Constants;

/// Bytes that one launch of `list` writes.
const LIST_BYTES: usize = 256;

/// A number as the bytes of one element.
fn element(value: f64, dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => (value as f32).to_le_bytes().to_vec(),
        DType::I64 => (value as i64).to_le_bytes().to_vec(),
        DType::Bool => vec![u8::from(value != 0.0)],
        DType::Bf16 => bf16::round(value as f32).to_le_bytes().to_vec(),
    }
}

pub(in super::super) fn full(op: &Full, cx: &Cx<'_>) -> Lowered {
    let (out, bytes) = (cx.result(0), cx.result(0).ty.bytes());
    let one = element(op.value.get(), out.ty.dtype);
    if one.iter().all(|&b| b == 0) {
        return Ok(vec![Command::Zero { at: Place::Arena(out.offset), bytes }]);
    }
    let mut word = [0; 8];
    word.iter_mut().zip(one.iter().cycle()).for_each(|(to, &from)| *to = from);
    let args = vec![at(out), Arg::Int(bytes as i64), Arg::Int(i64::from_le_bytes(word))];
    Ok(vec![Launch::of(FAMILY, "fill", bytes.div_ceil(8), args)])
}

/// Extent of a dimension, elements behind it, and the rank's first index along it.
fn dimension(buffer: &BufferSpec, dim: usize) -> [i64; 3] {
    let inner: u64 = buffer.ty.shape[dim + 1..].iter().product();
    [buffer.ty.shape[dim] as i64, inner as i64, buffer.first[dim] as i64]
}

pub(in super::super) fn iota(op: &Iota, cx: &Cx<'_>) -> Lowered {
    let (out, n) = (cx.result(0), elements(cx.result(0)));
    let numbers = [n].into_iter().chain(dimension(out, op.dim)).chain([op.start, op.step]).map(Arg::Int);
    Ok(vec![Launch::of(FAMILY, "iota", n as u64, [at(out)].into_iter().chain(numbers).collect())])
}

pub(in super::super) fn causal_mask(op: &CausalMask, cx: &Cx<'_>) -> Lowered {
    let (out, n, rank) = (cx.out(0)?, elements(cx.result(0)), cx.result(0).ty.rank());
    let [queries, _, first_query] = dimension(cx.result(0), rank - 2);
    let [keys, _, first_key] = dimension(cx.result(0), rank - 1);
    let numbers = [n, queries, keys, first_query, first_key, op.offset].map(Arg::Int);
    let args = [out].into_iter().chain(numbers).chain([Arg::Float(op.fill.get() as f32)]).collect();
    Ok(vec![Launch::of(FAMILY, "causal_mask", n as u64, args)])
}

pub(in super::super) fn constant(op: &Constant, cx: &Cx<'_>) -> Lowered {
    let out = cx.result(0);
    let bytes: Vec<u8> = op.values.iter().flat_map(|v| element(v.get(), out.ty.dtype)).collect();
    let list = |(i, part): (usize, &[u8])| {
        let mut words = [0; LIST_BYTES];
        words[..part.len()].copy_from_slice(part);
        let words = words.as_chunks::<8>().0.iter().map(|word| i64::from_le_bytes(*word)).collect();
        let to = Arg::At(Place::Arena(out.offset + (i * LIST_BYTES) as u64));
        Launch::of(FAMILY, "list", part.len() as u64, vec![to, Arg::Int(part.len() as i64), Arg::Ints(words)])
    };
    Ok(bytes.chunks(LIST_BYTES).enumerate().map(list).collect())
}
