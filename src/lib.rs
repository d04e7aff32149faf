//! The driver of galvatron: what stands between files, flags and the three rooms of the compiler.
//!
//! [`driver`] turns a model, a cluster and a recipe into a plan; [`runner`] trains a plan. [`import`] reads models and
//! [`export`] writes trained ones, [`config`] reads the configuration files, [`launch`] finds or starts ranks that are processes, [`data`] and [`weights`] what training reads,
//! [`trace`] writes what ranks do when, [`analysis`] compares and explains plans. Only [`cli`] prints and exits.

#[cfg(feature = "compiler")]
pub mod analysis;
pub mod cli;
pub mod config;
pub mod data;
pub mod diagnostics;
#[cfg(feature = "compiler")]
pub mod driver;
#[cfg(feature = "compiler")]
pub mod export;
#[cfg(feature = "compiler")]
pub mod import;
pub mod launch;
pub mod metrics;
#[cfg(feature = "compiler")]
pub mod report;
pub mod runner;
pub mod trace;
pub mod weights;
