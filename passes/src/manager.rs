//! Runs passes by name: timing, verification after each, and an observer that sees the module after each.

use galvatron_ir::{Checked, Diagnostic, Module};
use std::time::{Duration, Instant};

/// Every pass of the standard pipeline in order, with what it does.
pub const PASSES: [(&str, &str); 14] = [
    ("import", "reads the model and binds its symbolic extents"),
    ("canonicalize", "folds constants and shape chatter, merges equal nodes, removes dead ones"),
    ("rewrite", "recognises attention, norms, activations and matrix products (egg)"),
    ("choose-precision", "decides what is bf16 and what stays f32"),
    ("attach-loss", "adds the loss over the whole step"),
    ("segment", "finds the repeated layers"),
    ("differentiate", "adds the backward pass"),
    ("attach-optimizer", "adds the gradient norm and the optimizer"),
    ("search", "decides placements, ZeRO levels, recomputation and micro-batches"),
    ("shard", "writes the placements"),
    ("insert-recomputation", "computes again what is not kept"),
    ("lower-reshards", "turns changes of placement into collectives"),
    ("bucket-reductions", "joins small gradient reductions"),
    ("assign-buffers", "places every buffer and writes the schedule"),
];

/// Sees the module after each pass.
pub type Observer<'a> = &'a mut dyn FnMut(&str, &Module);

/// Runs passes one after the other.
pub struct PassManager<'a> {
    observer: Observer<'a>,
    stop_after: Option<String>,
    verify: Option<fn(&Module) -> Vec<Diagnostic>>,
    times: Vec<(&'static str, Duration)>,
    is_stopped: bool,
}

impl<'a> PassManager<'a> {
    /// A manager that stops after the named pass, if any, and verifies after each pass with the given check.
    ///
    /// # Errors
    /// When no pass has that name.
    pub fn new(
        observer: Observer<'a>,
        stop_after: Option<&str>,
        verify: Option<fn(&Module) -> Vec<Diagnostic>>,
    ) -> Result<PassManager<'a>, Diagnostic> {
        if let Some(name) = stop_after {
            check_name(name)?;
        }
        let stop_after = stop_after.map(str::to_string);
        Ok(PassManager { observer, stop_after, verify, times: Vec::new(), is_stopped: false })
    }

    /// Runs one pass unless the pipeline has stopped.
    ///
    /// # Errors
    /// The pass's own diagnostics. A module that does not verify afterwards is a bug of the pass and panics, naming it.
    pub fn run(
        &mut self,
        name: &'static str,
        module: &mut Module,
        pass: impl FnOnce(&mut Module) -> Checked<()>,
    ) -> Checked<()> {
        if self.is_stopped {
            return Ok(());
        }
        let start = Instant::now();
        pass(module)?;
        self.times.push((name, start.elapsed()));
        (self.observer)(name, module);
        if let Some(verify) = self.verify {
            let faults = verify(module);
            assert!(faults.is_empty(), "invariant: the module verifies after `{name}`: {}", faults[0]);
        }
        self.is_stopped = self.stop_after.as_deref() == Some(name);
        Ok(())
    }

    /// Whether the pipeline stopped where it was told to.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// The passes that ran and how long each took.
    pub fn times(&self) -> &[(&'static str, Duration)] {
        &self.times
    }
}

/// Whether a pass has that name.
///
/// # Errors
/// A diagnostic that lists the names.
pub fn check_name(name: &str) -> Result<(), Diagnostic> {
    let names: Vec<&str> = PASSES.iter().map(|(n, _)| *n).collect();
    match names.contains(&name) {
        true => Ok(()),
        false => Err(Diagnostic::new("no-pass", format!("no pass is named `{name}`"))
            .help(format!("the passes are: {}", names.join(", ")))),
    }
}
