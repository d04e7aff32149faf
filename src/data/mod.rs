//! Training data: samples of named arrays from a `.safetensors` file or a stream of tokens, memory-mapped.

mod arrays;
mod order;
mod tokens;

use std::fs::File;
use std::path::Path;

use galvatron_ir::diagnostic::{Checked, Diagnostic};
use memmap2::Mmap;

use arrays::ArrayFile;
use order::Order;
use tokens::TokenFile;

/// Element type of an array as the model sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    /// 32-bit float.
    F32,
    /// 64-bit signed integer; narrower integers in the file are widened.
    I64,
}

impl ElementType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            ElementType::F32 => 4,
            ElementType::I64 => 8,
        }
    }

    /// Lower-case name, for example `f32`.
    pub fn name(self) -> &'static str {
        match self {
            ElementType::F32 => "f32",
            ElementType::I64 => "i64",
        }
    }

    /// The number one, in little-endian bytes.
    fn one(self) -> Vec<u8> {
        match self {
            ElementType::F32 => 1f32.to_le_bytes().to_vec(),
            ElementType::I64 => 1i64.to_le_bytes().to_vec(),
        }
    }
}

/// One array that training reads.
#[derive(Clone, Debug, PartialEq)]
pub struct ArraySpec {
    /// Name in the model and in the data.
    pub name: String,
    /// Element type of the model's input.
    pub dtype: ElementType,
    /// Shape of one sample: the model's shape without the batch axis.
    pub sample_shape: Vec<usize>,
}

impl ArraySpec {
    /// Elements of one sample.
    pub fn n_elements(&self) -> usize {
        self.sample_shape.iter().product()
    }

    /// Bytes of one sample.
    pub fn sample_bytes(&self) -> usize {
        self.n_elements() * self.dtype.bytes()
    }

    fn is_mask(&self) -> bool {
        self.name.to_ascii_lowercase().contains("mask")
    }
}

/// What training needs from the data.
#[derive(Clone, Debug, PartialEq)]
pub struct DataSpec {
    /// The model's inputs.
    pub inputs: Vec<ArraySpec>,
    /// The labels, if the loss reads any.
    pub labels: Option<ArraySpec>,
    /// Whether labels[t] = tokens[t + 1]; `None` means: only if the data has no labels.
    pub shift: Option<bool>,
    /// Label of a position that has no next token.
    pub ignore_index: i64,
    /// Seed of the permutation.
    pub seed: u64,
    /// Whether each epoch takes the samples in an order of its own.
    pub shuffle: bool,
}

/// One array of a [`Dataset`]: its place among the inputs, or their number for the labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ArrayId(pub usize);

/// Samples on disk. Only the rows that are asked for are read.
#[derive(Debug)]
pub struct Dataset {
    arrays: Vec<ArraySpec>,
    source: Source,
    order: Order,
}

#[derive(Debug)]
enum Source {
    Arrays(ArrayFile),
    Tokens(TokenFile),
}

impl Dataset {
    /// Opens a `.safetensors` file with arrays `[samples, …]`, a `.bin` of u16 tokens, or a Megatron pair `.bin`, `.idx`.
    ///
    /// A token stream is cut into windows of `sequence` tokens; when the labels are the next tokens, the last label of
    /// a window is the first token of the next one. In a `.safetensors` file the last label is `ignore_index`. Inputs
    /// with `mask` in their name that the data lacks are ones.
    ///
    /// Diagnostics: `data-file` for a file that cannot be read as what it should be, `data-array` for an array that is
    /// missing or of another type or shape.
    pub fn open(path: &Path, spec: &DataSpec) -> Checked<Dataset> {
        let source = match path.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors") => Source::Arrays(ArrayFile::open(path, spec)?),
            Some("bin") => Source::Tokens(TokenFile::open(path, spec)?),
            _ => {
                let message = format!("`{}`: expected a `.safetensors` or a `.bin` file", path.display());
                return Err(vec![Diagnostic::new("data-file", message)]);
            }
        };
        let n_samples = match &source {
            Source::Arrays(file) => file.n_samples(),
            Source::Tokens(file) => file.n_samples(),
        };
        let arrays = spec.inputs.iter().chain(&spec.labels).cloned().collect();
        Ok(Dataset { arrays, source, order: Order::new(n_samples, spec.shuffle.then_some(spec.seed)) })
    }

    /// Samples in one epoch, at least one.
    pub fn n_samples(&self) -> u64 {
        self.order.n_samples()
    }

    /// The inputs in the order of the [`DataSpec`], then the labels; indexed by [`ArrayId`].
    pub fn arrays(&self) -> &[ArraySpec] {
        &self.arrays
    }

    /// The array with a name; the input if an input and the labels share it.
    pub fn array(&self, name: &str) -> Option<ArrayId> {
        self.arrays.iter().position(|array| array.name == name).map(ArrayId)
    }

    /// Copies one sample of one array into `out`, as little-endian elements in row-major order.
    ///
    /// `sample` runs on over all epochs: sample `s` is row `s mod n_samples`, permuted within its epoch if the data is
    /// shuffled. `out` must be `sample_bytes` long.
    pub fn fill(&self, array: ArrayId, sample: u64, out: &mut [u8]) {
        assert_eq!(out.len(), self.arrays[array.0].sample_bytes(), "invariant: the buffer holds one sample");
        let row = self.order.row(sample);
        match &self.source {
            Source::Arrays(file) => file.fill(array, row, out),
            Source::Tokens(file) => file.fill(array, row, out),
        }
    }
}

