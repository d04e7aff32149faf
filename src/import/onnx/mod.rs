//! Imports ONNX files: reads them, binds symbolic extents, chooses parameters and lowers each operator to ops of the IR.

mod absent;
pub mod attributes;
mod bind;
mod lower;
mod ops;
mod parameters;
pub mod proto;
pub mod reader;
pub mod statics;
pub mod weights;

pub use parameters::{ParameterNames, TiedCopy, names as parameter_names};

use std::path::Path;

use galvatron_ir::Module;
use galvatron_ir::diagnostic::Checked;
use galvatron_ir::recipe::Recipe;

use super::dropout::n_dropouts;
use super::{ImportOptions, Imported};
use reader::OnnxModel;

/// What a user is told who wants dropout from a file without.
const NO_DROPOUT: &str =
    "`model.dropout` is true, but the file has no dropout that trains; it must be exported with it";

/// Reads an ONNX file and lowers it to a module at level `graph`.
///
/// Weights are named by file and offset and never read, so external files need not exist; a warning names those that do not.
///
/// # Errors
/// The codes of [`OnnxModel::open`]; `batch`, `onnx-symbol` and `onnx-dtype` for inputs that cannot be bound, `parameters`
/// for globs that match nothing, `onnx-op` for operators that are not supported, `onnx-node` for operands that do not fit.
pub fn import(path: &Path, options: &ImportOptions<'_>) -> Checked<Imported> {
    let mut imported = import_model(&OnnxModel::open(path)?, options)?;
    imported.warnings.extend(absent::warnings(&imported.module));
    Ok(imported)
}

/// Lowers a model that has been read.
///
/// # Errors
/// As [`import`].
pub fn import_model(model: &OnnxModel, options: &ImportOptions<'_>) -> Checked<Imported> {
    let bindings = bind::bind(model, options.recipe)?;
    let parameters = parameters::choose(model, options.recipe, options.retie)?;
    let module = lower::lower(model, &bindings, &parameters, options.recipe.seed)?;
    let parameters::Parameters { mut notes, mut warnings, .. } = parameters;
    match n_dropouts(&module.program) {
        0 if options.recipe.dropout => warnings.push(NO_DROPOUT.into()),
        0 => {}
        n => notes.push(format!("dropout is on: the file has {n} that train")),
    }
    warnings.extend(fixed_sequence(&bindings, options.recipe));
    Ok(Imported { module, notes, warnings, global_batch: bindings.global_batch, sequence: bindings.sequence })
}

/// A length of sequences that is asked for, and that the file does not have.
fn fixed_sequence(bindings: &bind::Bindings, recipe: &Recipe) -> Option<String> {
    let asked = recipe.sequence.filter(|&asked| bindings.sequence > 0 && asked != bindings.sequence)?;
    Some(format!(
        "`batch.sequence` is {asked}, but the file has sequences of {}: it must be exported with an open length for others",
        bindings.sequence
    ))
}

/// Lowers a model that is to be evaluated and not trained: the extents of its inputs are numbers, and none is the batch.
///
/// # Errors
/// As [`import`], without those of the batch.
pub fn import_fixed(model: &OnnxModel) -> Checked<Module> {
    let bindings = bind::fixed(model)?;
    let parameters = parameters::choose(model, &Recipe::default(), false)?;
    lower::lower(model, &bindings, &parameters, 0)
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
