//! Attention from two contractions and a softmax, wherever the scale and the mask stand.

use super::Rule;
use super::conditions::{Match, rule};
use crate::rewrite::analysis::{Graph, add_full, add_op};
use crate::rewrite::language::Term;
use egg::Id;
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{Attention, Broadcast, Einsum, Reshape, Transpose};
use galvatron_ir::types::Scalar;

/// Masks add at most this to hidden scores: their exponential is zero beside any visible one.
const HIDDEN: f64 = -1e4;

/// The rules. The scores may be scaled or not, masked or not; their softmax may be guarded against rows of NaN.
pub(super) fn rules() -> Vec<Rule> {
    let mut all = vec![
        rule("guarded-softmax", "(where (is_nan (softmax ?z)) ?zero (softmax ?z))", |m| {
            m.is_zero("zero").then(|| m.graph.add(Term::GuardedSoftmax([m.get("z")])))
        }),
        rule("scale-queries", "(einsum ?s (mul ?x ?c) ?y)", |m| scale_outward(m, |x, y| [x, y])),
        rule("scale-keys", "(einsum ?s ?y (mul ?x ?c))", |m| scale_outward(m, |x, y| [y, x])),
        rule("join-scales", "(mul (mul ?x ?a) ?b)", |m| {
            let factor = m.splat("a")? * m.splat("b")?;
            let ty = m.graph[m.get("a")].data.ty().with_shape([]);
            let factor = add_full(m.graph, ty, factor);
            Some(m.graph.add(Term::Mul([m.get("x"), factor])))
        }),
        rule("join-masks", "(softmax (add (add (einsum ?s ?q ?k) ?m) ?n))", |m| join_masks(m, false)),
        rule("join-masks-of-scaled", "(softmax (add (add (mul (einsum ?s ?q ?k) ?c) ?m) ?n))", |m| join_masks(m, true)),
        rule("mask-by-choice", "(softmax (where ?visible ?z ?hidden))", mask_by_choice),
        rule("probabilities-first", "(einsum ?s ?x (softmax ?z))", |m| probabilities_first(m, Term::Softmax)),
        rule("guarded-probabilities-first", "(einsum ?s ?x (guarded_softmax ?z))", |m| {
            probabilities_first(m, Term::GuardedSoftmax)
        }),
        rule("causal-attention", "(masked_attention ?attr ?q ?k ?v ?m)", causal_attention),
    ];
    let scores = [
        ("attention", "(einsum ?s ?q ?k)"),
        ("attention-scaled", "(mul (einsum ?s ?q ?k) ?c)"),
        ("attention-masked", "(add (einsum ?s ?q ?k) ?m)"),
        ("attention-scaled-masked", "(add (mul (einsum ?s ?q ?k) ?c) ?m)"),
    ];
    for (name, scores) in scores {
        all.push(rule(name, &format!("(einsum ?t (softmax {scores}) ?v)"), attention));
        all.push(rule(&format!("{name}-guarded"), &format!("(einsum ?t (guarded_softmax {scores}) ?v)"), attention));
    }
    all
}

/// einsum(c x, y) = c einsum(x, y)
fn scale_outward(m: &mut Match<'_>, order: fn(Id, Id) -> [Id; 2]) -> Option<Id> {
    m.splat("c")?;
    let (s, c) = (m.get("s"), m.get("c"));
    if !m.shape("c").is_empty() {
        return None;
    }
    let [x, y] = order(m.get("x"), m.get("y"));
    let product = m.add(Term::Einsum([s, x, y]));
    Some(m.add(Term::Mul([product, c])))
}

/// (scores + m) + n = scores + (m + n)
fn join_masks(m: &mut Match<'_>, is_scaled: bool) -> Option<Id> {
    let mask = m.add(Term::Add([m.get("m"), m.get("n")]));
    let mut scores = m.add(Term::Einsum([m.get("s"), m.get("q"), m.get("k")]));
    if is_scaled {
        scores = m.add(Term::Mul([scores, m.get("c")]));
    }
    let masked = m.add(Term::Add([scores, mask]));
    Some(m.add(Term::Softmax([masked])))
}

