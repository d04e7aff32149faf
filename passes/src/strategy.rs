//! What the search decides and the passes apply: placements, never code paths.

use crate::joint::JointKind;
use galvatron_ir::mesh::{FactorMap, Sharding};
use galvatron_ir::{NodeId, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// Where a parameter and what belongs to it live.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WeightPlacement {
    /// The parameter between steps.
    pub parameter: Sharding,
    /// The sum of its gradient over micro-batches; partial where the reduction happens once a step.
    pub accumulator: Sharding,
    /// The optimizer state, and the parameter while it is updated.
    pub state: Sharding,
}

/// The decisions about one training program on one mesh.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Strategy {
    /// Micro-batches in one optimizer step.
    pub micro_batches: u32,
    /// The map from factors to axes of every forward node.
    pub maps: BTreeMap<NodeId, FactorMap>,
    /// The forward nodes that ranks compute together, so that some axes cut two of their factors: rings, and mixtures whose tokens travel.
    pub joint: BTreeMap<NodeId, JointKind>,
    /// Placement of every weight.
    pub weights: BTreeMap<ValueId, WeightPlacement>,
    /// Forward values that are kept for the backward pass; the others are recomputed from them.
    pub keep: BTreeSet<ValueId>,
    /// Weights whose gathered copies are dropped after the forward pass and gathered again (ZeRO-3).
    pub regather: BTreeSet<ValueId>,
    /// Weights whose optimizer states lie in host memory.
    pub host_states: BTreeSet<ValueId>,
    /// Kept forward values that lie in host memory from forward to backward.
    pub host_activations: BTreeSet<ValueId>,
    /// Whether collectives stand where they are needed, because there is no memory for what would run beside computation.
    pub in_turn: bool,
    /// How the model is cut into stages, if it is; placements are then those of a stage's mesh.
    pub pipeline: Option<Pipeline>,
}

/// In which order stages run their micro-batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ScheduleKind {
    /// All forwards, then all backwards (GPipe, Huang et al., 2019).
    Gpipe,
    /// After a warm-up one forward, one backward (PipeDream-Flush, Narayanan et al., 2021).
    OneForwardOneBackward,
    /// The same with several chunks a stage (Megatron-LM's interleaved schedule, Narayanan et al., 2021).
    Interleaved,
    /// One forward, one backward, with the gradients of weights by themselves, which fill the time in which a stage would wait; the memory
    /// of one forward, one backward (ZB-H1 of Qi et al., 2023).
    ZeroBubble,
    /// The same with about twice that memory, and next to no waiting (ZB-H2 of Qi et al., 2023).
    ZeroBubble2p,
}

impl ScheduleKind {
    /// Name in strategies and reports.
    pub fn name(self) -> &'static str {
        match self {
            ScheduleKind::Gpipe => "gpipe",
            ScheduleKind::OneForwardOneBackward => "1f1b",
            ScheduleKind::Interleaved => "interleaved",
            ScheduleKind::ZeroBubble => "zero-bubble",
            ScheduleKind::ZeroBubble2p => "zero-bubble-2p",
        }
    }

    /// Whether the gradients of weights have a phase of their own.
    pub fn splits_backward(self) -> bool {
        matches!(self, ScheduleKind::ZeroBubble | ScheduleKind::ZeroBubble2p)
    }
}

/// A model cut into chunks on equal stages; chunk c lies on stage c modulo their number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pipeline {
    /// Number of stages.
    pub n_stages: u32,
    /// Number of chunks, a multiple of the stages.
    pub n_chunks: u32,
    /// The order of micro-batches.
    pub schedule: ScheduleKind,
    /// The chunk of every forward node.
    pub chunk_of: BTreeMap<NodeId, u32>,
}
