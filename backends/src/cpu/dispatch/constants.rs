//! Tensors known when compiling, and the scalar of gradient clipping.

use galvatron_ir::op::compute::{CausalMask, ClipScale, Constant, Full, Iota};
use galvatron_ir::types::DType;

use super::{Buffer, Cx, Prepared};
use crate::cpu::arena::Element;
use galvatron_ir::types::bf16;

pub(super) fn full(op: &Full, cx: &Cx<'_>) -> Prepared {
    let value = op.value.get();
    match cx.results[0].dtype {
        DType::F32 => fill(cx, value as f32),
        DType::I64 => fill(cx, value as i64),
        DType::Bool => fill(cx, u8::from(value != 0.0)),
        DType::Bf16 => fill(cx, bf16::round(value as f32)),
    }
}

fn fill<T: Element>(cx: &Cx<'_>, value: T) -> Prepared {
    let out = cx.results[0].slot();
    cx.kernel(move |arena| {
        out.get_mut::<T>(arena).fill(value);
        Ok(())
    })
}

/// Index along `dim` of element `i`, from the first element that the rank holds.
fn index_along(buffer: &Buffer, dim: usize) -> impl Fn(usize) -> i64 + use<> {
    let inner: usize = buffer.shape[dim + 1..].iter().product();
    let (extent, first) = (buffer.shape[dim], buffer.first[dim] as i64);
    move |i| first + (i / inner.max(1) % extent.max(1)) as i64
}

pub(super) fn iota(op: &Iota, cx: &Cx<'_>) -> Prepared {
    let (out, start, step) = (cx.results[0].slot(), op.start, op.step);
    let index = index_along(&cx.results[0], op.dim);
    cx.kernel(move |arena| {
        let elements = out.get_mut::<i64>(arena).iter_mut().enumerate();
        elements.for_each(|(i, out)| *out = start + step * index(i));
        Ok(())
    })
}

pub(super) fn causal_mask(op: &CausalMask, cx: &Cx<'_>) -> Prepared {
    let (out, offset, fill) = (cx.out(0)?, op.offset, op.fill.get() as f32);
    let rank = cx.results[0].shape.len();
    let (query, key) = (index_along(&cx.results[0], rank - 2), index_along(&cx.results[0], rank - 1));
    cx.kernel(move |arena| {
        let elements = out.get_mut::<f32>(arena).iter_mut().enumerate();
        elements.for_each(|(i, out)| *out = if key(i) <= query(i) + offset { 0.0 } else { fill });
        Ok(())
    })
}

pub(super) fn constant(op: &Constant, cx: &Cx<'_>) -> Prepared {
    let values = op.values.iter().map(|v| v.get());
    match cx.results[0].dtype {
        DType::F32 => list(cx, values.map(|v| v as f32).collect()),
        DType::I64 => list(cx, values.map(|v| v as i64).collect()),
        DType::Bool => list(cx, values.map(|v| u8::from(v != 0.0)).collect()),
        DType::Bf16 => list(cx, values.map(|v| bf16::round(v as f32)).collect()),
    }
}

fn list<T: Element>(cx: &Cx<'_>, values: Vec<T>) -> Prepared {
    let out = cx.results[0].slot();
    cx.kernel(move |arena| {
        out.get_mut::<T>(arena).copy_from_slice(&values);
        Ok(())
    })
}

/// min(1, max_norm / (norm + 1e-6)).
pub(super) fn clip_scale(op: &ClipScale, cx: &Cx<'_>) -> Prepared {
    let (norm, out, max_norm) = (cx.f32(0)?, cx.out(0)?, op.max_norm.get());
    cx.kernel(move |arena| {
        let norm = f64::from(norm.get::<f32>(arena)[0]);
        out.get_mut::<f32>(arena)[0] = (max_norm / (norm + 1e-6)).min(1.0) as f32;
        Ok(())
    })
}
