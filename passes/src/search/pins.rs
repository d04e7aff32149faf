//! Decisions that the user fixes; what is left out is searched.

use super::options::NodeOption;
use super::split::Split;
use crate::joint::JointKind;
use crate::strategy::ScheduleKind;
use galvatron_ir::mesh::ShardingRule;

/// Where the boundary sequence lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceMode {
    /// Whole on every tensor rank.
    None,
    /// Over the tensor axes (Megatron).
    Megatron,
}

/// How the keys and values of all ranks reach the queries of each under context parallelism.
#[derive(Clone, Default, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ContextKind {
    /// Every rank gathers them all.
    #[default]
    Gather,
    /// They travel around a ring, block by block; each rank computes the block of queries that it holds.
    Ring,
    /// The same, where each rank computes a chunk of the front and one of the back of the sequence.
    Zigzag,
}

/// How tokens reach experts of other ranks, where experts lie over data axes.
#[derive(Clone, Default, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExpertKind {
    /// Every rank gathers the tokens of all; also where experts lie over tensor axes, over which every rank has all tokens.
    #[default]
    Gather,
    /// Every token travels to the ranks of the experts that it chose, and back.
    AllToAll,
}

/// What lies in host memory while nothing needs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Offload {
    /// What is kept from forward to backward.
    pub activations: bool,
    /// Optimizer states.
    pub states: bool,
}

impl Offload {
    /// All kinds with their names in strategies and reports.
    pub const ALL: [(Offload, &'static str); 4] = [
        (Offload { activations: false, states: false }, "none"),
        (Offload { activations: true, states: false }, "activations"),
        (Offload { activations: false, states: true }, "optimizer"),
        (Offload { activations: true, states: true }, "all"),
    ];

    /// Name in strategies and reports.
    pub fn name(self) -> &'static str {
        Offload::ALL.iter().find(|(kind, _)| *kind == self).map_or("?", |(_, name)| name)
    }

    /// Whether anything is.
    pub fn is_any(self) -> bool {
        self.activations || self.states
    }
}

/// Pins of one segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerPins {
    /// Ranks that share the batch.
    pub dp: Option<u32>,
    /// Ranks that share weights and heads.
    pub tp: Option<u32>,
    /// Ranks that share the sequence between attentions and the heads inside of them (DeepSpeed-Ulysses, Jacobs et al., 2023).
    pub ulysses: Option<u32>,
    /// Ranks that share the sequence, inside of attention the queries.
    pub cp: Option<u32>,
    /// How these queries see the keys and values of other ranks.
    pub cp_kind: Option<ContextKind>,
    /// Ranks that share the experts of mixtures.
    pub ep: Option<u32>,
    /// How tokens reach experts of other ranks.
    pub ep_kind: Option<ExpertKind>,
    /// ZeRO level.
    pub zero: Option<u8>,
    /// Where the boundary sequence lies.
    pub sequence: Option<SequenceMode>,
    /// What is recomputed.
    pub recompute: Option<super::Mode>,
    /// What lies in host memory.
    pub offload: Option<Offload>,
}

/// All pins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pins {
    /// Micro-batches in one step.
    pub micro_batches: Option<u32>,
    /// Extents that tensor axes cut are padded to a multiple of this; 1 pads nothing. Left out it is what the pinned degrees ask for.
    pub pad: Option<u32>,
    /// Stages of the pipeline; the degrees of layers are those inside of a stage.
    pub pp: Option<u32>,
    /// The order in which stages run their micro-batches.
    pub schedule: Option<ScheduleKind>,
    /// Chunks on each stage.
    pub virtual_stages: Option<u32>,
    /// Layers of each chunk.
    pub stage_layers: Option<Vec<u32>>,
    /// Of every layer; of the whole model where it has no repeated layers.
    pub all: LayerPins,
    /// Of what comes before the first layer.
    pub embedding: LayerPins,
    /// Of what comes after the last layer.
    pub head: LayerPins,
    /// Of single layers, by number; replaces the keys that it names.
    pub layers: std::collections::BTreeMap<u32, LayerPins>,
    /// Of single ops, by the name of their first result.
    pub places: std::collections::BTreeMap<String, Place>,
}