/// softmax(where(visible, scores, -large)) = softmax(scores + where(visible, 0, -large))
fn mask_by_choice(m: &mut Match<'_>) -> Option<Id> {
    m.splat("hidden").filter(|&hidden| hidden <= HIDDEN)?;
    if !m.has_result_type("z") {
        return None;
    }
    let zero = m.constant_like("hidden", 0.0);
    let mask = m.add(Term::Where([m.get("visible"), zero, m.get("hidden")]));
    let masked = m.add(Term::Add([m.get("z"), mask]));
    Some(m.add(Term::Softmax([masked])))
}

/// einsum(v, p) = einsum(p, v) for the probabilities p that `softmax` makes of ?z.
fn probabilities_first(m: &mut Match<'_>, softmax: fn([Id; 1]) -> Term) -> Option<Id> {
    let Some(Op::Einsum(spec)) = m.attr("s") else { return None };
    let swapped = Einsum { lhs: spec.rhs.clone(), rhs: spec.lhs.clone(), out: spec.out.clone() };
    let probabilities = m.add(softmax([m.get("z")]));
    let x = m.get("x");
    Some(add_op(m.graph, swapped, &[probabilities, x]))
}

/// A causal mask among the masks becomes the op's own.
fn causal_attention(m: &mut Match<'_>) -> Option<Id> {
    let Some(Op::Attention(op)) = m.attr("attr") else { return None };
    let scale = op.scale;
    let [q, k, v, mask] = ["q", "k", "v", "m"].map(|name| m.get(name));
    let (sq, sk) = (m.shape("q")[1], m.shape("k")[1]);
    let (true, rest) = split_mask(m.graph, mask, sq, sk) else { return None };
    let mut args = vec![q, k, v];
    let shape = [m.shape("q")[0], m.shape("q")[2], sq, sk];
    args.extend(rest.map(|rest| mask_operand(m.graph, rest, shape)));
    Some(add_op(m.graph, Attention { scale, causal: true }, &args))
}

/// Which label of the two contractions plays which part.
struct Parts {
    q: String,
    k: String,
    v: String,
    out: String,
    swapped: bool,
    n_batch: usize,
}

/// Reads the labels of the scores `s` and of the product with the values `t`, or `None` if this is no attention.
///
/// Layouts are given in the letters b, h (absent with one batch dimension), q, k, d, e.
fn parts(s: &Einsum, t: &Einsum) -> Option<Parts> {
    let scores: Vec<char> = s.out.chars().collect();
    let n_batch = scores.len().checked_sub(2).filter(|n| (1..=2).contains(n))?;
    let (query, key) = (scores[n_batch], scores[n_batch + 1]);
    let swapped = s.rhs.contains(query);
    let (q, k) = if swapped { (&s.rhs, &s.lhs) } else { (&s.lhs, &s.rhs) };
    let shared = scores[..n_batch].iter().all(|&c| q.contains(c) && k.contains(c));
    let rank = n_batch + 2;
    if !shared || q.len() != rank || k.len() != rank || !q.contains(query) || q.contains(key) || k.contains(query) {
        return None;
    }
    let probabilities: Vec<char> = t.lhs.chars().collect();
    let (row, column) = (probabilities[n_batch], probabilities[n_batch + 1]);
    let batch = &probabilities[..n_batch];
    let carried = batch.iter().all(|&c| t.rhs.contains(c) && t.out.contains(c));
    let contracted = t.rhs.contains(column) && !t.out.contains(column) && !t.rhs.contains(row) && t.out.contains(row);
    if !carried || !contracted || t.rhs.len() != rank || t.out.len() != rank {
        return None;
    }
    let name = |from: &[char], rest: char| {
        let from = from.to_vec();
        move |c: char| {
            let at = from.iter().position(|&f| f == c);
            at.map_or(rest, |i| if i < n_batch { ['b', 'h'][i] } else { ['q', 'k'][i - n_batch] })
        }
    };
    let (of_scores, of_product) = (name(&scores, 'd'), name(&probabilities, 'e'));
    Some(Parts {
        q: q.chars().map(&of_scores).collect(),
        k: k.chars().map(&of_scores).collect(),
        v: t.rhs.chars().map(&of_product).collect(),
        out: t.out.chars().map(&of_product).collect(),
        swapped,
        n_batch,
    })
}

