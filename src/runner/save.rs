//! Writes trained weights, optimizer state and gradients as safetensors under the names of the model file.

use galvatron_backends::exec::{HostTensor, Tensors, Trained};
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

type Fault = (PathBuf, io::Error);

/// Writes `model.safetensors`, `optimizer.safetensors` and `state.json` into a folder, each at once or not at all.
///
/// # Errors
/// The file that could not be written.
pub fn save_training(folder: &Path, trained: &Trained, step: u64) -> Result<(), Fault> {
    std::fs::create_dir_all(folder).map_err(|e| (folder.to_path_buf(), e))?;
    write_tensors(&folder.join("model.safetensors"), &trained.parameters)?;
    write_tensors(&folder.join("optimizer.safetensors"), &trained.states)?;
    let state = serde_json::json!({ "step": step });
    replace(&folder.join("state.json"), |path| std::fs::write(path, format!("{state}\n")))
}

/// Writes the gradients of the first step.
///
/// # Errors
/// The file that could not be written.
pub fn save_gradients(path: &Path, gradients: &Tensors) -> Result<(), Fault> {
    write_tensors(path, gradients)
}

fn write_tensors(path: &Path, tensors: &Tensors) -> Result<(), Fault> {
    let bytes: BTreeMap<&String, (Vec<usize>, Vec<u8>)> = tensors.iter().map(|(n, t)| (n, to_bytes(t))).collect();
    let views: Result<BTreeMap<_, _>, _> = bytes
        .iter()
        .map(|(name, (shape, data))| Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), data)?)))
        .collect();
    let views = views.map_err(|e: safetensors::SafeTensorError| (path.to_path_buf(), io::Error::other(e)))?;
    replace(path, |path| safetensors::serialize_to_file(views, None, path).map_err(io::Error::other))
}

fn to_bytes(tensor: &HostTensor) -> (Vec<usize>, Vec<u8>) {
    let shape = tensor.shape.iter().map(|&d| d as usize).collect();
    (shape, tensor.data.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// Writes beside the file and then takes its place, so that nobody sees half a file.
fn replace(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), Fault> {
    let beside = path.with_extension("part");
    write(&beside).and_then(|()| std::fs::rename(&beside, path)).map_err(|e| (path.to_path_buf(), e))
}
