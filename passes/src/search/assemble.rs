//! From the program to what the search reads, and from what it chose back to a [`Strategy`].

use super::boundary::BoundaryKind;
use super::candidates::{Choice, Mode};
use super::pins::{ContextKind, ExpertKind, Offload};
use super::price::{Facts, Group, Piece, siblings};
use super::recompute::Recompute;
use super::sequence::{Sequences, TensorKind};
use super::solver::Cost;
use super::split::Split;
use super::weights::{Reduction, weight_placement};
use crate::batch::BatchFactors;
use crate::rules::{Cuttable, Rules};
use crate::segment::Segment;
use crate::strategy::{ScheduleKind, Strategy, WeightPlacement};
use galvatron_ir::mesh::{Mesh, Sharding};
use galvatron_ir::module::Program;
use galvatron_ir::op::Op;
use galvatron_ir::{NodeId, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// What was chosen for one segment, in the usual names.
#[derive(Clone, Debug)]
pub struct SegmentChoice {
    /// Its forward nodes.
    pub nodes: Vec<NodeId>,
    /// Ranks over which the boundary batch lies besides the tensor axes.
    pub dp: u64,
    /// Ranks of the tensor axes, if these cut weights.
    pub tp: u64,
    /// Ranks of the context axes, or of tensor axes that cut no weight, if these cut the sequence, and the heads inside of attention.
    pub ulysses: u64,
    /// The same, if these cut the queries inside of attention.
    pub cp: u64,
    /// How keys and values reach the queries of other ranks, where `cp` is above 1.
    pub cp_kind: ContextKind,
    /// Ranks over which the experts of its mixtures lie; 1 where it has none.
    pub ep: u64,
    /// How tokens of other ranks reach them, where `ep` is above 1.
    pub ep_kind: ExpertKind,
    /// Where the tensor axes lie at the boundary.
    pub boundary: BoundaryKind,
    /// ZeRO level.
    pub zero: u8,
    /// What is recomputed.
    pub mode: Mode,
    /// Whether the optimizer states of its weights lie in host memory.
    pub host_states: bool,
    /// Surrogate cost of one step.
    pub cost: Cost,
}

impl SegmentChoice {
    /// The choice of a piece in the usual names.
    pub fn of(piece: &Piece, choice: &Choice, mesh: &Mesh) -> SegmentChoice {
        let Split { data, context, tensor } = &choice.split;
        let along_sequence = mesh.product(choice.split.sequence_axes());
        let cuts_weights = choice.tensor == TensorKind::Weights || !context.is_empty();
        SegmentChoice {
            nodes: piece.nodes.clone(),
            dp: mesh.product(data),
            tp: if cuts_weights { mesh.product(tensor) } else { 1 },
            ulysses: if choice.tensor == TensorKind::Ulysses { along_sequence } else { 1 },
            cp: if matches!(choice.tensor, TensorKind::Context(_)) { along_sequence } else { 1 },
            cp_kind: match choice.tensor {
                TensorKind::Context(kind) => kind,
                _ => ContextKind::Gather,
            },
            ep: choice.experts.degree,
            ep_kind: choice.experts.kind,
            boundary: choice.boundary,
            zero: choice.zero,
            mode: choice.mode,
            host_states: choice.host_states,
            cost: choice.cost,
        }
    }

    /// What lies in host memory.
    pub fn offload(&self) -> Offload {
        Offload { activations: self.mode == Mode::Offload, states: self.host_states }
    }

    /// Ranks of the tensor axes, whatever they cut.
    pub fn tensor_degree(&self) -> u64 {
        if self.tp > 1 { self.tp } else { self.sequence_degree() }
    }

    /// Ranks that share the sequence and no weight.
    pub fn sequence_degree(&self) -> u64 {
        self.ulysses * self.cp
    }

    /// Whether the axes that cut weights cut the sequence between layers.
    pub fn has_megatron_sequence(&self) -> bool {
        self.boundary == BoundaryKind::Sequence && (self.tp > 1 || self.sequence_degree() == 1)
    }

    /// Usual names: `dp 4`, `dp 2 · tp 2 + sequence, zero 1, recompute full`.
    pub fn name(&self) -> String {
        let (dp, tp) = match self.boundary {
            BoundaryKind::Batch => (self.dp * self.tp, 1),
            _ => (self.dp, self.tp),
        };
        let mut name = format!("dp {dp}");
        if tp > 1 {
            name += &format!(" · tp {tp}");
        }
        if self.ulysses > 1 {
            name += &format!(" · ulysses {}", self.ulysses);
        }
        if self.cp > 1 {
            let kind = match self.cp_kind {
                ContextKind::Gather => "",
                ContextKind::Ring => " (ring)",
                ContextKind::Zigzag => " (zigzag)",
            };
            name += &format!(" · cp {}{kind}", self.cp);
        }
        if self.ep > 1 {
            let kind = match self.ep_kind {
                ExpertKind::Gather => "",
                ExpertKind::AllToAll => " (all-to-all)",
            };
            name += &format!(" · ep {}{kind}", self.ep);
        }
        if self.has_megatron_sequence() {
            name += " + sequence";
        }
        if self.zero > 0 {
            name += &format!(", zero {}", self.zero);
        }
        if !matches!(self.mode, Mode::None | Mode::Offload) {
            name += &format!(", recompute {}", self.mode.name());
        }
        if self.offload().is_any() {
            name += &format!(", offload {}", self.offload().name());
        }
        name
    }
}

/// All decisions in terms of segments.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Micro-batches in one step.
    pub micro_batches: u32,
    /// Each segment, in order.
    pub segments: Vec<SegmentChoice>,
    /// The stages of the pipeline, if there is one.
    pub stages: Option<StagesChoice>,
}

