//! What the search decides and the passes apply: placements, never code paths.

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
    /// Placement of every weight.
    pub weights: BTreeMap<ValueId, WeightPlacement>,
    /// Forward values that are kept for the backward pass; the others are recomputed from them.
    pub keep: BTreeSet<ValueId>,
    /// Weights whose gathered copies are dropped after the forward pass and gathered again (ZeRO-3).
    pub regather: BTreeSet<ValueId>,
}