/// What the tensor axes of one op shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nothing: every tensor rank computes the whole.
    Whole,
    /// The factor of that label.
    Factor(String),
}

/// How `Place::Whole` is written in a strategy file.
pub const WHOLE: &str = "none";

/// How a ring is written there: its queries are cut, and its keys and values with them.
pub const RING: &str = "ring";

/// How a zigzag ring is written there.
pub const ZIGZAG: &str = "zigzag";

impl Place {
    /// Whether an option of an op with this rule is what is pinned. Beside context axes, over which rings then run, it is not the ring
    /// that is pinned here.
    pub fn allows(&self, rule: &ShardingRule, option: &NodeOption, split: &Split) -> bool {
        let ring = match option.joint.filter(|_| split.context.is_empty()) {
            Some(JointKind::Ring) => Some(RING),
            Some(JointKind::Zigzag) => Some(ZIGZAG),
            Some(JointKind::Routed) | None => None,
        };
        match (self, option.tensor_factor) {
            (Place::Factor(label), _) if let Some(ring) = ring => label == ring,
            (Place::Whole, factor) => factor.is_none(),
            (Place::Factor(label), Some(factor)) => rule.factors[factor].label == *label,
            (Place::Factor(_), None) => false,
        }
    }
}

impl LayerPins {
    /// Ranks that share the sequence and no weight, if there are to be several.
    pub fn sequence_degree(&self) -> Option<u32> {
        let above_one = |pin: Option<u32>| pin.filter(|&degree| degree > 1);
        above_one(self.ulysses).or(above_one(self.cp))
    }

    /// Ranks that the tensor axes have where no context axes are beside them, for weights or for the sequence.
    pub fn tensor_degree(&self) -> Option<u32> {
        self.sequence_degree().or(self.tp)
    }

    /// Whether the degree of data or tensor axes is pinned.
    pub fn names_weights_or_batch(&self) -> bool {
        self.dp.is_some() || self.tp.is_some()
    }

    /// What the tensor axes, or the context axes beside them, cut by the pins: `ulysses`, `cp`, or else `tp`.
    pub fn tensor_name(&self) -> &'static str {
        match (self.ulysses, self.cp) {
            (Some(2..), _) => "ulysses",
            (_, Some(2..)) => "cp",
            _ => "tp",
        }
    }

    /// Whether the sequence is pinned to several ranks outside of attention, which have the same weights.
    pub fn cuts_sequence(&self) -> bool {
        self.sequence_degree().is_some()
    }

    /// These pins, and where they are silent those of `base`. A degree that is named drops the base's other degree.
    pub fn over(&self, base: &LayerPins) -> LayerPins {
        let names_degree = self.names_weights_or_batch() || self.ulysses.is_some() || self.cp.is_some();
        LayerPins {
            dp: if names_degree { self.dp } else { base.dp },
            tp: if names_degree { self.tp } else { base.tp },
            ulysses: if names_degree { self.ulysses } else { base.ulysses },
            cp: if names_degree { self.cp } else { base.cp },
            cp_kind: self.cp_kind.or(base.cp_kind),
            ep: self.ep.or(base.ep),
            ep_kind: self.ep_kind.or(base.ep_kind),
            zero: self.zero.or(base.zero),
            sequence: self.sequence.or(base.sequence),
            recompute: self.recompute.or(base.recompute),
            offload: self.offload.or(base.offload),
        }
    }
}

/// A pin that cannot be met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinFault {
    /// `divisibility`, `world-size`, `no-sequence-axis`, `no-experts`, `too-few-layers`, `no-host-memory`, `pin-conflict` or `unsupported`.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub help: String,
}
