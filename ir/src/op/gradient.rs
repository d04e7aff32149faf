//! What an op sees when it is asked for its gradient.

use super::Op;
use crate::graph::Graph;
use crate::id::{NodeId, ValueId};
use crate::types::TensorType;

/// An op through which no gradient flows, or whose gradient is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoGradient(pub String);

/// The forward node, the gradients of its results, and a place to emit into.
pub struct GradCx<'a> {
    /// The graph that holds the forward node and receives the gradient nodes.
    pub graph: &'a mut Graph,
    /// Receives the emitted nodes in order.
    pub body: &'a mut Vec<NodeId>,
    /// The forward node.
    pub fwd: NodeId,
    /// Operands of the forward node.
    pub args: Vec<ValueId>,
    /// Results of the forward node.
    pub results: Vec<ValueId>,
    /// Gradient of each result; `None` where nothing depends on it.
    pub grads: Vec<Option<ValueId>>,
    /// Which operands need a gradient.
    pub needs: Vec<bool>,
}

impl GradCx<'_> {
    /// Type of a value.
    pub fn ty(&self, value: ValueId) -> TensorType {
        self.graph.value(value).ty.clone()
    }

    /// Gradient of result 0.
    ///
    /// # Errors
    /// When nothing depends on it.
    pub fn dy(&self) -> Result<ValueId, NoGradient> {
        self.grads[0].ok_or_else(|| NoGradient("the first result has no gradient".into()))
    }

    /// Emits a node with one result.
    pub fn emit(&mut self, op: impl Into<Op>, args: &[ValueId]) -> ValueId {
        self.emit_all(op, args)[0]
    }

    /// Emits a node; returns all its results.
    pub fn emit_all(&mut self, op: impl Into<Op>, args: &[ValueId]) -> Vec<ValueId> {
        let node = self.graph.add(op.into(), args).expect("invariant: gradients are well typed");
        self.graph.node_mut(node).fwd = Some(self.fwd);
        self.graph.node_mut(node).layer = self.graph.node(self.fwd).layer;
        self.body.push(node);
        self.graph.node(node).results.clone()
    }

    /// Emits a node for operand `i` if that needs a gradient.
    pub fn emit_for(&mut self, i: usize, op: impl Into<Op>, args: &[ValueId]) -> Option<ValueId> {
        self.needs[i].then(|| self.emit(op, args))
    }
}
