//! Candidates of every class of segments for each number of micro-batches.

use super::assemble::SegmentChoice;
use super::boundary::{BoundaryKind, boundary_placements};
use super::experts::{self, expert_degree};
use super::flows::{Border, Flows};
use super::options::{NodeOption, Split};
use super::pins::{ContextKind, LayerPins, PinFault, Pins, SequenceMode};
use super::price::{Facts, Piece, Priced};
use super::recompute::Recompute;
use super::sequence::TensorKind;
use super::solver::chain::{Candidate, Chain};
use super::solver::{Assignment, Cost, Edge, Limits, Problem, brute::each_allowed, front, hull};
use crate::cost::CostModel;
use crate::segment::Segment;
use galvatron_ir::mesh::{Mesh, Sharding, ShardingRule};
use galvatron_ir::op::Op;
use galvatron_ir::{Module, NodeId};
use std::collections::BTreeSet;

/// What is recomputed in the backward pass of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Nothing.
    None,
    /// Everything but the outputs of matrix products and attention.
    Selective,
    /// Everything: only the layer's input is kept.
    Full,
}

impl Mode {
    /// Name in strategies and reports.
    pub fn name(self) -> &'static str {
        match self {
            Mode::None => "none",
            Mode::Selective => "selective",
            Mode::Full => "full",
        }
    }
}

/// One way to run a class of segments.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Data and tensor axes.
    pub split: Split,
    /// Where the tensor axes lie at the boundary.
    pub boundary: BoundaryKind,
    /// What the tensor axes cut.
    pub tensor: TensorKind,
    /// Ranks over which the experts lie.
    pub ep: u64,
    /// ZeRO level.
    pub zero: u8,
    /// What is recomputed.
    pub mode: Mode,
    /// Option of each group of the class's ops.
    pub assignment: Vec<usize>,
    /// Surrogate cost on the fastest stage, with the activations of one micro-batch.
    pub cost: Cost,
    /// Nanoseconds at each slower speed that a stage has, fastest first.
    slower_ns: Vec<u64>,
    /// Bytes of the activations of one more micro-batch.
    pub saved_bytes: u64,
    state: u16,
}

impl Choice {
    /// Surrogate cost at one of the speeds that stages have, fastest first.
    pub fn cost_at(&self, speed: usize) -> Cost {
        let time_ns = speed.checked_sub(1).map_or(self.cost.time_ns, |slower| self.slower_ns[slower]);
        Cost { time_ns, ..self.cost }
    }
}

/// Which assignments of options to a segment's ops become candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// The Pareto front of a small segment, vertices of its hull for a large one.
    Best,
    /// All of them: for checks of small programs by enumeration.
    All,
}

/// Collects what does not depend on the number of micro-batches.
pub struct SpaceBuilder<'a> {
    /// What pricing reads of the program.
    pub facts: Facts<'a>,
    pub(super) module: &'a Module,
    /// What things cost, on the whole cluster.
    pub(super) model: &'a CostModel,
    /// The segments with their boundaries.
    pub pieces: Vec<Piece>,
    /// For each segment whether it is a repeated layer.
    pub is_layer: Vec<bool>,
    /// For each segment its variant.
    pub variant_of: Vec<usize>,
    /// For each variant its first segment and its pins.
    pub variants: Vec<(usize, LayerPins)>,
    pub(super) pins: &'a Pins,
    listing: Listing,
}

/// Assignments up to which a problem is small.
const SMALL_ASSIGNMENTS: u64 = 1_000_000;

/// Sums of two points that the front of a small problem may take.
const FRONT_SUMS: u64 = 1 << 20;

/// Vertices of the hull kept of each (split, boundary, ZeRO, recomputation) of a large problem.
const HULL_POINTS: usize = 6;

