//! Masks of attention: what hides later keys becomes the op's own, the rest an operand of rank 4.

use crate::rewrite::analysis::{Graph, add_op, attr_op, resolve};
use crate::rewrite::language::Term;
use egg::{Id, Language};
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{Broadcast, Constant, Reshape};

/// Masks add at most this to hidden scores: their exponential is zero beside any visible one.
pub(super) const HIDDEN: f64 = -1e4;

/// Shape of a mask of scores with these batch dimensions, as one of scores [b, heads, q, k]; `None` if it differs among the
/// queries of one head of keys.
fn with_heads(mut shape: Vec<u64>, batch: &str, n_heads: u64) -> Option<Vec<u64>> {
    let n = shape.len();
    match batch {
        "b" if n >= 3 => shape.insert(1, 1),
        "bhr" if n >= 4 => {
            let heads = shape[n - 4] * shape[n - 3];
            if heads != 1 && heads != n_heads {
                return None;
            }
            shape[n - 4] = heads;
            shape.remove(n - 3);
        }
        "bhr" if n == 3 && shape[0] != 1 => return None,
        _ => {}
    }
    Some(shape)
}

/// The mask as `attention` wants it for scores of shape [b, heads, q, k]: rank 4 with whole last dimensions.
pub(super) fn mask_operand(graph: &mut Graph, mask: Id, batch: &str, scores: [u64; 4]) -> Option<Id> {
    let old = graph[mask].data.ty().shape.clone();
    let shape = with_heads(old.clone(), batch, scores[1])?;
    let mut padded = vec![1; 4_usize.checked_sub(shape.len())?];
    padded.extend(&shape);
    let whole = vec![padded[0], padded[1], scores[2], scores[3]];
    let one_or = |i: usize| padded[i] == 1 || padded[i] == scores[i];
    if !(1..4).all(one_or) || padded[0] == 0 || !scores[0].is_multiple_of(padded[0]) {
        return None;
    }
    let mask = if padded == old { mask } else { add_op(graph, Reshape { shape: padded.clone() }, &[mask]) };
    if padded == whole {
        return Some(mask);
    }
    Some(add_op(graph, Broadcast { shape: whole, dims: vec![0, 1, 2, 3] }, &[mask]))
}

/// Whether the mask hides later keys, and what else it adds.
pub(super) fn split_mask(graph: &Graph, mask: Id, sq: u64, sk: u64) -> (bool, Option<Id>) {
    let is_causal = |id: Id| is_causal_class(graph, id, sq, sk, MAX_DEPTH);
    if is_causal(mask) {
        return (true, None);
    }
    for term in &graph[mask].nodes {
        let Term::Add([a, b]) = term else { continue };
        if let Some(other) = [(a, b), (b, a)].into_iter().find_map(|(x, y)| is_causal(*x).then_some(*y)) {
            return (true, Some(other));
        }
    }
    (false, Some(mask))
}

/// Ops that are looked through, at most.
const MAX_DEPTH: usize = 6;

/// Whether the class is a causal mask, unit dimensions aside.
fn is_causal_class(graph: &Graph, id: Id, sq: u64, sk: u64, depth: usize) -> bool {
    let Some(depth) = depth.checked_sub(1) else { return false };
    let inner = |x: Id| is_causal_class(graph, x, sq, sk, depth);
    let extents = |x: Id| graph[x].data.ty().shape.clone();
    let whole = |shape: &[u64]| shape.iter().copied().filter(|&d| d != 1).collect::<Vec<_>>();
    graph[id].nodes.iter().any(|term| match term {
        Term::Reshape([_, x]) => whole(&extents(*x)) == whole(&extents(id)) && inner(*x),
        Term::Transpose([a, x]) => {
            let Some(Op::Transpose(t)) = attr_op(graph, *a) else { return false };
            let shape = extents(*x);
            t.perm.iter().copied().filter(|&p| shape[p] != 1).is_sorted() && inner(*x)
        }
        term => is_causal_mask(graph, term, sq, sk),
    })
}

