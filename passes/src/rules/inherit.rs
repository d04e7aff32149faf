//! A gradient node inherits the map of its forward node: its factors are recognised by the dimensions of what it reads.

use super::Rules;
use galvatron_ir::mesh::ShardingRule;
use galvatron_ir::module::Program;
use galvatron_ir::op::Op;
use galvatron_ir::{NodeId, ValueId};
use std::collections::BTreeMap;

/// For each dimension the forward factors that it runs over, major first.
type Labels = Vec<Vec<usize>>;

/// Recognises the factors of gradient nodes, in the order of the program.
#[derive(Default)]
pub struct Recogniser {
    /// Labels of the temporary values inside the gradient of each forward node.
    labels: BTreeMap<(NodeId, ValueId), Labels>,
}

impl Recogniser {
    /// For each factor of a gradient node the factor of its forward node that is cut alike, if it has one.
    pub fn visit(&mut self, program: &Program, rules: &Rules, node: NodeId, fwd: NodeId) -> Vec<Option<usize>> {
        let (rule, fwd_rule) = (&rules[node], &rules[fwd]);
        let factors = self.recognise(program, node, rule, fwd, fwd_rule);
        let n = program.graph.node(node);
        for (&result, dims) in n.results.iter().zip(&rule.results) {
            let labels = dims.iter().map(|fs| fs.iter().map_while(|&f| factors[f]).collect()).collect();
            self.labels.insert((fwd, result), labels);
        }
        let is_alike = |factor: usize, f: usize| {
            (rule.is_shardable(factor) || !fwd_rule.is_shardable(f))
                && rule.factors[factor].size == fwd_rule.factors[f].size
        };
        factors.iter().enumerate().map(|(factor, f)| f.filter(|&f| is_alike(factor, f))).collect()
    }

    /// For each factor of a backward node the forward factor.
    fn recognise(
        &self,
        program: &Program,
        node: NodeId,
        rule: &ShardingRule,
        fwd: NodeId,
        fwd_rule: &ShardingRule,
    ) -> Vec<Option<usize>> {
        let n = program.graph.node(node);
        let mut factors = vec![None; rule.factors.len()];
        let operands = n.args.iter().zip(&rule.operands).map(|(&v, d)| (self.labels_of(program, v, fwd, fwd_rule), d));
        let results =
            n.results.iter().zip(&rule.results).map(|(&v, d)| (gradient_labels(program, v, fwd, fwd_rule), d));
        let source = n.args.is_empty().then(|| (source_labels(program, n.results[0], fwd, fwd_rule), &rule.results[0]));
        for (labels, dims) in operands.chain(results).chain(source) {
            for (factor_list, labels) in dims.iter().zip(labels) {
                for (&factor, label) in factor_list.iter().zip(labels) {
                    factors[factor].get_or_insert(label);
                }
            }
        }
        factors
    }

    /// Labels of an operand: a forward value, a temporary, or else the gradient of a forward result.
    fn labels_of(&self, program: &Program, value: ValueId, fwd: NodeId, rule: &ShardingRule) -> Labels {
        let is_sum = program.graph.producer(value).is_some_and(|p| matches!(program.graph.node(p).op, Op::AddN(_)));
        if let Some(labels) = forward_labels(program, value, fwd, rule) {
            return labels;
        }
        if let Some(labels) = self.labels.get(&(fwd, value)).filter(|_| !is_sum) {
            return labels.clone();
        }
        let shape = &program.graph.value(value).ty.shape;
        let results = &program.graph.node(fwd).results;
        match results.iter().position(|&r| program.graph.value(r).ty.shape == *shape) {
            Some(i) => rule.results[i].clone(),
            None => vec![Vec::new(); shape.len()],
        }
    }
}

/// Labels of an operand or result of the forward node.
fn forward_labels(program: &Program, value: ValueId, fwd: NodeId, rule: &ShardingRule) -> Option<Labels> {
    let n = program.graph.node(fwd);
    if let Some(i) = n.args.iter().position(|&a| a == value) {
        return Some(rule.operands[i].clone());
    }
    n.results.iter().position(|&r| r == value).map(|i| rule.results[i].clone())
}

/// Labels of what a gradient makes from nothing, zeros to be joined: those of the forward operand of the same rank.
fn source_labels(program: &Program, value: ValueId, fwd: NodeId, rule: &ShardingRule) -> Labels {
    let rank = |v: ValueId| program.graph.value(v).ty.rank();
    let like = program.graph.node(fwd).args.iter().position(|&a| rank(a) == rank(value));
    like.map_or_else(|| vec![Vec::new(); rank(value)], |i| rule.operands[i].clone())
}

/// Labels of a result that is the gradient of an operand of the forward node.
fn gradient_labels(program: &Program, value: ValueId, fwd: NodeId, rule: &ShardingRule) -> Labels {
    let ty = &program.graph.value(value).ty;
    program
        .graph
        .value(value)
        .grad_of
        .and_then(|of| forward_labels(program, of, fwd, rule))
        .unwrap_or_else(|| vec![Vec::new(); ty.rank()])
}
