//! Recognises a mixture of experts in gathers of whole weight matrices: one for each choice of each token.
//!
//! ```text
//! g = gate[i] x     u = up[i] x     y = sum over k of w (down[i] (a(g) u))
//! ```
//! becomes one `moe`. The tokens may lie under any shape, gate and up may be slices of one weight or of one product with it, and
//! each weight may be stored transposed. Where a token chooses one expert the sum is missing.

use super::raise::reshaped;
use super::sweep::{Sweep, sweep};
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{Binary, Broadcast, Einsum, Moe, ReduceSum, Reshape, Slice, Transpose, UnaryKind};
use galvatron_ir::{NodeId, Program, ValueId};

/// Makes one op of every mixture of experts.
pub(super) fn recognise_experts(program: &mut Program) -> bool {
    sweep(program, |cx, node| {
        let mixture = mixture_of(cx, node)?;
        let (shape, y) = (cx.shape(cx.result(node)), mixture.emit(cx));
        Some(if cx.shape(y) == shape { y } else { cx.emit(Reshape { shape }, &[y]) })
    })
}

/// The mixture whose result a node computes: the sum over the choices, or the product with the weight of the only one.
fn mixture_of(cx: &Sweep<'_>, node: NodeId) -> Option<Mixture> {
    match cx.op(node) {
        Op::ReduceSum(ReduceSum { dims }) => {
            let weighted = cx.args(node)[0];
            let [k, h] = *cx.shape(weighted).last_chunk()?;
            let is_over_choices = cx.ty(weighted).rank() > 2 && *dims == [cx.ty(weighted).rank() - 2];
            if is_over_choices { Mixture::of(cx, weighted, Choices::Several(k), h) } else { None }
        }
        Op::Binary(op) if *op == Binary::MUL => {
            let weighted = cx.result(node);
            Mixture::of(cx, weighted, Choices::One, *cx.shape(weighted).last()?)
        }
        _ => None,
    }
}

/// How the choices of a token lie in the values of a mixture.
#[derive(Clone, Copy)]
enum Choices {
    /// There is one; no dimension counts it.
    One,
    /// They are the dimension before the last.
    Several(u64),
}

impl Choices {
    /// The last extents of a value with `d` elements for each choice.
    fn row(self, d: u64) -> Vec<u64> {
        match self {
            Choices::One => vec![d],
            Choices::Several(k) => vec![k, d],
        }
    }

    fn count(self) -> u64 {
        match self {
            Choices::One => 1,
            Choices::Several(k) => k,
        }
    }
}

/// The operands of a mixture as the program has them.
struct Mixture {
    activation: UnaryKind,
    /// Tokens, [.., h].
    x: ValueId,
    /// Weight of each choice, [.., k, 1], or [.., 1].
    w: ValueId,
    /// Expert of each choice, [.., k], or [..].
    i: ValueId,
    choices: Choices,
    gate: Table,
    up: Table,
    down: Table,
}

/// Matrices of all experts, one of which is gathered for each choice.
#[derive(Clone, Copy)]
struct Table {
    /// [e, .., ..]
    all: ValueId,
    /// The part of each matrix that is read.
    part: Option<Slice>,
    /// Whether each matrix is stored with its rows as columns.
    is_transposed: bool,
}

impl Mixture {
    /// Reads the mixture off the value [.., k, h] whose sum over k is the result, or [.., h] if that is the result.
    fn of(cx: &Sweep<'_>, weighted: ValueId, choices: Choices, h: u64) -> Option<Mixture> {
        let is_weight = |w: ValueId| cx.shape(w).ends_with(&choices.row(1));
        let (product, w) = factors(cx, weighted)?.into_iter().find(|&(_, w)| is_weight(w))?;
        let (down, inner, i) = Product::of(cx, peeled(cx, product, &choices.row(h)), choices)?.of_experts(cx)?;
        let row = choices.row(*cx.shape(inner).last()?);
        let all = factors(cx, peeled(cx, inner, &row))?;
        let (activation, g, u) = all.into_iter().find_map(|(a, u)| {
            let (kind, g) = activated(cx, peeled(cx, a, &row))?;
            Some((kind, peeled(cx, g, &row), peeled(cx, u, &row)))
        })?;
        let (gate, x, of_gate) = Product::of(cx, g, choices)?.of_experts(cx)?;
        let (up, of_x, of_up) = Product::of(cx, u, choices)?.of_experts(cx)?;
        let is_one = x == of_x && i == of_gate && i == of_up && cx.shape(x).last() == Some(&h);
        is_one.then_some(Mixture { activation, x, w, i, choices, gate, up, down })
    }

