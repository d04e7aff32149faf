//! Runs a plan of galvatron: every rank executes its nodes in the order of the schedule and decides nothing itself.
//!
//! - [`exec`] is the engine: it derives local shapes from placements, prepares the nodes of every rank, runs the steps and
//!   collects what the caller asked for. It knows no backend.
//! - [`device`] is what the engine asks of a device; [`cpu`] answers it with threads and memory of this process.
//! - [`comm`] is communication between ranks.
//! - [`reference`] is a naive interpreter of the ops, the oracle of the tests.
//!
//! Start reading at [`exec::run`].

pub mod comm;
pub mod cpu;
pub mod cuda;
pub mod device;
pub mod exec;
pub mod fault;
pub mod reference;

pub use exec::run;
pub use fault::RunFault;
