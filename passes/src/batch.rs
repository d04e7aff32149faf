//! Follows a dimension through the forward program: which factor of each node is the batch, or the sequence.

use crate::rules::rule_of;
use galvatron_ir::mesh::ShardingRule;
use galvatron_ir::module::Program;
use galvatron_ir::op::Op;
use galvatron_ir::{NodeId, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// The batch dimension of each value and the batch factor of each forward node.
#[derive(Clone, Debug, Default)]
pub struct BatchFactors {
    /// For each value the dimension that is the batch (leading in it, if merged).
    pub dims: BTreeMap<ValueId, usize>,
    /// For each node the factor that is the batch.
    pub factors: BTreeMap<NodeId, usize>,
}

impl BatchFactors {
    /// Follows dimension 0 of every input through `nodes`, in order, and back to what is made without inputs but has a batch:
    /// positions, masks, constants.
    pub fn of(program: &Program, nodes: &[NodeId]) -> BatchFactors {
        let mut batch = BatchFactors::default();
        for input in &program.inputs {
            if program.graph.value(input.value).ty.rank() > 0 {
                batch.dims.insert(input.value, 0);
            }
        }
        batch.follow(program, nodes)
    }

    /// Follows these dimensions of values through `nodes`, in order, and back to what they are made of. Through attention go those of
    /// queries; keys are another sequence, also where they are as many.
    pub fn following(program: &Program, nodes: &[NodeId], dims: BTreeMap<ValueId, usize>) -> BatchFactors {
        BatchFactors { dims, factors: BTreeMap::new() }.follow(program, nodes)
    }

    fn follow(mut self, program: &Program, nodes: &[NodeId]) -> BatchFactors {
        let weights: BTreeSet<ValueId> = program.weights.iter().map(|w| w.value).collect();
        let known: BTreeMap<ValueId, usize> = self.dims.clone();
        loop {
            let n_known = self.factors.len();
            for &node in nodes {
                if !self.factors.contains_key(&node) {
                    self.visit(program, node);
                }
            }
            self.go_back(program, nodes, &weights, known.clone());
            if self.factors.len() == n_known {
                return self;
            }
        }
    }

    /// What is wanted with a batch, and what an op with a batch reads, has a batch too, where the op that makes it can be cut there.
    fn go_back(
        &mut self,
        program: &Program,
        nodes: &[NodeId],
        weights: &BTreeSet<ValueId>,
        mut wanted: BTreeMap<ValueId, usize>,
    ) {
        for &id in nodes.iter().rev() {
            let (rule, node) = (rule_of(program, id), program.graph.node(id));
            if !self.factors.contains_key(&id) {
                let dim = |(result, dims): (&ValueId, &Vec<Vec<usize>>)| dims[*wanted.get(result)?].first().copied();
                let factor = node.results.iter().zip(&rule.results).find_map(dim);
                let Some(factor) = factor.filter(|&f| rule.is_shardable(f)) else { continue };
                self.set(program, id, &rule, factor);
            }
            let factor = self.factors[&id];
            for (&arg, dims) in node.args.iter().zip(&rule.operands) {
                let dim = dims.iter().position(|fs| fs.first() == Some(&factor));
                if let Some(dim) = dim.filter(|_| !self.dims.contains_key(&arg) && !weights.contains(&arg)) {
                    wanted.insert(arg, dim);
                }
            }
        }
    }

    fn visit(&mut self, program: &Program, id: NodeId) {
        let rule = rule_of(program, id);
        let node = program.graph.node(id);
        let n_followed = if matches!(node.op, Op::Attention(_)) { 1 } else { node.args.len() };
        let factor = node.args.iter().zip(&rule.operands).take(n_followed).find_map(|(arg, dims)| {
            let dim = *self.dims.get(arg)?;
            dims[dim].first().copied()
        });
        if let Some(factor) = factor {
            self.set(program, id, &rule, factor);
        }
    }

    fn set(&mut self, program: &Program, id: NodeId, rule: &ShardingRule, factor: usize) {
        let node = program.graph.node(id);
        self.factors.insert(id, factor);
        for (&result, dims) in node.results.iter().zip(&rule.results) {
            if let Some(dim) = dims.iter().position(|fs| fs.first() == Some(&factor)) {
                self.dims.insert(result, dim);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use galvatron_ir::text::parse;

    #[test]
    fn positions_with_a_batch_are_found_from_their_readers() {
        let text = "gir 1\nmodule @m level=graph {\n  initializer \"t\" = {file=\"none\", offset=0} f32[8, 4]\n  program {\n\
            \x20   input %x = \"x\": f32[2, 3, 4]\n    weight %t = \"t\": f32[8, 4]\n\
            \x20   %i = iota{shape=[2, 3], dim=1, start=0, step=1}: i64[2, 3]\n\
            \x20   %p = embedding %t, %i: f32[2, 3, 4]\n    %y = add %x, %p: f32[2, 3, 4]\n\
            \x20   %n = iota{shape=[2, 3], dim=0, start=0, step=1}: i64[2, 3]\n\
            \x20   %q = embedding %t, %n: f32[2, 3, 4]\n    %z = add %y, %q: f32[2, 3, 4]\n    output \"z\" %z\n  }\n}\n";
        let program = parse(text).expect("the text is right").program;
        let batch = BatchFactors::of(&program, &program.body);
        let dim = |name: &str| {
            let value = program.graph.value_ids().find(|&v| program.graph.value(v).name == name);
            batch.dims.get(&value.expect("the program has it")).copied()
        };
        assert_eq!(["i", "p", "y", "q", "z"].map(dim), [Some(0); 5]);
        // What counts along the batch cannot be cut there.
        assert_eq!([dim("n"), dim("t")], [None, None]);
    }
}
