//! A matrix product with the node after it, where the library adds what that adds before it writes the result.
//!
//! Only products of f32 take part. The library rounds their sum, then what is added to it, as two nodes do; in what
//! order it sums a product is its own choice with or without an addition. A product of bf16 would not be rounded between the two
//! nodes, where the plan says that it is. GELU is left to our kernels: the library's is of the tanh form alone, and how exact it is
//! is not documented.

use galvatron_ir::op::Op;
use galvatron_ir::op::compute::Binary;
use galvatron_ir::types::DType;

use super::expression::Index;
use crate::cuda::command::{Accesses, Command, Epilogue, Matmul, Place};
use crate::cuda::table;
use crate::cuda::walk::broadcast;
use crate::device::{BufferSpec, NodeSpec, RunNode};

/// How many nodes from a position on are one product.
pub(super) fn longest(run: &[RunNode<'_>], start: usize) -> usize {
    let pair = run.get(start..start + 2);
    if pair.is_some_and(|pair| commands(pair).is_some()) { 2 } else { 1 }
}

/// The commands of a product with the node after it, and what they touch; `None` if the library cannot do both at once.
pub(super) fn commands(group: &[RunNode<'_>]) -> Option<(Vec<Command>, Accesses)> {
    let [product, next] = group else { return None };
    let value = only_read_by(product, next)?;
    let (epilogue, target) = epilogue(next, value)?;
    let target = BufferSpec { offset: target.offset, ..value.clone() };
    let results = [target.clone()];
    let spec = NodeSpec { results: &results, ..product.spec.clone() };
    let mut program = table::lower(&spec).ok()?;
    let n_products = program.commands.iter().filter(|command| matches!(command, Command::Matmul(_))).count();
    if n_products > 1 {
        return None;
    }
    let Some(Command::Matmul(matmul)) = program.commands.last_mut() else { return None };
    if matmul.c.at != Place::Arena(target.offset) || !matmul.takes(epilogue) {
        return None;
    }
    matmul.epilogue = epilogue.map_or(Epilogue::None, |(epilogue, _)| epilogue);
    let added = epilogue.map(|(_, added)| added.span());
    let is_over = added.is_some_and(|at| at.overlaps(&target.span()) && at != target.span());
    program.accesses.reads.extend(added);
    (!is_over).then_some((program.commands, program.accesses))
}

/// The result of a product, if it is of f32 and no node but the next one reads it.
fn only_read_by<'a>(product: &RunNode<'a>, next: &RunNode<'_>) -> Option<&'a BufferSpec> {
    let [value] = product.spec.results else { return None };
    let is_product = matches!(product.spec.op, Op::Einsum(_)) && value.ty.dtype == DType::F32;
    (is_product && product.last_readers == [Some(next.position)]).then_some(value)
}

/// What is added to a product, and where it lies.
type Added<'a> = Option<(Epilogue, &'a BufferSpec)>;

/// What a node does with a product that it reads: what it adds, and where it writes.
fn epilogue<'a>(next: &RunNode<'a>, value: &BufferSpec) -> Option<(Added<'a>, &'a BufferSpec)> {
    let is_value = |arg: &BufferSpec| arg.span() == value.span() && arg.ty == value.ty;
    match (next.spec.op, next.spec.args, next.spec.results) {
        (Op::Update(_), [to, x], []) if is_value(x) && to.ty == value.ty => Some((None, to)),
        (Op::Accumulate(_), [to, x], []) if is_value(x) && to.ty == value.ty && !to.span().overlaps(&x.span()) => {
            Some((Some((Epilogue::Accumulate, to)), to))
        }
        (Op::Binary(Binary::ADD), [x, bias], [to]) | (Op::Binary(Binary::ADD), [bias, x], [to]) if is_value(x) => {
            let row = Index::new(&value.ty.shape, broadcast(&bias.ty.shape, &value.ty.shape));
            let Index::Row(length) = row else { return None };
            let added = (Epilogue::Bias(Place::Arena(bias.offset), length), bias);
            (to.ty == value.ty && !to.span().overlaps(&bias.span())).then_some((Some(added), to))
        }
        _ => None,
    }
}

impl Matmul {
    /// Whether the library can add that: a bias of one element for each column of one product whose rows are contiguous, which
    /// are its columns.
    fn takes(&self, added: Added<'_>) -> bool {
        match added {
            Some((Epilogue::Bias(_, length), _)) => {
                self.batch == 1 && self.n == length && self.m > 1 && (self.c.row, self.c.col) == (length, 1)
            }
            _ => true,
        }
    }
}
