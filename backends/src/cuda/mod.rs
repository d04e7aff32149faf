//! The CUDA backend: a rank is a GPU with an arena in its memory, reached through libraries that are loaded at run time.
//!
//! Nodes are first turned into plain data ([`command`]) by the launch table ([`table`]); that needs no GPU, and neither do the
//! order between streams ([`order`]), its record and the check for races. Only what talks to the driver is behind the feature
//! `cuda`.

#[cfg(feature = "cuda")]
mod arena;
#[cfg(feature = "cuda")]
mod blas;
#[cfg(feature = "cuda")]
mod comm;
pub mod command;
#[cfg(feature = "cuda")]
mod context;
#[cfg(feature = "cuda")]
mod device;
pub mod fuse;
mod gemm;
#[cfg(feature = "cuda")]
mod graph;
mod kernels;
pub mod meet;
#[cfg(feature = "cuda")]
mod nccl;
#[cfg(feature = "cuda")]
mod nvrtc;
pub mod order;
#[cfg(feature = "cuda")]
mod pinned;
mod pitched;
#[cfg(feature = "cuda")]
pub mod probe;
pub mod race;
pub mod record;
pub mod replay;
#[cfg(feature = "cuda")]
mod stage;
#[cfg(feature = "cuda")]
mod staging;
pub mod table;
pub mod unit;
mod walk;
#[cfg(feature = "cuda")]
mod world;

#[cfg(feature = "cuda")]
pub use arena::RESERVE_BYTES;
#[cfg(feature = "cuda")]
pub use context::device_count;
#[cfg(feature = "cuda")]
pub use device::Cuda;
pub use gemm::{ColumnMajor, Stored};
pub use kernels::Family;
#[cfg(feature = "cuda")]
pub use nvrtc::compile;
#[cfg(feature = "cuda")]
pub use world::{Ranks, Settings, process_rank, world};
