//! Masks of attention: what hides later keys becomes the op's own, the rest an operand of rank 4.

use crate::rewrite::analysis::{Graph, add_op};
use crate::rewrite::language::Term;
use egg::Id;
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{Broadcast, Reshape};

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
///
/// `None` for a mask that may be trained, such as a learned relative bias: `attention` gives masks no gradient.
pub(super) fn mask_operand(graph: &mut Graph, mask: Id, batch: &str, scores: [u64; 4]) -> Option<Id> {
    if graph[mask].data.is_trained() {
        return None;
    }
    let old = graph[mask].data.ty().shape.clone();
    let shape = with_heads(old.clone(), batch, scores[1])?;
    let mut padded = vec![1; 4_usize.checked_sub(shape.len())?];
    padded.extend(&shape);
    let whole = vec![padded[0], padded[1], scores[2], scores[3]];
    let one_or = |i: usize| padded[i] == 1 || padded[i] == scores[i];
    if !(0..4).all(one_or) {
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
    let is_causal = |id: Id| graph[id].nodes.iter().any(|term| is_causal_mask(graph, term, sq, sk));
    if is_causal(mask) {
        return (true, None);
    }
    for term in &graph[mask].nodes {
        if let Term::Add([a, b]) = term
            && is_causal(*a)
        {
            return (true, Some(*b));
        }
    }
    (false, Some(mask))
}

fn is_causal_mask(graph: &Graph, term: &Term, sq: u64, sk: u64) -> bool {
    let Term::Other(index, _) = term else { return false };
    let Op::CausalMask(mask) = graph.analysis.vocabulary.op(*index) else { return false };
    let sees_itself = sk >= sq && mask.offset == (sk - sq) as i64;
    mask.shape.ends_with(&[sq, sk]) && sees_itself && mask.fill.get() <= HIDDEN
}
