//! Named arrays in a `.safetensors` file: the first dimension counts samples.

use std::path::Path;

use galvatron_ir::diagnostic::{Checked, Diagnostic};
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::{ArrayId, ArraySpec, DataSpec, ElementType, IntegerType, fill_ones, map};

/// Names of the input whose next token is the label, where several inputs could be it; first the decoder's.
const TOKEN_INPUTS: [&str; 3] = ["decoder_input_ids", "input_ids", "tokens"];

/// Most arrays that a diagnostic lists.
const SHOWN: usize = 12;

/// A mapped file and where its arrays lie.
#[derive(Debug)]
pub(super) struct ArrayFile {
    map: Mmap,
    columns: Vec<Column>,
    n_samples: u64,
    ignore_index: i64,
}

/// Where one array of the model comes from.
#[derive(Clone, Debug)]
enum Column {
    /// A mask that the file lacks.
    Ones(ElementType),
    /// Rows of the file.
    Stored(Stored),
    /// Rows of the file, moved one place to the left along the last axis, whose extent is `length`.
    Shifted { stored: Stored, length: usize },
}

/// An array of the file, `[samples, …]`.
#[derive(Clone, Debug)]
struct Stored {
    /// Byte in the file where the first row begins.
    begin: usize,
    /// Bytes of one row.
    row_bytes: usize,
    n_samples: u64,
    /// How integers are stored; `None` for f32.
    integer: Option<IntegerType>,
}

impl ArrayFile {
    pub(super) fn open(path: &Path, spec: &DataSpec) -> Checked<Self> {
        let map = map(path).map_err(|fault| vec![fault])?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| {
            let message = format!("`{}`: not a safetensors file: {error}", path.display());
            vec![Diagnostic::new("data-file", message)]
        })?;
        let resolver = Resolver { metadata: &metadata, begin: 8 + header, spec };
        let columns = resolver.columns()?;
        let n_samples = common_samples(&columns, spec)?;
        Ok(ArrayFile { columns, n_samples, ignore_index: spec.ignore_index, map })
    }

    pub(super) fn n_samples(&self) -> u64 {
        self.n_samples
    }

    pub(super) fn fill(&self, array: ArrayId, row: u64, out: &mut [u8]) {
        match &self.columns[array.0] {
            Column::Ones(dtype) => fill_ones(*dtype, out),
            Column::Stored(stored) => self.copy(stored, row, out),
            Column::Shifted { stored, length } => {
                self.copy(stored, row, out);
                out.chunks_exact_mut(length * 8).for_each(|tokens| {
                    tokens.copy_within(8.., 0);
                    let last = tokens.len() - 8;
                    tokens[last..].copy_from_slice(&self.ignore_index.to_le_bytes());
                });
            }
        }
    }

    fn copy(&self, stored: &Stored, row: u64, out: &mut [u8]) {
        let begin = stored.begin + row as usize * stored.row_bytes;
        let bytes = &self.map[begin..begin + stored.row_bytes];
        match stored.integer {
            Some(integer) => integer.widen(bytes, out),
            None => out.copy_from_slice(bytes),
        }
    }
}

/// Finds the model's arrays in the header of a file.
struct Resolver<'a> {
    metadata: &'a Metadata,
    /// Byte where the data begins.
    begin: usize,
    spec: &'a DataSpec,
}

