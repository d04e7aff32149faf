//! Rewrites by equality saturation: primitives become attention, gelu, silu, rotary, layer_norm, rms_norm and softmax.
//!
//! The rules only ever add the better form beside the old one; the cheapest program is extracted at the end. They are
//! directed and come in stages, so that saturation ends by itself; the limits guard against a program that is too strange.

mod analysis;
mod convert;
mod cost;
mod extract;
mod language;
pub mod rules;

use crate::canonicalize::canonicalize;
use analysis::{Facts, Graph};
use egg::{Runner, SimpleScheduler};
use galvatron_ir::Module;
use language::Term;
use std::collections::BTreeMap;
use std::time::Duration;

/// Iterations of a stage after which it stops unsaturated.
const MAX_ITERATIONS: usize = 24;
/// E-nodes per node of the program, beyond which a stage stops.
const MAX_GROWTH: usize = 24;
/// E-nodes that a program may have, however small it is.
const MIN_NODE_LIMIT: usize = 10_000;

/// What the rewriting of a program came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RewriteReport {
    /// How often each rule added something, by its name.
    pub applied: BTreeMap<String, u64>,
    /// For each stage its name and why it stopped.
    pub stopped: Vec<(String, String)>,
    /// E-nodes at the end.
    pub e_nodes: u64,
}

/// Rewrites a canonical forward program, and brings the result into canonical form again.
pub fn rewrite(module: &mut Module) -> RewriteReport {
    let mut report = RewriteReport::default();
    let mut converted = convert::to_graph(&module.program);
    let limit = MIN_NODE_LIMIT.max(MAX_GROWTH * module.program.body.len());
    for (name, rules) in rules::stages() {
        let graph = std::mem::replace(&mut converted.graph, Graph::new(Facts::default()));
        converted.graph = run_stage(graph, name, &rules, limit, &mut report);
    }
    report.e_nodes = converted.graph.total_number_of_nodes() as u64;
    converted.back(&mut module.program);
    canonicalize(module);
    report
}

fn run_stage(
    graph: Graph,
    name: &str,
    rules: &[egg::Rewrite<Term, Facts>],
    node_limit: usize,
    report: &mut RewriteReport,
) -> Graph {
    let runner = Runner::<Term, Facts>::new(Facts::default())
        .with_egraph(graph)
        .with_scheduler(SimpleScheduler)
        .with_iter_limit(MAX_ITERATIONS)
        .with_node_limit(node_limit)
        .with_time_limit(Duration::MAX)
        .run(rules);
    for iteration in &runner.iterations {
        for (rule, count) in &iteration.applied {
            *report.applied.entry(rule.to_string()).or_insert(0) += *count as u64;
        }
    }
    let why = runner.stop_reason.map_or_else(|| "unknown".into(), |reason| format!("{reason:?}"));
    report.stopped.push((name.into(), why));
    runner.egraph
}
