//! Nodes of one op that work on tensors of their own, in few launches: optimizer steps and sums of squares.
//!
//! A launch takes a table of places and lengths by value, which fits into the 4 KiB that the arguments of a kernel may have.
//! Work is cut into equal chunks whatever tensor they are of; each element, and each sum, is computed as by a node alone.

use galvatron_ir::op::Op;
use galvatron_ir::op::opt::{Adamw, Sgd};
use galvatron_ir::types::DType;

use crate::cuda::command::{Accesses, Arg, Command, Launch, Place, Word};
use crate::cuda::kernels::{Family, reduce, scratch};
use crate::cuda::table;
use crate::device::{BufferSpec, RunNode};

/// Parameters that one launch takes.
const PARAMETERS: usize = 48;

/// Tensors that one launch of sums takes.
const SQUARED: usize = 80;

/// Elements of a chunk.
const CHUNK: u64 = 4096;

/// Blocks of a launch; they take chunk after chunk.
const MAX_BLOCKS: u64 = 4096;

/// How many nodes from a position on are launched together.
pub(super) fn longest(run: &[RunNode<'_>], start: usize) -> usize {
    let first = &run[start];
    if !is_known(first) {
        return 1;
    }
    let mut accesses: Vec<Accesses> = Vec::new();
    for node in &run[start..] {
        let own = table::accesses(&node.spec);
        let fits = is_known(node) && is_alike(first, node) && !accesses.iter().any(|other| other.conflicts(&own));
        if !fits {
            break;
        }
        accesses.push(own);
    }
    accesses.len().max(1)
}

/// The commands of a group; `None` if it is not one of this kind.
pub(super) fn commands(group: &[RunNode<'_>]) -> Option<Result<Vec<Command>, String>> {
    if longest(group, 0) < group.len() {
        return None;
    }
    Some(match group[0].spec.op {
        Op::Adamw(op) => Ok(group.chunks(PARAMETERS).map(|part| adamw(op, part)).collect()),
        Op::Sgd(op) => Ok(group.chunks(PARAMETERS).map(|part| sgd(op, part)).collect()),
        _ => group.chunks(SQUARED).map(squares).collect::<Result<Vec<_>, _>>().map(|parts| parts.concat()),
    })
}

/// Whether a node is of an op that is launched for many tensors, on elements of f32.
fn is_known(node: &RunNode<'_>) -> bool {
    let spec = &node.spec;
    let is_f32 = spec.args.iter().chain(spec.results).all(|buffer| buffer.ty.dtype == DType::F32);
    is_f32 && matches!(spec.op, Op::Adamw(_) | Op::Sgd(_) | Op::SumSquares(_))
}

/// Operands that are tensors of a node's own; scalars follow them.
fn n_tensors(op: &Op) -> usize {
    match op {
        Op::Adamw(_) => 4,
        Op::Sgd(op) => op.n_tensors(),
        _ => 1,
    }
}

/// Whether two nodes differ in nothing but their tensors.
fn is_alike(one: &RunNode<'_>, other: &RunNode<'_>) -> bool {
    let scalars = |node: &RunNode<'_>| node.spec.args[n_tensors(node.spec.op)..].to_vec();
    one.spec.op == other.spec.op && scalars(one) == scalars(other)
}

fn word(buffer: Option<&BufferSpec>) -> Word {
    buffer.map_or(Word::Null, |buffer| Word::At(Place::Arena(buffer.offset)))
}

fn pointer(buffer: Option<&BufferSpec>) -> Arg {
    buffer.map_or(Arg::Null, |buffer| Arg::At(Place::Arena(buffer.offset)))
}

/// A table of that many rows, the rest of them empty, after their number.
fn rows(rows: Vec<Vec<Word>>, n_rows: usize) -> Arg {
    let (n, width) = (rows.len(), rows.first().map_or(0, Vec::len));
    let empty = std::iter::repeat_n(Word::Null, (n_rows - n) * width);
    Arg::Struct(std::iter::once(Word::Int(n as i64)).chain(rows.into_iter().flatten()).chain(empty).collect())
}

/// The kernel's table of parameters, and the number of their chunks. The first four operands and three results of a node are
/// its tensors; where an optimizer has fewer, `tensor` gives none for them.
fn parameters(part: &[RunNode<'_>], n_tensors: usize) -> (Arg, u64) {
    let mut first = 0;
    let row = |node: &RunNode<'_>| {
        let (args, n) = (&node.spec.args[..n_tensors], node.spec.args[0].ty.elements());
        let tensors = (0..4).map(|i| word(args.get(i))).chain((0..3).map(|i| word(node.spec.results.get(i))));
        let row = tensors.chain([Word::Int(n as i64), Word::Int(first as i64)]).collect();
        first += n.div_ceil(CHUNK);
        row
    };
    let table = rows(part.iter().map(row).collect(), PARAMETERS);
    (table, first)
}

fn launch(entry: &str, n_chunks: u64, args: Vec<Arg>) -> Command {
    Launch::grid(Family::Optimizer, entry, [n_chunks.clamp(1, MAX_BLOCKS) as u32, 1, 1], args)
}

fn adamw(op: &Adamw, part: &[RunNode<'_>]) -> Command {
    let ((table, n_chunks), scalars) = (parameters(part, 4), &part[0].spec.args[4..]);
    let numbers = [op.beta1, op.beta2, op.eps, op.weight_decay].map(|s| Arg::Double(s.get()));
    let pointers = (0..3).map(|i| pointer(scalars.get(i)));
    let args = [table, Arg::Int(n_chunks as i64)].into_iter().chain(pointers).chain(numbers).collect();
    launch("adamw_many", n_chunks, args)
}

fn sgd(op: &Sgd, part: &[RunNode<'_>]) -> Command {
    let ((table, n_chunks), scalars) = (parameters(part, op.n_tensors()), &part[0].spec.args[op.n_tensors()..]);
    let numbers = [op.momentum, op.weight_decay].map(|s| Arg::Float(s.get() as f32));
    let pointers = (0..2).map(|i| pointer(scalars.get(i)));
    let args = [table, Arg::Int(n_chunks as i64)].into_iter().chain(pointers).chain(numbers).collect();
    launch("sgd_many", n_chunks, args)
}

/// The partial sums of all tensors, then the sum of each.
fn squares(part: &[RunNode<'_>]) -> Result<Vec<Command>, String> {
    let mut first = 0;
    let row = |node: &RunNode<'_>| {
        let n = node.spec.args[0].ty.elements();
        let blocks = reduce::summing_blocks(n);
        let numbers = [n, blocks, first].map(|v| Word::Int(v as i64));
        first += blocks;
        [word(node.spec.args.first()), word(node.spec.results.first())].into_iter().chain(numbers).collect()
    };
    let table = rows(part.iter().map(row).collect(), SQUARED);
    let args = vec![table, Arg::At(scratch(0, 8 * first)?)];
    let launch = |entry, blocks| Launch::grid(Family::Reduce, entry, [blocks as u32, 1, 1], args.clone());
    Ok(vec![launch("total_squares_many", first), launch("total_many", part.len() as u64)])
}
