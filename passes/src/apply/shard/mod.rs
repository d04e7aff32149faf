//! `shard`: from the training program to one chunk whose values have placements.
//!
//! Every node of the program is emitted once, in the phase that its operands allow, under the map that the strategy gives it
//! (forward), that it inherits from its forward node (backward) or that its weight's placement implies (optimizer). Where an
//! operand is needed in another placement than it has, a `comm.reshard` stands between; a sum over micro-batches goes
//! through an accumulator.

mod copies;
mod emit;
pub(crate) mod inherit;
mod sums;

use crate::strategy::Strategy;
use copies::Copies;
use galvatron_ir::mesh::{FactorMap, Mesh, Sharding};
use galvatron_ir::module::Program;
use galvatron_ir::op::Op;
use galvatron_ir::plan::{Chunk, PhaseKind, ResidentRole};
use galvatron_ir::{Level, Module, NodeId, ValueId};
use inherit::Inherited;
use std::collections::{BTreeMap, BTreeSet};

/// Builds the chunk of a module at level `training`.
pub fn shard(module: &mut Module, strategy: &Strategy) {
    module.mesh = module.mesh.with_micro_batches(strategy.micro_batches);
    let mut sharder = Sharder::new(&module.program, &module.mesh, strategy);
    sharder.declare_residents();
    for &node in &module.program.body {
        sharder.visit(node);
    }
    sharder.write_updates();
    module.chunks = vec![sharder.finish()];
    module.level = Level::Sharded;
}

struct Sharder<'a> {
    program: &'a Program,
    mesh: &'a Mesh,
    strategy: &'a Strategy,
    chunk: Chunk,
    copies: Copies,
    inherited: Inherited,
    /// The gradient that each trainable weight's optimizer node reads.
    weight_of_gradient: BTreeMap<ValueId, ValueId>,
    /// Program values that exist once a step, after the last micro-batch.
    step_level: BTreeSet<ValueId>,
    /// The values that the executor reports: the loss and the gradient norm.
    reported: Vec<ValueId>,
    /// The segment of the node that is being emitted.
    layer: Option<u32>,
    /// Accumulators by the value that they sum.
    accumulators: BTreeMap<ValueId, ValueId>,
}

impl<'a> Sharder<'a> {
    fn new(program: &'a Program, mesh: &'a Mesh, strategy: &'a Strategy) -> Self {
        let mut weight_of_gradient = BTreeMap::new();
        for &node in &program.body {
            if let Some(weight) = program.weight_of_optimizer(node) {
                weight_of_gradient.insert(program.graph.node(node).args[1], weight);
            }
        }
        Sharder {
            program,
            mesh,
            strategy,
            chunk: Chunk::new(),
            copies: Copies::default(),
            inherited: Inherited::default(),
            weight_of_gradient,
            step_level: BTreeSet::new(),
            reported: ["loss", "grad_norm"].iter().filter_map(|name| program.output(name)).collect(),
            layer: None,
            accumulators: BTreeMap::new(),
        }
    }

    /// Parameters and optimizer state.
    fn declare_residents(&mut self) {
        for weight in &self.program.weights {
            let placement = self.strategy.weights[&weight.value].parameter.clone();
            self.declare(weight.value, placement, ResidentRole::Parameter);
        }
        for state in &self.program.states {
            let placement = self.strategy.weights[&state.weight].state.clone();
            self.declare(state.value, placement, ResidentRole::State);
        }
    }

    /// Emits one node of the program.
    fn visit(&mut self, node: NodeId) {
        let n = self.program.graph.node(node);
        self.layer = n.layer;
        if let Some(map) = self.strategy.maps.get(&node) {
            self.visit_forward(node, map);
        } else if self.is_step_level(node) {
            self.visit_step_level(node);
        } else if matches!(n.op, Op::AddN(_)) || self.is_widened_gradient(node) {
            self.visit_sum(node);
        } else {
            let maps = &self.strategy.maps;
            let map = self.inherited.map(self.program, |f| maps.get(&f), node);
            self.emit_backward(node, &map);
        }
        for &result in &self.program.graph.node(node).results {
            self.sink_gradient(result);
        }
    }

