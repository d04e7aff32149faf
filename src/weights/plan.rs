//! The files that the plan names.

use super::archive::{Archive, read_elements};
use super::random::RandomWeights;
use galvatron_backends::exec::WeightSource;
use galvatron_backends::fault::RunFault;
use galvatron_ir::module::Initializer;
use galvatron_ir::types::DType;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The files that the plan names. They are read and not mapped: mapped pages would count as memory of this process.
pub struct PlanWeights {
    /// Folders in which a relative name is looked for, in order.
    folders: Vec<PathBuf>,
    /// A file (or folder) that stands for all of them.
    instead: Option<PathBuf>,
    /// Where tensors come from that the plan gives no file.
    fresh: Option<RandomWeights>,
    /// Open files by the name in the plan.
    files: Mutex<BTreeMap<String, Opened>>,
}

/// A file of weights.
enum Opened {
    /// It says itself what it holds.
    Archive(Archive),
    /// Single-precision numbers at the offsets of the plan.
    Plain(File),
}

impl PlanWeights {
    /// Resolves names against the plan's folder, then the current one; `instead` is what `--weights` says.
    pub fn new(plan: &Path, instead: Option<&Path>) -> PlanWeights {
        let folder = plan.parent().map_or_else(PathBuf::new, Path::to_path_buf);
        PlanWeights {
            folders: vec![folder, PathBuf::new()],
            instead: instead.map(Path::to_path_buf),
            fresh: None,
            files: Mutex::default(),
        }
    }

    /// The same, but tensors without a file are made from a seed.
    pub fn or_fresh(self, seed: u64) -> PlanWeights {
        PlanWeights { fresh: Some(RandomWeights { seed }), ..self }
    }

    fn candidates(&self, file: &str) -> Vec<PathBuf> {
        match &self.instead {
            Some(path) if path.is_dir() => {
                let name = Path::new(file).file_name().map_or_else(PathBuf::new, PathBuf::from);
                vec![path.join(file), path.join(name)]
            }
            Some(path) => vec![path.clone()],
            None => self.folders.iter().map(|f| f.join(file)).collect(),
        }
    }

    fn open(&self, file: &str) -> Result<Opened, String> {
        let candidates = self.candidates(file);
        let Some(path) = candidates.iter().find(|p| p.is_file()) else {
            let tried: Vec<String> = candidates.iter().map(|p| format!("`{}`", p.display())).collect();
            return Err(format!("its file does not exist; looked for {}; name it with `--weights`", tried.join(", ")));
        };
        if Path::new(file).extension().is_some_and(|e| e == "safetensors") {
            return Archive::open(path).map(Opened::Archive);
        }
        let opened = File::open(path).map_err(|e| format!("cannot open `{}`: {e}", path.display()))?;
        Ok(Opened::Plain(opened))
    }

    fn floats(&self, initializer: &Initializer) -> Result<Vec<f32>, String> {
        let Initializer { file, offset, ty, .. } = initializer;
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if !files.contains_key(file) {
            files.insert(file.clone(), self.open(file)?);
        }
        match &files[file] {
            Opened::Archive(archive) => {
                let tensor = archive.at(*offset, ty.elements());
                let what = || format!("`{file}` has no tensor of {} elements at byte {offset}", ty.elements());
                archive.read(tensor.ok_or_else(what)?)
            }
            Opened::Plain(opened) => read_elements(opened, *offset, ty.elements() as usize, f32::from_le_bytes)
                .map_err(|what| format!("`{file}`: {what}")),
        }
    }
}

impl WeightSource for PlanWeights {
    fn read(&self, initializer: &Initializer) -> Result<Vec<f32>, RunFault> {
        let fault = |what: String| RunFault::Weights { initializer: initializer.name.clone(), what };
        if initializer.ty.dtype != DType::F32 {
            return Err(fault(format!("weights of type {} are not supported", initializer.ty.dtype)));
        }
        match &self.fresh {
            _ if !initializer.file.is_empty() => self.floats(initializer).map_err(fault),
            Some(fresh) => fresh.read(initializer),
            None => Err(fault("the plan names no file for it, and the given one lacks it".into())),
        }
    }
}
