//! What becomes of a program where an extent changes that dimensions of many values have, or hold a multiple of.

use crate::rules::rule_of;
use galvatron_ir::op::Op;
use galvatron_ir::types::TensorType;
use galvatron_ir::{NodeId, Program, ValueId};
use std::collections::BTreeMap;

/// What becomes of a program.
pub(crate) struct Changes {
    pub(crate) types: Vec<(ValueId, TensorType)>,
    pub(crate) ops: Vec<(NodeId, Op)>,
}

impl Changes {
    pub(crate) fn apply(self, program: &mut Program) {
        for (value, ty) in self.types {
            program.graph.value_mut(value).ty = ty;
        }
        for (node, op) in self.ops {
            program.graph.node_mut(node).op = op;
        }
    }
}

/// A place at a node.
#[derive(Clone, Copy)]
pub(crate) enum At {
    Operand(usize),
    Result(usize),
}

/// The dimensions that *carry* an extent: it leads them, so that the elements of each of its indices lie together. An extent of `n` times
/// `from` becomes one of `n` times `to`.
pub(crate) struct Extents<'a> {
    pub(crate) program: &'a Program,
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// The dimension of each value that carries the extent.
    pub(crate) dims: BTreeMap<ValueId, usize>,
}

impl<'a> Extents<'a> {
    /// Of no value yet.
    pub(crate) fn new(program: &'a Program, from: u64, to: u64) -> Extents<'a> {
        Extents { program, from, to, dims: BTreeMap::new() }
    }

    /// Whether an operand or a result carries the extent.
    pub(crate) fn touches(&self, id: NodeId) -> bool {
        let node = self.program.graph.node(id);
        node.args.iter().chain(&node.results).any(|v| self.dims.contains_key(v))
    }

    /// For each result the dimension that carries the extent if operand `operand` does so in `dim`.
    pub(crate) fn results_of(&self, id: NodeId, operand: usize, dim: usize) -> Vec<Option<usize>> {
        let none = || vec![None; self.program.graph.node(id).results.len()];
        self.beside(id, At::Operand(operand), dim).map_or_else(none, |[_, results]| results)
    }

    /// For each operand the dimension that carries the extent if result `result` does so in `dim`.
    pub(crate) fn operands_of(&self, id: NodeId, result: usize, dim: usize) -> Vec<Option<usize>> {
        let none = || vec![None; self.program.graph.node(id).args.len()];
        self.beside(id, At::Result(result), dim).map_or_else(none, |[operands, _]| operands)
    }

    /// The dimensions of all operands and results that carry the extent with one of them; `None` where that must stay whole.
    pub(crate) fn beside(&self, id: NodeId, at: At, dim: usize) -> Option<[Vec<Option<usize>>; 2]> {
        let node = self.program.graph.node(id);
        if matches!(node.op, Op::Reshape(_)) {
            let [x, y] = [node.args[0], node.results[0]].map(|v| &self.program.graph.value(v).ty.shape);
            let [from, to] = match at {
                At::Operand(_) => [dim, self.moved(x, dim, y)?],
                At::Result(_) => [self.moved(y, dim, x)?, dim],
            };
            return Some([vec![Some(from)], vec![Some(to)]]);
        }
        let rule = rule_of(self.program, id);
        let dims = match at {
            At::Operand(operand) => &rule.operands[operand],
            At::Result(result) => &rule.results[result],
        };
        let factor = dims[dim].first().copied().filter(|&f| rule.is_shardable(f))?;
        Some([&rule.operands, &rule.results].map(|all| all.iter().map(|dims| led_by(dims, factor)).collect()))
    }

    /// The dimension of `to` that the extent leads, if it leads dimension `dim` of `from`, for the same elements in row-major order: as
    /// many elements lie before it, and it holds a multiple.
    fn moved(&self, from: &[u64], dim: usize, to: &[u64]) -> Option<usize> {
        let before: u64 = from[..dim].iter().product();
        (0..to.len()).find(|&d| to[..d].iter().product::<u64>() == before && to[d].is_multiple_of(self.from))
    }

    /// The type of a value with the new extent.
    pub(crate) fn scaled(&self, value: ValueId) -> TensorType {
        let mut ty = self.program.graph.value(value).ty.clone();
        if let Some(&dim) = self.dims.get(&value) {
            ty.shape[dim] = ty.shape[dim] / self.from * self.to;
        }
        ty
    }

    /// The types of all that carry it.
    pub(crate) fn types(&self) -> Vec<(ValueId, TensorType)> {
        self.dims.keys().map(|&value| (value, self.scaled(value))).collect()
    }

    /// The op with the new extent.
    ///
    /// # Errors
    /// Why it does not give the scaled results from the scaled operands.
    pub(crate) fn scaled_op(&self, id: NodeId) -> Result<Op, String> {
        let node = self.program.graph.node(id);
        let results: Vec<TensorType> = node.results.iter().map(|&r| self.scaled(r)).collect();
        let op = with_shape(&node.op, &results[0]);
        let args: Vec<TensorType> = node.args.iter().map(|&a| self.scaled(a)).collect();
        let inferred = op.infer(&args.iter().collect::<Vec<_>>())?;
        if inferred == results { Ok(op) } else { Err("gives other extents than its readers need".into()) }
    }
}

/// The dimension that a factor leads.
pub(crate) fn led_by(dims: &[Vec<usize>], factor: usize) -> Option<usize> {
    dims.iter().position(|factors| factors.first() == Some(&factor))
}

/// The op with another shape, where that is an attribute.
fn with_shape(op: &Op, result: &TensorType) -> Op {
    let mut op = op.clone();
    match &mut op {
        Op::Reshape(op) => op.shape = result.shape.clone(),
        Op::Broadcast(op) => op.shape = result.shape.clone(),
        Op::Full(op) => op.ty = result.clone(),
        Op::Iota(op) => op.shape = result.shape.clone(),
        Op::CausalMask(op) => op.shape = result.shape.clone(),
        _ => {}
    }
    op
}
