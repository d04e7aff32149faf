//! Candidates of every class of segments for each number of micro-batches.

use super::boundary::BoundaryKind;
use super::choices::Setting;
use super::experts::{self, Experts};
use super::offload;
use super::pins::{LayerPins, Offload, PinFault, Pins};
use super::price::{Facts, Piece};
use super::sequence::TensorKind;
use super::solver::Cost;
use super::solver::chain::{Candidate, Chain};
use super::split::Split;
use super::weights::Holding;
use crate::cost::CostModel;
use crate::segment::Segment;
use galvatron_ir::Module;
use galvatron_ir::mesh::{Mesh, Sharding};

/// What is recomputed in the backward pass of a layer, and where the rest lies until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Nothing.
    None,
    /// Everything but the outputs of matrix products and attention.
    Selective,
    /// Everything: only the layer's input is kept.
    Full,
    /// Nothing: what is kept lies in host memory until the backward pass.
    Offload,
}

impl Mode {
    /// Name in strategies and reports.
    pub fn name(self) -> &'static str {
        match self {
            Mode::None => "none",
            Mode::Selective => "selective",
            Mode::Full => "full",
            Mode::Offload => "offload",
        }
    }
}

/// One way to run a class of segments.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Data, context and tensor axes.
    pub split: Split,
    /// Where the tensor axes lie at the boundary.
    pub boundary: BoundaryKind,
    /// What the context axes cut, or the tensor axes where there are none.
    pub tensor: TensorKind,
    /// Where its experts lie.
    pub experts: Experts,
    /// ZeRO level.
    pub zero: u8,
    /// Whether the optimizer states lie in host memory.
    pub host_states: bool,
    /// What is recomputed.
    pub mode: Mode,
    /// Option of each group of the class's ops.
    pub assignment: Vec<usize>,
    /// Surrogate cost on the fastest stage, with the activations of one micro-batch.
    pub cost: Cost,
    /// Nanoseconds at each slower speed that a stage has, fastest first.
    pub(super) slower_ns: Vec<u64>,
    /// Bytes of the activations of one more micro-batch.
    pub saved_bytes: u64,
    pub(super) state: u16,
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
    pub(super) listing: Listing,
    /// What is tried in host memory where no pin says it.
    pub(super) hosts: Offload,
}

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
        let has_host = model.cluster().host.is_some();
        let hosts = Offload { activations: has_host, states: has_host };
        let mut builder =
            SpaceBuilder { facts, module, model, pieces, is_layer, variant_of, variants, pins, listing, hosts };
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
        offload::check_pins(self.pins, self.model.cluster())?;
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

impl SpaceBuilder<'_> {
    /// The recomputation modes that a piece may have. Host memory is tried where the cluster says that a plan may use it.
    pub(super) fn modes(&self, piece: &Piece, pins: &LayerPins) -> Vec<Mode> {
        let is_between = piece.input.is_some() && piece.output.is_some();
        let computed: &[Mode] = if is_between { &[Mode::None, Mode::Selective, Mode::Full] } else { &[Mode::None] };
        match (pins.recompute, pins.offload.map(|offload| offload.activations)) {
            (None | Some(Mode::None), Some(true)) => vec![Mode::Offload],
            (Some(mode), _) => vec![mode],
            (None, None) if is_between && self.hosts.activations => [computed, &[Mode::Offload]].concat(),
            (None, _) => computed.to_vec(),
        }
    }

    /// The ways in which what belongs to the weights of a piece may be held.
    pub(super) fn holdings(&self, piece: &Piece, pins: &LayerPins, mesh: &Mesh) -> Vec<Holding> {
        let has_states = piece.owned.iter().any(|weight| self.facts.has_states(*weight));
        let places: &[bool] = match pins.offload {
            _ if !has_states => &[false],
            Some(Offload { states: true, .. }) => &[true],
            None if self.hosts.states => &[false, true],
            _ => &[false],
        };
        let levels = zero_levels(pins, mesh).into_iter();
        levels.flat_map(|zero| places.iter().map(move |&host_states| Holding { zero, host_states })).collect()
    }
}

fn zero_levels(pins: &LayerPins, mesh: &Mesh) -> Vec<u8> {
    match pins.zero {
        Some(zero) => vec![zero],
        None if mesh.world() == 1 => vec![0],
        None => vec![0, 1, 2, 3],
    }
}