impl Resolver<'_> {
    fn columns(&self) -> Checked<Vec<Column>> {
        let inputs = self.spec.inputs.iter().map(|array| self.input(array));
        let labels = self.spec.labels.iter().map(|array| self.labels(array));
        let (mut columns, mut faults) = (Vec::new(), Vec::new());
        for column in inputs.chain(labels) {
            match column {
                Ok(column) => columns.push(column),
                Err(fault) => faults.push(fault),
            }
        }
        if faults.is_empty() { Ok(columns) } else { Err(faults) }
    }

    fn input(&self, array: &ArraySpec) -> Result<Column, Diagnostic> {
        match self.metadata.info(&array.name) {
            Some(info) => self.stored(array, info).map(Column::Stored),
            None if array.is_mask() => Ok(Column::Ones(array.dtype)),
            None => Err(self.missing(array)),
        }
    }

    fn labels(&self, labels: &ArraySpec) -> Result<Column, Diagnostic> {
        let info = self.metadata.info(&labels.name);
        match (self.spec.shift, info) {
            (Some(true), _) | (None, None) => self.shifted(labels),
            (_, Some(info)) => self.stored(labels, info).map(Column::Stored),
            (Some(false), None) => Err(self.missing(labels)),
        }
    }

    /// The next token of the input that has the labels' shape.
    fn shifted(&self, labels: &ArraySpec) -> Result<Column, Diagnostic> {
        let fits = |input: &&ArraySpec| {
            input.dtype == ElementType::I64 && input.sample_shape == labels.sample_shape && !input.is_mask()
        };
        let fitting: Vec<&ArraySpec> = self.spec.inputs.iter().filter(fits).collect();
        let named = TOKEN_INPUTS.iter().find_map(|name| fitting.iter().find(|input| input.name == *name));
        let tokens = match (named, fitting.as_slice()) {
            (Some(tokens), _) | (None, [tokens]) => *tokens,
            _ => return Err(self.no_tokens(labels, &fitting)),
        };
        let Some(&length) = labels.sample_shape.last().filter(|length| **length > 0) else {
            return Err(self.no_tokens(labels, &[]));
        };
        let info = self.metadata.info(&tokens.name).ok_or_else(|| self.missing(tokens))?;
        Ok(Column::Shifted { stored: self.stored(tokens, info)?, length })
    }

    fn stored(&self, array: &ArraySpec, info: &TensorInfo) -> Result<Stored, Diagnostic> {
        let integer = integer_type(info.dtype);
        let fits = match array.dtype {
            ElementType::F32 => info.dtype == Dtype::F32,
            ElementType::I64 => integer.is_some(),
        };
        let n_samples = info.shape.first().copied().unwrap_or(0) as u64;
        if !fits || n_samples == 0 || info.shape[1..] != array.sample_shape {
            let (name, dtype, shape) = (&array.name, array.dtype.name(), &array.sample_shape);
            let wanted = std::iter::once("samples".to_string()).chain(shape.iter().map(usize::to_string));
            let wanted = wanted.collect::<Vec<_>>().join(", ");
            let message = format!("`{name}`: expected {dtype}[{wanted}], found {}", show(info));
            return Err(Diagnostic::new("data-array", message));
        }
        let element_bytes = integer.map_or(4, IntegerType::bytes);
        let row_bytes = array.n_elements() * element_bytes;
        Ok(Stored { begin: self.begin + info.data_offsets.0, row_bytes, n_samples, integer })
    }

    fn missing(&self, array: &ArraySpec) -> Diagnostic {
        let message = format!("`{}`: not in the data", array.name);
        Diagnostic::new("data-array", message).help(self.inventory())
    }

    fn no_tokens(&self, labels: &ArraySpec, fitting: &[&ArraySpec]) -> Diagnostic {
        let (name, shape) = (&labels.name, &labels.sample_shape);
        let names: Vec<String> = fitting.iter().map(|input| format!("`{}`", input.name)).collect();
        let found = if names.is_empty() { "none".to_string() } else { names.join(", ") };
        let message = format!(
            "`{name}`: expected one integer input of the shape {shape:?} to take the next tokens from, found {found}"
        );
        let help = format!("put an array `{name}` into the data and set `loss.shift = false`; {}", self.inventory());
        Diagnostic::new("data-array", message).help(help)
    }

    /// What the file has, sorted by name; of many arrays the first few.
    fn inventory(&self) -> String {
        let mut names = self.metadata.offset_keys();
        names.sort();
        let show = |name: &String| self.metadata.info(name).map(|info| format!("`{name}` {}", show(info)));
        let arrays: Vec<String> = names.iter().take(SHOWN).filter_map(show).collect();
        match (names.len(), names.len().saturating_sub(SHOWN)) {
            (0, _) => "the file has no arrays".into(),
            (_, 0) => format!("the file has {}", arrays.join(", ")),
            (_, more) => format!("the file has {} and {more} more", arrays.join(", ")),
        }
    }
}

