//! Attention whose scores are contracted over more dimensions than batch, heads, queries and keys, as over the windows of an
//! image: a reshape around the softmax says which dimensions belong together.

use super::Rule;
use super::conditions::{Match, rule};
use crate::canonicalize::{groups, merged_shape};
use crate::rewrite::analysis::{Graph, add_op};
use crate::rewrite::language::Term;
use egg::Id;
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{Einsum, Reshape, Transpose};

/// The rules.
pub(super) fn rules() -> Vec<Rule> {
    vec![
        rule("merge-scaled-scores", "(reshape ?u (mul ?z ?c))", |m| {
            if m.splat("c").is_none() || !m.shape("c").is_empty() {
                return None;
            }
            let merged = m.add(Term::Reshape([m.get("u"), m.get("z")]));
            Some(m.add(Term::Mul([merged, m.get("c")])))
        }),
        rule("merge-masked-scores", "(softmax (reshape ?u (add ?z ?m)))", merge_masked_scores),
        rule("merge-scores", "(reshape ?u (einsum ?s ?q ?k))", merge_scores),
        rule("split-probabilities", "(einsum ?t (reshape ?r (softmax ?z)) ?v)", split_probabilities),
    ]
}

/// merge(scores + mask) = merge(scores) + merge(mask), where the mask has or lacks each run of merged dimensions as a whole.
fn merge_masked_scores(m: &mut Match<'_>) -> Option<Id> {
    let Some(Op::Reshape(reshape)) = m.attr("u") else { return None };
    let (from, to, mask) = (m.shape("z"), reshape.shape.clone(), m.shape("m"));
    let is_merge = groups(&from, &to).iter().all(|g| g.to.len() == 1 && !g.from.is_empty());
    if !is_merge || mask.len() > from.len() {
        return None;
    }
    let shape = merged_shape(&mask, &from, &to)?;
    let mask = m.get("m");
    let mask = add_op(m.graph, Reshape { shape }, &[mask]);
    let scores = m.add(Term::Reshape([m.get("u"), m.get("z")]));
    let masked = m.add(Term::Add([scores, mask]));
    Some(m.add(Term::Softmax([masked])))
}

/// Labels that become one dimension.
type Run = Vec<char>;

/// The labels of the dimensions that a reshape merges, one run for each dimension after it; `None` if it does anything else.
fn runs(labels: &str, from: &[u64], to: &[u64]) -> Option<Vec<Run>> {
    let labels: Run = labels.chars().collect();
    let each =
        groups(from, to).into_iter().map(|g| (g.to.len() == 1 && !g.from.is_empty()).then(|| labels[g.from].to_vec()));
    each.collect()
}

fn has_all(labels: &str, run: &Run) -> bool {
    run.iter().all(|&c| labels.contains(c))
}

fn has_none(labels: &str, run: &Run) -> bool {
    !run.iter().any(|&c| labels.contains(c))
}

/// Labels that no run has, one run each.
fn rest(labels: &str, runs: &[Run]) -> Vec<Run> {
    let is_free = |c: &char| !runs.iter().any(|run| run.contains(c));
    labels.chars().filter(is_free).map(|c| vec![c]).collect()
}

