//! `shard`: from the training program to chunks whose values have placements.
//!
//! Every node of the program is emitted once, to the chunk of its forward node or of its weight, in the phase that its operands allow, under the map that the strategy gives it
//! (forward), that it inherits from its forward node (backward) or that its weight's placement implies (optimizer). Where an
//! operand is needed in another placement than it has, a `comm.reshard` stands between; where another chunk computes it, a message
//! (see [`parts`]); a sum over micro-batches goes through an accumulator.

mod copies;
mod emit;
mod parts;
mod sums;

use crate::rules::Rules;
use crate::strategy::Strategy;
use copies::Copies;
use galvatron_ir::mesh::{FactorMap, Mesh, Sharding};
use galvatron_ir::module::Program;
use galvatron_ir::op::Op;
use galvatron_ir::plan::{Chunk, Memory, PhaseKind, ResidentRole, Stage};
use galvatron_ir::{Level, Module, NodeId, ValueId};
use parts::Parts;
use std::collections::{BTreeMap, BTreeSet};

/// Builds the chunks of a module at level `training`, of whose program these are the rules.
pub fn shard(module: &mut Module, strategy: &Strategy, rules: &Rules) {
    module.mesh = module.mesh.with_micro_batches(strategy.micro_batches);
    let n_stages = strategy.pipeline.as_ref().map_or(1, |p| u64::from(p.n_stages));
    let mesh = module.mesh.part_of(n_stages).expect("invariant: the stages divide the mesh");
    module.stages = (0..n_stages).map(|stage| Stage::new(stage * mesh.world(), mesh.clone())).collect();
    let mut sharder = Sharder::new(&module.program, rules, &mesh, strategy);
    sharder.declare_residents();
    for &node in &module.program.body {
        sharder.visit(node);
    }
    sharder.write_updates();
    module.chunks = sharder.finish();
    module.level = Level::Sharded;
}

/// The scalars that the run supplies to the optimizer; those that the model reads are of its forward pass.
fn run_scalars(program: &Program, strategy: &Strategy) -> BTreeSet<ValueId> {
    let nodes = program.body.iter().filter(|node| !strategy.maps.contains_key(node));
    let nodes = nodes.map(|&n| program.graph.node(n));
    nodes.filter(|n| matches!(n.op, Op::RunScalar(_))).flat_map(|n| n.results.iter().copied()).collect()
}

struct Sharder<'a> {
    program: &'a Program,
    mesh: &'a Mesh,
    strategy: &'a Strategy,
    /// The chunk that nodes are emitted to, with what is known of it; the others wait in `parts`.
    chunk: Chunk,
    copies: Copies,
    /// Accumulators by the value that they sum.
    accumulators: BTreeMap<ValueId, ValueId>,
    parts: Parts,
    rules: &'a Rules,
    /// The gradient that each trainable weight's optimizer node reads.
    weight_of_gradient: BTreeMap<ValueId, ValueId>,
    /// Program values that exist once a step, after the last micro-batch.
    step_level: BTreeSet<ValueId>,
    /// The values that the executor reports: the loss and the gradient norm.
    reported: Vec<ValueId>,
    /// The segment of the node that is being emitted.
    layer: Option<u32>,
}

