//! layer_norm, rms_norm and softmax from primitives.

use super::Rule;
use super::conditions::{Match, rule};
use crate::rewrite::analysis::{add_full, add_op, with_unit_last};
use crate::rewrite::language::Term;
use egg::Id;
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{LayerNorm, RmsNorm};
use galvatron_ir::types::Scalar;

/// The rules. Quotients have been brought into the form of a product with a reciprocal.
pub(super) fn rules() -> Vec<Rule> {
    vec![
        rule("row-mean", "(mul (reshape ?r (reduce_sum ?d ?x)) ?inverse)", |m| {
            let n = *m.shape("x").last()? as f64;
            (is_kept_row(m) && m.is("inverse", 1.0 / n)).then(|| m.graph.add(Term::RowMean([m.get("x")])))
        }),
        rule(
            "normalize-rows",
            "(mul (sub ?x (row_mean ?x)) (reciprocal (sqrt (add \
             (row_mean (mul (sub ?x (row_mean ?x)) (sub ?x (row_mean ?x)))) ?eps))))",
            |m| {
                m.splat("eps").filter(|&eps| eps >= 0.0)?;
                Some(m.graph.add(Term::Normalized([m.get("eps"), m.get("x")])))
            },
        ),
        rule("layer-norm", "(add (mul (normalized ?eps ?x) ?g) ?b)", |m| {
            (is_row(m, "g") && is_row(m, "b")).then(|| (m.get("g"), m.get("b"))).and_then(|(g, b)| layer_norm(m, g, b))
        }),
        rule("layer-norm-without-bias", "(mul (normalized ?eps ?x) ?g)", |m| {
            if !is_row(m, "g") {
                return None;
            }
            let zero = m.constant_like("g", 0.0);
            layer_norm(m, m.get("g"), zero)
        }),
        rule("layer-norm-without-gain", "(normalized ?eps ?x)", |m| {
            let h = *m.shape("x").last()?;
            let row = m.graph[m.get("x")].data.ty().with_shape([h]);
            let (one, zero) = (add_full(m.graph, row.clone(), 1.0), add_full(m.graph, row, 0.0));
            layer_norm(m, one, zero)
        }),
        rule("inverse-rms", "(reciprocal (sqrt (add (row_mean (mul ?x ?x)) ?eps)))", |m| {
            m.splat("eps").filter(|&eps| eps >= 0.0)?;
            Some(m.graph.add(Term::InverseRms([m.get("eps"), m.get("x")])))
        }),
        rule("rms-norm", "(mul (mul ?x (inverse_rms ?eps ?x)) ?g)", gained_rms_norm),
        rule("rms-norm-of-gained", "(mul (mul ?x ?g) (inverse_rms ?eps ?x))", gained_rms_norm),
        rule("rms-norm-by-gained-rms", "(mul ?x (mul (inverse_rms ?eps ?x) ?g))", gained_rms_norm),
        rule("rms-norm-without-gain", "(mul ?x (inverse_rms ?eps ?x))", |m| {
            let h = *m.shape("x").last()?;
            let row = m.graph[m.get("x")].data.ty().with_shape([h]);
            let one = add_full(m.graph, row, 1.0);
            rms_norm(m, one)
        }),
        rule("softmax", "(mul (exp ?x) (reciprocal (reshape ?r (reduce_sum ?d (exp ?x)))))", |m| {
            is_kept_row(m).then(|| m.graph.add(Term::Softmax([m.get("x")])))
        }),
    ]
}

/// Whether ?d sums the last dimension of ?x and ?r keeps it with extent 1.
fn is_kept_row(m: &Match<'_>) -> bool {
    let ty = m.graph[m.get("x")].data.ty();
    let (Some(Op::ReduceSum(sum)), Some(Op::Reshape(reshape))) = (m.attr("d"), m.attr("r")) else { return false };
    ty.rank() > 0 && sum.dims == [ty.rank() - 1] && reshape.shape == with_unit_last(ty).shape
}

/// Whether the class holds one element for each of the last dimension of ?x.
fn is_row(m: &Match<'_>, name: &str) -> bool {
    m.shape(name).len() == 1 && m.shape(name).last() == m.shape("x").last()
}

fn gained_rms_norm(m: &mut Match<'_>) -> Option<Id> {
    if is_row(m, "g") { rms_norm(m, m.get("g")) } else { None }
}

fn rms_norm(m: &mut Match<'_>, gain: Id) -> Option<Id> {
    let eps = Scalar::new(m.splat("eps")?);
    let x = m.get("x");
    Some(add_op(m.graph, RmsNorm { eps }, &[x, gain]))
}

fn layer_norm(m: &mut Match<'_>, gain: Id, bias: Id) -> Option<Id> {
    let eps = Scalar::new(m.splat("eps")?);
    let x = m.get("x");
    Some(add_op(m.graph, LayerNorm { eps }, &[x, gain, bias]))
}
