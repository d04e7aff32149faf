//! The usual names of what a plan does, read off its placements: data, tensor, sequence and expert parallelism, ZeRO levels, recomputation,
//! offload and stages, for each segment of the program. A plan edited by hand has names too.

use crate::apply::passes;
use crate::batch::BatchFactors;
use crate::rules::Rules;
use crate::search::solver::Cost;
use crate::search::{BoundaryKind, ContextKind, Decision, ExpertKind, Mode, SegmentChoice, StagesChoice};
use crate::segment::{Segment, constants};
use crate::strategy::{Pipeline, ScheduleKind};
use galvatron_ir::mesh::{Mesh, Sharding, ShardingRule};
use galvatron_ir::op::Op;
use galvatron_ir::plan::{Chunk, Memory, PhaseKind, ResidentRole};
use galvatron_ir::{AxisId, Module, NodeId, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// The schedules that are told apart.
const KINDS: [ScheduleKind; 5] = [
    ScheduleKind::OneForwardOneBackward,
    ScheduleKind::Gpipe,
    ScheduleKind::Interleaved,
    ScheduleKind::ZeroBubble,
    ScheduleKind::ZeroBubble2p,
];

/// What a plan amounts to; costs are left at zero. ZeRO-2 without sums over micro-batches is ZeRO-1.
pub fn recognize(plan: &Module, segments: &[Segment]) -> Decision {
    let forward: Vec<NodeId> = segments.iter().flat_map(|s| s.nodes.iter().copied()).collect();
    let reader = Reader::new(plan, &forward);
    let choices: Vec<SegmentChoice> = segments.iter().zip(0..).map(|(s, tag)| reader.choice(tag, s)).collect();
    let is_layer: Vec<bool> = segments.iter().map(|s| s.is_layer).collect();
    Decision { micro_batches: plan.mesh.micro_batches() as u32, segments: choices, stages: stages(plan, &is_layer) }
}

/// The stages; where no known schedule gives the order of their phases, that of the most general one is named.
fn stages(plan: &Module, is_layer: &[bool]) -> Option<StagesChoice> {
    let (n_stages, n_chunks) = (plan.stages.len() as u32, plan.chunks.len() as u32);
    if n_stages < 2 {
        return None;
    }
    let mut layers = vec![0; plan.chunks.len()];
    for tag in (0..is_layer.len()).filter(|&tag| is_layer[tag]) {
        layers[home(plan, tag as u32)] += 1;
    }
    let schedule = KINDS.into_iter().find(|&kind| has_schedule(plan, kind, n_stages, n_chunks));
    Some(StagesChoice { n_stages, schedule: schedule.unwrap_or(ScheduleKind::OneForwardOneBackward), layers })
}

/// The chunk that has most of the forward nodes of a segment; what it shares with others may stand elsewhere.
fn home(plan: &Module, tag: u32) -> usize {
    let n_own = |chunk: &Chunk| {
        let forward = chunk.phase(PhaseKind::Forward).iter();
        forward.filter(|&&node| chunk.graph.node(node).layer == Some(tag)).count()
    };
    (0..plan.chunks.len()).rev().max_by_key(|&chunk| n_own(&plan.chunks[chunk])).unwrap_or(0)
}

fn has_schedule(plan: &Module, schedule: ScheduleKind, n_stages: u32, n_chunks: u32) -> bool {
    if !n_chunks.is_multiple_of(n_stages) || (n_chunks > n_stages) != (schedule == ScheduleKind::Interleaved) {
        return false;
    }
    let pipeline = Pipeline { n_stages, n_chunks, schedule, chunk_of: BTreeMap::new() };
    let all = passes(&pipeline, plan.mesh.micro_batches() as u32);
    plan.stages.iter().zip(all).zip(0u32..).all(|((stage, expected), number)| {
        let found = stage.schedule.iter().filter(|step| step.micro_batch.is_some());
        let found = found.map(|step| (step.phase, step.chunk, step.micro_batch.unwrap_or(0)));
        found.eq(expected.iter().map(|p| (p.phase, number + p.chunk * n_stages, p.micro_batch)))
    })
}

/// The axes that ops of one segment are cut over, by what they cut.
#[derive(Default)]
struct Axes {
    batch: BTreeSet<AxisId>,
    weights: BTreeSet<AxisId>,
    experts: BTreeSet<AxisId>,
    heads: BTreeSet<AxisId>,
    queries: BTreeSet<AxisId>,
    /// How the queries see keys and values of other ranks.
    context: ContextKind,
    /// How tokens reach experts of other ranks.
    routes: ExpertKind,
}

/// Over how many axes what belongs to a weight is sharded in a chunk, by role.
type Spread = BTreeMap<(ValueId, ResidentRole), usize>;

struct Reader<'a> {
    plan: &'a Module,
    rules: Rules,
    batch: BatchFactors,
    weights: BTreeSet<ValueId>,
    constant: Vec<bool>,
    /// Of each chunk.
    spread: Vec<Spread>,
    /// The weights that a segment is the first to read and whose optimizer states lie in host memory, with that segment.
    hosted: BTreeSet<(u32, ValueId)>,
}