impl<'a> SpaceBuilder<'a> {
    /// Reads the program and checks the pins against it.
    pub fn new(
        module: &'a Module,
        segments: &[Segment],
        model: &'a CostModel,
        pins: &'a Pins,
        listing: Listing,
    ) -> Result<SpaceBuilder<'a>, PinFault> {
        let (facts, pieces) = super::assemble::read_program(&module.program, segments);
        let is_layer = segments.iter().map(|s| s.is_layer).collect();
        let (variant_of, variants) = (Vec::new(), Vec::new());
        let mut builder = SpaceBuilder { facts, module, model, pieces, is_layer, variant_of, variants, pins, listing };
        builder.find_variants(segments)?;
        Ok(builder)
    }

    /// Segments of one class under equal pins are decided from the same candidates.
    fn find_variants(&mut self, segments: &[Segment]) -> Result<(), PinFault> {
        let has_layers = segments.iter().any(|s| s.is_layer);
        let n_layers = segments.iter().filter(|s| s.is_layer).count() as u32;
        if let Some((&layer, _)) = self.pins.layers.iter().find(|(l, _)| **l >= n_layers) {
            return Err(PinFault {
                code: "too-few-layers",
                message: format!("layer {layer} is pinned, the model has {n_layers} repeated layers"),
                help: "count layers from 0".into(),
            });
        }
        experts::check_pins(self.facts.program, self.pins, segments)?;
        let mut known: Vec<(usize, LayerPins)> = Vec::new();
        let mut layer = 0;
        for (i, segment) in segments.iter().enumerate() {
            let pins = self.pins_of(segment, has_layers, layer, i == 0);
            layer += u32::from(segment.is_layer);
            // The owner of a shared weight differs from its twins, which only a repeated class has.
            match known.iter().position(|k| *k == (segment.class, pins.clone())) {
                Some(variant) => self.variant_of.push(variant),
                None => {
                    known.push((segment.class, pins.clone()));
                    self.variant_of.push(self.variants.len());
                    self.variants.push((i, pins));
                }
            }
        }
        Ok(())
    }

    fn pins_of(&self, segment: &Segment, has_layers: bool, layer: u32, is_first: bool) -> LayerPins {
        if segment.is_layer {
            return self.pins.layers.get(&layer).map_or(self.pins.all.clone(), |p| p.over(&self.pins.all));
        }
        match has_layers {
            false => self.pins.all.clone(),
            true if is_first => self.pins.embedding.clone(),
            true => self.pins.head.clone(),
        }
    }

    /// Every number of micro-batches that divides the batch, or the one that is pinned.
    pub(super) fn micro_batch_counts(&self) -> Vec<u32> {
        let batch = self.module.train.as_ref().map_or(1, |t| t.global_batch);
        match self.pins.micro_batches {
            Some(m) => vec![m],
            None => (1..=batch.min(1 << 16)).filter(|m| batch.is_multiple_of(*m)).map(|m| m as u32).collect(),
        }
    }

    /// The candidates of every variant, and the path over them.
    ///
    /// # Errors
    /// When a variant has none: the pin or the extent that leaves none.
    pub(super) fn candidates(&self, setting: &Setting<'_>) -> Result<Candidates, PinFault> {
        let (mut states, mut choices, mut width) = (Vec::new(), Vec::new(), 0);
        for (first, pins) in &self.variants {
            let piece = &self.pieces[*first];
            let found = self.choices(piece, pins, setting, &mut states, &mut width);
            if found.is_empty() {
                return Err(self.why_none(piece, pins, setting.mesh));
            }
            choices.push(found);
        }
        let chains = (0..setting.models.len()).map(|speed| self.chain(&choices, &states, setting, speed)).collect();
        Ok(Candidates { choices, chains, width })
    }
}

/// What candidates are priced for.
pub(super) struct Setting<'a> {
    /// The mesh of a stage.
    pub mesh: &'a Mesh,
    /// Micro-batches that are kept at one time, at most.
    pub in_flight: u64,
    /// Costs at each speed that a stage has, fastest first.
    pub models: &'a [CostModel],
}