impl<'a> Sharder<'a> {
    fn new(program: &'a Program, rules: &'a Rules, mesh: &'a Mesh, strategy: &'a Strategy) -> Self {
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
            accumulators: BTreeMap::new(),
            parts: Parts::new(program, strategy),
            rules,
            weight_of_gradient,
            step_level: run_scalars(program, strategy),
            reported: ["loss", "grad_norm"].iter().filter_map(|name| program.output(name)).collect(),
            layer: None,
        }
    }

    /// Parameters in every chunk that reads them, optimizer state in the first of these.
    fn declare_residents(&mut self) {
        for weight in &self.program.weights {
            for chunk in self.parts.readers_of(weight.value) {
                self.switch(chunk);
                let placement = self.strategy.weights[&weight.value].parameter.clone();
                self.declare(weight.value, placement, ResidentRole::Parameter);
            }
        }
        for state in &self.program.states {
            self.switch(self.parts.owner_of(state.weight));
            let placement = self.strategy.weights[&state.weight].state.clone();
            self.declare(state.value, placement, ResidentRole::State);
        }
    }

    /// Emits one node of the program to its chunk; what has no operands is emitted where it is read.
    fn visit(&mut self, node: NodeId) {
        let Some(chunk) = self.chunk_of(node) else { return };
        self.switch(chunk);
        self.emit_here(node);
        for &result in &self.program.graph.node(node).results {
            self.parts.set_home(result, chunk);
            self.sink_gradient(result);
        }
    }

    /// Emits one node of the program to the chunk in work.
    fn emit_here(&mut self, node: NodeId) {
        let n = self.program.graph.node(node);
        self.layer = n.layer;
        if let Some(map) = self.strategy.maps.get(&node) {
            self.visit_forward(node, map);
        } else if self.is_step_level(node) {
            self.visit_step_level(node);
        } else if matches!(n.op, Op::AddN(_)) || self.is_widened_gradient(node) {
            self.visit_sum(node);
        } else {
            let map = match n.fwd.and_then(|fwd| self.strategy.maps.get(&fwd)) {
                Some(forward) => self.rules.inherit(node, forward),
                None => FactorMap::replicated(&self.rules[node]),
            };
            self.emit_backward(node, &map);
        }
    }

    fn visit_forward(&mut self, node: NodeId, map: &FactorMap) {
        let args = &self.program.graph.node(node).args;
        self.import_all(args, PhaseKind::Forward);
        let summed = |s: &Self, a: &ValueId| s.step_level.contains(a) || s.copies.is_sum_over_micro_batches(*a);
        let is_loss = self.program.graph.node(node).results.iter().any(|r| self.reported.contains(r));
        if is_loss || args.iter().any(|a| summed(self, a)) {
            return self.visit_step_level(node);
        }
        if self.is_run_scalar(node) {
            return self.emit(node, map, PhaseKind::Prologue);
        }
        let has_micro_batches = self.mesh.micro_batches() > 1;
        let mentions = map.axes.iter().flatten().any(|&a| a == Mesh::MB);
        let whole_batch = has_micro_batches && !mentions && args.iter().any(|a| self.is_of_whole_batch(*a));
        self.emit(node, map, if whole_batch { PhaseKind::Prologue } else { PhaseKind::Forward });
    }

    /// Whether a value is of the data of the whole step: an input, or made of inputs in the prologue.
    fn is_of_whole_batch(&self, value: ValueId) -> bool {
        let is_run_scalar = self.program.graph.producer(value).is_some_and(|node| self.is_run_scalar(node));
        let is_early = self.copies.is_in(value, PhaseKind::Prologue) && !is_run_scalar;
        is_early || self.program.inputs.iter().any(|i| i.value == value)
    }

    fn is_run_scalar(&self, node: NodeId) -> bool {
        matches!(self.program.graph.node(node).op, Op::RunScalar(_))
    }

    fn is_step_level(&self, node: NodeId) -> bool {
        let n = self.program.graph.node(node);
        self.is_run_scalar(node)
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
        let is_step = updated.is_some() || self.is_run_scalar(node);
        let phase = if is_step { PhaseKind::Step } else { PhaseKind::Reduce };
        let weight = updated.or_else(|| n.args.first().and_then(|a| self.weight_of_gradient.get(a).copied()));
        let rule = &self.rules[node];
        let mut map = FactorMap::replicated(rule);
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
            let (placement, chunks) = match weight_of.get(&target) {
                Some(&weight) => (&weights[&weight].state, vec![self.parts.owner_of(weight)]),
                None => (&weights[&target].parameter, self.parts.readers_of(target)),
            };
            self.layer = self.program.graph.producer(new).and_then(|n| self.program.graph.node(n).layer);
            for chunk in chunks {
                self.switch(chunk);
                let new = self.fetch(new, placement, PhaseKind::Step);
                let resident = self.copies.resident(target);
                self.push(Op::Update(galvatron_ir::op::mem::Update), &[resident, new], PhaseKind::Step);
            }
        }
    }

    fn declare(&mut self, of: ValueId, placement: Sharding, role: ResidentRole) -> ValueId {
        let source = self.program.graph.value(of);
        let suffix = if role == ResidentRole::Accumulator { ".sum" } else { "" };
        let value = self.chunk.graph.declare(&format!("{}{suffix}", source.name), source.ty.clone());
        self.chunk.graph.value_mut(value).sharding = Some(placement);
        self.chunk.graph.value_mut(value).of = Some(of);
        self.chunk.residents.push(galvatron_ir::plan::Resident { value, role, memory: Memory::Device });
        self.copies.add_resident(of, value, role);
        value
    }

    /// The chunks; the first one has a copy of what is reported, and none computes what nobody reads.
    fn finish(mut self) -> Vec<Chunk> {
        self.switch(0);
        for value in self.reported.clone() {
            let whole = Sharding::replicated(self.program.graph.value(value).ty.rank());
            self.fetch(value, &whole, PhaseKind::Step);
        }
        let mut chunks = self.take_chunks();
        emit::remove_dead(&mut chunks, &self.reported);
        chunks
    }
}
