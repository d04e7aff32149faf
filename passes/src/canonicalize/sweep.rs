//! One pass over a program in order of execution: each node is kept or replaced by a value.

use galvatron_ir::graph::{Def, Graph};
use galvatron_ir::module::{ViewStep, Weight};
use galvatron_ir::op::Op;
use galvatron_ir::types::TensorType;
use galvatron_ir::{NodeId, Program, ValueId};

/// The state of a pass: the program with the new body so far.
///
/// Invariant: operands of every node in `body` are already replaced, and `uses` counts the readers that remain.
pub(super) struct Sweep<'p> {
    program: &'p mut Program,
    uses: Vec<u32>,
    is_weight: Vec<bool>,
    replaced: Vec<Option<ValueId>>,
    body: Vec<NodeId>,
}

/// Runs `rule` on every node; the value that it returns replaces result 0 of the node, whose other results must be unused or
/// replaced by the rule.
/// Says whether anything was replaced.
pub(super) fn sweep(program: &mut Program, mut rule: impl FnMut(&mut Sweep<'_>, NodeId) -> Option<ValueId>) -> bool {
    let old = std::mem::take(&mut program.body);
    let mut state = Sweep::new(program, &old);
    let mut changed = false;
    for node in old {
        state.resolve_args(node);
        let fresh = state.program.graph.n_values();
        let value = if state.is_dead(node) { None } else { rule(&mut state, node) };
        match value {
            Some(value) => {
                changed = true;
                state.replace(node, value, fresh);
            }
            None => state.body.push(node),
        }
    }
    state.finish();
    changed
}

impl<'p> Sweep<'p> {
    fn new(program: &'p mut Program, body: &[NodeId]) -> Sweep<'p> {
        let n = program.graph.n_values();
        let (mut uses, mut is_weight) = (vec![0; n], vec![false; n]);
        for &node in body {
            for arg in &program.graph.node(node).args {
                uses[arg.index()] += 1;
            }
        }
        for (_, value) in &program.outputs {
            uses[value.index()] += 1;
        }
        for weight in &program.weights {
            is_weight[weight.value.index()] = true;
        }
        Sweep { program, uses, is_weight, replaced: vec![None; n], body: Vec::with_capacity(body.len()) }
    }

    /// Type of a value.
    pub(super) fn ty(&self, value: ValueId) -> &TensorType {
        &self.program.graph.value(value).ty
    }

    /// Shape of a value.
    pub(super) fn shape(&self, value: ValueId) -> Vec<u64> {
        self.ty(value).shape.clone()
    }

    /// Shapes of some values.
    pub(super) fn shapes(&self, values: &[ValueId]) -> Vec<Vec<u64>> {
        values.iter().map(|&v| self.shape(v)).collect()
    }

    /// Op of a node.
    pub(super) fn op(&self, node: NodeId) -> &Op {
        &self.program.graph.node(node).op
    }

    /// Operands of a node.
    pub(super) fn args(&self, node: NodeId) -> Vec<ValueId> {
        self.program.graph.node(node).args.clone()
    }

    /// Result 0 of a node.
    pub(super) fn result(&self, node: NodeId) -> ValueId {
        self.program.graph.node(node).results[0]
    }

    /// Result `index` of the node whose result 0 is the value.
    pub(super) fn result_at(&self, value: ValueId, index: usize) -> ValueId {
        let node = self.producer(value).expect("invariant: the value was computed");
        self.program.graph.node(node).results[index]
    }

    /// Whether only result 0 of a node is read.
    pub(super) fn is_single(&self, node: NodeId) -> bool {
        self.program.graph.node(node).results[1..].iter().all(|r| self.uses[r.index()] == 0)
    }

    /// Op and operands of the node whose result 0 is the value.
    pub(super) fn def(&self, value: ValueId) -> Option<(&Op, &[ValueId])> {
        match self.program.graph.value(value).def {
            Def::Node(node, 0) => {
                let node = self.program.graph.node(node);
                Some((&node.op, &node.args))
            }
            _ => None,
        }
    }

    /// The node whose result 0 is the value.
    pub(super) fn producer(&self, value: ValueId) -> Option<NodeId> {
        match self.program.graph.value(value).def {
            Def::Node(node, 0) => Some(node),
            _ => None,
        }
    }

    /// The node that computes a value, and which of its results that is.
    pub(super) fn source(&self, value: ValueId) -> Option<(NodeId, usize)> {
        match self.program.graph.value(value).def {
            Def::Node(node, result) => Some((node, result as usize)),
            _ => None,
        }
    }

    /// Redirects the readers of result `index` of a node, besides result 0, which the rule returns.
    pub(super) fn replace_result(&mut self, node: NodeId, index: usize, value: ValueId) {
        let old = self.program.graph.node(node).results[index];
        self.replaced[old.index()] = Some(value);
        self.uses[value.index()] += std::mem::take(&mut self.uses[old.index()]);
        self.take_name(old, value);
    }

    /// Number of readers of a value, outputs of the program included.
    pub(super) fn uses(&self, value: ValueId) -> u32 {
        self.uses[value.index()]
    }

    /// Whether the value is a parameter or buffer.
    pub(super) fn is_weight(&self, value: ValueId) -> bool {
        self.is_weight.get(value.index()).copied().unwrap_or(false)
    }

    /// Appends a node and returns its result 0.
    pub(super) fn emit(&mut self, op: impl Into<Op>, args: &[ValueId]) -> ValueId {
        let op = op.into();
        let node =
            self.program.graph.add(op, args).unwrap_or_else(|why| panic!("invariant: rules emit legal ops: {why}"));
        self.body.push(node);
        self.uses.resize(self.program.graph.n_values(), 0);
        for arg in args {
            self.uses[arg.index()] += 1;
        }
        self.program.graph.node(node).results[0]
    }

    /// Changes a weight to a view of itself.
    pub(super) fn view_weight(&mut self, value: ValueId, step: ViewStep) {
        let ty = viewed(self.ty(value), &step);
        self.program.graph.value_mut(value).ty = ty;
        let weight = self.program.weights.iter_mut().find(|w| w.value == value);
        weight.expect("invariant: the value is a weight").view.push(step);
    }

    /// Adds a weight that is a view of another one.
    pub(super) fn add_weight_view(&mut self, value: ValueId, step: ViewStep, name: &str) -> ValueId {
        let ty = viewed(self.ty(value), &step);
        let weight = self.program.weight_of(value).expect("invariant: the value is a weight").clone();
        let new = self.program.graph.declare(name, ty);
        let view = weight.view.iter().cloned().chain([step]).collect();
        let at = self.program.weights.iter().position(|w| w.value == value).unwrap_or(0);
        self.program.weights.insert(at, Weight { value: new, view, ..weight });
        self.uses.resize(self.program.graph.n_values(), 0);
        self.is_weight.resize(self.program.graph.n_values(), false);
        self.is_weight[new.index()] = true;
        new
    }

    /// Whether the value is a frozen buffer.
    pub(super) fn is_frozen(&self, value: ValueId) -> bool {
        self.program.weight_of(value).is_some_and(|w| !w.trainable)
    }

    /// Gives the name of a value that is going to die to the one that replaces it.
    pub(super) fn take_name(&mut self, old: ValueId, new: ValueId) {
        take_name(&mut self.program.graph, old, new);
    }

    /// Name of a value.
    pub(super) fn name(&self, value: ValueId) -> String {
        self.program.graph.value(value).name.clone()
    }

    fn is_dead(&self, node: NodeId) -> bool {
        self.program.graph.node(node).results.iter().all(|r| self.uses[r.index()] == 0)
    }

    fn resolve_args(&mut self, node: NodeId) {
        for arg in &mut self.program.graph.node_mut(node).args {
            if let Some(Some(new)) = self.replaced.get(arg.index()) {
                *arg = *new;
            }
        }
    }

    /// Redirects the readers of result 0 to `value`; a value made since `fresh` takes over the name.
    fn replace(&mut self, node: NodeId, value: ValueId, fresh: usize) {
        let old = self.result(node);
        debug_assert_eq!(self.ty(old), self.ty(value), "invariant: rules keep types: {:?}", self.op(node));
        self.replaced[old.index()] = Some(value);
        self.uses[value.index()] += std::mem::take(&mut self.uses[old.index()]);
        self.release_args(node);
        let graph = &mut self.program.graph;
        if value.index() >= fresh && graph.value(value).def != Def::Declared {
            take_name(graph, old, value);
            if let Some(made) = graph.producer(value) {
                graph.node_mut(made).layer = graph.node(node).layer;
            }
        }
    }

    /// Forgets a reader of each operand, and so on where nobody is left to read.
    fn release_args(&mut self, node: NodeId) {
        for arg in self.args(node) {
            self.uses[arg.index()] -= 1;
            if self.uses[arg.index()] == 0
                && let Some(producer) = self.program.graph.producer(arg)
                && self.is_dead(producer)
            {
                self.release_args(producer);
            }
        }
    }

    fn finish(self) {
        for (_, value) in &mut self.program.outputs {
            if let Some(Some(new)) = self.replaced.get(value.index()) {
                *value = *new;
            }
        }
        self.program.body = self.body;
        super::dce::remove_dead_nodes(self.program);
    }
}

fn viewed(ty: &TensorType, step: &ViewStep) -> TensorType {
    ty.with_shape(step.apply(&ty.shape).expect("invariant: the op that the view replaces was legal"))
}

fn take_name(graph: &mut Graph, old: ValueId, new: ValueId) {
    let name = graph.value(old).name.clone();
    graph.rename(old, "dead");
    graph.rename(new, &name);
}
