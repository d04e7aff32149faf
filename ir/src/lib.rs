//! The IR of galvatron: data, text and verification.
//!
//! A [`Module`] is at one of four levels. At `graph` it holds the forward program; at `training` also loss, backward and
//! optimizer, with the shapes of one whole optimizer step; at `sharded` chunks whose values have placements on a device
//! [`mesh`]; at `plan` every collective, recomputation and buffer. The text format ([`text`]) prints and reads each level.
//!
//! - Values are contiguous and row-major; a transpose that no op absorbs is an op.
//! - A placement gives for each dimension the mesh axes that shard it, and the axes over which the value is a partial sum.
//!   Shapes are global; local shapes are derived, never stored.
//! - Each op has one [factor rule](mesh::ShardingRule); placements, their legality and their duals follow from it.
//! - Micro-batches are the temporal axis `mb` of the mesh.
//! - From level `sharded` on each value says of which training value it is a copy (`of`), so a plan can be checked by erasing
//!   collectives and recomputation.

pub mod cluster;
pub mod diagnostic;
pub mod graph;
pub mod headroom;
pub mod id;
pub mod mesh;
pub mod module;
pub mod op;
pub mod place;
pub mod plan;
pub mod profile;
pub mod recipe;
pub mod text;
pub mod trace;
pub mod types;
pub mod verify;

pub use diagnostic::{Checked, Diagnostic};
pub use id::{AxisId, NodeId, ValueId};
pub use module::{Level, Module, Program};
