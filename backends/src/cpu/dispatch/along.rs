//! Ops along one dimension: elements by index, the best of each row, running sums, windows.

use galvatron_ir::op::compute::{CumSum, Fold, PutAlong, TakeAlong, TopK, Unfold, Windows};
use galvatron_ir::types::DType;

use super::layout::by_width;
use super::{Buffer, Cx, Prepared};
use crate::cpu::arena::Element;
use crate::cpu::kernels::along::{self, Along};
use crate::cpu::kernels::cumulate::{Order, cum_sum as running};
use crate::cpu::kernels::top_k::{is_larger, top_k as best};
use crate::cpu::kernels::window;

pub(super) fn take_along(op: &TakeAlong, cx: &Cx<'_>) -> Prepared {
    by_width!(cx.args[0].dtype, take_of(op, cx))
}

fn take_of<T: Element>(op: &TakeAlong, cx: &Cx<'_>) -> Prepared {
    let (x, ids, out, threads) = (cx.args[0].slot(), cx.i64(1)?, cx.results[0].slot(), cx.threads);
    let along = Along::new(&cx.args[0].shape, &cx.args[1].shape, op.dim);
    cx.kernel(move |arena| along::take(along, x.get::<T>(arena), ids.get(arena), out.get_mut(arena), threads))
}

pub(super) fn put_along(op: &PutAlong, cx: &Cx<'_>) -> Prepared {
    match (op.adds, cx.args[0].dtype) {
        (false, dtype) => by_width!(dtype, put_of(op, cx, |_, y| y)),
        (true, DType::F32) => put_of::<f32>(op, cx, |x, y| x + y),
        (true, DType::I64) => put_of::<i64>(op, cx, i64::wrapping_add),
        (true, dtype) => Err(format!("the CPU has no kernel that adds {dtype} elements by index")),
    }
}

fn put_of<T: Element>(op: &PutAlong, cx: &Cx<'_>, join: fn(T, T) -> T) -> Prepared {
    let (x, ids, y, out) = (cx.args[0].slot(), cx.i64(1)?, cx.args[2].slot(), cx.results[0].slot());
    let (along, threads) = (Along::new(&cx.args[0].shape, &cx.args[1].shape, op.dim), cx.threads);
    let in_place = cx.in_place(0, 0);
    cx.kernel(move |arena| {
        if !in_place {
            out.get_mut::<T>(arena).copy_from_slice(x.get(arena));
        }
        along::put(along, ids.get(arena), y.get::<T>(arena), out.get_mut(arena), join, threads)
    })
}

pub(super) fn top_k(op: &TopK, cx: &Cx<'_>) -> Prepared {
    match (cx.args[0].dtype, op.largest) {
        (DType::F32, true) => top_k_of::<f32>(op, cx, is_larger),
        (DType::F32, false) => top_k_of::<f32>(op, cx, |a, b| is_larger(b, a)),
        (DType::I64, true) => top_k_of::<i64>(op, cx, |a, b| a > b),
        (DType::I64, false) => top_k_of::<i64>(op, cx, |a, b| a < b),
        (dtype, _) => Err(format!("the CPU has no kernel that orders {dtype} elements")),
    }
}

fn top_k_of<T: Element>(op: &TopK, cx: &Cx<'_>, before: fn(T, T) -> bool) -> Prepared {
    let (x, (_, n), threads) = (cx.args[0].slot(), cx.args[0].rows(), cx.threads);
    let (values, indices) = (cx.results[0].slot(), cx.results[1].slot());
    let extents = [n, op.k as usize];
    cx.kernel(move |arena| {
        best(x.get::<T>(arena), extents, values.get_mut(arena), indices.get_mut(arena), before, threads);
        Ok(())
    })
}

/// Extent of a dimension, and elements of those after it.
fn extents(buffer: &Buffer, dim: usize) -> [usize; 2] {
    [buffer.shape[dim], buffer.shape[dim + 1..].iter().product()]
}

pub(super) fn cum_sum(op: &CumSum, cx: &Cx<'_>) -> Prepared {
    match cx.args[0].dtype {
        DType::I64 => cum_sum_of::<i64>(op, cx),
        _ => cx.f32(0).and_then(|_| cum_sum_of::<f32>(op, cx)),
    }
}

fn cum_sum_of<T: Element + std::ops::Add<Output = T>>(op: &CumSum, cx: &Cx<'_>) -> Prepared {
    let (x, out, threads) = (cx.args[0].slot(), cx.results[0].slot(), cx.threads);
    let order = Order { exclusive: op.exclusive, reverse: op.reverse };
    let extents = extents(&cx.args[0], op.dim);
    cx.kernel(move |arena| {
        running(order, x.get::<T>(arena), extents, out.get_mut(arena), threads);
        Ok(())
    })
}

/// The windows of a dimension, of which a buffer holds `count`.
fn windows(of: &Windows, count: usize) -> window::Windows {
    let (size, stride, dilation) = (of.size as usize, of.stride as usize, of.dilation as usize);
    window::Windows { count, size, stride, dilation }
}

pub(super) fn unfold(op: &Unfold, cx: &Cx<'_>) -> Prepared {
    by_width!(cx.args[0].dtype, unfold_of(op, cx))
}

fn unfold_of<T: Element>(op: &Unfold, cx: &Cx<'_>) -> Prepared {
    let (x, out, threads) = (cx.args[0].slot(), cx.results[0].slot(), cx.threads);
    let (shape, dim) = (cx.args[0].shape.clone(), op.windows.dim);
    let windows = windows(&op.windows, cx.results[0].shape[dim]);
    cx.kernel(move |arena| {
        window::unfold(windows, (x.get::<T>(arena), &shape), dim, out.get_mut(arena), threads);
        Ok(())
    })
}

pub(super) fn fold(op: &Fold, cx: &Cx<'_>) -> Prepared {
    let (y, out, threads, dim) = (cx.f32(0)?, cx.out(0)?, cx.threads, op.windows.dim);
    let (windows, extents) = (windows(&op.windows, cx.args[0].shape[dim]), extents(&cx.results[0], dim));
    cx.kernel(move |arena| {
        window::fold(windows, y.get(arena), extents, out.get_mut(arena), threads);
        Ok(())
    })
}