    fn emit(&self, cx: &mut Sweep<'_>) -> ValueId {
        let mut shape = cx.shape(self.x);
        if let Some(last) = shape.last_mut() {
            *last = self.choices.count();
        }
        let (w, i) = (reshaped(cx, self.w, &shape), reshaped(cx, self.i, &shape));
        let [gate, up, down] = [self.gate, self.up, self.down].map(|table| table.emit(cx));
        let experts = cx.shape(gate)[0];
        cx.emit(Moe { activation: self.activation, experts }, &[self.x, w, i, gate, up, down])
    }
}

impl Table {
    fn emit(self, cx: &mut Sweep<'_>) -> ValueId {
        let part = self.part.map_or(self.all, |slice| cx.emit(slice, &[self.all]));
        if self.is_transposed { cx.emit(Transpose { perm: vec![0, 2, 1] }, &[part]) } else { part }
    }
}

/// A product of one matrix [.., k, s, d] for each choice with a vector [.., k, d], or with [.., d] whatever the choice.
struct Product {
    matrices: ValueId,
    vectors: ValueId,
    choices: Choices,
    is_transposed: bool,
    is_by_choice: bool,
    /// The part of the result that is read.
    part: Option<Slice>,
}

impl Product {
    fn of(cx: &Sweep<'_>, value: ValueId, choices: Choices) -> Option<Product> {
        if let Some((Op::Slice(slice), args)) = cx.def(value) {
            let is_last = slice.dim + 1 == cx.ty(value).rank();
            let whole = peeled(cx, args[0], &choices.row(*cx.shape(args[0]).last()?));
            let product = if is_last { Product::of(cx, whole, choices)? } else { return None };
            return product.part.is_none().then_some(Product { part: Some(*slice), ..product });
        }
        let Some((Op::Einsum(Einsum { lhs, rhs, out }), args)) = cx.def(value) else { return None };
        let (batch, s) = out.split_at(out.len().checked_sub(1)?);
        let rows = &batch[..batch.len().checked_sub(choices.row(1).len() - 1)?];
        [(lhs, args[0], rhs, args[1]), (rhs, args[1], lhs, args[0])].into_iter().find_map(
            |(of, matrices, by, vectors)| {
                let d = &by[by.len().checked_sub(1)?..];
                let is_by_choice = *by == format!("{batch}{d}");
                let is_transposed = *of == format!("{batch}{d}{s}");
                let fits = is_transposed || *of == format!("{batch}{s}{d}");
                let is_product = fits && (is_by_choice || *by == format!("{rows}{d}"));
                let part = None;
                is_product.then_some(Product { matrices, vectors, choices, is_transposed, is_by_choice, part })
            },
        )
    }

    /// The matrices of all experts, the vectors, and which expert each choice is, all without changes of shape.
    ///
    /// Vectors that are the same for all choices are read where they are repeated.
    fn of_experts(&self, cx: &Sweep<'_>) -> Option<(Table, ValueId, ValueId)> {
        let (matrices, part) = self.gathered(cx)?;
        let Some((Op::Embedding(_), &[all, ids])) = cx.def(matrices) else { return None };
        if cx.ty(all).rank() != 3 {
            return None;
        }
        let i = match self.choices {
            Choices::One => Some(ids).filter(|&ids| cx.shape(unshaped(cx, ids)).last() == Some(&1))?,
            Choices::Several(k) => Some(peeled(cx, ids, &[k])).filter(|&ids| cx.shape(ids).last() == Some(&k))?,
        };
        Some((Table { all, part, is_transposed: self.is_transposed }, self.tokens(cx)?, i))
    }

