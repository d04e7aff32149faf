//! Follows the batch through the forward program: which factor of each node is the batch.

use galvatron_ir::mesh::ShardingRule;
use galvatron_ir::module::Program;
use galvatron_ir::{NodeId, ValueId};
use std::collections::BTreeMap;

/// The factor rule of a node on its global types.
pub fn rule_of(program: &Program, node: NodeId) -> ShardingRule {
    let node = program.graph.node(node);
    node.op.rule(&program.graph.types(&node.args), &program.graph.types(&node.results))
}

/// The batch dimension of each value and the batch factor of each forward node.
#[derive(Clone, Debug, Default)]
pub struct BatchFactors {
    /// For each value the dimension that is the batch (leading in it, if merged).
    pub dims: BTreeMap<ValueId, usize>,
    /// For each node the factor that is the batch.
    pub factors: BTreeMap<NodeId, usize>,
}

impl BatchFactors {
    /// Follows dimension 0 of every input through `nodes`, in order.
    pub fn of(program: &Program, nodes: &[NodeId]) -> BatchFactors {
        let mut batch = BatchFactors::default();
        for input in &program.inputs {
            if program.graph.value(input.value).ty.rank() > 0 {
                batch.dims.insert(input.value, 0);
            }
        }
        for &node in nodes {
            batch.visit(program, node);
        }
        batch
    }

    fn visit(&mut self, program: &Program, id: NodeId) {
        let rule = rule_of(program, id);
        let node = program.graph.node(id);
        let factor = node.args.iter().zip(&rule.operands).find_map(|(arg, dims)| {
            let dim = *self.dims.get(arg)?;
            dims[dim].first().copied()
        });
        let Some(factor) = factor else { return };
        self.factors.insert(id, factor);
        for (&result, dims) in node.results.iter().zip(&rule.results) {
            if let Some(dim) = dims.iter().position(|fs| fs.first() == Some(&factor)) {
                self.dims.insert(result, dim);
            }
        }
    }
}