/// A piece under one split of the mesh, at one speed.
struct AtSpeed<'a> {
    priced: Priced<'a>,
    flows: Vec<Flows>,
    /// By recomputation mode what flows cost.
    edges: Vec<Vec<Edge>>,
}

/// What each segment may be, whatever the order in which stages run it.
pub struct Candidates {
    /// By variant (class and pins).
    pub choices: Vec<Vec<Choice>>,
    /// The path of the segments at each speed that a stage has, fastest first; at all speeds with the same candidates.
    pub chains: Vec<Chain>,
    /// Largest elimination width of a segment.
    pub width: usize,
}

impl Candidates {
    /// The variant of each segment.
    pub fn path(&self) -> &[usize] {
        &self.chains[0].layers
    }
}

impl SpaceBuilder<'_> {
    /// All candidates of a piece.
    fn choices(
        &self,
        piece: &Piece,
        pins: &LayerPins,
        setting: &Setting<'_>,
        states: &mut Vec<Sharding>,
        width: &mut usize,
    ) -> Vec<Choice> {
        let mesh = setting.mesh;
        let mut all = Vec::new();
        let recomputes: Vec<(Mode, Recompute)> =
            modes(piece, pins).into_iter().map(|mode| (mode, Recompute::of(&self.facts, piece, mode))).collect();
        for split in self.splits(pins, mesh) {
            let at_speed = |model| {
                let priced = self.priced(piece, pins, (mesh, model), &split)?;
                let flows = priced.flows();
                let edges = recomputes.iter().map(|(_, r)| priced.edges(&flows, r)).collect();
                Some(AtSpeed { priced, flows, edges })
            };
            let Some(speeds) = setting.models.iter().map(at_speed).collect::<Option<Vec<_>>>() else { continue };
            let priced = &speeds[0].priced;
            let degrees = if self.listing == Listing::Best { priced.expert_degrees() } else { vec![None] };
            for (boundary, placed) in self.boundaries(piece, pins, &split, mesh) {
                let state = placed.as_ref().map_or(0, |p| intern(states, p));
                let input = placed.as_ref().filter(|_| piece.input.is_some());
                let output = placed.as_ref().filter(|_| piece.output.is_some());
                let borders: Vec<Border> = speeds.iter().map(|at| at.priced.border(input, output)).collect();
                for (i, (mode, recompute)) in recomputes.iter().enumerate() {
                    let costs = speeds.iter().zip(&borders).map(|(at, b)| at.priced.border_costs(b, recompute));
                    let costs: Vec<_> = costs.collect();
                    for zero in zero_levels(pins, mesh) {
                        let problem = |degree: Option<u64>, speed: usize, n| {
                            let AtSpeed { priced, edges, .. } = &speeds[speed];
                            let problem = priced.problem((&costs[speed], &edges[i]), recompute, zero, n);
                            match degree {
                                Some(degree) => priced.with_degree(problem, degree),
                                None => problem,
                            }
                        };
                        // What another degree of experts beats by the surrogate may still take less memory while it runs.
                        let points = degrees.iter().flat_map(|&degree| {
                            let problem = |speed, n| problem(degree, speed, n);
                            kept_points(problem, speeds.len(), setting.in_flight, self.listing)
                        });
                        all.extend(points.map(|Point { cost, slower_ns, saved_bytes, assignment }| Choice {
                            split: split.clone(),
                            boundary,
                            tensor: match boundary {
                                BoundaryKind::Sequence => priced.tensor_kind(&assignment),
                                _ => TensorKind::Weights,
                            },
                            ep: priced.expert_degree(&assignment),
                            zero,
                            mode: *mode,
                            assignment,
                            cost,
                            slower_ns,
                            saved_bytes,
                            state,
                        }));
                    }
                }
            }
            *width = (*width).max(priced.width(&speeds[0].flows));
        }
        // Those that another one beats stay: a uniform plan may be made of them.
        all.sort_by_key(|c| (c.state, c.cost));
        all
    }

    /// The splits of a mesh that the pins allow.
    pub(super) fn splits(&self, pins: &LayerPins, mesh: &Mesh) -> Vec<Split> {
        Split::all(mesh).into_iter().filter(|s| fits_pins(s, pins, mesh)).collect()
    }

    /// The prices of a piece under a split with the options that the pins allow; `None` where some op has none.
    pub(super) fn priced<'p>(
        &'p self,
        piece: &'p Piece,
        pins: &LayerPins,
        (mesh, model): (&'p Mesh, &'p CostModel),
        split: &Split,
    ) -> Option<Priced<'p>> {
        let filter = |node: NodeId, option: &NodeOption| self.obeys_tensor_pin(node, option, split, pins, mesh);
        Priced::new((&self.facts, model), piece, mesh, split, &filter)
    }

    /// Boundary placements that the pins allow; one without a placement for a segment that is the whole model.
    pub(super) fn boundaries(
        &self,
        piece: &Piece,
        pins: &LayerPins,
        split: &Split,
        mesh: &Mesh,
    ) -> Vec<(BoundaryKind, Option<Sharding>)> {
        let Some(value) = piece.input.or(piece.output) else {
            let has_none = pins.sequence == Some(SequenceMode::Megatron) || pins.cuts_sequence();
            return if has_none { Vec::new() } else { vec![(BoundaryKind::Batch, None)] };
        };
        let ty = &self.facts.program.graph.value(value).ty;
        let Some(&batch) = self.facts.batch.dims.get(&value) else { return Vec::new() };
        let mut all = boundary_placements(ty, batch, split, mesh);
        // With one degree pinned the other one follows from the number of ranks.
        let pinned_tensor = pins.tensor_degree().is_some_and(|degree| degree > 1) || pins.dp.is_some();
        all.retain(|(kind, _)| match (kind, pins.sequence) {
            (BoundaryKind::Batch, _) => !pinned_tensor || split.tensor.is_empty() || !self.pins.places.is_empty(),
            (BoundaryKind::Replicated, mode) => mode != Some(SequenceMode::Megatron) && !pins.cuts_sequence(),
            (BoundaryKind::Sequence, mode) => mode != Some(SequenceMode::None) || pins.cuts_sequence(),
        });
        all.into_iter().map(|(k, s)| (k, Some(s))).collect()
    }

    /// Under a pinned degree the tensor axes do not shard the batch; under a pinned tensor degree they shard the matrix products
    /// of weights, the attention heads, and the experts or what is inside of them. Experts lie over as many ranks as is pinned.
    pub fn obeys_tensor_pin(
        &self,
        node: NodeId,
        option: &NodeOption,
        split: &Split,
        pins: &LayerPins,
        mesh: &Mesh,
    ) -> bool {
        let program = self.facts.program;
        let n = program.graph.node(node);
        let name = n.results.first().map_or("", |&r| program.graph.value(r).name.as_str());
        let degree = expert_degree(&self.facts, node, &option.map, mesh);
        if degree.is_some_and(|degree| pins.ep.is_some_and(|ep| u64::from(ep) != degree)) {
            return false;
        }
        if let Some(place) = self.pins.places.get(name).filter(|_| !split.tensor.is_empty()) {
            return place.allows(&self.facts.rules[node], option);
        }
        let shards_batch = option.tensor_factor.is_some_and(|f| self.facts.batch.factors.get(&node) == Some(&f));
        if shards_batch && (pins.dp.is_some() || pins.tensor_degree().is_some()) {
            return false;
        }
        if !self.obeys_sequence_pins(node, option, split, pins) {
            return false;
        }
        if pins.tp.is_none_or(|tp| tp <= 1) || split.tensor.is_empty() {
            return true;
        }
        let wanted = self.tensor_factors(node, &self.facts.rules[node]);
        // Queries and experts are cut over all axes, the weights of keys as far as their heads reach.
        let cut = match n.op {
            Op::Attention(_) => Some(&option.operands[0]),
            Op::Moe(_) => Some(&option.operands[3]),
            _ => None,
        };
        let is_cut = split.tensor.iter().all(|&axis| cut.is_none_or(|operand| operand.is_sharded_over(axis)));
        wanted.is_empty() || (is_cut && option.tensor_factor.is_some_and(|f| wanted.contains(&f)))
    }

    /// The factors of which a pinned tensor degree cuts one: those of the weight of a matrix product, the heads of attention, the
    /// experts or what is inside of them.
    pub(super) fn tensor_factors(&self, node: NodeId, rule: &ShardingRule) -> Vec<usize> {
        let n = self.facts.program.graph.node(node);
        match n.op {
            Op::Einsum(_) => {
                let weight = n.args.iter().position(|a| self.facts.weights.contains(a));
                weight.map_or(Vec::new(), |i| rule.operands[i].iter().flatten().copied().collect())
            }
            Op::Attention(_) => rule.operands[0][2].clone(),
            Op::Moe(_) => rule.operands[3][..2].iter().flatten().copied().collect(),
            _ => Vec::new(),
        }
    }

    /// The path of the segments at a speed.
    fn chain(&self, choices: &[Vec<Choice>], states: &[Sharding], setting: &Setting<'_>, speed: usize) -> Chain {
        let (mesh, model) = (setting.mesh, &setting.models[speed]);
        let candidate = |choice: &Choice| Candidate {
            in_state: choice.state,
            out_state: choice.state,
            cost: choice.cost_at(speed),
            saved_bytes: choice.saved_bytes,
        };
        let classes = choices.iter().map(|c| c.iter().map(candidate).collect()).collect();
        let n = states.len().max(1);
        let boundary = self.pieces.iter().find_map(|p| p.output);
        let mut switch = vec![Cost::ZERO; n * n];
        if let Some(value) = boundary {
            let ty = &self.facts.program.graph.value(value).ty;
            let ns = |a: &Sharding, b: &Sharding| model.reshard_ns(a, b, ty, mesh);
            // What arrives larger than it is kept moves again in the backward pass that reads it.
            let elements =
                |s: &Sharding| s.local_shape(&ty.shape, mesh).map_or(0, |shape| shape.iter().product::<u64>());
            let is_saved = self.facts.saved.contains(&value);
            let times = |from: &Sharding, to: &Sharding| 1 + u64::from(is_saved && elements(to) > elements(from));
            for (i, from) in states.iter().enumerate() {
                for (j, to) in states.iter().enumerate() {
                    switch[i * n + j] = match (ns(from, to), ns(to, from)) {
                        (Some(a), Some(b)) => {
                            Cost { time_ns: mesh.micro_batches() * (times(from, to) * a + b), bytes: 0 }
                        }
                        _ => Cost::FORBIDDEN,
                    };
                }
            }
        }
        Chain { classes, layers: self.variant_of.clone(), n_states: n, switch }
    }
}

