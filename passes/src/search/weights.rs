//! Where a parameter, its gradient and its optimizer state live at each ZeRO level, and what that costs.

use crate::strategy::WeightPlacement;
use galvatron_ir::AxisId;
use galvatron_ir::mesh::{Mesh, Sharding};
use galvatron_ir::types::TensorType;

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

/// Placements of a weight that its users read as `used`, whose gradient is partial over `reduced`, at a ZeRO level.
///
/// ZeRO-1 shards the optimizer state over those axes, ZeRO-2 also the accumulated gradient, ZeRO-3 also the parameter. A weight
/// whose dimensions no axis divides stays as at level 0.
pub fn weight_placement(
    used: &Sharding,
    reduced: &[AxisId],
    zero: u8,
    ty: &TensorType,
    mesh: &Mesh,
) -> WeightPlacement {
    let whole = used.resolved();
    let partial = Sharding { dims: whole.dims.clone(), partial: reduced.to_vec() };
    let Some(sharded) = zero_shard(&whole, reduced, ty, mesh).filter(|_| zero > 0) else {
        return WeightPlacement { parameter: whole.clone(), accumulator: partial, state: whole };
    };
    WeightPlacement {
        parameter: if zero >= 3 { sharded.clone() } else { whole },
        accumulator: if zero >= 2 { sharded.clone() } else { partial },
        state: sharded,
    }
}

/// Axes over which the gradient of an operand is a partial sum: those that the op shards in factors the operand lacks.
pub fn gradient_partial(operand: &Sharding, map: &galvatron_ir::mesh::FactorMap) -> Vec<AxisId> {
    let mut axes: Vec<AxisId> =
        map.axes.iter().flatten().copied().filter(|&a| a != Mesh::MB && !operand.is_sharded_over(a)).collect();
    axes.sort();
    axes.dedup();
    axes
}
