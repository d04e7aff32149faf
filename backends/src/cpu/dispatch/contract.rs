//! Contractions and sums, and the gather and scatter of table rows.

use galvatron_ir::op::compute::{self, Einsum, ReduceSum};
use galvatron_ir::types::DType;

use super::layout::by_width;
use super::{Buffer, Cx, Prepared};
use crate::cpu::arena::Element;
use crate::cpu::kernels::einsum::{EinsumDims, EinsumPlan, run};
use crate::cpu::kernels::gather::{self, TableRows};
use crate::cpu::kernels::reduce::{ReduceKind, reduce as reduced, reduce_integers, sum_of_squares};

pub(super) fn einsum(op: &Einsum, cx: &Cx<'_>) -> Prepared {
    let (lhs, rhs, out, threads) = (cx.f32(0)?, cx.f32(1)?, cx.out(0)?, cx.threads);
    let size = |label: u8| {
        let place = |labels: &str, buffer: &Buffer| labels.bytes().position(|l| l == label).map(|d| buffer.shape[d]);
        place(&op.lhs, &cx.args[0]).or_else(|| place(&op.rhs, &cx.args[1])).unwrap_or(1)
    };
    let dims = EinsumDims { lhs: op.lhs.clone().into(), rhs: op.rhs.clone().into(), out: op.out.clone().into(), size };
    let plan = EinsumPlan::new(&dims).map_err(|fault| fault.to_string())?;
    cx.kernel(move |arena| {
        run(&plan, lhs.get(arena), rhs.get(arena), out.get_mut(arena), false, threads);
        Ok(())
    })
}

pub(super) fn reduce_sum(op: &ReduceSum, cx: &Cx<'_>) -> Prepared {
    reduce_of(ReduceKind::Sum, &op.dims, cx)
}

pub(super) fn reduce(op: &compute::Reduce, cx: &Cx<'_>) -> Prepared {
    let kind = match op.kind {
        compute::ReduceKind::Max => ReduceKind::Max,
        compute::ReduceKind::Min => ReduceKind::Min,
        compute::ReduceKind::Prod => ReduceKind::Prod,
    };
    reduce_of(kind, &op.dims, cx)
}

fn reduce_of(kind: ReduceKind, dims: &[usize], cx: &Cx<'_>) -> Prepared {
    let (shape, dims, threads) = (cx.args[0].shape.clone(), dims.to_vec(), cx.threads);
    if cx.args[0].dtype == DType::I64 {
        let (x, out) = (cx.i64(0)?, cx.results[0].slot());
        return cx.kernel(move |arena| {
            reduce_integers(kind, x.get(arena), &shape, &dims, out.get_mut(arena));
            Ok(())
        });
    }
    let (x, out) = (cx.f32(0)?, cx.out(0)?);
    cx.kernel(move |arena| {
        reduced(kind, x.get(arena), &shape, &dims, out.get_mut(arena), threads);
        Ok(())
    })
}

pub(super) fn sum_squares(cx: &Cx<'_>) -> Prepared {
    let (x, out, threads) = (cx.f32(0)?, cx.out(0)?, cx.threads);
    cx.kernel(move |arena| {
        out.get_mut::<f32>(arena)[0] = sum_of_squares(x.get(arena), threads) as f32;
        Ok(())
    })
}

/// Which rows of the vocabulary a (part of a) table holds, and the number of all of them.
fn table_rows(table: &Buffer) -> (TableRows, usize) {
    let n_rows = table.global[0];
    let rows = if table.shape[0] == n_rows { TableRows::All } else { TableRows::From(table.first[0] as i64) };
    (rows, n_rows)
}

/// A rank that holds part of the table skips the rows of others, but no index may be outside of the whole table.
fn check_ids(ids: &[i64], n_rows: usize) -> Result<(), String> {
    match ids.iter().position(|&id| id < 0 || id >= n_rows as i64) {
        None => Ok(()),
        Some(at) => Err(format!("index {} at position {at} is not one of the {n_rows} rows", ids[at])),
    }
}

pub(super) fn embedding(cx: &Cx<'_>) -> Prepared {
    by_width!(cx.args[0].dtype, embedding_of(cx))
}

fn embedding_of<T: Element>(cx: &Cx<'_>) -> Prepared {
    let (table, ids, out, threads) = (cx.args[0].slot(), cx.i64(1)?, cx.results[0].slot(), cx.threads);
    let row_len: usize = cx.args[0].shape[1..].iter().product();
    let (rows, n_rows) = table_rows(&cx.args[0]);
    cx.kernel(move |arena| {
        let ids = ids.get::<i64>(arena);
        check_ids(ids, n_rows)?;
        let out = out.get_mut::<T>(arena);
        gather::embedding(table.get(arena), row_len, rows, ids, out, threads).map_err(|fault| fault.to_string())
    })
}

pub(super) fn embedding_grad(cx: &Cx<'_>) -> Prepared {
    let (ids, dy, out, threads) = (cx.i64(0)?, cx.f32(1)?, cx.out(0)?, cx.threads);
    let row_len: usize = cx.results[0].shape[1..].iter().product();
    let (rows, n_rows) = table_rows(&cx.results[0]);
    cx.kernel(move |arena| {
        let ids = ids.get::<i64>(arena);
        check_ids(ids, n_rows)?;
        let out = out.get_mut(arena);
        gather::embedding_grad(ids, dy.get(arena), row_len, rows, out, threads).map_err(|fault| fault.to_string())
    })
}