/// The recomputation modes that a piece may have.
pub(super) fn modes(piece: &Piece, pins: &LayerPins) -> Vec<Mode> {
    match pins.recompute {
        Some(mode) => vec![mode],
        None if piece.input.is_some() && piece.output.is_some() => vec![Mode::None, Mode::Selective, Mode::Full],
        None => vec![Mode::None],
    }
}

/// An assignment of options with what it costs.
struct Point {
    cost: Cost,
    slower_ns: Vec<u64>,
    saved_bytes: u64,
    assignment: Assignment,
}

/// The allowed candidates of a problem that depends on the speed of a stage, and on how many micro-batches are kept: at each speed those
/// for one, and for the most.
fn kept_points(
    problem: impl Fn(usize, u64) -> Problem,
    n_speeds: usize,
    in_flight: u64,
    listing: Listing,
) -> Vec<Point> {
    let ones: Vec<Problem> = (0..n_speeds).map(|speed| problem(speed, 1)).collect();
    let most: Vec<Problem> = (0..n_speeds).filter(|_| in_flight > 1).map(|speed| problem(speed, in_flight)).collect();
    let mut found = points(&ones[0], listing);
    let others: Vec<&Problem> = most.iter().chain(&ones[1..]).filter(|_| listing != Listing::All).collect();
    if !others.is_empty() {
        let mut known: BTreeSet<Assignment> = found.iter().map(|(_, a)| a.clone()).collect();
        for other in others {
            let more = points(other, listing).into_iter().map(|(_, a)| a).filter(|a| known.insert(a.clone()));
            found.extend(more.map(|a| (ones[0].cost(&a), a)));
        }
    }
    let saved = |cost: Cost, a: &Assignment| {
        most.first().map_or(0, |most| most.cost(a).bytes.saturating_sub(cost.bytes) / (in_flight - 1))
    };
    let allowed = found.into_iter().filter(|(cost, _)| !cost.is_forbidden());
    let point = |(cost, assignment): (Cost, Assignment)| {
        let slower_ns = ones[1..].iter().map(|slower| slower.cost(&assignment).time_ns).collect();
        Point { cost, slower_ns, saved_bytes: saved(cost, &assignment), assignment }
    };
    allowed.map(point).collect()
}

