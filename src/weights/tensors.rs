//! Tensors by name: of one safetensors file, of the files of a list, or of a folder.

use super::archive::{Archive, StoredTensor};
use super::plan::PlanWeights;
use super::{CHECKPOINT, CHECKPOINT_INDEX, spellings};
use galvatron_backends::exec::WeightSource;
use galvatron_backends::fault::RunFault;
use galvatron_ir::module::Initializer;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The tensors of one or several safetensors files.
pub struct Tensors {
    archives: Vec<Archive>,
}

impl Tensors {
    /// Opens a safetensors file, the files of a `model.safetensors.index.json`, or a folder with either.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(path: &Path) -> Result<Tensors, String> {
        if path.is_dir() {
            let names = [CHECKPOINT, CHECKPOINT_INDEX].map(|name| path.join(name));
            let found = names.iter().find(|p| p.is_file());
            let what = || format!("`{}` has neither `{CHECKPOINT}` nor `{CHECKPOINT_INDEX}`", path.display());
            return Tensors::open(found.ok_or_else(what)?);
        }
        let files = match path.extension() {
            Some(extension) if extension == "json" => files_of_index(path)?,
            _ => vec![path.to_path_buf()],
        };
        Ok(Tensors { archives: files.iter().map(|file| Archive::open(file)).collect::<Result<_, _>>()? })
    }

    /// The tensor of a parameter and its file, under any spelling of its name.
    pub fn find(&self, name: &str) -> Option<(&Archive, &StoredTensor)> {
        spellings(name).iter().find_map(|name| self.get(name))
    }

    /// The tensor of exactly this name and its file.
    pub fn get(&self, name: &str) -> Option<(&Archive, &StoredTensor)> {
        self.archives.iter().find_map(|a| Some((a, a.tensors().get(name)?)))
    }

    /// The files.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.archives.iter().map(Archive::path)
    }

    /// The names of all tensors.
    pub fn names(&self) -> BTreeSet<String> {
        self.archives.iter().flat_map(|a| a.tensors().keys().cloned()).collect()
    }

    /// The elements of a parameter, if there is a tensor of that name.
    fn read(&self, name: &str, shape: &[u64]) -> Result<Option<Vec<f32>>, String> {
        let Some((archive, tensor)) = self.find(name) else { return Ok(None) };
        if tensor.shape != shape {
            return Err(format!("the file holds shape {:?}, the model {shape:?}", tensor.shape));
        }
        archive.read(tensor).map(Some)
    }
}

/// The files that the values of `weight_map` name, in order.
fn files_of_index(path: &Path) -> Result<Vec<PathBuf>, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("cannot open `{}`: {e}", path.display()))?;
    let index: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| format!("`{}` is no JSON: {e}", path.display()))?;
    let what = || format!("`{}` has no `weight_map` from tensors to files", path.display());
    let map = index["weight_map"].as_object().ok_or_else(what)?;
    let names: BTreeSet<&str> = map.values().map(|v| v.as_str().ok_or_else(what)).collect::<Result<_, _>>()?;
    Ok(names.into_iter().map(|name| path.with_file_name(name)).collect())
}

/// Weights by name from safetensors files; the plan's own files for names that they lack.
pub struct TensorFile {
    tensors: Tensors,
    rest: PlanWeights,
}

impl TensorFile {
    /// Opens what [`Tensors::open`] does.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(path: &Path, rest: PlanWeights) -> Result<TensorFile, String> {
        Ok(TensorFile { tensors: Tensors::open(path)?, rest })
    }
}

impl WeightSource for TensorFile {
    fn read(&self, initializer: &Initializer) -> Result<Vec<f32>, RunFault> {
        let fault = |what| RunFault::Weights { initializer: initializer.name.clone(), what };
        match self.tensors.read(&initializer.name, &initializer.ty.shape).map_err(fault)? {
            Some(data) => Ok(data),
            None => self.rest.read(initializer),
        }
    }
}

/// Saved weights and optimizer state.
pub struct Resumed {
    /// `model.safetensors`.
    pub model: TensorFile,
    /// `optimizer.safetensors`.
    pub optimizer: TensorFile,
}

impl WeightSource for Resumed {
    fn read(&self, initializer: &Initializer) -> Result<Vec<f32>, RunFault> {
        self.model.read(initializer)
    }

    fn read_state(&self, initializer: &Initializer, kind: &str) -> Result<Option<Vec<f32>>, RunFault> {
        let fault = |what| RunFault::Weights { initializer: initializer.name.clone(), what };
        self.optimizer.tensors.read(&format!("{}.{kind}", initializer.name), &initializer.ty.shape).map_err(fault)
    }
}
