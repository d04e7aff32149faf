//! Attention from two contractions and a softmax, wherever the scale and the mask stand.

use super::Rule;
use super::attention_masks::{HIDDEN, mask_operand, split_mask, without_repetition};
use super::attention_parts::{Parts, parts};
use super::conditions::{Match, rule};
use crate::rewrite::analysis::{Graph, add_full, add_op};
use crate::rewrite::language::Term;
use egg::Id;
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{Attention, Einsum, Reshape, Transpose};
use galvatron_ir::types::Scalar;

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
        rule("repeated-masks", "(masked_attention ?attr ?q ?k ?v ?m)", |m| {
            let mask = without_repetition(m.graph, m.get("m"))?;
            Some(m.add(Term::MaskedAttention([m.get("attr"), m.get("q"), m.get("k"), m.get("v"), mask])))
        }),
        rule("transpose-of-masks", "(transpose ?t (add ?x ?y))", transpose_of_sum),
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

/// transpose(x + y) = transpose(x) + transpose(y), if both have the rank of the sum.
fn transpose_of_sum(m: &mut Match<'_>) -> Option<Id> {
    if m.shape("x").len() != m.shape("y").len() {
        return None;
    }
    let t = m.get("t");
    let [x, y] = ["x", "y"].map(|name| m.get(name));
    let [x, y] = [x, y].map(|id| m.add(Term::Transpose([t, id])));
    Some(m.add(Term::Add([x, y])))
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
    if let Some(rest) = rest {
        args.push(mask_operand(m.graph, rest, "bh", shape)?);
    }
    Some(add_op(m.graph, Attention { scale, causal: true }, &args))
}

fn attention(m: &mut Match<'_>) -> Option<Id> {
    let (Some(Op::Einsum(s)), Some(Op::Einsum(t))) = (m.attr("s"), m.attr("t")) else { return None };
    let parts = parts(s, t)?;
    let scale = match m.find("c") {
        Some(_) => m.splat("c")?,
        None => 1.0,
    };
    let (q, k) = if parts.swapped { (m.get("k"), m.get("q")) } else { (m.get("q"), m.get("k")) };
    let q = laid_out(m.graph, q, &parts.q, "bqhrd");
    let k = laid_out(m.graph, k, &parts.k, "bkhd");
    let v = laid_out(m.graph, m.get("v"), &parts.v, "bkhe");
    let (of_q, of_k) = (shape(m.graph, q), shape(m.graph, k));
    let scores = [of_q[0], of_q[2], of_q[1], of_k[1]];
    let (mut args, mut causal) = (vec![q, k, v], false);
    if let Some(mask) = m.find("m") {
        let (is_causal, rest) = split_mask(m.graph, mask, scores[2], scores[3]);
        causal = is_causal;
        if let Some(rest) = rest {
            args.push(mask_operand(m.graph, rest, parts.batch, scores)?);
        }
    }
    let out = add_op(m.graph, Attention { scale: Scalar::new(scale), causal }, &args);
    Some(restored(m.graph, out, &parts, of_k[2]))
}

fn shape(graph: &Graph, id: Id) -> Vec<u64> {
    graph[id].data.ty().shape.clone()
}

/// The operand as [b, rows, heads, width]: queries of one head of keys are merged with it, missing heads are a unit dimension.
fn laid_out(graph: &mut Graph, x: Id, from: &str, to: &str) -> Id {
    let kept: String = to.chars().filter(|&c| from.contains(c)).collect();
    let x = transposed(graph, x, from, &kept);
    let old = shape(graph, x);
    let (width, heads) = (old[old.len() - 1], old[2..old.len() - 1].iter().product());
    if old.len() == 4 {
        return x;
    }
    add_op(graph, Reshape { shape: vec![old[0], old[1], heads, width] }, &[x])
}

/// The result of attention in the layout of the product that it replaces.
fn restored(graph: &mut Graph, out: Id, parts: &Parts, n_key_heads: u64) -> Id {
    let old = shape(graph, out);
    let (letters, new) = match parts.batch {
        "b" => ("bqe", vec![old[0], old[1], old[3]]),
        "bhr" => ("bqhre", vec![old[0], old[1], n_key_heads, old[2] / n_key_heads, old[3]]),
        _ => ("bqhe", old.clone()),
    };
    let out = if new == old { out } else { add_op(graph, Reshape { shape: new }, &[out]) };
    transposed(graph, out, letters, &parts.out)
}

fn transposed(graph: &mut Graph, x: Id, from: &str, to: &str) -> Id {
    if from == to {
        return x;
    }
    let perm = to.chars().filter_map(|c| from.find(c)).collect();
    add_op(graph, Transpose { perm }, &[x])
}
