//! Where initial weights come from: the files that the plan names, a safetensors file, or a seed.

use galvatron_backends::exec::WeightSource;
use galvatron_backends::fault::RunFault;
use galvatron_ir::module::Initializer;
use galvatron_ir::types::DType;
use safetensors::tensor::Metadata;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The files that the plan names. They are read and not mapped: mapped pages would count as memory of this process.
pub struct PlanWeights {
    /// Folders in which a relative name is looked for, in order.
    folders: Vec<PathBuf>,
    /// A file (or folder) that stands for all of them.
    instead: Option<PathBuf>,
    /// Open files by the name in the plan.
    files: Mutex<BTreeMap<String, File>>,
}

impl PlanWeights {
    /// Resolves names against the plan's folder, then the current one; `instead` is what `--weights` says.
    pub fn new(plan: &Path, instead: Option<&Path>) -> PlanWeights {
        let folder = plan.parent().map_or_else(PathBuf::new, Path::to_path_buf);
        PlanWeights {
            folders: vec![folder, PathBuf::new()],
            instead: instead.map(Path::to_path_buf),
            files: Mutex::default(),
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

    fn open(&self, file: &str) -> Result<File, String> {
        let candidates = self.candidates(file);
        let Some(path) = candidates.iter().find(|p| p.is_file()) else {
            let tried: Vec<String> = candidates.iter().map(|p| format!("`{}`", p.display())).collect();
            return Err(format!("its file does not exist; looked for {}; name it with `--weights`", tried.join(", ")));
        };
        File::open(path).map_err(|e| format!("cannot open `{}`: {e}", path.display()))
    }

    fn floats(&self, file: &str, offset: u64, n: usize) -> Result<Vec<f32>, String> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if !files.contains_key(file) {
            files.insert(file.to_string(), self.open(file)?);
        }
        read_floats(&files[file], offset, n).map_err(|what| format!("`{file}`: {what}"))
    }
}

impl WeightSource for PlanWeights {
    fn read(&self, initializer: &Initializer) -> Result<Vec<f32>, RunFault> {
        let fault = |what: String| RunFault::Weights { initializer: initializer.name.clone(), what };
        if initializer.ty.dtype != DType::F32 {
            return Err(fault(format!("weights of type {} are not supported", initializer.ty.dtype)));
        }
        let n = initializer.ty.elements() as usize;
        self.floats(&initializer.file, initializer.offset, n).map_err(fault)
    }
}

/// Weights by name from a safetensors file; the plan's own files for names that it lacks.
pub struct TensorFile {
    file: Mutex<File>,
    tensors: Metadata,
    /// Byte offset of the first tensor.
    start: u64,
    rest: PlanWeights,
}

impl TensorFile {
    /// Opens a safetensors file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(path: &Path, rest: PlanWeights) -> Result<TensorFile, String> {
        let file = File::open(path).map_err(|e| format!("cannot open `{}`: {e}", path.display()))?;
        let (tensors, start) = read_header(&file).map_err(|what| format!("`{}`: {what}", path.display()))?;
        Ok(TensorFile { file: Mutex::new(file), tensors, start, rest })
    }

    fn find(&self, name: &str, shape: &[u64]) -> Result<Option<Vec<f32>>, String> {
        let Some(tensor) = self.tensors.info(name) else { return Ok(None) };
        if tensor.dtype != safetensors::Dtype::F32 {
            return Err(format!("the file holds {:?}, not F32", tensor.dtype));
        }
        if !tensor.shape.iter().map(|&d| d as u64).eq(shape.iter().copied()) {
            return Err(format!("the file holds shape {:?}, the model {shape:?}", tensor.shape));
        }
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let n = shape.iter().product::<u64>() as usize;
        read_floats(&file, self.start + tensor.data_offsets.0 as u64, n).map(Some)
    }
}

/// The header of a safetensors file, checked against the file's length, and where the tensors start.
fn read_header(mut file: &File) -> Result<(Metadata, u64), String> {
    let io = |e: std::io::Error| e.to_string();
    let length = file.metadata().map_err(io)?.len();
    let mut n = [0; 8];
    file.read_exact(&mut n).map_err(io)?;
    let n = u64::from_le_bytes(n);
    let start = n.checked_add(8).filter(|&start| start <= length).ok_or("its header is longer than the file")?;
    let mut header = vec![0; n as usize];
    file.read_exact(&mut header).map_err(io)?;
    let tensors: Metadata = serde_json::from_slice(&header).map_err(|e| format!("its header is none: {e}"))?;
    if tensors.data_len() as u64 != length - start {
        return Err(format!("its header wants {} bytes, {} follow", tensors.data_len(), length - start));
    }
    Ok((tensors, start))
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

/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;

/// `n` little-endian floats from a byte offset on, read in pieces.
fn read_floats(mut file: &File, offset: u64, n: usize) -> Result<Vec<f32>, String> {
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    let bytes = n * size_of::<f32>();
    if offset.checked_add(bytes as u64).is_none_or(|end| end > length) {
        return Err(format!("{bytes} bytes from {offset} on are beyond its end"));
    }
    file.seek(SeekFrom::Start(offset)).map_err(|e| e.to_string())?;
    let (mut floats, mut piece) = (Vec::with_capacity(n), vec![0; PIECE.min(bytes)]);
    while floats.len() < n {
        let piece = &mut piece[..PIECE.min(bytes - size_of::<f32>() * floats.len())];
        file.read_exact(piece).map_err(|e| e.to_string())?;
        floats.extend(piece.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
    }
    Ok(floats)
}

#[cfg(test)]
mod tests {
    use super::*;
    use galvatron_ir::types::TensorType;

    fn scratch(name: &str, bytes: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("galvatron-weights-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn initializer(offset: u64, n: u64) -> Initializer {
        Initializer { name: "w".into(), file: "w.bin".into(), offset, ty: TensorType::f32([n]) }
    }

    #[test]
    fn weights_are_read_at_their_offset_and_not_beyond_the_end() {
        let n = PIECE / 4 + 3;
        let bytes: Vec<u8> = (0..n + 1).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let path = scratch("plain.bin", &bytes);
        let weights = PlanWeights::new(Path::new(""), Some(&path));
        let read = weights.read(&initializer(4, n as u64)).unwrap();
        assert!(read.iter().enumerate().all(|(i, &v)| v == (i + 1) as f32) && read.len() == n);
        let fault = weights.read(&initializer(8, n as u64)).unwrap_err().to_string();
        assert!(fault.contains("beyond its end"), "{fault}");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_safetensors_file_is_read_by_name_and_a_cut_one_refused() {
        let data: Vec<u8> = [1.0f32, 2.0, 3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![3], &data).unwrap();
        let bytes = safetensors::serialize([("w", view)], None).unwrap();
        let (path, cut) = (scratch("whole", &bytes), scratch("cut", &bytes[..bytes.len() - 4]));
        let open = |path: &Path| TensorFile::open(path, PlanWeights::new(path, None));
        assert_eq!(open(&path).unwrap().read(&initializer(0, 3)).unwrap(), [1.0, 2.0, 3.0]);
        assert!(open(&path).unwrap().read(&initializer(0, 2)).is_err());
        assert!(open(&cut).err().unwrap().contains("follow"));
        [path, cut].iter().for_each(|path| std::fs::remove_file(path).unwrap());
    }
}