    fn visit_forward(&mut self, node: NodeId, map: &FactorMap) {
        let args = &self.program.graph.node(node).args;
        let summed = |s: &Self, a: &ValueId| s.step_level.contains(a) || s.copies.is_sum_over_micro_batches(*a);
        let is_loss = self.program.graph.node(node).results.iter().any(|r| self.reported.contains(r));
        if is_loss || args.iter().any(|a| summed(self, a)) {
            return self.visit_step_level(node);
        }
        let has_micro_batches = self.mesh.micro_batches() > 1;
        let mentions = map.axes.iter().flatten().any(|&a| a == Mesh::MB);
        let whole_batch = has_micro_batches && !mentions && args.iter().any(|a| self.is_input_or_prologue(*a));
        self.emit(node, map, if whole_batch { PhaseKind::Prologue } else { PhaseKind::Forward });
    }

    fn is_input_or_prologue(&self, value: ValueId) -> bool {
        self.program.inputs.iter().any(|i| i.value == value) || self.copies.is_in(value, PhaseKind::Prologue)
    }

    fn is_step_level(&self, node: NodeId) -> bool {
        let n = self.program.graph.node(node);
        matches!(n.op, Op::RunScalar(_))
            || n.args.iter().any(|a| self.step_level.contains(a) || self.weight_of_gradient.contains_key(a))
    }

    /// The f32 copy of a weight's gradient in bf16, which stays where and as partial as that is.
    fn is_widened_gradient(&self, node: NodeId) -> bool {
        let n = self.program.graph.node(node);
        matches!(n.op, Op::Cast(_)) && n.fwd.is_none() && self.weight_of_gradient.contains_key(&n.results[0])
    }

    /// The weight that an optimizer node updates, or whose new master copy a node rounds.
    fn updated_weight(&self, node: NodeId) -> Option<ValueId> {
        let n = self.program.graph.node(node);
        let optimizer = match n.op {
            Op::Cast(_) => self.program.graph.producer(n.args[0])?,
            _ => node,
        };
        self.program.weight_of_optimizer(optimizer)
    }

    /// Loss, gradient norm, optimizer: resolved operands, placements of the optimizer state for tensors of a weight.
    fn visit_step_level(&mut self, node: NodeId) {
        let n = self.program.graph.node(node);
        let updated = self.updated_weight(node);
        let is_step = updated.is_some() || matches!(n.op, Op::RunScalar(_));
        let phase = if is_step { PhaseKind::Step } else { PhaseKind::Reduce };
        let weight = updated.or_else(|| n.args.first().and_then(|a| self.weight_of_gradient.get(a).copied()));
        let rule = crate::batch::rule_of(self.program, node);
        let mut map = FactorMap::replicated(&rule);
        if let Some(weight) = weight {
            let state = &self.strategy.weights[&weight].state;
            let operand = rule.operands.iter().position(|dims| !dims.is_empty()).unwrap_or(0);
            for (dim, factors) in rule.operands[operand].iter().enumerate() {
                map.axes[factors[0]] = state.dims[dim].clone();
            }
        }
        self.emit(node, &map, phase);
        self.step_level.extend(&n.results);
    }

    /// Writes the new values of weights and states to their residents.
    fn write_updates(&mut self) {
        let weight_of: BTreeMap<ValueId, ValueId> = self.program.states.iter().map(|s| (s.value, s.weight)).collect();
        for &(target, new) in &self.program.updates {
            let weights = &self.strategy.weights;
            let placement = match weight_of.get(&target) {
                Some(weight) => &weights[weight].state,
                None => &weights[&target].parameter,
            };
            self.layer = self.program.graph.producer(new).and_then(|n| self.program.graph.node(n).layer);
            let new = self.fetch(new, placement, PhaseKind::Step);
            let resident = self.copies.resident(target);
            self.push(Op::Update(galvatron_ir::op::mem::Update), &[resident, new], PhaseKind::Step);
        }
    }

    fn declare(&mut self, of: ValueId, placement: Sharding, role: ResidentRole) -> ValueId {
        let source = self.program.graph.value(of);
        let suffix = if role == ResidentRole::Accumulator { ".sum" } else { "" };
        let value = self.chunk.graph.declare(&format!("{}{suffix}", source.name), source.ty.clone());
        self.chunk.graph.value_mut(value).sharding = Some(placement);
        self.chunk.graph.value_mut(value).of = Some(of);
        self.chunk.residents.push(galvatron_ir::plan::Resident { value, role });
        self.copies.add_resident(of, value, role);
        value
    }

    fn finish(mut self) -> Chunk {
        emit::remove_dead(&mut self.chunk, &self.reported);
        self.chunk
    }
}