/// Maps a file that is not empty.
fn map(path: &Path) -> Result<Mmap, Diagnostic> {
    let fault = |what: String| Diagnostic::new("data-file", format!("`{}`: {what}", path.display()));
    let file = File::open(path).map_err(|error| fault(error.to_string()))?;
    let length = file.metadata().map_err(|error| fault(error.to_string()))?.len();
    if length == 0 {
        return Err(fault("the file is empty".into()));
    }
    // SAFETY: the map is read only. As for every reader of mapped data, the file must not be cut short meanwhile.
    unsafe { Mmap::map(&file) }.map_err(|error| fault(error.to_string()))
}

fn fill_ones(dtype: ElementType, out: &mut [u8]) {
    let one = dtype.one();
    out.chunks_exact_mut(one.len()).for_each(|element| element.copy_from_slice(&one));
}

/// Types of integers that are widened to i64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IntegerType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    I64,
}

impl IntegerType {
    fn bytes(self) -> usize {
        match self {
            IntegerType::U8 | IntegerType::I8 => 1,
            IntegerType::U16 | IntegerType::I16 => 2,
            IntegerType::U32 | IntegerType::I32 => 4,
            IntegerType::I64 => 8,
        }
    }

    /// Writes each little-endian integer of `from` as a little-endian i64.
    fn widen(self, from: &[u8], out: &mut [u8]) {
        match self {
            IntegerType::U8 => widen(from, out, |[a]: [u8; 1]| a.into()),
            IntegerType::I8 => widen(from, out, |bytes| i8::from_le_bytes(bytes).into()),
            IntegerType::U16 => widen(from, out, |bytes| u16::from_le_bytes(bytes).into()),
            IntegerType::I16 => widen(from, out, |bytes| i16::from_le_bytes(bytes).into()),
            IntegerType::U32 => widen(from, out, |bytes| u32::from_le_bytes(bytes).into()),
            IntegerType::I32 => widen(from, out, |bytes| i32::from_le_bytes(bytes).into()),
            IntegerType::I64 => out.copy_from_slice(from),
        }
    }
}

fn widen<const N: usize>(from: &[u8], out: &mut [u8], read: impl Fn([u8; N]) -> i64) {
    let (elements, _) = from.as_chunks::<N>();
    for (slot, element) in out.chunks_exact_mut(8).zip(elements) {
        slot.copy_from_slice(&read(*element).to_le_bytes());
    }
}

/// What the tests of the formats share.
#[cfg(test)]
mod testing {
    use super::*;
    use std::path::PathBuf;

    /// A file of this name for one test under the system's folder for temporary files.
    pub(super) fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("galvatron-data-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder.join(name)
    }

    pub(super) fn array(name: &str, dtype: ElementType, sample_shape: &[usize]) -> ArraySpec {
        ArraySpec { name: name.into(), dtype, sample_shape: sample_shape.into() }
    }

    pub(super) fn spec(inputs: &[ArraySpec], labels: Option<ArraySpec>, shift: Option<bool>) -> DataSpec {
        DataSpec { inputs: inputs.into(), labels, shift, ignore_index: -100, seed: 0, shuffle: false }
    }

    /// One sample of a named array as integers.
    pub(super) fn row(data: &Dataset, name: &str, sample: u64) -> Vec<i64> {
        let id = data.array(name).unwrap();
        let mut out = vec![0; data.arrays()[id.0].sample_bytes()];
        data.fill(id, sample, &mut out);
        match data.arrays()[id.0].dtype {
            ElementType::I64 => out.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect(),
            ElementType::F32 => out.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes) as i64).collect(),
        }
    }

    pub(super) fn messages(result: Checked<Dataset>) -> Vec<String> {
        result.unwrap_err().into_iter().map(|fault| format!("{}|{}", fault.code, fault.message)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    #[test]
    fn integers_are_widened() {
        let mut out = [0; 16];
        IntegerType::U16.widen(&[0xFF, 0xFF, 1, 0], &mut out);
        assert_eq!(out, [0xFF, 0xFF, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        IntegerType::I8.widen(&[0xFE, 2], &mut out);
        assert_eq!(i64::from_le_bytes(out[..8].try_into().unwrap()), -2);
    }

    #[test]
    fn other_files_are_refused() {
        let faults = messages(Dataset::open(Path::new("x.csv"), &spec(&[], None, None)));
        assert_eq!(faults, ["data-file|`x.csv`: expected a `.safetensors` or a `.bin` file"]);
        let path = scratch("missing.bin");
        let tokens = [testing::array("ids", ElementType::I64, &[2])];
        assert!(messages(Dataset::open(&path, &spec(&tokens, None, None)))[0].starts_with("data-file|"));
        let path = scratch("empty.safetensors");
        std::fs::write(&path, "").unwrap();
        assert!(messages(Dataset::open(&path, &spec(&[], None, None)))[0].ends_with("the file is empty"));
    }
}
