//! Runs passes by name: timing, verification after each, and an observer that sees the module after each.

use galvatron_ir::{Checked, Diagnostic, Module};
use std::time::{Duration, Instant};

/// Every pass of the standard pipeline in order, with what it does.
pub const PASSES: [(&str, &str); 18] = [
    ("import", "reads the model and binds its symbolic extents"),
    ("canonicalize", "folds constants and shape chatter, merges equal nodes, removes dead ones"),
    ("rewrite", "recognises attention, norms, activations and matrix products (egg)"),
    ("choose-precision", "decides what is bf16 and what stays f32"),
    ("attach-loss", "adds the loss over the whole step"),
    ("pad", "adds zeros where a degree divides nothing that it could cut"),
    ("segment", "finds the repeated layers"),
    ("differentiate", "adds the backward pass"),
    ("attach-optimizer", "adds the gradient norm and the optimizer"),
    ("search", "decides placements, ZeRO levels, recomputation, offload and micro-batches"),
    ("shard", "writes the placements"),
    ("insert-recomputation", "computes again what is not kept"),
    ("offload", "copies to host memory and back what is to lie there"),
    ("lower-reshards", "turns changes of placement into collectives"),
    ("bucket-reductions", "joins small gradient reductions"),
    ("schedule", "writes the order in which each stage runs its phases"),
    ("overlap", "puts collectives where they can run beside computation"),
    ("assign-buffers", "places every buffer"),
];

/// Sees the module after each pass.
pub type Observer<'a> = &'a mut dyn FnMut(&str, &Module);

/// Why the pipeline ended at a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PassFault {
    /// The input is wrong.
    Input(Vec<Diagnostic>),
    /// The pass has a bug: its module does not verify. The diagnostic, of code `internal`, names the pass and the first fault.
    Bug(Diagnostic),
}

impl From<Vec<Diagnostic>> for PassFault {
    fn from(faults: Vec<Diagnostic>) -> PassFault {
        PassFault::Input(faults)
    }
}

impl From<Diagnostic> for PassFault {
    fn from(fault: Diagnostic) -> PassFault {
        PassFault::Input(vec![fault])
    }
}

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
    /// The pass's own diagnostics, or that the module does not verify afterwards.
    pub fn run(
        &mut self,
        name: &'static str,
        module: &mut Module,
        pass: impl FnOnce(&mut Module) -> Checked<()>,
    ) -> Result<(), PassFault> {
        if self.is_stopped {
            return Ok(());
        }
        let start = Instant::now();
        pass(module)?;
        self.times.push((name, start.elapsed()));
        (self.observer)(name, module);
        if let Some(fault) = self.verify.and_then(|verify| verify(module).into_iter().next()) {
            return Err(PassFault::Bug(bug(name, &fault)));
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

fn bug(pass: &str, fault: &Diagnostic) -> Diagnostic {
    let message = format!("the module does not verify after the pass `{pass}`: {} ({})", fault.message, fault.code);
    let help =
        "this is a bug of galvatron, not of your files: please report it with the model, the cluster and the flags";
    Diagnostic::new("internal", message).help(help)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs passes that name the module after themselves; one of the name `shard` breaks it.
    fn check(names: &[&'static str], expected: Result<(), &str>) {
        let verify = |module: &Module| match module.name.as_str() {
            "shard" => vec![Diagnostic::new("G0203", "`%d`: operand 0 is a partial sum")],
            _ => Vec::new(),
        };
        let (mut seen, mut module) = (Vec::new(), Module::new("model"));
        let mut observer = |name: &str, _: &Module| seen.push(name.to_string());
        let mut passes = PassManager::new(&mut observer, None, Some(verify)).unwrap();
        let ran = names.iter().try_for_each(|&name| {
            passes.run(name, &mut module, |module| {
                module.name = name.into();
                Ok(())
            })
        });
        match ran {
            Err(PassFault::Bug(fault)) => assert_eq!(Err(fault.message.as_str()), expected),
            other => assert_eq!((other, expected), (Ok(()), Ok(()))),
        }
        assert!(names.starts_with(&seen.iter().map(String::as_str).collect::<Vec<_>>()), "the observer sees each");
    }

    #[test]
    fn the_pass_that_breaks_the_module_is_named() {
        check(&["import", "segment"], Ok(()));
        let fault = "the module does not verify after the pass `shard`: `%d`: operand 0 is a partial sum (G0203)";
        check(&["import", "shard", "segment"], Err(fault));
    }
}
