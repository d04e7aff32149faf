//! Which tensor of the checkpoint each tensor of the model becomes.

use super::sites::{Place, Site};
use crate::import::onnx::parameter_names;
use crate::import::onnx::reader::OnnxModel;
use crate::import::onnx::weights::{TensorFile, TensorRecord};
use crate::weights::{Archive, StoredTensor, Tensors, spellings};
use galvatron_ir::diagnostic::{Checked, Diagnostic};
use std::collections::{BTreeMap, BTreeSet};

/// What a tensor of the model becomes.
pub(super) struct Trained<'a> {
    /// The tensor, as it was.
    pub record: TensorRecord,
    /// The file that has its elements.
    pub archive: &'a Archive,
    /// The elements.
    pub stored: &'a StoredTensor,
    /// Whether they are those of the transposed matrix.
    pub transposed: bool,
}

/// The name of a tensor of the checkpoint, and whether it is transposed in the model.
type Choice = (String, bool);

/// What the tensors of the model become, by their place in the list of sites.
///
/// A tensor of the checkpoint goes to the tensor of its name, or to a parameter that has it under another spelling; a weight
/// that the model stores twice goes to both places.
///
/// # Errors
/// Code `weights`: a parameter that the checkpoint lacks, a tensor of the checkpoint that the model lacks, or one of another
/// shape; code `onnx-dtype` for tensors that are no floats.
pub(super) fn matched<'a>(
    model: &OnnxModel,
    file: &TensorFile,
    sites: &[Site],
    tensors: &'a Tensors,
) -> Checked<BTreeMap<usize, Trained<'a>>> {
    let (chosen, mut faults) = choose(model, sites, &tensors.names());
    let mut trained = BTreeMap::new();
    for (index, site) in sites.iter().enumerate() {
        let Some((name, transposed)) = site.name().and_then(|name| chosen.get(name)) else { continue };
        match fitting(model, file, site, tensors, name, *transposed) {
            Ok(tensor) => {
                trained.insert(index, tensor);
            }
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(trained) } else { Err(faults) }
}

/// What each tensor of the model is to be, by name, and what is wrong with that.
fn choose(model: &OnnxModel, sites: &[Site], stored: &BTreeSet<String>) -> (BTreeMap<String, Choice>, Vec<Diagnostic>) {
    let parameters = parameter_names(model);
    let (mut chosen, mut rest) = (BTreeMap::new(), stored.clone());
    for name in sites.iter().filter_map(Site::name).filter(|name| stored.contains(*name)) {
        rest.remove(name);
        chosen.insert(name.to_string(), (name.to_string(), false));
    }
    for name in &parameters.originals {
        if let Some(spelling) = spellings(name).into_iter().find(|s| !chosen.contains_key(name) && rest.contains(s)) {
            rest.remove(&spelling);
            chosen.insert(name.clone(), (spelling, false));
        }
    }
    for copy in &parameters.copies {
        if let (false, Some((of, _))) = (chosen.contains_key(&copy.name), chosen.get(&copy.of)) {
            chosen.insert(copy.name.clone(), (of.clone(), copy.transposed));
        }
    }
    let missing = parameters.originals.iter().filter(|name| !chosen.contains_key(*name));
    let missing = missing.map(|name| format!("the weights lack the parameter `{name}` of the model"));
    let unknown = rest.iter().map(|name| format!("the model lacks the tensor `{name}` of the weights"));
    let help = "name the ONNX file that the plan was made from, and what `--save` wrote";
    let faults = missing.chain(unknown).map(|message| Diagnostic::new("weights", message).help(help)).collect();
    (chosen, faults)
}

/// The tensor of the checkpoint, if it fits the one of the model.
fn fitting<'a>(
    model: &OnnxModel,
    file: &TensorFile,
    site: &Site,
    tensors: &'a Tensors,
    name: &str,
    transposed: bool,
) -> Result<Trained<'a>, Diagnostic> {
    let record = record(model, file, site)?;
    let (archive, stored) = tensors.get(name).expect("invariant: it was chosen from their names");
    let here = site.name().unwrap_or_default();
    if !record.dtype.is_float() {
        let message = format!("the weights have `{name}`, which holds {} elements in the model", record.dtype.name());
        return Err(Diagnostic::new("onnx-dtype", message).help("only float tensors are trained"));
    }
    let mut shape = stored.shape.clone();
    if transposed {
        shape.reverse();
    }
    if shape != record.dims {
        let message = format!("`{here}` has shape {:?} in the model, {shape:?} in the weights", record.dims);
        return Err(Diagnostic::new("weights", message).help("name the ONNX file that the plan was made from"));
    }
    Ok(Trained { record, archive, stored, transposed })
}

/// What the model has at a site.
fn record(model: &OnnxModel, file: &TensorFile, site: &Site) -> Result<TensorRecord, Diagnostic> {
    let record = match &site.place {
        Place::Initializer(name) => model.initializers.iter().find(|record| record.name == *name).cloned(),
        Place::Constant(_) | Place::Other => None,
    };
    record.map_or_else(|| file.tensor_at(site.at.clone()), Ok)
}
