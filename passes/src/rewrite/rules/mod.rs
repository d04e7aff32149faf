//! The rules, by theme. Each has a name; [`rule_samples`] has a program for each on which it applies.

mod activation;
mod arithmetic;
mod attention;
mod attention_masks;
mod attention_merges;
mod attention_parts;
mod conditions;
mod norm;
mod rotary;
mod samples;
mod tables;
mod terms;

pub use samples::{RuleSample, rule_misses, rule_samples};
pub use terms::module_of_term;

use super::analysis::Facts;
use super::language::Term;

/// A rule.
pub(super) type Rule = egg::Rewrite<Term, Facts>;

/// The rules in the order in which they run, with the name of each stage.
pub(super) fn stages() -> Vec<(&'static str, Vec<Rule>)> {
    let mut pointwise = arithmetic::rules();
    pointwise.extend(activation::rules());
    pointwise.extend(norm::rules());
    pointwise.extend(rotary::rules());
    let mut attention = attention::rules();
    attention.extend(attention_merges::rules());
    vec![("pointwise", pointwise), ("attention", attention)]
}

/// The names of all rules, in order.
pub fn rule_names() -> Vec<String> {
    stages().into_iter().flat_map(|(_, rules)| rules).map(|rule| rule.name.to_string()).collect()
}