fn is_causal_mask(graph: &Graph, term: &Term, sq: u64, sk: u64) -> bool {
    let Term::Other(index, _) = term else { return false };
    let Op::CausalMask(mask) = graph.analysis.vocabulary.op(*index) else { return false };
    let sees_itself = sk >= sq && mask.offset == (sk - sq) as i64;
    mask.shape.ends_with(&[sq, sk]) && sees_itself && mask.fill.get() <= HIDDEN
}

/// The mask with only the first of the equal runs of samples that it is made of, or `None` if there is one run.
pub(super) fn without_repetition(graph: &mut Graph, mask: Id) -> Option<Id> {
    let extent = graph[mask].data.ty().shape[0];
    let period = period(graph, mask, MAX_DEPTH);
    (period < extent).then(|| first(graph, mask, period, MAX_DEPTH)).flatten()
}

/// A period of the elements along dimension 0 that divides its extent, as far as it is known.
fn period(graph: &Graph, id: Id, depth: usize) -> u64 {
    let extent = graph[id].data.ty().shape.first().copied().unwrap_or(1);
    if extent <= 1 || depth == 0 {
        return extent;
    }
    let of_term = |term: &Term| match resolve(graph, term) {
        Some((Op::Constant(constant), _)) => period_of_constant(&constant, extent),
        Some((Op::Broadcast(b), _)) if b.dims.first() == Some(&0) => period(graph, term.children()[0], depth - 1),
        Some((Op::Broadcast(_), _)) => 1,
        Some((Op::Binary(_), _)) => {
            let [a, b] = [term.children()[0], term.children()[1]];
            let rank = graph[id].data.ty().rank();
            let of = |x: Id| if graph[x].data.ty().rank() == rank { period(graph, x, depth - 1) } else { 1 };
            let longer = of(a).max(of(b));
            if longer.is_multiple_of(of(a).min(of(b))) { longer } else { extent }
        }
        _ => extent,
    };
    graph[id].nodes.iter().map(of_term).min().unwrap_or(extent)
}

fn period_of_constant(constant: &Constant, extent: u64) -> u64 {
    let run = constant.values.len() / extent as usize;
    let repeats = |n: &u64| {
        let step = *n as usize * run;
        extent.is_multiple_of(*n) && constant.values[step..].iter().zip(constant.values.iter()).all(|(a, b)| a == b)
    };
    (1..extent).find(repeats).unwrap_or(extent)
}

/// The first `n` elements along dimension 0 of a class with that period.
fn first(graph: &mut Graph, id: Id, n: u64, depth: usize) -> Option<Id> {
    let ty = graph[id].data.ty().clone();
    let extent = ty.shape.first().copied().unwrap_or(1);
    if extent <= n {
        return Some(id);
    }
    let mut shape = ty.shape.clone();
    shape[0] = n;
    let depth = depth.checked_sub(1)?;
    let nodes = graph[id].nodes.clone();
    nodes.iter().find_map(|term| match resolve(graph, term)?.0 {
        Op::Constant(constant) if period_of_constant(&constant, extent) <= n => {
            let len = constant.values.len() / extent as usize * n as usize;
            let values = constant.values[..len].into();
            Some(add_op(graph, Constant { ty: ty.with_shape(shape.clone()), values }, &[]))
        }
        Op::Broadcast(b) => {
            let x = term.children()[0];
            let x = if b.dims.first() == Some(&0) { first(graph, x, n, depth)? } else { x };
            Some(add_op(graph, Broadcast { shape: shape.clone(), ..b }, &[x]))
        }
        Op::Binary(binary) => {
            let [a, b] = [term.children()[0], term.children()[1]];
            let rank = ty.rank();
            let mut of = |x: Id| if graph[x].data.ty().rank() == rank { first(graph, x, n, depth) } else { Some(x) };
            let args = [of(a)?, of(b)?];
            Some(add_op(graph, binary, &args))
        }
        _ => None,
    })
}