/// The candidates of a problem.
fn points(problem: &Problem, listing: Listing) -> Vec<(Cost, Assignment)> {
    if listing == Listing::All {
        let mut all = Vec::new();
        each_allowed(problem, |cost, assignment| all.push((cost, assignment.to_vec())));
        return all;
    }
    let n_assignments = problem.vars.iter().fold(1u64, |n, v| n.saturating_mul(v.domain.len() as u64));
    let limits = Limits { point_sums: FRONT_SUMS, hull_points: HULL_POINTS, ..Limits::default() };
    let whole = (n_assignments <= SMALL_ASSIGNMENTS).then(|| front(problem, &limits)).flatten();
    whole.unwrap_or_else(|| hull(problem, &limits).unwrap_or_default())
}

fn intern(states: &mut Vec<Sharding>, placed: &Sharding) -> u16 {
    let at = states.iter().position(|s| s == placed).unwrap_or_else(|| {
        states.push(placed.clone());
        states.len() - 1
    });
    at as u16
}

/// Whether the degrees are those that are pinned.
pub(super) fn fits_pins(split: &Split, pins: &LayerPins, mesh: &Mesh) -> bool {
    let fits = |pin: Option<u32>, axes: &[galvatron_ir::AxisId]| pin.is_none_or(|d| mesh.product(axes) == u64::from(d));
    fits(pins.dp, &split.data) && fits(pins.tensor_degree(), &split.tensor)
}

pub(super) fn zero_levels(pins: &LayerPins, mesh: &Mesh) -> Vec<u8> {
    match pins.zero {
        Some(zero) => vec![zero],
        None if mesh.world() == 1 => vec![0],
        None => vec![0, 1, 2, 3],
    }
}

impl SegmentChoice {
    /// The choice of a piece in the usual names.
    pub fn of(piece: &Piece, choice: &Choice, mesh: &Mesh) -> SegmentChoice {
        let degree = |kind| if choice.tensor == kind { mesh.product(&choice.split.tensor) } else { 1 };
        SegmentChoice {
            nodes: piece.nodes.clone(),
            dp: mesh.product(&choice.split.data),
            tp: degree(TensorKind::Weights),
            ulysses: degree(TensorKind::Ulysses),
            cp: match choice.tensor {
                TensorKind::Context(_) => mesh.product(&choice.split.tensor),
                _ => 1,
            },
            cp_kind: match choice.tensor {
                TensorKind::Context(kind) => kind,
                _ => ContextKind::Gather,
            },
            ep: choice.ep,
            boundary: choice.boundary,
            zero: choice.zero,
            mode: choice.mode,
            cost: choice.cost,
        }
    }
}
