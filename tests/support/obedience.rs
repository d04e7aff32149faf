//! Whether a plan does what was pinned: read off the placements and nodes of the plan. The search's
//! own words serve only where a degree is not pinned.

use galvatron::driver::Compiled;
use galvatron_ir::graph::{Node, Value};
use galvatron_ir::mesh::{Mesh, Sharding};
use galvatron_ir::op::Op;
use galvatron_ir::plan::{Chunk, Memory, PhaseKind, ResidentRole};
use galvatron_ir::{AxisId, Module, NodeId, ValueId};
use galvatron_passes::rules::routers;
use galvatron_passes::search::{ContextKind, ExpertKind, LayerPins, Mode, Pins, SegmentChoice, SequenceMode};
use galvatron_passes::segment::constants;
use std::collections::BTreeSet;

/// Every pin that the plan does not obey, in words.
pub fn disobeyed(compiled: &Compiled, pins: &Pins) -> Vec<String> {
    let found = compiled.found.as_ref().expect("the search ran");
    let has_layers = compiled.segments.iter().any(|s| s.is_layer);
    let mut faults = micro_batches(&compiled.module, pins.micro_batches);
    faults.extend(stages(&compiled.module, pins));
    let mut layer = 0;
    for (i, choice) in found.decision.segments.iter().enumerate() {
        if has_layers && !compiled.segments[i].is_layer {
            continue;
        }
        let mut own = pins.layers.get(&layer).map_or(pins.all.clone(), |own| own.over(&pins.all));
        own.dp = own.dp.or(inner_degree(&own).map(|n| compiled.module.stages[0].mesh.world() as u32 / n));
        layer += 1;
        let view = LayerView::new(compiled, choice, &own);
        faults.extend(view.faults(&own).into_iter().map(|fault| format!("segment {i}: {fault}")));
    }
    faults
}

/// The ranks of a layer that share a part of the batch, where the pins say how many.
fn inner_degree(pins: &LayerPins) -> Option<u32> {
    match (pins.sequence_degree(), pins.tp) {
        (Some(sequence), Some(tp)) => Some(sequence * tp),
        (None, tp) => tp,
        (Some(_), None) => None,
    }
}

/// The plan has the pinned stages, and each the pinned chunks.
fn stages(module: &Module, pins: &Pins) -> Vec<String> {
    let (stages, chunks) = (module.stages.len() as u32, module.chunks.len() as u32);
    let wanted = pins.pp.unwrap_or(stages);
    let each = pins.virtual_stages.filter(|_| stages > 1);
    let fits = stages == wanted && each.is_none_or(|each| chunks == stages * each);
    if fits {
        Vec::new()
    } else {
        vec![format!("{stages} stages and {chunks} chunks, not {wanted} with {each:?} each")]
    }
}

fn micro_batches(module: &Module, pinned: Option<u32>) -> Vec<String> {
    let runs = |phase| module.stages[0].schedule.iter().filter(|s| (s.phase, s.chunk) == (phase, 0)).count() as u32;
    let found = (module.mesh.micro_batches() as u32, runs(PhaseKind::Forward), runs(PhaseKind::Backward));
    match pinned {
        Some(m) if found != (m, m, m) => vec![format!("mesh, forwards and backwards {found:?} for {m} micro-batches")],
        _ => Vec::new(),
    }
}

/// One layer of a plan.
struct LayerView<'a> {
    module: &'a Module,
    chunk: &'a Chunk,
    mesh: &'a Mesh,
    /// Ranks over which the weights lie.
    tp: u64,
    /// What the layer computes in the program.
    results: BTreeSet<ValueId>,
    /// What of it others read in the forward program, constants left out.
    outputs: BTreeSet<ValueId>,
    /// Parameters that only this layer reads.
    weights: BTreeSet<ValueId>,
    /// Spatial axes over which the batch lies.
    data: Vec<AxisId>,
    /// Those over which the sequence is pinned to lie and no weight.
    along_sequence: Vec<AxisId>,
}

