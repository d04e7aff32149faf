//! Follows the batch through the forward program: which factor of each node is the batch.

use crate::rules::rule_of;
use galvatron_ir::mesh::ShardingRule;
use galvatron_ir::module::Program;
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
        let weights: BTreeSet<ValueId> = program.weights.iter().map(|w| w.value).collect();
        loop {
            let known = batch.factors.len();
            for &node in nodes {
                if !batch.factors.contains_key(&node) {
                    batch.visit(program, node);
                }
            }
            batch.go_back(program, nodes, &weights);
            if batch.factors.len() == known {
                return batch;
            }
        }
    }

    /// What an op with a batch reads has a batch too, where the op that makes it can be cut there.
    fn go_back(&mut self, program: &Program, nodes: &[NodeId], weights: &BTreeSet<ValueId>) {
        let mut wanted: BTreeMap<ValueId, usize> = BTreeMap::new();
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
        let factor = node.args.iter().zip(&rule.operands).find_map(|(arg, dims)| {
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
