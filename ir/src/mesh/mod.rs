//! The device mesh, placements of values on it, and the factor rules that ops obey.
//!
//! The mesh has fine axes (prime factors of each link level, slowest first) and one temporal axis, `mb`, over which an
//! optimizer step is cut into micro-batches. Rank = row-major index over the spatial axes.

mod grid;
mod reshard;
mod rule;
mod sharding;

pub use grid::{Mesh, MeshAxis};
pub use reshard::{ReshardStep, reshard_steps};
pub use rule::{Factor, FactorKind, FactorMap, Linearity, MapFault, RuleBuilder, ShardingRule};
pub use sharding::Sharding;
