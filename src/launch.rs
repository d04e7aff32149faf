//! Ranks in processes: which rank this process is, and local processes for all ranks.

mod environment;
mod place;
mod spawn;

pub use place::{Flags, Place, discover};
pub use spawn::{End, Line, Spawn, spawn};