/// How the segments are cut into stages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagesChoice {
    /// Number of stages.
    pub n_stages: u32,
    /// The order of micro-batches.
    pub schedule: ScheduleKind,
    /// Repeated layers of each chunk; chunk c is on stage c modulo the number of stages.
    pub layers: Vec<u32>,
}

impl StagesChoice {
    /// In words: `pp 2 (1f1b, layers 2 + 2)`.
    pub fn name(&self) -> String {
        let layers: Vec<String> = self.layers.iter().map(u32::to_string).collect();
        format!("pp {} ({}, layers {})", self.n_stages, self.schedule.name(), layers.join(" + "))
    }
}

impl Decision {
    /// Micro-batches and the runs of equal choices.
    pub fn name(&self) -> String {
        let mut runs: Vec<(String, usize)> = Vec::new();
        for segment in &self.segments {
            let name = segment.name();
            match runs.last_mut().filter(|(n, _)| *n == name) {
                Some((_, count)) => *count += 1,
                None => runs.push((name, 1)),
            }
        }
        let runs: Vec<String> = runs.into_iter().map(|(n, c)| if c > 1 { format!("{c} × ({n})") } else { n }).collect();
        let m = self.micro_batches;
        let stages = self.stages.as_ref().map_or(String::new(), |stages| format!("{}, ", stages.name()));
        format!("{stages}{m} micro-batch{}: {}", if m == 1 { "" } else { "es" }, runs.join(" | "))
    }
}

/// Reads what pricing needs; segments that are not joined by one value each become one piece.
pub fn read_program<'a>(program: &'a Program, segments: &[Segment]) -> (Facts<'a>, Vec<Piece>) {
    let forward: Vec<NodeId> = segments.iter().flat_map(|s| s.nodes.iter().copied()).collect();
    let (saved, has_gradient, backward) = saved_and_gradients(program, &forward);
    let weights: BTreeSet<ValueId> = program.weights.iter().map(|w| w.value).collect();
    let mut readers: BTreeMap<ValueId, BTreeSet<usize>> = BTreeMap::new();
    for (i, segment) in segments.iter().enumerate() {
        for &node in &segment.nodes {
            for &arg in program.graph.node(node).args.iter().filter(|a| weights.contains(a)) {
                readers.entry(arg).or_default().insert(i);
            }
        }
    }
    let shared = readers.iter().filter(|(_, s)| s.len() > 1).map(|(w, _)| *w).collect();
    let pieces = pieces(program, segments, &readers);
    let batch = BatchFactors::of(program, &forward);
    let facts = Facts {
        program,
        rules: Rules::of(program),
        sequences: Sequences::of(program, &forward, &pieces, &batch),
        batch,
        backward,
        saved,
        has_gradient,
        optimizer: optimizer_nodes(program),
        sums: gradient_sums(program),
        shared,
        weights,
        cuttable: Cuttable::of(program),
    };
    (facts, pieces)
}

