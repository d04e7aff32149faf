//! The checkpoint beside a configuration: where each parameter lies in it.

use std::collections::BTreeSet;
use std::path::Path;

use galvatron_ir::diagnostic::{Checked, Diagnostic};
use galvatron_ir::module::Module;

use super::abbreviated;
use crate::weights::{CHECKPOINT, CHECKPOINT_INDEX, Tensors};

/// The safetensors files in the folder of a configuration.
pub(super) struct Checkpoint {
    tensors: Tensors,
}

impl Checkpoint {
    /// Opens `model.safetensors` or the files of `model.safetensors.index.json` beside a configuration, if they are there.
    ///
    /// # Errors
    /// Code `config-weights` for a file that cannot be read.
    pub fn beside(config: &Path) -> Result<Option<Checkpoint>, Diagnostic> {
        let files = [CHECKPOINT, CHECKPOINT_INDEX].map(|name| config.with_file_name(name));
        let Some(file) = files.iter().find(|file| file.is_file()) else { return Ok(None) };
        let tensors = Tensors::open(file).map_err(|what| Diagnostic::new("config-weights", what))?;
        Ok(Some(Checkpoint { tensors }))
    }

    /// The names of its tensors.
    pub fn names(&self) -> BTreeSet<String> {
        self.tensors.names()
    }

    /// Gives the initializers of a module their places; the parameters that the checkpoint lacks are noted.
    ///
    /// # Errors
    /// Code `config-weights` for tensors of another shape.
    pub fn place(&self, module: &mut Module) -> Checked<Vec<String>> {
        let (mut faults, mut missing) = (Vec::new(), Vec::new());
        for initializer in &mut module.initializers {
            let Some((archive, tensor)) = self.tensors.find(&initializer.name) else {
                missing.push(initializer.name.clone());
                continue;
            };
            if tensor.shape != initializer.ty.shape {
                let (found, expected) = (&tensor.shape, &initializer.ty.shape);
                let message =
                    format!("`{}` has shape {found:?} in the checkpoint, {expected:?} in the model", initializer.name);
                let help = "the configuration does not belong to the checkpoint beside it";
                faults.push(Diagnostic::new("config-weights", message).help(help));
                continue;
            }
            initializer.file = archive.path().to_string_lossy().into_owned();
            initializer.offset = tensor.offset;
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let n = missing.len();
        let note = format!("{n} parameters are not in the checkpoint and start fresh: {}", abbreviated(&missing));
        Ok(if missing.is_empty() { Vec::new() } else { vec![note] })
    }
}
