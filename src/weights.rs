//! Where initial weights come from: the files that the plan names, a safetensors file, or a seed.

use galvatron_backends::exec::WeightSource;
use galvatron_backends::fault::RunFault;
use galvatron_ir::module::Initializer;
use galvatron_ir::types::DType;
use memmap2::Mmap;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The files that the plan names, by memory map.
pub struct PlanWeights {
    /// Folders in which a relative name is looked for, in order.
    folders: Vec<PathBuf>,
    /// A file (or folder) that stands for all of them.
    instead: Option<PathBuf>,
    maps: Mutex<BTreeMap<String, std::sync::Arc<Mmap>>>,
}

impl PlanWeights {
    /// Resolves names against the plan's folder, then the current one; `instead` is what `--weights` says.
    pub fn new(plan: &Path, instead: Option<&Path>) -> PlanWeights {
        let folder = plan.parent().map_or_else(PathBuf::new, Path::to_path_buf);
        PlanWeights {
            folders: vec![folder, PathBuf::new()],
            instead: instead.map(Path::to_path_buf),
            maps: Mutex::default(),
        }
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

    fn map(&self, file: &str) -> Result<std::sync::Arc<Mmap>, String> {
        let mut maps = self.maps.lock().map_err(|_| "another reader failed".to_string())?;
        if let Some(map) = maps.get(file) {
            return Ok(map.clone());
        }
        let candidates = self.candidates(file);
        let Some(path) = candidates.iter().find(|p| p.is_file()) else {
            let tried: Vec<String> = candidates.iter().map(|p| format!("`{}`", p.display())).collect();
            return Err(format!("its file does not exist; looked for {}; name it with `--weights`", tried.join(", ")));
        };
        let open = std::fs::File::open(path).map_err(|e| format!("cannot open `{}`: {e}", path.display()))?;
        // SAFETY: the map is read only; a file that another process truncates meanwhile is outside of what we can guard.
        let map = unsafe { Mmap::map(&open) }.map_err(|e| format!("cannot map `{}`: {e}", path.display()))?;
        let map = std::sync::Arc::new(map);
        maps.insert(file.to_string(), map.clone());
        Ok(map)
    }
}

impl WeightSource for PlanWeights {
    fn read(&self, initializer: &Initializer) -> Result<Vec<f32>, RunFault> {
        let fault = |what: String| RunFault::Weights { initializer: initializer.name.clone(), what };
        if initializer.ty.dtype != DType::F32 {
            return Err(fault(format!("weights of type {} are not supported", initializer.ty.dtype)));
        }
        let map = self.map(&initializer.file).map_err(fault)?;
        let (start, bytes) = (initializer.offset as usize, initializer.ty.bytes() as usize);
        let part = start.checked_add(bytes).and_then(|end| map.get(start..end));
        let part = part.ok_or_else(|| {
            fault(format!("bytes {start} to {} are beyond the end of `{}`", start + bytes, initializer.file))
        })?;
        Ok(floats(part))
    }
}

/// Weights by name from a safetensors file; the plan's own files for names that it lacks.
pub struct TensorFile {
    map: Mmap,
    rest: PlanWeights,
}

impl TensorFile {
    /// Opens a safetensors file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(path: &Path, rest: PlanWeights) -> Result<TensorFile, String> {
        let file = std::fs::File::open(path).map_err(|e| format!("cannot open `{}`: {e}", path.display()))?;
        // SAFETY: as above, the map is read only.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| format!("cannot map `{}`: {e}", path.display()))?;
        safetensors::SafeTensors::deserialize(&map).map_err(|e| format!("`{}`: {e}", path.display()))?;
        Ok(TensorFile { map, rest })
    }

    fn find(&self, name: &str, shape: &[u64]) -> Result<Option<Vec<f32>>, String> {
        let tensors = safetensors::SafeTensors::deserialize(&self.map).map_err(|e| e.to_string())?;
        let Ok(tensor) = tensors.tensor(name) else { return Ok(None) };
        if tensor.dtype() != safetensors::Dtype::F32 {
            return Err(format!("the file holds {:?}, not F32", tensor.dtype()));
        }
        if !tensor.shape().iter().map(|&d| d as u64).eq(shape.iter().copied()) {
            return Err(format!("the file holds shape {:?}, the model {shape:?}", tensor.shape()));
        }
        Ok(Some(floats(tensor.data())))
    }
}

impl WeightSource for TensorFile {
    fn read(&self, initializer: &Initializer) -> Result<Vec<f32>, RunFault> {
        let fault = |what| RunFault::Weights { initializer: initializer.name.clone(), what };
        match self.find(&initializer.name, &initializer.ty.shape).map_err(fault)? {
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
        self.optimizer.find(&format!("{}.{kind}", initializer.name), &initializer.ty.shape).map_err(fault)
    }
}

/// Weights from a seed: matrices normal-like with deviation 0.02, gains one, biases zero, as GPT-2 starts.
pub struct RandomWeights {
    /// The seed.
    pub seed: u64,
}

impl WeightSource for RandomWeights {
    fn read(&self, initializer: &Initializer) -> Result<Vec<f32>, RunFault> {
        let n = initializer.ty.elements() as usize;
        if initializer.ty.rank() < 2 {
            let is_gain = initializer.name.ends_with("weight");
            return Ok(vec![if is_gain { 1.0 } else { 0.0 }; n]);
        }
        let key = initializer
            .name
            .bytes()
            .fold(self.seed ^ 0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01B3));
        Ok((0..n as u64).map(|i| (normal(key, i) * 0.02) as f32).collect())
    }
}

/// The i-th of a stream of nearly normal numbers: the sum of four uniform ones, scaled to deviation 1.
fn normal(key: u64, i: u64) -> f64 {
    let uniform = |j: u64| {
        let mut z = key.wrapping_add((4 * i + j + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    };
    (0..4).map(uniform).sum::<f64>() * 3f64.sqrt()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}