/// Forward values that the backward pass reads, forward values through which a gradient flows, backward nodes by forward node.
type BackwardFacts = (BTreeSet<ValueId>, BTreeSet<ValueId>, BTreeMap<NodeId, Vec<NodeId>>);

fn saved_and_gradients(program: &Program, forward: &[NodeId]) -> BackwardFacts {
    let is_forward: BTreeSet<NodeId> = forward.iter().copied().collect();
    let (mut saved, mut has_gradient) = (BTreeSet::new(), BTreeSet::new());
    let mut backward: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
    for &id in program.body.iter().filter(|n| !is_forward.contains(n)) {
        let node = program.graph.node(id);
        let reads = |v: &&ValueId| program.graph.producer(**v).is_some_and(|p| is_forward.contains(&p));
        saved.extend(node.args.iter().filter(reads));
        has_gradient.extend(node.results.iter().filter_map(|&r| program.graph.value(r).grad_of));
        if let Some(fwd) = node.fwd.filter(|_| !matches!(node.op, Op::AddN(_))) {
            backward.entry(fwd).or_default().push(id);
        }
    }
    (saved, has_gradient, backward)
}

fn optimizer_nodes(program: &Program) -> BTreeMap<ValueId, NodeId> {
    program.body.iter().filter_map(|&n| Some((program.weight_of_optimizer(n)?, n))).collect()
}

/// The nodes that add up the gradient contributions of a value, by that value.
fn gradient_sums(program: &Program) -> BTreeMap<ValueId, NodeId> {
    let is_sum = |n: &&NodeId| matches!(program.graph.node(**n).op, Op::AddN(_));
    let of = |&n: &NodeId| Some((program.graph.value(program.graph.node(n).results[0]).grad_of?, n));
    program.body.iter().filter(is_sum).filter_map(of).collect()
}

fn pieces(program: &Program, segments: &[Segment], readers: &BTreeMap<ValueId, BTreeSet<usize>>) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut crossing = None;
    for (i, segment) in segments.iter().enumerate() {
        let owned = readers.iter().filter(|(_, s)| s.first() == Some(&i)).map(|(w, _)| *w).collect();
        let next = if i + 1 < segments.len() { crossing_value(program, segments, i) } else { None };
        let (nodes, siblings) = (segment.nodes.clone(), siblings(program, &segment.nodes));
        pieces.push(Piece { nodes, input: crossing, output: next, owned, siblings });
        crossing = next;
    }
    pieces
}

/// The one value that flows from segment `i` to the next. Where several cross it is the one that segment `i` computes and only
/// the next one reads: masks and positions come from further away, and what all layers read goes further.
fn crossing_value(program: &Program, segments: &[Segment], i: usize) -> Option<ValueId> {
    let values = crossing_values(program, segments, i);
    if let [only] = values[..] {
        return Some(only);
    }
    let made: BTreeSet<ValueId> = results_of(program, &segments[i]);
    let further = if i + 2 < segments.len() { crossing_values(program, segments, i + 1) } else { Vec::new() };
    let mut between = values.into_iter().filter(|v| made.contains(v) && !further.contains(v));
    between.next().filter(|_| between.next().is_none())
}

fn results_of(program: &Program, segment: &Segment) -> BTreeSet<ValueId> {
    segment.nodes.iter().flat_map(|&n| program.graph.node(n).results.iter().copied()).collect()
}

/// The values that are computed up to segment `i` and read after it; constants left out.
pub fn crossing_values(program: &Program, segments: &[Segment], i: usize) -> Vec<ValueId> {
    let before: BTreeSet<NodeId> = segments[..=i].iter().flat_map(|s| s.nodes.iter().copied()).collect();
    let constant = crate::segment::constants(program);
    let mut values: Vec<ValueId> = segments[i + 1..]
        .iter()
        .flat_map(|s| &s.nodes)
        .flat_map(|&n| program.graph.node(n).args.iter().copied())
        .filter(|&v| program.graph.producer(v).is_some_and(|p| before.contains(&p)) && !constant[v.index()])
        .collect();
    values.sort();
    values.dedup();
    values
}

