//! What plans are like, and what else they could be: differences, reasons, other machines, other sizes of a machine.
//!
//! Each question has a value that answers it, as text and as JSON; [`crate::cli`] prints them.

pub mod diff;
pub mod explain;
pub mod figures;
pub mod lengths;
pub mod sweep;
mod table;
pub mod whatif;

use galvatron_ir::cluster::Cluster;
use galvatron_ir::{Diagnostic, Module};

/// The machine that a plan is about: one that is given, or else that which it was compiled for.
///
/// # Errors
/// Code `no-cluster`.
pub fn cluster_of(plan: &Module, given: Option<Cluster>) -> Result<Cluster, Diagnostic> {
    given.or_else(|| plan.cluster.clone()).ok_or_else(|| {
        Diagnostic::new("no-cluster", format!("`{}` does not say which cluster it was compiled for", plan.name))
            .help("name one with `--cluster HW.toml`")
    })
}
