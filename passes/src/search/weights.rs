//! Where a parameter, its gradient and its optimizer state live at each ZeRO level, and what that costs.

use crate::strategy::WeightPlacement;
use galvatron_ir::AxisId;
use galvatron_ir::mesh::{FactorMap, Mesh, Sharding};
use galvatron_ir::types::TensorType;

/// How what belongs to a weight is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holding {
    /// ZeRO level.
    pub zero: u8,
    /// Whether the optimizer states lie in host memory.
    pub host_states: bool,
}

/// The placement with `axes` added to the first dimension that they all divide; where there is none, each axis to the first
/// dimension that it divides, and those left out that divide none. `None` if no axis can be added.
pub fn zero_shard(sharding: &Sharding, axes: &[AxisId], ty: &TensorType, mesh: &Mesh) -> Option<Sharding> {
    if axes.is_empty() {
        return Some(sharding.clone());
    }
    let add = |to: &Sharding, axes: &[AxisId]| {
        (0..ty.rank()).find_map(|dim| {
            let mut candidate = to.clone();
            candidate.dims[dim].extend(axes);
            candidate.local_shape(&ty.shape, mesh).ok().map(|_| candidate)
        })
    };
    let spread = || {
        let one = |to: Sharding, axis: &AxisId| add(&to, &[*axis]).unwrap_or(to);
        Some(axes.iter().fold(sharding.clone(), one)).filter(|spread| spread != sharding)
    };
    add(sharding, axes).or_else(spread)
}

/// The axes that the gradient of a weight and ZeRO are about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reduction {
    /// Those over which the gradient is a partial sum where the weight is read.
    pub partial: Vec<AxisId>,
    /// Those over which ZeRO shards: besides these the data and context axes, over which a weight without batch beside it is computed alike.
    pub spread: Vec<AxisId>,
}

impl Reduction {
    /// Of a weight that an op reads as `operand`, in a segment where the ranks of these axes compute with the same weights.
    pub fn of(operand: &Sharding, map: &FactorMap, replicas: &[AxisId]) -> Reduction {
        let partial = gradient_partial(operand, map);
        let is_left = |a: &AxisId| !partial.contains(a) && !operand.is_sharded_over(*a);
        let mut spread: Vec<AxisId> = partial.iter().copied().chain(replicas.iter().copied().filter(is_left)).collect();
        spread.sort();
        Reduction { partial, spread }
    }

    /// What several uses have in common.
    pub fn common<'a>(mut all: impl Iterator<Item = &'a Reduction>) -> Reduction {
        let mut common = all.next().expect("invariant: a weight has a use").clone();
        for other in all {
            common.partial.retain(|a| other.partial.contains(a));
            common.spread.retain(|a| other.spread.contains(a));
        }
        common
    }
}

/// Placements of a weight that its users read as `used`, at a ZeRO level.
///
/// ZeRO-1 shards the optimizer state, ZeRO-2 also the accumulated gradient, ZeRO-3 also the parameter. A weight whose dimensions
/// no axis divides stays as at level 0.
pub fn weight_placement(
    used: &Sharding,
    reduction: &Reduction,
    zero: u8,
    ty: &TensorType,
    mesh: &Mesh,
) -> WeightPlacement {
    let whole = used.resolved();
    let partial = Sharding { dims: whole.dims.clone(), partial: reduction.partial.clone() };
    let Some(sharded) = zero_shard(&whole, &reduction.spread, ty, mesh).filter(|_| zero > 0) else {
        return WeightPlacement { parameter: whole.clone(), accumulator: partial, state: whole };
    };
    WeightPlacement {
        parameter: if zero >= 3 { sharded.clone() } else { whole },
        accumulator: if zero >= 2 { sharded.clone() } else { partial },
        state: sharded,
    }
}

/// Axes over which the gradient of an operand is a partial sum: those that the op shards in factors the operand lacks.
pub fn gradient_partial(operand: &Sharding, map: &FactorMap) -> Vec<AxisId> {
    let mut axes: Vec<AxisId> =
        map.axes.iter().flatten().copied().filter(|&a| a != Mesh::MB && !operand.is_sharded_over(a)).collect();
    axes.sort();
    axes.dedup();
    axes
}