    /// The gather of the matrices, and the part of each that the product, or a part of it, reads.
    fn gathered(&self, cx: &Sweep<'_>) -> Option<(ValueId, Option<Slice>)> {
        let matrices = peeled(cx, self.matrices, &tail(cx, self.matrices)?);
        match (cx.def(matrices), self.part) {
            (Some((Op::Slice(slice), args)), None) => {
                let dim = slice.dim.checked_sub(cx.ty(matrices).rank() - 2)? + 1;
                Some((peeled(cx, args[0], &tail(cx, args[0])?), Some(Slice { dim, ..*slice })))
            }
            (_, part) => {
                let dim = if self.is_transposed { 2 } else { 1 };
                Some((matrices, part.map(|slice| Slice { dim, ..slice })))
            }
        }
    }

    fn tokens(&self, cx: &Sweep<'_>) -> Option<ValueId> {
        let d = *cx.shape(self.vectors).last()?;
        Some(match self.choices {
            Choices::Several(k) if self.is_by_choice => {
                let own = peeled(cx, self.vectors, &[k, d]);
                repeated(cx, own, k, d).map_or(own, |source| peeled(cx, source, &[d]))
            }
            _ => peeled(cx, self.vectors, &[d]),
        })
    }
}

/// The source [.., d] of vectors [.., k, d] that are the same for all k.
fn repeated(cx: &Sweep<'_>, vectors: ValueId, k: u64, d: u64) -> Option<ValueId> {
    let Some((Op::Broadcast(Broadcast { shape, dims }), args)) = cx.def(unshaped(cx, vectors)) else { return None };
    let from = cx.shape(args[0]);
    let is_new = |at: usize| dims.iter().position(|&x| x == at).is_none_or(|i| from[i] != shape[at]) && shape[at] != 1;
    let new: Vec<usize> = (0..shape.len()).filter(|&at| is_new(at)).collect();
    let [at] = new[..] else { return None };
    (shape[at] == k && shape[at + 1..].iter().product::<u64>() == d).then_some(args[0])
}

/// The value before all changes of shape.
fn unshaped(cx: &Sweep<'_>, value: ValueId) -> ValueId {
    match cx.def(value) {
        Some((Op::Reshape(_), args)) => unshaped(cx, args[0]),
        _ => value,
    }
}

/// The value before changes of shape that leave the last dimensions alone: they only regroup the others.
fn peeled(cx: &Sweep<'_>, value: ValueId, last: &[u64]) -> ValueId {
    match cx.def(value) {
        Some((Op::Reshape(_), args)) if cx.shape(args[0]).ends_with(last) => peeled(cx, args[0], last),
        _ => value,
    }
}

/// The last two extents.
fn tail(cx: &Sweep<'_>, value: ValueId) -> Option<[u64; 2]> {
    cx.shape(value).last_chunk().copied()
}

/// The two factors of an element-wise product, in both orders.
fn factors(cx: &Sweep<'_>, value: ValueId) -> Option<[(ValueId, ValueId); 2]> {
    match cx.def(value) {
        Some((Op::Binary(op), &[a, b])) if *op == Binary::MUL => Some([(a, b), (b, a)]),
        _ => None,
    }
}

/// The activation whose result the value is, and its operand.
fn activated(cx: &Sweep<'_>, value: ValueId) -> Option<(UnaryKind, ValueId)> {
    use UnaryKind::{Gelu, GeluTanh, Relu, Sigmoid, Silu};
    match cx.def(value) {
        Some((Op::Unary(op), args)) if matches!(op.kind, Gelu | GeluTanh | Relu | Sigmoid | Silu) => {
            Some((op.kind, args[0]))
        }
        _ => None,
    }
}
