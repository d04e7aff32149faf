//! gelu, its tanh approximation, sigmoid and silu from primitives.

use super::Rule;
use super::conditions::{Match, close, rule};
use crate::rewrite::language::Term;
use egg::Id;
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

/// sqrt(2 / pi): the slope of the tanh approximation of GELU (Hendrycks and Gimpel, 2016).
const SLOPE: f64 = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
/// The coefficient of the cubic term there.
const CUBIC: f64 = 0.044715;

/// The rules. Products have been brought into the form ((x y) constant).
pub(super) fn rules() -> Vec<Rule> {
    vec![
        rule("gelu", "(mul (mul ?x (add (erf (mul ?x ?c)) ?one)) ?half)", |m| {
            (m.is("c", FRAC_1_SQRT_2) && m.is("one", 1.0) && m.is("half", 0.5)).then(|| gelu(m))
        }),
        rule("gelu-half-inside", "(mul ?x (add (mul (erf (mul ?x ?c)) ?half) ?half))", |m| {
            (m.is("c", FRAC_1_SQRT_2) && m.is("half", 0.5)).then(|| gelu(m))
        }),
        rule("gelu-distributed", "(add (mul ?x ?half) (mul (mul ?x (erf (mul ?x ?c))) ?half))", |m| {
            (m.is("c", FRAC_1_SQRT_2) && m.is("half", 0.5)).then(|| gelu(m))
        }),
        rule("distribute-cubic", "(mul ?x (add (mul (mul ?x ?x) ?a) ?one))", |m| {
            if !m.is("a", CUBIC) || !m.is("one", 1.0) {
                return None;
            }
            let (x, a) = (m.get("x"), m.get("a"));
            let square = m.add(Term::Mul([x, x]));
            let cube = m.add(Term::Mul([square, x]));
            let scaled = m.add(Term::Mul([cube, a]));
            Some(m.add(Term::Add([x, scaled])))
        }),
        rule(
            "gelu-tanh",
            "(mul (mul ?x (add (tanh (mul (add ?x (mul (mul (mul ?x ?x) ?x) ?a)) ?b)) ?one)) ?half)",
            |m| (is_cubic(m, SLOPE) && m.is("one", 1.0) && m.is("half", 0.5)).then(|| gelu_tanh(m)),
        ),
        rule(
            "gelu-tanh-expanded",
            "(mul (mul ?x (add (tanh (add (mul ?x ?b) (mul (mul (mul ?x ?x) ?x) ?ab))) ?one)) ?half)",
            |m| {
                let slopes = m.is("b", SLOPE) && m.is("ab", SLOPE * CUBIC);
                (slopes && m.is("one", 1.0) && m.is("half", 0.5)).then(|| gelu_tanh(m))
            },
        ),
        rule("gelu-tanh-by-sigmoid", "(mul ?x (sigmoid (mul (add ?x (mul (mul (mul ?x ?x) ?x) ?a)) ?b)))", |m| {
            is_cubic(m, 2.0 * SLOPE).then(|| gelu_tanh(m))
        }),
        rule("sigmoid", "(reciprocal (add (exp (neg ?x)) ?one))", |m| {
            m.is("one", 1.0).then(|| m.graph.add(Term::Sigmoid([m.get("x")])))
        }),
        rule("silu", "(mul ?x (sigmoid ?x))", |m| Some(m.graph.add(Term::Silu([m.get("x")])))),
    ]
}

fn is_cubic(m: &Match<'_>, slope: f64) -> bool {
    m.splat("a").is_some_and(|a| close(a, CUBIC)) && m.is("b", slope)
}

fn gelu(m: &mut Match<'_>) -> Id {
    m.graph.add(Term::Gelu([m.get("x")]))
}

fn gelu_tanh(m: &mut Match<'_>) -> Id {
    m.graph.add(Term::GeluTanh([m.get("x")]))
}
