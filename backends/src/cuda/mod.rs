//! The CUDA backend: a rank is a GPU with an arena in its memory, reached through libraries that are loaded at run time.
//!
//! Nodes are first turned into plain data ([`command`]) by the launch table ([`table`]); that needs no GPU, and neither do the
//! order between streams ([`order`]), its record and the check for races. Only what talks to the driver is behind the feature
//! `cuda`.

pub mod command;
mod gemm;
mod kernels;
pub mod order;
pub mod race;
pub mod record;
pub mod table;
mod walk;

pub use gemm::{ColumnMajor, Stored};
pub use kernels::Family;
