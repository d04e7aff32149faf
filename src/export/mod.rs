//! Writes trained weights back into the ONNX file that they were trained from.
//!
//! The exported model is the original byte for byte, but for the elements of what was trained and the lengths around them:
//! fields that this program does not know, names, documentation and metadata stay. `sites` finds the tensors of the file,
//! `matching` says what each becomes, `draft` lays the new files out by `splice` and `tensor`, `write` writes them. Elements
//! keep their type; what lay in a file beside the original lies in one beside the new model.

mod draft;
mod elements;
mod matching;
mod schema;
mod sites;
mod splice;
mod tensor;
mod wire;
mod write;

use crate::import::onnx::reader::OnnxModel;
use crate::import::onnx::weights::TensorFile;
use crate::weights::Tensors;
use draft::{Drafting, MAX_MODEL_BYTES};
use galvatron_ir::diagnostic::{Checked, Diagnostic};
use sites::Site;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use wire::Malformed;

/// What is exported.
#[derive(Clone, Copy, Debug)]
pub struct Export<'a> {
    /// The ONNX file that was trained.
    pub onnx: &'a Path,
    /// The trained weights: a safetensors file, the index of several, or a folder with either.
    pub weights: &'a Path,
    /// The ONNX file that is written.
    pub output: &'a Path,
}

/// What was exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Tensors with trained elements.
    pub n_tensors: usize,
    /// Their elements.
    pub n_elements: u64,
    /// The file beside the model that has tensors of it, if there are any.
    pub data: Option<PathBuf>,
}

/// Writes the model with its trained weights. Neither the model nor its weights are ever written over, and no half of a
/// file is left behind.
///
/// # Errors
/// The codes of [`OnnxModel::open`]; `weights` for weights that are not those of the model, `onnx-dtype` for weights of what
/// is no float; `usage` for an output that is an input, `onnx-external-data` for tensors beside the model that are not
/// there, `onnx-size` for a model that is too large for its format, `file` for what cannot be written.
pub fn export(export: &Export<'_>) -> Checked<Exported> {
    export_within(export, MAX_MODEL_BYTES)
}

/// The same for another largest model.
fn export_within(export: &Export<'_>, max_bytes: u64) -> Checked<Exported> {
    let file = TensorFile::open(export.onnx).map_err(one)?;
    let model = OnnxModel::from_bytes(file.bytes.clone(), file.name.clone())?;
    let tensors = Tensors::open(export.weights).map_err(|what| one(Diagnostic::new("weights", what)))?;
    let sites = sites::sites(&file.bytes).map_err(|fault| one(fault.into()))?;
    let trained = matching::matched(&model, &file, &sites, &tensors)?;
    let data = data_file(export.output).map_err(one)?;
    let location = data.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let drafting = Drafting { file: &file, sites: &sites, trained: &trained, location: &location };
    let written = drafting.draft(max_bytes).and_then(|draft| {
        let is_used = !draft.beside.is_empty();
        let inputs = beside(&file, &sites).chain([export.onnx.to_path_buf()]);
        let inputs = inputs.chain(tensors.files().map(Path::to_path_buf));
        refuse_inputs(&[export.output, &data][..1 + usize::from(is_used)], inputs)?;
        write::write(&draft, &file.bytes, export.output, &data)?;
        Ok(is_used.then_some(data))
    });
    Ok(Exported {
        n_tensors: trained.len(),
        n_elements: trained.values().map(|t| t.stored.elements()).sum(),
        data: written.map_err(one)?,
    })
}

impl From<Malformed> for Diagnostic {
    fn from(Malformed { at }: Malformed) -> Diagnostic {
        Diagnostic::new("onnx-format", format!("the model is damaged at byte {at}"))
    }
}

fn one(fault: Diagnostic) -> Vec<Diagnostic> {
    vec![fault]
}

/// The file beside a model that has tensors of it; models name it, so its name must be text.
fn data_file(model: &Path) -> Result<PathBuf, Diagnostic> {
    let name = model.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| {
        let fault = Diagnostic::new("usage", format!("`{}` is no name of a file", model.display()));
        fault.help("say `-o TRAINED.onnx`")
    })?;
    Ok(model.with_file_name(format!("{name}.data")))
}

/// The files beside a model, once for each tensor in them.
fn beside(file: &TensorFile, sites: &[Site]) -> impl Iterator<Item = PathBuf> {
    let external = sites.iter().filter(|site| site.is_external);
    let record = external.filter_map(|site| file.tensor_at(site.at.clone()).ok());
    record.filter_map(|record| record.source().map(|source| PathBuf::from(&source.file)))
}

/// Refuses to write over what belongs to the model or its weights.
fn refuse_inputs(outputs: &[&Path], inputs: impl Iterator<Item = PathBuf>) -> Result<(), Diagnostic> {
    let inputs: BTreeSet<PathBuf> = inputs.filter_map(|path| path.canonicalize().ok()).collect();
    let is_input = |path: &&&Path| path.canonicalize().is_ok_and(|path| inputs.contains(&path));
    match outputs.iter().find(is_input) {
        None => Ok(()),
        Some(path) => {
            let message =
                format!("`{}` belongs to the model or its weights, and would be written over", path.display());
            Err(Diagnostic::new("usage", message).help("give the exported model another name"))
        }
    }
}

#[cfg(test)]
mod tests;