/// merge(einsum(q, k)) as an einsum of merged operands, if it is a product of queries and keys: the last dimension belongs to
/// one of them alone, the one before to the other, and the others to both.
fn merge_scores(m: &mut Match<'_>) -> Option<Id> {
    let (Some(Op::Einsum(spec)), Some(Op::Reshape(reshape))) = (m.attr("s"), m.attr("u")) else { return None };
    let (spec, to) = (spec.clone(), reshape.shape.clone());
    let from = [m.get("q"), m.get("k")].map(|id| m.graph[id].data.ty().clone());
    let out = Op::from(spec.clone()).infer(&[&from[0], &from[1]]).ok()?.remove(0);
    let runs = runs(&spec.out, &out.shape, &to)?;
    let ([batch @ .., rows, columns], true) = (&runs[..], runs.len() > 2) else { return None };
    let owns = |own: &str, other: &str, run: &Run| has_all(own, run) && has_none(other, run);
    let (lhs, rhs) = (&spec.lhs, &spec.rhs);
    let is_product =
        (owns(lhs, rhs, rows) && owns(rhs, lhs, columns)) || (owns(rhs, lhs, rows) && owns(lhs, rhs, columns));
    if !is_product || !batch.iter().all(|run| has_all(lhs, run) && has_all(rhs, run)) {
        return None;
    }
    let [(lhs, q), (rhs, k)] = [("q", lhs), ("k", rhs)].map(|(name, labels)| {
        let own: Vec<Run> =
            runs.iter().filter(|run| has_all(labels, run)).cloned().chain(rest(labels, &runs)).collect();
        (first_letters(&own), merged(m.graph, m.get(name), labels, &own))
    });
    Some(add_op(m.graph, Einsum { lhs, rhs, out: first_letters(&runs) }, &[q, k]))
}

/// einsum(split(p), v) = split(einsum(p, merged v)) for probabilities p.
fn split_probabilities(m: &mut Match<'_>) -> Option<Id> {
    let (Some(Op::Einsum(spec)), Some(Op::Reshape(reshape))) = (m.attr("t"), m.attr("r")) else { return None };
    let (spec, split) = (spec.clone(), reshape.shape.clone());
    let runs = runs(&spec.lhs, &split, &m.shape("z"))?;
    let is_whole = |labels: &str| runs.iter().all(|run| has_all(labels, run) || has_none(labels, run));
    if !is_whole(&spec.rhs) || !is_whole(&spec.out) || rest(&spec.out, &runs) != rest(&spec.rhs, &runs) {
        return None;
    }
    let pick = |labels: &str| -> Vec<Run> {
        runs.iter().filter(|run| has_all(labels, run)).cloned().chain(rest(labels, &runs)).collect()
    };
    let (of_v, of_out) = (pick(&spec.rhs), pick(&spec.out));
    let v = merged(m.graph, m.get("v"), &spec.rhs, &of_v);
    let p = m.add(Term::Softmax([m.get("z")]));
    let new = Einsum { lhs: first_letters(&runs), rhs: first_letters(&of_v), out: first_letters(&of_out) };
    let product = add_op(m.graph, new, &[p, v]);
    let of_operand = m.shape("v");
    let size = sizes(&spec, &split, &of_operand);
    let order: String = of_out.concat().into_iter().collect();
    let shape = order.chars().map(size).collect::<Option<Vec<u64>>>()?;
    let product = add_op(m.graph, Reshape { shape }, &[product]);
    Some(transposed(m.graph, product, &order, &spec.out))
}

/// Extents of the labels of a contraction.
fn sizes<'a>(spec: &'a Einsum, lhs: &'a [u64], rhs: &'a [u64]) -> impl Fn(char) -> Option<u64> + 'a {
    move |c| match (spec.lhs.find(c), spec.rhs.find(c)) {
        (Some(i), _) => lhs.get(i).copied(),
        (_, Some(i)) => rhs.get(i).copied(),
        _ => None,
    }
}

fn first_letters(runs: &[Run]) -> String {
    runs.iter().map(|run| run[0]).collect()
}

/// The operand with its dimensions in the order of the runs, each of which becomes one dimension.
fn merged(graph: &mut Graph, x: Id, labels: &str, runs: &[Run]) -> Id {
    let order: String = runs.concat().into_iter().collect();
    let x = transposed(graph, x, labels, &order);
    let mut extents = graph[x].data.ty().shape.clone().into_iter();
    let shape: Vec<u64> = runs.iter().map(|run| extents.by_ref().take(run.len()).product()).collect();
    add_op(graph, Reshape { shape }, &[x])
}

fn transposed(graph: &mut Graph, x: Id, from: &str, to: &str) -> Id {
    if from == to {
        return x;
    }
    let perm = to.chars().filter_map(|c| from.find(c)).collect();
    add_op(graph, Transpose { perm }, &[x])
}
