//! The CPU backend: a rank is a thread (or a small pool of threads) with an arena in the memory of this process.

mod arena;
mod device;
mod dispatch;
pub mod kernels;
pub mod math;
pub mod threads;

pub use device::{Cpu, MemoryBytes};