impl<'a> LayerView<'a> {
    fn new(compiled: &'a Compiled, choice: &SegmentChoice, pins: &LayerPins) -> LayerView<'a> {
        let module = &compiled.module;
        let graph = &module.program.graph;
        let args = |nodes: &[NodeId]| nodes.iter().flat_map(|&n| graph.node(n).args.clone()).collect::<Vec<_>>();
        let results: BTreeSet<ValueId> = choice.nodes.iter().flat_map(|&n| graph.node(n).results.clone()).collect();
        let read_inside: BTreeSet<ValueId> = args(&choice.nodes).into_iter().collect();
        let others = compiled.segments.iter().filter(|s| s.nodes != choice.nodes);
        let read_outside: BTreeSet<ValueId> = others.flat_map(|s| args(&s.nodes)).collect();
        let trained = module.program.weights.iter().filter(|w| w.trainable).map(|w| w.value);
        let strategy = &compiled.found.as_ref().expect("the search ran").strategy;
        let chunk = strategy.pipeline.as_ref().map_or(0, |p| p.chunk_of[&choice.nodes[0]]);
        let chunk = &module.chunks[chunk as usize];
        let mesh = module.mesh_of(chunk);
        let (mut data, mut along_sequence) = (Vec::new(), Vec::new());
        for axis in mesh.spatial() {
            if mesh.product(&data) < pins.dp.map_or(choice.dp, u64::from) {
                data.push(axis);
            } else if mesh.product(&along_sequence) < pins.sequence_degree().map_or(1, u64::from) {
                along_sequence.push(axis);
            }
        }
        let constant = constants(&module.program);
        let leaves = |v: &&ValueId| read_outside.contains(*v) && !constant[v.index()];
        LayerView {
            module,
            chunk,
            mesh,
            tp: pins.tp.map_or(choice.tp, u64::from),
            outputs: results.iter().filter(leaves).copied().collect(),
            results,
            weights: trained.filter(|w| read_inside.contains(w) && !read_outside.contains(w)).collect(),
            data,
            along_sequence,
        }
    }

    /// What of the layer is not as pinned.
    fn faults(&self, pins: &LayerPins) -> Vec<String> {
        let mut faults = Vec::new();
        if let Some(dp) = pins.dp {
            self.check_batch(u64::from(dp), &mut faults);
        }
        if let Some(tp) = pins.tp {
            self.check_products(u64::from(tp), &mut faults);
        }
        self.check_experts(pins, &mut faults);
        if let Some(zero) = pins.zero {
            self.check_residents(zero, &mut faults);
        }
        if pins.cuts_sequence() {
            self.check_sequence_kind(pins, &mut faults);
        }
        if pins.sequence == Some(SequenceMode::Megatron) || pins.cuts_sequence() {
            self.check_sequence(pins, &mut faults);
        }
        let hosts = pins.offload.is_some_and(|offload| offload.activations);
        if let Some(mode) = pins.recompute.filter(|_| !hosts) {
            self.check_recomputation(mode, &mut faults);
        }
        if let Some(offload) = pins.offload {
            self.check_states(offload.states, &mut faults);
            self.check_activations(offload.activations, &mut faults);
        }
        faults
    }

    /// Attention has its heads or queries over the ranks, and products have whole weights.
    fn check_sequence_kind(&self, pins: &LayerPins, faults: &mut Vec<String>) {
        let dim = if pins.tensor_name() == "ulysses" { 2 } else { 1 };
        let axes = &self.along_sequence;
        for (node, value) in self.forward_copies(&self.results) {
            let placed = |i: usize| placement(self.chunk.graph.value(node.args[i]));
            if let Some(found) = attention_kind(&node.op)
                && pins.cp_kind.is_some_and(|kind| kind != found && pins.tensor_name() == "cp")
            {
                faults.push(format!("`{}` is no {:?}", value.name, pins.cp_kind));
            }
            if attention_kind(&node.op).is_some() && !axes.iter().all(|axis| placed(0).dims[dim].contains(axis)) {
                faults.push(format!("`{}` is not cut as {} says", value.name, pins.tensor_name()));
            }
            let is_own =
                |i: &usize| self.chunk.graph.value(node.args[*i]).of.is_some_and(|of| self.weights.contains(&of));
            let own = (0..node.args.len()).filter(is_own).filter(|_| matches!(node.op, Op::Einsum(_)));
            if own.into_iter().any(|i| axes.iter().any(|&axis| placed(i).is_sharded_over(axis))) {
                faults.push(format!("a weight of `{}` is cut under {}", value.name, pins.tensor_name()));
            }
        }
    }

    /// The experts of every mixture lie over `ep` ranks, and tokens reach those of other ranks in the pinned way.
    fn check_experts(&self, pins: &LayerPins, faults: &mut Vec<String>) {
        for (node, value) in self.forward_copies(&self.results) {
            let Some(kind) = expert_kind(&node.op) else { continue };
            let found = self.mesh.product(&placement(self.chunk.graph.value(node.args[3])).dims[0]);
            if let Some(ep) = pins.ep.map(u64::from).filter(|&ep| found != ep) {
                faults.push(format!("the experts of `{}` are over {found} ranks, not ep {ep}", value.name));
            }
            if let Some(pinned) = pins.ep_kind.filter(|&pinned| found > 1 && pinned != kind) {
                faults.push(format!("tokens reach the experts of `{}` by {kind:?}, not {pinned:?}", value.name));
            }
        }
    }

    /// The batch of every activation that leaves the layer lies over axes of product `dp`. The products of a model without
    /// layers may lie over more.
    fn check_batch(&self, dp: u64, faults: &mut Vec<String>) {
        if self.outputs.is_empty() {
            for (_, value) in self.forward_copies(&self.results).filter(|(n, _)| matches!(n.op, Op::Einsum(_))) {
                let found = self.mesh.product(&self.spatial(&placement(value).dims[0]));
                if !found.is_multiple_of(dp) {
                    faults.push(format!("the batch of `{}` is over {found} ranks, not dp {dp}", value.name));
                }
            }
        }
        for (_, value) in self.forward_copies(&self.outputs).filter(|(n, _)| is_computed(n)) {
            let found = self.mesh.product(&self.spatial(&placement(value).dims[0]));
            if found != dp {
                faults.push(format!("the batch of `{}` is over {found} ranks, not dp {dp}", value.name));
            }
        }
    }

    /// Every weight that a matrix product reads is cut into `tp` parts, those of keys and values into their heads if these are fewer. What
    /// chooses experts need not be cut.
    fn check_products(&self, tp: u64, faults: &mut Vec<String>) {
        let graph = &self.module.program.graph;
        let routing: BTreeSet<ValueId> =
            routers(&self.module.program).into_iter().flat_map(|id| graph.node(id).results.clone()).collect();
        let products = self.forward_copies(&self.results).filter(|(n, _)| matches!(n.op, Op::Einsum(_)));
        for (node, _) in products.filter(|(_, value)| value.of.is_none_or(|of| !routing.contains(&of))) {
            for &arg in &node.args {
                let value = self.chunk.graph.value(arg);
                let parts: u64 = placement(value).dims.iter().map(|d| self.mesh.product(d)).product();
                let is_own = value.of.is_some_and(|of| self.weights.contains(&of));
                if is_own && parts != tp && !self.key_heads().any(|heads| heads < tp && heads == parts) {
                    faults.push(format!("weight `{}` is cut into {parts} parts, not tp {tp}", value.name));
                }
            }
        }
    }

    /// What belongs to a weight is sharded over the data axes from its ZeRO level on and not before.
    fn check_residents(&self, zero: u8, faults: &mut Vec<String>) {
        let program = &self.module.program;
        for resident in &self.chunk.residents {
            let value = self.chunk.graph.value(resident.value);
            let Some(of) = value.of else { continue };
            let state = program.states.iter().find(|s| s.value == of).map(|s| s.weight);
            let gradient = program.graph.value(of).grad_of;
            let (weight, level) = match resident.role {
                ResidentRole::State => (state, 1),
                ResidentRole::Accumulator => (gradient, 2),
                ResidentRole::Parameter => (Some(of), 3),
            };
            let is_own = |w: ValueId| self.weights.contains(&w) && !self.is_spread(w);
            if !weight.is_some_and(is_own) || !self.can_be_cut(value) {
                continue;
            }
            let sharded = self.data.iter().filter(|&&a| placement(value).is_sharded_over(a)).count();
            let expected = if zero >= level { self.data.len() } else { 0 };
            if sharded != expected {
                let role = resident.role.name();
                faults.push(format!("{role} `{}` is over {sharded} data axes at ZeRO {zero}", value.name));
            }
        }
    }

    /// The optimizer states of the layer's weights lie in host memory, or none does.
    fn check_states(&self, in_host: bool, faults: &mut Vec<String>) {
        let program = &self.module.program;
        for resident in self.chunk.residents.iter().filter(|r| r.role == ResidentRole::State) {
            let value = self.chunk.graph.value(resident.value);
            let state = program.states.iter().find(|s| Some(s.value) == value.of);
            if state.is_some_and(|s| self.weights.contains(&s.weight)) && (resident.memory == Memory::Host) != in_host {
                faults.push(format!("the state `{}` lies in {:?} memory", value.name, resident.memory));
            }
        }
    }

    /// What the backward phase reads of the layer's forward phase comes from host memory, or nothing does. Views of what is older stay.
    fn check_activations(&self, in_host: bool, faults: &mut Vec<String>) {
        let leaves = self.forward_copies(&self.results).filter(|(n, _)| matches!(n.op, Op::ToHost(_))).count();
        if (leaves > 0) != in_host {
            faults.push(format!("{leaves} activations go to host memory"));
        }
        let phases = [PhaseKind::Backward, PhaseKind::BackwardWeight];
        let nodes = phases.iter().flat_map(|&p| self.chunk.phase(p)).map(|&n| self.chunk.graph.node(n));
        let read: BTreeSet<ValueId> =
            nodes.filter(|n| !matches!(n.op, Op::ToDevice(_))).flat_map(|n| n.args.iter().copied()).collect();
        let computed = self.forward_copies(&self.results).filter(|(n, _)| self.is_of_layer(n));
        for (node, value) in computed.filter(|(n, _)| in_host && !matches!(n.op, Op::Reshape(_))) {
            let is_read = |&&r: &&ValueId| read.contains(&r) && self.chunk.graph.value(r).of == value.of;
            if node.results.iter().any(|r| is_read(&r)) {
                faults.push(format!("`{}` stays on the device", value.name));
            }
        }
    }

    /// Whether a weight holds experts that lie over several ranks, at any ZeRO level.
    fn is_spread(&self, weight: ValueId) -> bool {
        let mixtures = self.forward_copies(&self.results).filter(|(n, _)| expert_kind(&n.op).is_some());
        mixtures.flat_map(|(node, _)| &node.args[3..]).any(|&arg| {
            let value = self.chunk.graph.value(arg);
            value.of == Some(weight) && self.mesh.product(&placement(value).dims[0]) > 1
        })
    }

    /// Whether some dimension can be cut over the data axes besides its other axes.
    fn can_be_cut(&self, value: &Value) -> bool {
        (0..value.ty.rank()).any(|dim| {
            let other: Vec<AxisId> =
                placement(value).dims[dim].iter().copied().filter(|a| !self.data.contains(a)).collect();
            value.ty.shape[dim].is_multiple_of(self.mesh.product(&other) * self.mesh.product(&self.data))
        })
    }

    /// The numbers of heads of keys in the attention of the layer.
    fn key_heads(&self) -> impl Iterator<Item = u64> {
        let attention = self.forward_copies(&self.results).filter(|(n, _)| attention_kind(&n.op).is_some());
        attention.map(|(n, _)| self.chunk.graph.value(n.args[1]).ty.shape[2])
    }

    /// The activations that leave the layer have their sequence over the ranks that share it, and if so pinned over the tensor ranks.
    fn check_sequence(&self, pins: &LayerPins, faults: &mut Vec<String>) {
        let outer = self.mesh.product(&self.along_sequence);
        let wanted = match pins.sequence {
            Some(SequenceMode::Megatron) => vec![outer * self.tp],
            Some(SequenceMode::None) => vec![outer],
            None => vec![outer, outer * self.tp],
        };
        for &output in &self.outputs {
            let copies = self.forward_copies(&self.outputs).filter(|(_, v)| v.of == Some(output));
            let parts: Vec<u64> = copies.map(|(_, v)| self.mesh.product(&placement(v).dims[1])).collect();
            if !wanted.iter().any(|n| parts.contains(n)) {
                let name = &self.module.program.graph.value(output).name;
                faults.push(format!("the sequence of `{name}` is over {parts:?} ranks, not {wanted:?}"));
            }
        }
    }

    /// The backward phase reads what the mode keeps and computes the rest again.
    fn check_recomputation(&self, mode: Mode, faults: &mut Vec<String>) {
        let phases = [PhaseKind::Backward, PhaseKind::BackwardWeight];
        let backward = phases.iter().flat_map(|&p| self.chunk.phase(p)).map(|&n| self.chunk.graph.node(n));
        let n_again = backward.clone().filter(|n| self.is_of_layer(n)).count();
        if (n_again > 0) != (mode != Mode::None) {
            faults.push(format!("{n_again} nodes are recomputed in mode {}", mode.name()));
        }
        let read: BTreeSet<ValueId> = backward.flat_map(|n| n.args.iter().copied()).collect();
        for (node, value) in self.forward_copies(&self.results) {
            let of = value.of.expect("invariant: chunk values are copies");
            let source = self.module.program.graph.producer(of).expect("invariant: results have a node");
            let is_kept = match mode {
                Mode::None | Mode::Offload => true,
                Mode::Selective => {
                    matches!(self.module.program.graph.node(source).op, Op::Einsum(_) | Op::Attention(_) | Op::Moe(_))
                }
                Mode::Full => false,
            };
            let is_read = node.results.iter().any(|r| read.contains(r) && self.chunk.graph.value(*r).of == Some(of));
            if is_read && !is_kept && !self.outputs.contains(&of) {
                faults.push(format!("`{}` is kept in mode {}", value.name, mode.name()));
            }
        }
    }

    /// Whether a node computes a value of the layer from data or weights; positions and masks are made again where they are
    /// read, in every mode.
    fn is_of_layer(&self, node: &Node) -> bool {
        let is_own = |of: ValueId| self.results.contains(&of) && !self.is_constant(of);
        is_computed(node) && node.results.iter().any(|r| self.chunk.graph.value(*r).of.is_some_and(is_own))
    }

    /// Whether a value depends on neither data nor weights.
    fn is_constant(&self, value: ValueId) -> bool {
        let graph = &self.module.program.graph;
        graph.producer(value).is_some_and(|n| graph.node(n).args.iter().all(|&arg| self.is_constant(arg)))
    }

    /// Nodes of the forward phase with each of their results that is a copy of one of these.
    fn forward_copies(&self, of: &BTreeSet<ValueId>) -> impl Iterator<Item = (&'a Node, &'a Value)> {
        let graph = &self.chunk.graph;
        let nodes = self.chunk.phase(PhaseKind::Forward).iter().map(|&n| graph.node(n));
        let results = nodes.flat_map(move |n| n.results.iter().map(move |&r| (n, graph.value(r))));
        results.filter(move |(_, value)| value.of.is_some_and(|v| of.contains(&v)))
    }

    fn spatial(&self, axes: &[AxisId]) -> Vec<AxisId> {
        axes.iter().copied().filter(|&a| a != Mesh::MB).collect()
    }
}

/// How an attention sees the keys of other ranks; none for other ops.
/// How tokens reach experts of other ranks in a mixture; none for other ops.
fn expert_kind(op: &Op) -> Option<ExpertKind> {
    match op {
        Op::Moe(_) => Some(ExpertKind::Gather),
        Op::RoutedMoe(_) => Some(ExpertKind::AllToAll),
        _ => None,
    }
}

fn attention_kind(op: &Op) -> Option<ContextKind> {
    match op {
        Op::Attention(_) => Some(ContextKind::Gather),
        Op::RingAttention(ring) => Some(if ring.zigzag { ContextKind::Zigzag } else { ContextKind::Ring }),
        _ => None,
    }
}

/// Whether a node computes its results; collectives and cuts only move them.
fn is_computed(node: &Node) -> bool {
    let moves = ["comm.", "pipe.", "mem."].iter().any(|room| node.op.mnemonic().starts_with(room));
    !moves || node.op.undistributed().is_some()
}

fn placement(value: &Value) -> &Sharding {
    value.sharding.as_ref().expect("invariant: values of a chunk have a placement")
}
