//! Model files, read into modules at level `graph`.

mod dropout;
pub mod huggingface;
pub mod onnx;

use std::path::Path;

use galvatron_ir::diagnostic::Checked;
use galvatron_ir::module::Module;
use galvatron_ir::recipe::Recipe;

/// What an import depends on besides the file.
#[derive(Clone, Copy, Debug)]
pub struct ImportOptions<'a> {
    /// How the model is trained: batch, sequence, symbolic extents, and which initializers are parameters.
    pub recipe: &'a Recipe,
    /// Whether weights that an ONNX file stores twice are made one weight again.
    pub retie: bool,
}

/// An imported model.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The forward program, at level `graph`.
    pub module: Module,
    /// What the user should know about the choices that were made, one sentence each.
    pub notes: Vec<String>,
    /// What is probably not as the user wants it, one sentence each.
    pub warnings: Vec<String>,
    /// Samples in one optimizer step.
    pub global_batch: u64,
    /// Extent of axis 1 of the first integer input; 0 where there is none.
    pub sequence: u64,
}

/// Reads a model, whatever it is: a `config.json` or a folder that has one, otherwise an ONNX file.
///
/// # Errors
/// Those of [`huggingface::import`] and [`onnx::import`].
pub fn import(path: &Path, options: &ImportOptions<'_>) -> Checked<Imported> {
    match huggingface::config_file(path) {
        Some(config) => huggingface::import(&config, options),
        None => onnx::import(path, options),
    }
}