impl<'a> Reader<'a> {
    fn new(plan: &'a Module, forward: &[NodeId]) -> Reader<'a> {
        Reader {
            plan,
            rules: Rules::of(&plan.program),
            batch: BatchFactors::of(&plan.program, forward),
            weights: plan.program.weights.iter().map(|w| w.value).collect(),
            constant: constants(&plan.program),
            spread: plan.chunks.iter().map(|chunk| spread(plan, chunk)).collect(),
            hosted: hosted(plan, forward),
        }
    }

    fn choice(&self, tag: u32, segment: &Segment) -> SegmentChoice {
        let (mut axes, mut zero, mut mode) = (Axes::default(), 0, Mode::None);
        let mut mesh = &self.plan.stages[0].mesh;
        for (chunk, spread) in self.plan.chunks.iter().zip(&self.spread) {
            for &node in chunk.phase(PhaseKind::Forward).iter().filter(|&&n| chunk.graph.node(n).layer == Some(tag)) {
                mesh = self.plan.mesh_of(chunk);
                zero = zero.max(self.read(chunk, spread, node, &mut axes).unwrap_or(0));
            }
            mode = mode.max(self.recomputed(chunk, tag));
        }
        let [at_boundary, sequence] = self.boundary(tag);
        let Axes { mut batch, weights, experts, heads, queries, context, routes } = axes;
        if tag == 0 {
            batch.extend(at_boundary);
        }
        let product = |axes: &BTreeSet<AxisId>| axes.iter().map(|&axis| mesh.size(axis)).product::<u64>();
        let besides = |axes: &BTreeSet<AxisId>, others: &[&BTreeSet<AxisId>]| {
            product(&axes.iter().copied().filter(|axis| !others.iter().any(|other| other.contains(axis))).collect())
        };
        let tp = besides(&weights, &[&batch]);
        let ulysses = besides(&heads, &[&batch, &weights]);
        let mut cp = besides(&queries, &[&batch, &weights]);
        let along_sequence = besides(&sequence, &[&batch]);
        if tp > 1 && heads.is_empty() && queries.is_empty() {
            // Without attention axes of the sequence alone are like those of queries.
            cp = besides(&sequence, &[&batch, &weights]);
        }
        let of_weights = if tp > 1 { along_sequence > ulysses * cp } else { along_sequence > 1 };
        SegmentChoice {
            nodes: segment.nodes.clone(),
            dp: product(&batch),
            tp,
            ulysses,
            cp,
            cp_kind: context,
            ep: product(&experts),
            ep_kind: routes,
            boundary: if of_weights { BoundaryKind::Sequence } else { BoundaryKind::Replicated },
            zero,
            mode,
            host_states: self.hosted.range((tag, ValueId(0))..(tag + 1, ValueId(0))).next().is_some(),
            cost: Cost::ZERO,
        }
    }

    /// Adds what a node of a chunk's forward phase is cut over; returns the ZeRO level of what it reads. `None` where it is no copy of a
    /// node of the program.
    fn read(&self, chunk: &Chunk, spread: &Spread, node: NodeId, axes: &mut Axes) -> Option<u8> {
        let program = &self.plan.program;
        let source = self.source(chunk, node)?;
        let (node, args) = (chunk.graph.node(node), &program.graph.node(source).args);
        let operands: Vec<&Sharding> =
            node.args.iter().map(|&a| chunk.graph.value(a).sharding.as_ref()).collect::<Option<_>>()?;
        let joint = self.rules.joint(source).filter(|_| node.op.undistributed().is_some());
        match node.op {
            Op::RingAttention(_) if node.op.is_zigzag() => axes.context = ContextKind::Zigzag,
            Op::RingAttention(_) => axes.context = ContextKind::Ring,
            Op::RoutedMoe(_) => axes.routes = ExpertKind::AllToAll,
            _ => {}
        }
        let (op, rule) = (&program.graph.node(source).op, joint.unwrap_or(&self.rules[source]));
        let map = rule.infer_map(&operands, self.plan.mesh_of(chunk)).ok()?;
        let is_weight = |i: &usize| self.weights.contains(&args[*i]);
        let of_weights: BTreeSet<usize> =
            (0..args.len()).filter(is_weight).flat_map(|i| rule.operands[i].iter().flatten().copied()).collect();
        for (factor, cut) in map.axes.iter().enumerate() {
            let cut = cut.iter().copied().filter(|&axis| axis != Mesh::MB);
            let is_experts = expert_factor(op, rule) == Some(factor);
            match (op, rule.factors[factor].label.as_str()) {
                _ if self.batch.factors.get(&source) == Some(&factor) => axes.batch.extend(cut),
                _ if is_experts => {
                    axes.experts.extend(cut.clone());
                    axes.weights.extend(cut);
                }
                _ if of_weights.contains(&factor) => axes.weights.extend(cut),
                (Op::Attention(_), HEADS) => axes.heads.extend(cut),
                (Op::Attention(_), QUERIES) => axes.queries.extend(cut),
                _ => {}
            }
        }
        let levels = (0..args.len()).filter(is_weight).map(|i| zero_level(spread, args[i], operands[i]));
        levels.max()
    }

    /// The axes of the batch, and those of other dimensions, where values flow between a segment and the one before it: in the first
    /// placement that its ops read. Of the first segment it is where the second one reads.
    fn boundary(&self, tag: u32) -> [BTreeSet<AxisId>; 2] {
        let (from, to) = if tag == 0 { (0, 1) } else { (tag - 1, tag) };
        let program = &self.plan.program.graph;
        let crosses = |of: &ValueId| {
            let is_made = program.producer(*of).is_some_and(|node| program.node(node).layer == Some(from));
            is_made && self.batch.dims.contains_key(of) && program.value(*of).ty.dtype.is_float()
        };
        let mut axes = [BTreeSet::new(), BTreeSet::new()];
        for chunk in &self.plan.chunks {
            let forward = chunk.phase(PhaseKind::Forward);
            let of = |value: &ValueId| chunk.graph.value(*value).of.filter(crosses);
            let is_reader =
                |&&node: &&NodeId| chunk.graph.node(node).layer == Some(to) && self.source(chunk, node).is_some();
            let args = forward.iter().filter(is_reader).flat_map(|&node| &chunk.graph.node(node).args);
            let read: BTreeSet<ValueId> = args.copied().filter(|value| of(value).is_some()).collect();
            let results = forward.iter().flat_map(|&node| &chunk.graph.node(node).results);
            let mut known = BTreeSet::new();
            for value in results.filter(|value| read.contains(value)) {
                let Some(of) = of(value).filter(|of| known.insert(*of)) else { continue };
                for (dim, cut) in chunk.graph.value(*value).sharding.iter().flat_map(|s| s.dims.iter().enumerate()) {
                    let cut = cut.iter().copied().filter(|&axis| axis != Mesh::MB);
                    axes[usize::from(self.batch.dims[&of] != dim)].extend(cut);
                }
            }
        }
        axes
    }

    /// The node of the program that a node computes on a part of the operands.
    fn source(&self, chunk: &Chunk, node: NodeId) -> Option<NodeId> {
        let graph = &self.plan.program.graph;
        let node = chunk.graph.node(node);
        let source = graph.producer(chunk.graph.value(*node.results.first()?).of?)?;
        let original = graph.node(source);
        let mnemonic = node.op.undistributed().map_or(node.op.mnemonic(), |(op, _)| op.mnemonic());
        (original.op.mnemonic() == mnemonic && original.args.len() == node.args.len()).then_some(source)
    }

    /// What is computed again of a segment outside of its forward phase; constants and what is gathered again do not count. Where
    /// the backward pass reads results of products, attention or experts of the forward phase, these were kept.
    fn recomputed(&self, chunk: &Chunk, tag: u32) -> Mode {
        let leaves = |&&node: &&NodeId| {
            let node = chunk.graph.node(node);
            node.layer == Some(tag) && matches!(node.op, Op::ToHost(_))
        };
        if chunk.phase(PhaseKind::Forward).iter().any(|node| leaves(&node)) {
            return Mode::Offload;
        }
        let of = |value: ValueId| chunk.graph.value(value).of.filter(|v| !self.constant[v.index()]);
        let forward: BTreeSet<NodeId> = chunk.phase(PhaseKind::Forward).iter().copied().collect();
        let results = |node: &NodeId| chunk.graph.node(*node).results.clone();
        let computed: BTreeSet<ValueId> = forward.iter().flat_map(results).filter_map(of).collect();
        let is_backward = |phase: PhaseKind| phase.is_per_micro_batch() && phase != PhaseKind::Forward;
        let own =
            chunk.nodes().filter(|(phase, node)| is_backward(*phase) && chunk.graph.node(*node).layer == Some(tag));
        let own: Vec<NodeId> = own.map(|(_, node)| node).collect();
        let is_again = |node: &&NodeId| {
            let again = results(node).first().and_then(|&r| of(r)).is_some_and(|v| computed.contains(&v));
            again && self.source(chunk, **node).is_some()
        };
        let is_kept = |value: &ValueId| {
            let from_forward = chunk.graph.producer(*value).is_some_and(|node| forward.contains(&node));
            from_forward && of(*value).is_some_and(|v| self.is_costly(v, tag))
        };
        let keeps = || own.iter().any(|&node| chunk.graph.node(node).args.iter().any(&is_kept));
        match own.iter().find(is_again) {
            None => Mode::None,
            Some(_) if keeps() => Mode::Selective,
            Some(_) => Mode::Full,
        }
    }

    /// Whether a value of the program is the result of a product, attention or experts of a segment.
    fn is_costly(&self, value: ValueId, tag: u32) -> bool {
        let graph = &self.plan.program.graph;
        graph.producer(value).is_some_and(|node| {
            let node = graph.node(node);
            node.layer == Some(tag) && matches!(node.op, Op::Einsum(_) | Op::Attention(_) | Op::Moe(_))
        })
    }
}

/// Labels of the factors of attention.
const HEADS: &str = "h";
const QUERIES: &str = "q";

fn expert_factor(op: &Op, rule: &ShardingRule) -> Option<usize> {
    match op {
        Op::Moe(_) => rule.factors.iter().position(|factor| factor.label == "e"),
        _ => None,
    }
}

/// Which of what belongs to a weight is sharded further than where the weight is read.
fn zero_level(spread: &Spread, weight: ValueId, used: &Sharding) -> u8 {
    let used = used.dims.iter().map(Vec::len).sum::<usize>();
    let roles = [(ResidentRole::Parameter, 3), (ResidentRole::Accumulator, 2), (ResidentRole::State, 1)];
    let further = |(role, _): &(ResidentRole, u8)| spread.get(&(weight, *role)).is_some_and(|&n| n > used);
    roles.into_iter().find(further).map_or(0, |(_, level)| level)
}

fn spread(plan: &Module, chunk: &Chunk) -> Spread {
    let program = &plan.program;
    let mut spread = Spread::new();
    for resident in &chunk.residents {
        let value = chunk.graph.value(resident.value);
        let Some(of) = value.of else { continue };
        let weight = match resident.role {
            ResidentRole::Parameter => Some(of),
            ResidentRole::State => program.states.iter().find(|s| s.value == of).map(|s| s.weight),
            ResidentRole::Accumulator => program.graph.value(of).grad_of,
        };
        let n_axes = value.sharding.as_ref().map_or(0, |s| s.dims.iter().map(Vec::len).sum());
        if let Some(weight) = weight {
            let most = spread.entry((weight, resident.role)).or_default();
            *most = n_axes.max(*most);
        }
    }
    spread
}

/// The weights whose optimizer states lie in host memory, each with the segment of the first of the forward nodes that read it.
fn hosted(plan: &Module, forward: &[NodeId]) -> BTreeSet<(u32, ValueId)> {
    let residents = plan.chunks.iter().flat_map(|chunk| {
        let in_host = chunk.residents.iter().filter(|r| r.role == ResidentRole::State && r.memory == Memory::Host);
        in_host.filter_map(|resident| chunk.graph.value(resident.value).of)
    });
    let states: BTreeSet<ValueId> = residents.collect();
    let program = &plan.program;
    let weights = program.states.iter().filter(|state| states.contains(&state.value)).map(|state| state.weight);
    let first_reader = |weight: ValueId| {
        let node = forward.iter().map(|&node| program.graph.node(node)).find(|node| node.args.contains(&weight))?;
        Some((node.layer?, weight))
    };
    weights.filter_map(first_reader).collect()
}
