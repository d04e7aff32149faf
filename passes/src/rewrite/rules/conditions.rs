//! What rules ask of the classes that they match.

use super::Rule;
use crate::rewrite::analysis::{Graph, add_full, attr_op};
use crate::rewrite::language::Term;
use egg::{Applier, Id, Pattern, PatternAst, Subst, Symbol, Var};
use galvatron_ir::op::Op;

/// Relative error at which a constant of a model counts as the one that a rule means: some roundings to f32.
const TOLERANCE: f64 = 2e-6;

/// Whether two constants are equal up to rounding to f32.
pub(super) fn close(found: f64, meant: f64) -> bool {
    (found - meant).abs() <= TOLERANCE * meant.abs()
}

/// What a match bound, by name.
pub(super) struct Match<'a> {
    /// The e-graph.
    pub(super) graph: &'a mut Graph,
    /// The class that matched.
    pub(super) class: Id,
    subst: &'a Subst,
}

impl Match<'_> {
    /// The class bound to `?name`, if the pattern has it.
    pub(super) fn find(&self, name: &str) -> Option<Id> {
        self.subst.get(var(name)).copied()
    }

    /// The class bound to `?name`.
    pub(super) fn get(&self, name: &str) -> Id {
        self.find(name).expect("invariant: the pattern binds what its rule reads")
    }

    /// The constant that `?name` is.
    pub(super) fn splat(&self, name: &str) -> Option<f64> {
        self.graph[self.get(name)].data.splat()
    }

    /// Whether `?name` is this constant, up to rounding.
    pub(super) fn is(&self, name: &str, value: f64) -> bool {
        self.splat(name).is_some_and(|found| close(found, value))
    }

    /// Whether `?name` is exactly zero.
    pub(super) fn is_zero(&self, name: &str) -> bool {
        self.splat(name) == Some(0.0)
    }

    /// Shape of `?name`.
    pub(super) fn shape(&self, name: &str) -> Vec<u64> {
        self.graph[self.get(name)].data.ty().shape.clone()
    }

    /// Whether `?name` has the type of the class that matched.
    pub(super) fn has_result_type(&self, name: &str) -> bool {
        self.graph[self.get(name)].data.ty() == self.graph[self.class].data.ty()
    }

    /// The op whose attributes `?name` stands for.
    pub(super) fn attr(&self, name: &str) -> Option<&Op> {
        attr_op(self.graph, self.get(name))
    }

    /// Adds a term.
    pub(super) fn add(&mut self, term: Term) -> Id {
        self.graph.add(term)
    }

    /// Adds a constant of the type of `?name`.
    pub(super) fn constant_like(&mut self, name: &str, value: f64) -> Id {
        let ty = self.graph[self.get(name)].data.ty().clone();
        add_full(self.graph, ty, value)
    }
}

fn var(name: &str) -> Var {
    format!("?{name}").parse().expect("invariant: variables are well formed")
}

/// The right side of a rule as a function of the match; `None` where the rule does not apply.
type Build = fn(&mut Match<'_>) -> Option<Id>;

struct Builder {
    build: Build,
}

impl Applier<Term, crate::rewrite::analysis::Facts> for Builder {
    fn apply_one(
        &self,
        graph: &mut Graph,
        class: Id,
        subst: &Subst,
        _pattern: Option<&PatternAst<Term>>,
        _rule: Symbol,
    ) -> Vec<Id> {
        let class = graph.find(class);
        let built = (self.build)(&mut Match { graph, class, subst });
        match built {
            Some(new) if graph[new].data.ty() == graph[class].data.ty() && graph.union(class, new) => vec![new],
            _ => Vec::new(),
        }
    }
}

/// A rule whose right side is computed.
pub(super) fn rule(name: &str, pattern: &str, build: Build) -> Rule {
    let searcher: Pattern<Term> = pattern.parse().expect("invariant: patterns of rules are well formed");
    Rule::new(name, searcher, Builder { build }).expect("invariant: computed right sides bind nothing")
}