fn attention(m: &mut Match<'_>) -> Option<Id> {
    let (Some(Op::Einsum(s)), Some(Op::Einsum(t))) = (m.attr("s"), m.attr("t")) else { return None };
    let parts = parts(&s.clone(), &t.clone())?;
    let scale = match m.find("c") {
        Some(_) => m.splat("c")?,
        None => 1.0,
    };
    let (mut q, mut k, v) = (m.get("q"), m.get("k"), m.get("v"));
    if parts.swapped {
        (q, k) = (k, q);
    }
    let with_heads = |axis: char| format!("b{axis}{}", if parts.n_batch == 2 { "h" } else { "" });
    let q = laid_out(m.graph, q, &parts.q, &(with_heads('q') + "d"));
    let k = laid_out(m.graph, k, &parts.k, &(with_heads('k') + "d"));
    let v = laid_out(m.graph, v, &parts.v, &(with_heads('k') + "e"));
    let shape = |g: &Graph, id: Id| g[id].data.ty().shape.clone();
    let (of_q, of_k, of_v) = (shape(m.graph, q), shape(m.graph, k), shape(m.graph, v));
    let scores = [of_q[0], of_q[2], of_q[1], of_k[1]];
    let (mut args, mut causal) = (vec![q, k, v], false);
    if let Some(mask) = m.find("m") {
        let (is_causal, rest) = split_mask(m.graph, mask, scores[2], scores[3]);
        causal = is_causal;
        let rank = parts.n_batch + 2;
        let rest = rest.map(|rest| with_rank(m.graph, rest, rank));
        let rest = rest.map(|rest| mask_operand(m.graph, rest, scores));
        if rest.is_some_and(|rest| !fits(&shape(m.graph, rest), &scores)) {
            return None;
        }
        args.extend(rest);
    }
    let out = add_op(m.graph, Attention { scale: Scalar::new(scale), causal }, &args);
    let flat: Vec<u64> = [of_q[0], of_q[1], of_q[2], of_v[3]].to_vec();
    let mut letters = "bqhe".to_string();
    let out = if parts.n_batch == 1 {
        letters = "bqe".into();
        add_op(m.graph, Reshape { shape: vec![flat[0], flat[1], flat[3]] }, &[out])
    } else {
        out
    };
    Some(transposed(m.graph, out, &letters, &parts.out))
}

/// Dimensions in the order b, rows, h, width; a missing h becomes a unit dimension.
fn laid_out(graph: &mut Graph, x: Id, from: &str, to: &str) -> Id {
    let x = transposed(graph, x, from, to);
    if to.contains('h') {
        return x;
    }
    let shape = graph[x].data.ty().shape.clone();
    add_op(graph, Reshape { shape: vec![shape[0], shape[1], 1, shape[2]] }, &[x])
}

fn transposed(graph: &mut Graph, x: Id, from: &str, to: &str) -> Id {
    if from == to {
        return x;
    }
    let perm = to.chars().filter_map(|c| from.find(c)).collect();
    add_op(graph, Transpose { perm }, &[x])
}

/// A mask under `rank` dimensions, with a unit dimension for heads inserted where scores have none.
fn with_rank(graph: &mut Graph, mask: Id, rank: usize) -> Id {
    let mut shape = graph[mask].data.ty().shape.clone();
    if rank != 3 || shape.len() < 3 {
        return mask;
    }
    shape.insert(1, 1);
    add_op(graph, Reshape { shape }, &[mask])
}

/// The mask as `attention` wants it: rank 4 with whole last dimensions.
fn mask_operand(graph: &mut Graph, mask: Id, scores: [u64; 4]) -> Id {
    let shape = graph[mask].data.ty().shape.clone();
    let mut padded = vec![1; 4 - shape.len()];
    padded.extend(&shape);
    let whole = vec![padded[0], padded[1], scores[2], scores[3]];
    let padded_mask = if padded == shape { mask } else { add_op(graph, Reshape { shape: padded.clone() }, &[mask]) };
    if padded == whole {
        return padded_mask;
    }
    add_op(graph, Broadcast { shape: whole, dims: vec![0, 1, 2, 3] }, &[padded_mask])
}

fn fits(mask: &[u64], scores: &[u64; 4]) -> bool {
    let one_or = |i: usize| mask[i] == 1 || mask[i] == scores[i];
    mask.len() == 4 && one_or(0) && one_or(1) && mask[2..] == scores[2..]
}

/// Whether the mask hides later keys, and what else it adds.
fn split_mask(graph: &Graph, mask: Id, sq: u64, sk: u64) -> (bool, Option<Id>) {
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