/// A piece, its candidate, and the options that the candidate's assignment counts.
pub struct Chosen<'a> {
    /// The piece.
    pub piece: &'a Piece,
    /// Its candidate.
    pub choice: &'a Choice,
    /// Its groups.
    pub groups: &'a [Group],
}

/// Writes down what was chosen for each piece.
pub fn assemble(facts: &Facts<'_>, chosen: &[Chosen<'_>], mesh: &Mesh, micro_batches: u32) -> (Strategy, Decision) {
    let mut strategy = Strategy { micro_batches, ..Strategy::default() };
    let mut decision = Decision { micro_batches, segments: Vec::new(), stages: None };
    let mut uses: BTreeMap<ValueId, Vec<Use>> = BTreeMap::new();
    for Chosen { piece, choice, groups } in chosen {
        for (group, &option) in groups.iter().zip(&choice.assignment) {
            let option = &group.options[option];
            for &member in &group.members {
                let node = piece.nodes[member];
                strategy.maps.insert(node, option.map.clone());
                strategy.joint.extend(option.joint.map(|kind| (node, kind)));
                for (i, arg) in facts.program.graph.node(node).args.iter().enumerate() {
                    if facts.weights.contains(arg) {
                        let placed = option.operands[i].clone();
                        let reduction = Reduction::of(&placed, &option.map, &choice.split.replicas());
                        uses.entry(*arg).or_default().push(Use { placed, reduction, zero: choice.zero });
                    }
                }
            }
        }
        let Recompute { kept, hosted, .. } = Recompute::of(facts, piece, choice.mode);
        strategy.keep.extend(kept);
        strategy.host_activations.extend(hosted);
        let weights = piece.owned.iter().filter(|&&weight| choice.host_states && facts.has_states(weight));
        strategy.host_states.extend(weights);
        decision.segments.push(SegmentChoice::of(piece, choice, mesh));
    }
    for (Chosen { piece, .. }, segment) in chosen.iter().zip(&mut decision.segments) {
        let owned = piece.owned.iter().filter_map(|&weight| Some((weight, uses.get(&weight)?)));
        segment.zero = owned.map(|(weight, uses)| effective_zero(facts, weight, uses, mesh)).max().unwrap_or(0);
    }
    for (&weight, uses) in &uses {
        let placement = place(facts, weight, uses, uses[0].zero, mesh);
        if uses.iter().any(|used| used.placed != placement.parameter) {
            strategy.regather.insert(weight);
        }
        strategy.weights.insert(weight, placement);
    }
    (strategy, decision)
}

/// How an op reads a weight.
struct Use {
    placed: Sharding,
    reduction: Reduction,
    zero: u8,
}

/// The least ZeRO level that places a weight as its own does.
fn effective_zero(facts: &Facts<'_>, weight: ValueId, uses: &[Use], mesh: &Mesh) -> u8 {
    let chosen = uses[0].zero;
    let placement = place(facts, weight, uses, chosen, mesh);
    (0..chosen).find(|&zero| place(facts, weight, uses, zero, mesh) == placement).unwrap_or(chosen)
}

/// One user: its own placement at a ZeRO level. Several: replicated, with the axes that they have in common.
fn place(facts: &Facts<'_>, weight: ValueId, uses: &[Use], zero: u8, mesh: &Mesh) -> WeightPlacement {
    let ty = &facts.program.graph.value(weight).ty;
    let first = &uses[0];
    if uses.iter().all(|u| u.placed.dims == first.placed.dims && u.reduction == first.reduction) {
        return weight_placement(&first.placed, &first.reduction, zero, ty, mesh);
    }
    let common = Reduction::common(uses.iter().map(|u| &u.reduction));
    weight_placement(&Sharding::replicated(ty.rank()), &common, zero, ty, mesh)
}
