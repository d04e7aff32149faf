//! Sums of gradient contributions: partial sums are added before they are reduced where all of them are partial.

use super::Sharder;
use super::copies::Copy;
use galvatron_ir::mesh::Sharding;
use galvatron_ir::plan::PhaseKind;
use galvatron_ir::{NodeId, ValueId};

impl Sharder<'_> {
    /// Emits the sum of the gradient contributions of one value.
    pub fn visit_sum(&mut self, node: NodeId) {
        let args = self.program.graph.node(node).args.clone();
        self.import_all(&args, PhaseKind::Backward);
        let placed: Vec<Sharding> = args.iter().map(|&a| self.computed(a).sharding.clone()).collect();
        let target = self.sum_placement(node, &placed);
        let operands: Vec<ValueId> = args.iter().map(|&a| self.fetch(a, &target, PhaseKind::Backward)).collect();
        self.emit_node(node, &operands, vec![target], PhaseKind::Backward);
    }

    fn computed(&self, value: ValueId) -> &Copy {
        self.copies.all(value).first().expect("invariant: gradients are computed before they are summed")
    }

    /// The common dimensions if the contributions agree on them, otherwise those of the value itself; partial where all are.
    fn sum_placement(&self, node: NodeId, parts: &[Sharding]) -> Sharding {
        let result = self.program.graph.node(node).results[0];
        let agree = parts.iter().all(|p| p.dims == parts[0].dims);
        let of_value = self.program.graph.value(result).grad_of.and_then(|v| self.forward_dims(v));
        let dims = match of_value {
            Some(dims) if !agree => dims,
            _ => parts[0].dims.clone(),
        };
        let partial = parts[0].partial.iter().copied();
        let everywhere = |a: &galvatron_ir::AxisId| parts.iter().all(|p| p.partial.contains(a));
        let free = |a: &galvatron_ir::AxisId| !dims.iter().flatten().any(|b| b == a);
        let partial = partial.filter(everywhere).filter(free).collect();
        Sharding { dims, partial }
    }

    fn forward_dims(&self, value: ValueId) -> Option<Vec<Vec<galvatron_ir::AxisId>>> {
        if let Some(placement) = self.strategy.weights.get(&value) {
            return Some(placement.accumulator.dims.clone());
        }
        self.copies.all(value).first().map(|c| c.sharding.dims.clone())
    }
}