fn show(info: &TensorInfo) -> String {
    let shape: Vec<String> = info.shape.iter().map(usize::to_string).collect();
    format!("{}[{}]", format!("{:?}", info.dtype).to_lowercase(), shape.join(", "))
}

fn integer_type(dtype: Dtype) -> Option<IntegerType> {
    match dtype {
        Dtype::BOOL | Dtype::U8 => Some(IntegerType::U8),
        Dtype::I8 => Some(IntegerType::I8),
        Dtype::U16 => Some(IntegerType::U16),
        Dtype::I16 => Some(IntegerType::I16),
        Dtype::U32 => Some(IntegerType::U32),
        Dtype::I32 => Some(IntegerType::I32),
        Dtype::I64 => Some(IntegerType::I64),
        _ => None,
    }
}

/// The number of samples, on which all arrays must agree.
fn common_samples(columns: &[Column], spec: &DataSpec) -> Checked<u64> {
    let arrays = spec.inputs.iter().chain(&spec.labels);
    let counted = arrays.zip(columns).filter_map(|(array, column)| match column {
        Column::Ones(_) => None,
        Column::Stored(stored) | Column::Shifted { stored, .. } => Some((&array.name, stored.n_samples)),
    });
    let counted: Vec<_> = counted.collect();
    let Some((first, n_samples)) = counted.first() else {
        return Err(vec![Diagnostic::new("data-array", "the data has none of the model's inputs")]);
    };
    let fault = |name: &String, count: u64| {
        let message = format!("`{name}` has {count} samples, `{first}` has {n_samples}: expected the same number");
        Diagnostic::new("data-array", message)
    };
    let faults: Vec<_> =
        counted.iter().filter(|c| c.1 != *n_samples).map(|(name, count)| fault(name, *count)).collect();
    if faults.is_empty() { Ok(*n_samples) } else { Err(faults) }
}

#[cfg(test)]
mod tests {
    use super::super::Dataset;
    use super::super::testing::*;
    use super::*;
    use ElementType::{F32, I64};
    use safetensors::tensor::TensorView;

