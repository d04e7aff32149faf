//! One spelling for arithmetic: constants stand on the right and outside, powers and quotients are products.

use super::Rule;
use super::conditions::{Match, rule};
use crate::rewrite::analysis::add_full;
use crate::rewrite::language::Term;
use egg::Id;
use galvatron_ir::op::compute::broadcasting::broadcast_shape;

/// The rules.
pub(super) fn rules() -> Vec<Rule> {
    vec![
        rule("commute-add", "(add ?x ?y)", |m| Some(m.graph.add(Term::Add([m.get("y"), m.get("x")])))),
        rule("commute-mul", "(mul ?x ?y)", |m| Some(m.graph.add(Term::Mul([m.get("y"), m.get("x")])))),
        rule("join-factors", "(mul (mul ?x ?a) ?b)", |m| {
            let joined = join(m, |a, b| a * b)?;
            Some(m.graph.add(Term::Mul([m.get("x"), joined])))
        }),
        rule("join-terms", "(add (add ?x ?a) ?b)", |m| {
            let joined = join(m, |a, b| a + b)?;
            Some(m.graph.add(Term::Add([m.get("x"), joined])))
        }),
        rule("factor-outward", "(mul (mul ?x ?a) ?y)", |m| {
            if m.splat("a").is_none() || m.splat("y").is_some() {
                return None;
            }
            let product = m.graph.add(Term::Mul([m.get("x"), m.get("y")]));
            Some(m.graph.add(Term::Mul([product, m.get("a")])))
        }),
        rule("divide-by-constant", "(div ?x ?a)", |m| {
            let inverse = 1.0 / m.splat("a").filter(|&a| a != 0.0)?;
            let inverse = m.constant_like("a", inverse);
            Some(m.graph.add(Term::Mul([m.get("x"), inverse])))
        }),
        rule("subtract-constant", "(sub ?x ?a)", |m| {
            let negative = -m.splat("a")?;
            let negative = m.constant_like("a", negative);
            Some(m.graph.add(Term::Add([m.get("x"), negative])))
        }),
        rule("divide", "(div ?x ?y)", |m| {
            if m.splat("y").is_some() {
                return None;
            }
            let inverse = m.graph.add(Term::Reciprocal([m.get("y")]));
            Some(if m.is("x", 1.0) { inverse } else { m.graph.add(Term::Mul([m.get("x"), inverse])) })
        }),
        rule("power", "(pow ?x ?a)", |m| power(m, m.splat("a")?)),
        rule("root-of-reciprocal", "(sqrt (reciprocal ?x))", |m| {
            let root = m.graph.add(Term::Sqrt([m.get("x")]));
            Some(m.graph.add(Term::Reciprocal([root])))
        }),
        rule("negate", "(mul ?x ?a)", |m| m.is("a", -1.0).then(|| m.graph.add(Term::Neg([m.get("x")])))),
    ]
}

/// The constant that ?a and ?b come to.
fn join(m: &mut Match<'_>, combine: fn(f64, f64) -> f64) -> Option<Id> {
    let value = combine(m.splat("a")?, m.splat("b")?);
    let shape = broadcast_shape(&[&m.shape("a"), &m.shape("b")]).ok()?;
    let ty = m.graph[m.get("a")].data.ty().with_shape(shape);
    Some(add_full(m.graph, ty, value))
}

/// Small powers as products and roots.
fn power(m: &mut Match<'_>, exponent: f64) -> Option<Id> {
    let x = m.get("x");
    match exponent {
        2.0 => Some(m.add(Term::Mul([x, x]))),
        3.0 => {
            let square = m.add(Term::Mul([x, x]));
            Some(m.add(Term::Mul([square, x])))
        }
        0.5 => Some(m.add(Term::Sqrt([x]))),
        -1.0 => Some(m.add(Term::Reciprocal([x]))),
        -0.5 => {
            let root = m.add(Term::Sqrt([x]));
            Some(m.add(Term::Reciprocal([root])))
        }
        _ => None,
    }
}
