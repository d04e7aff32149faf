//! Whole runs of small plans: results against plain f64 computations, collectives, faults.

mod collectives;
mod faults;
mod mlp;
mod parts;
mod plain;
mod plan;
mod ring;
mod routed;