    /// Writes arrays whose element at flat position i is `base + i`.
    fn write(name: &str, arrays: &[(&str, Dtype, &[usize], i64)]) -> std::path::PathBuf {
        let bytes = |dtype: Dtype, shape: &[usize], base: i64| -> Vec<u8> {
            let values = (0..shape.iter().product::<usize>() as i64).map(|i| base + i);
            match dtype {
                Dtype::F32 => values.flat_map(|v| (v as f32).to_le_bytes()).collect(),
                Dtype::I32 => values.flat_map(|v| (v as i32).to_le_bytes()).collect(),
                _ => values.flat_map(i64::to_le_bytes).collect(),
            }
        };
        let data: Vec<Vec<u8>> = arrays.iter().map(|(_, dtype, shape, base)| bytes(*dtype, shape, *base)).collect();
        let view = |((name, dtype, shape, _), data): (&(&str, Dtype, &[usize], i64), _)| {
            (name.to_string(), TensorView::new(*dtype, shape.to_vec(), data).unwrap())
        };
        let views: Vec<(String, TensorView<'_>)> =
            arrays.iter().zip(data.iter().map(Vec::as_slice)).map(view).collect();
        let path = scratch(name);
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        path
    }

    fn check_fault(
        name: &str,
        inputs: &[ArraySpec],
        labels: Option<ArraySpec>,
        shift: Option<bool>,
        expected: &[&str],
    ) {
        let path = write(name, &[("ids", Dtype::I64, &[3, 2], 0), ("x", Dtype::F32, &[4], 0)]);
        assert_eq!(messages(Dataset::open(&path, &spec(inputs, labels, shift))), expected);
    }

    #[test]
    fn rows_are_cycled_and_masks_are_ones() {
        let path = write(
            "rows.safetensors",
            &[("ids", Dtype::I32, &[3, 2], -1), ("x", Dtype::F32, &[3, 1, 2], 10), ("labels", Dtype::I64, &[3], 7)],
        );
        let inputs = [array("ids", I64, &[2]), array("attention_mask", F32, &[2]), array("x", F32, &[1, 2])];
        let data = Dataset::open(&path, &spec(&inputs, Some(array("labels", I64, &[])), None)).unwrap();
        assert_eq!((data.n_samples(), row(&data, "ids", 0), row(&data, "ids", 4)), (3, vec![-1, 0], vec![1, 2]));
        assert_eq!((row(&data, "attention_mask", 0), row(&data, "x", 2)), (vec![1, 1], vec![14, 15]));
        assert_eq!(row(&data, "labels", 5), [9]);
    }

    #[test]
    fn shifted_labels_are_the_next_tokens() {
        let path = write("shift.safetensors", &[("ids", Dtype::I64, &[2, 3], 0), ("labels", Dtype::I64, &[2, 3], 50)]);
        let labels = |shift, name: &str| {
            let spec = spec(&[array("ids", I64, &[3])], Some(array(name, I64, &[3])), shift);
            row(&Dataset::open(&path, &spec).unwrap(), name, 1)
        };
        assert_eq!(labels(Some(true), "labels"), [4, 5, -100]);
        assert_eq!(labels(None, "labels"), [53, 54, 55]);
        assert_eq!(labels(Some(false), "labels"), [53, 54, 55]);
        assert_eq!(labels(None, "targets"), [4, 5, -100]);
    }

    #[test]
    fn decoder_tokens_win_over_encoder_tokens() {
        let path = write(
            "t5.safetensors",
            &[("input_ids", Dtype::I64, &[1, 2], 0), ("decoder_input_ids", Dtype::I64, &[1, 2], 5)],
        );
        let inputs = [array("input_ids", I64, &[2]), array("decoder_input_ids", I64, &[2])];
        let data = Dataset::open(&path, &spec(&inputs, Some(array("labels", I64, &[2])), None)).unwrap();
        assert_eq!(row(&data, "labels", 0), [6, -100]);
    }

    #[test]
    fn wrong_arrays_are_all_reported() {
        check_fault(
            "wrong.safetensors",
            &[array("ids", F32, &[2]), array("x", F32, &[5]), array("y", I64, &[])],
            None,
            None,
            &[
                "data-array|`ids`: expected f32[samples, 2], found i64[3, 2]",
                "data-array|`x`: expected f32[samples, 5], found f32[4]",
                "data-array|`y`: not in the data",
            ],
        );
        check_fault(
            "counts.safetensors",
            &[array("ids", I64, &[2]), array("x", F32, &[])],
            None,
            None,
            &["data-array|`x` has 4 samples, `ids` has 3: expected the same number"],
        );
    }

    #[test]
    fn missing_labels_are_reported_with_what_there_is() {
        let path = write("labels.safetensors", &[("ids", Dtype::I64, &[3, 2], 0)]);
        let open = |labels, shift| Dataset::open(&path, &spec(&[array("ids", I64, &[2])], Some(labels), shift));
        let faults = open(array("labels", I64, &[2]), Some(false)).unwrap_err();
        assert_eq!(faults[0].help.as_deref(), Some("the file has `ids` i64[3, 2]"));
        let faults = messages(open(array("labels", I64, &[7]), None));
        assert!(
            faults[0].ends_with("expected one integer input of the shape [7] to take the next tokens from, found none")
        );
    }

    #[test]
    fn a_broken_file_is_refused() {
        let path = scratch("broken.safetensors");
        std::fs::write(&path, [9u8; 40]).unwrap();
        assert!(messages(Dataset::open(&path, &spec(&[], None, None)))[0].contains("not a safetensors file"));
    }
}
