//! Streams of tokens: a `.bin` of u16, or Megatron's `.bin` with its `.idx`, cut into windows.

use std::path::Path;

use galvatron_ir::diagnostic::{Checked, Diagnostic};
use memmap2::Mmap;

use super::{ArrayId, ArraySpec, DataSpec, ElementType, IntegerType, fill_ones, map};

/// First bytes of Megatron's index.
const MAGIC: &[u8; 9] = b"MMIDIDX\0\0";

/// A mapped stream and how the model's arrays are cut from it.
#[derive(Debug)]
pub(super) struct TokenFile {
    stream: Stream,
    columns: Vec<Column>,
    /// Tokens from one window to the next, and in one window.
    sequence: usize,
    n_samples: u64,
}

/// Where one array of the model comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    /// A mask.
    Ones(ElementType),
    /// The tokens of the window.
    Tokens,
    /// The token behind each token of the window.
    NextTokens,
}

impl TokenFile {
    pub(super) fn open(path: &Path, spec: &DataSpec) -> Checked<Self> {
        let (columns, sequence) = columns(spec)?;
        let stream = Stream::open(path).map_err(|fault| vec![fault])?;
        let extra = u64::from(columns.contains(&Column::NextTokens));
        let n_samples = stream.n_tokens.saturating_sub(extra) / sequence as u64;
        if n_samples == 0 {
            let (path, tokens, needed) = (path.display(), stream.n_tokens, sequence as u64 + extra);
            let message = format!("`{path}`: {tokens} tokens, expected at least the {needed} of one sample");
            return Err(vec![Diagnostic::new("data-file", message)]);
        }
        Ok(TokenFile { stream, columns, sequence, n_samples })
    }

    pub(super) fn n_samples(&self) -> u64 {
        self.n_samples
    }

    pub(super) fn fill(&self, array: ArrayId, row: u64, out: &mut [u8]) {
        let first = row * self.sequence as u64;
        match self.columns[array.0] {
            Column::Ones(dtype) => fill_ones(dtype, out),
            Column::Tokens => self.stream.read(first, out),
            Column::NextTokens => self.stream.read(first + 1, out),
        }
    }
}

/// What each array is, and the length of a window: the one integer input that is no mask takes the tokens.
fn columns(spec: &DataSpec) -> Checked<(Vec<Column>, usize)> {
    let is_tokens = |array: &ArraySpec| array.dtype == ElementType::I64 && array.sample_shape.len() == 1;
    let fitting = |array: &&ArraySpec| !array.is_mask() && is_tokens(array) && array.sample_shape[0] > 0;
    let candidates: Vec<&ArraySpec> = spec.inputs.iter().filter(fitting).collect();
    let named = candidates.iter().find(|array| array.name == "input_ids");
    let Some(tokens) = named.or(candidates.first()) else {
        return Err(vec![fault("the model has no integer input [batch, sequence] that could take a stream of tokens")]);
    };
    let (mut columns, mut faults) = (Vec::new(), Vec::new());
    for input in &spec.inputs {
        match input {
            _ if input == *tokens => columns.push(Column::Tokens),
            _ if input.is_mask() => columns.push(Column::Ones(input.dtype)),
            _ => faults.push(fault(&format!("`{}`: not in the data", input.name)).help(format!(
                "a stream of tokens gives `{}` only; put the inputs into a `.safetensors` file",
                tokens.name
            ))),
        }
    }
    if let Some(labels) = &spec.labels {
        columns.push(Column::NextTokens);
        faults.extend(check_labels(labels, tokens, spec.shift));
    }
    if faults.is_empty() { Ok((columns, tokens.sample_shape[0])) } else { Err(faults) }
}

fn check_labels(labels: &ArraySpec, tokens: &ArraySpec, shift: Option<bool>) -> Option<Diagnostic> {
    let name = &labels.name;
    if shift == Some(false) {
        let help = "set `loss.shift = true` to predict the next token";
        return Some(fault(&format!("`{name}`: a stream of tokens has no labels")).help(help));
    }
    let wrong = labels.dtype != ElementType::I64 || labels.sample_shape != tokens.sample_shape;
    let (dtype, shape, wanted) = (labels.dtype.name(), &labels.sample_shape, &tokens.sample_shape);
    wrong.then(|| fault(&format!("`{name}`: the next tokens are i64{wanted:?}, the labels are {dtype}{shape:?}")))
}

fn fault(message: &str) -> Diagnostic {
    Diagnostic::new("data-array", message)
}

/// All documents of a file, one behind the other.
#[derive(Debug)]
struct Stream {
    map: Mmap,
    integer: IntegerType,
    n_tokens: u64,
    /// Runs of tokens that lie together in the file, in the order of the stream; the first begins at token 0.
    runs: Vec<Run>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first_token: u64,
    /// Byte in the file where the first token lies.
    begin: u64,
}

impl Stream {
    fn open(path: &Path) -> Result<Self, Diagnostic> {
        let index_path = path.with_extension("idx");
        let map = map(path)?;
        let fault = |path: &Path, what: &str| Diagnostic::new("data-file", format!("`{}`: {what}", path.display()));
        if index_path.exists() {
            let index = self::map(&index_path)?;
            let (integer, n_tokens, runs) =
                read_index(&index, map.len() as u64).map_err(|what| fault(&index_path, &what))?;
            return Ok(Stream { map, integer, n_tokens, runs });
        }
        if !map.len().is_multiple_of(2) {
            return Err(fault(path, &format!("{} bytes, expected an even number: u16 tokens", map.len())));
        }
        let n_tokens = map.len() as u64 / 2;
        Ok(Stream { map, integer: IntegerType::U16, n_tokens, runs: vec![Run { first_token: 0, begin: 0 }] })
    }

    /// Writes the tokens from `first` on as i64 until `out` is full.
    fn read(&self, mut first: u64, mut out: &mut [u8]) {
        let mut run = self.runs.partition_point(|run| run.first_token <= first) - 1;
        while !out.is_empty() {
            let end = self.runs.get(run + 1).map_or(self.n_tokens, |next| next.first_token);
            let here = ((end - first) as usize).min(out.len() / 8);
            let begin =
                (self.runs[run].begin + (first - self.runs[run].first_token) * self.integer.bytes() as u64) as usize;
            let (filled, rest) = out.split_at_mut(here * 8);
            self.integer.widen(&self.map[begin..begin + here * self.integer.bytes()], filled);
            (first, run, out) = (end, run + 1, rest);
        }
    }
}

/// Reads Megatron-LM's index (`megatron/core/datasets/indexed_dataset.py`): magic, version u64 = 1, dtype code u8,
/// number of sequences u64, number of document marks u64; then i32 lengths in tokens and i64 byte offsets of the
/// sequences, and i64 document marks (sequence numbers, the first 0, the last the number of sequences).
fn read_index(index: &[u8], bin_bytes: u64) -> Result<(IntegerType, u64, Vec<Run>), String> {
    let mut cursor = Cursor { rest: index };
    if cursor.take(MAGIC.len())? != MAGIC {
        return Err("not a Megatron index: it does not begin with `MMIDIDX`".into());
    }
    let version = cursor.number()?;
    if version != 1 {
        return Err(format!("version {version} of the Megatron index, expected 1"));
    }
    let integer = token_type(cursor.take(1)?[0])?;
    let (n_sequences, n_marks) = (cursor.count()?, cursor.count()?);
    let lengths = cursor.array::<4>(n_sequences)?;
    let offsets = cursor.array::<8>(n_sequences)?;
    let marks = cursor.array::<8>(n_marks)?;
    if marks.last().is_some_and(|last| u64::from_le_bytes(*last) != n_sequences as u64) {
        return Err("the last document mark is not the number of sequences".into());
    }
    let (n_tokens, runs) = runs(lengths, offsets, integer.bytes() as u64, bin_bytes)?;
    Ok((integer, n_tokens, runs))
}

/// Number of tokens, and the runs; sequences that follow each other in the file are one run.
fn runs(lengths: &[[u8; 4]], offsets: &[[u8; 8]], width: u64, bin_bytes: u64) -> Result<(u64, Vec<Run>), String> {
    let (mut n_tokens, mut end, mut runs) = (0u64, None, Vec::new());
    for (sequence, (length, begin)) in lengths.iter().zip(offsets).enumerate() {
        let (length, begin) = (i32::from_le_bytes(*length), i64::from_le_bytes(*begin));
        let (Ok(length), Ok(begin)) = (u64::try_from(length), u64::try_from(begin)) else {
            return Err(format!("sequence {sequence} has {length} tokens at byte {begin}"));
        };
        if begin > bin_bytes || length * width > bin_bytes - begin {
            return Err(format!("sequence {sequence} ends behind the {bin_bytes} bytes of the `.bin` file"));
        }
        if length > 0 && end != Some(begin) {
            runs.push(Run { first_token: n_tokens, begin });
        }
        if length > 0 {
            end = Some(begin + length * width);
        }
        n_tokens += length;
    }
    Ok((n_tokens, runs))
}

/// The integer types of Megatron's dtype codes (6 and 7 are floats).
fn token_type(code: u8) -> Result<IntegerType, String> {
    match code {
        1 => Ok(IntegerType::U8),
        2 => Ok(IntegerType::I8),
        3 => Ok(IntegerType::I16),
        4 => Ok(IntegerType::I32),
        5 => Ok(IntegerType::I64),
        8 => Ok(IntegerType::U16),
        _ => Err(format!("dtype code {code}, expected an integer type")),
    }
}

/// The bytes of an index that are not read yet.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or("the index is cut short")?;
        self.rest = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array::<8>(1)?[0]))
    }

    fn count(&mut self) -> Result<usize, String> {
        usize::try_from(self.number()?).map_err(|_| "a count is too large".to_string())
    }

    fn array<const N: usize>(&mut self, n: usize) -> Result<&'a [[u8; N]], String> {
        let bytes = n.checked_mul(N).ok_or("the index is cut short")?;
        Ok(self.take(bytes)?.as_chunks().0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Dataset;
    use super::super::testing::*;
    use super::*;
    use ElementType::I64;
    use std::path::PathBuf;

    fn write_bin(name: &str, tokens: &[u16]) -> PathBuf {
        let path = scratch(name);
        std::fs::write(&path, tokens.iter().flat_map(|t| t.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
        path
    }

    fn index(code: u8, sequences: &[(i32, i64)]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(1u64.to_le_bytes());
        bytes.push(code);
        bytes.extend((sequences.len() as u64).to_le_bytes());
        bytes.extend((sequences.len() as u64 + 1).to_le_bytes());
        sequences.iter().for_each(|(length, _)| bytes.extend(length.to_le_bytes()));
        sequences.iter().for_each(|(_, begin)| bytes.extend(begin.to_le_bytes()));
        (0..=sequences.len() as i64).for_each(|mark| bytes.extend(mark.to_le_bytes()));
        bytes
    }

    fn language_model(sequence: usize) -> DataSpec {
        let inputs = [array("input_ids", I64, &[sequence]), array("attention_mask", I64, &[sequence])];
        spec(&inputs, Some(array("labels", I64, &[sequence])), None)
    }

    #[test]
    fn windows_share_only_the_last_label() {
        let path = write_bin("stream.bin", &[1, 2, 3, 4, 5, 6, 65535, 8]);
        let data = Dataset::open(&path, &language_model(3)).unwrap();
        assert_eq!(data.n_samples(), 2);
        assert_eq!((row(&data, "input_ids", 0), row(&data, "labels", 0)), (vec![1, 2, 3], vec![2, 3, 4]));
        assert_eq!((row(&data, "input_ids", 3), row(&data, "labels", 3)), (vec![4, 5, 6], vec![5, 6, 65535]));
        assert_eq!(row(&data, "attention_mask", 1), [1, 1, 1]);
    }

    #[test]
    fn without_labels_a_window_needs_no_further_token() {
        let path = write_bin("plain.bin", &[1, 2, 3, 4]);
        let open = |labels| Dataset::open(&path, &spec(&[array("ids", I64, &[2])], labels, None)).unwrap();
        assert_eq!(open(None).n_samples(), 2);
        assert_eq!(open(Some(array("labels", I64, &[2]))).n_samples(), 1);
    }

    #[test]
    fn shuffled_windows_are_a_permutation() {
        let path = write_bin("shuffle.bin", &(0..101).collect::<Vec<_>>());
        let data = Dataset::open(&path, &DataSpec { shuffle: true, seed: 5, ..language_model(2) }).unwrap();
        let firsts: Vec<i64> = (0..50).map(|s| row(&data, "input_ids", s)[0]).collect();
        let mut sorted = firsts.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq((0..100).step_by(2)) && firsts[..5] != [0, 2, 4, 6, 8]);
    }

    #[test]
    fn megatron_documents_are_one_stream() {
        let path = scratch("megatron.bin");
        std::fs::write(&path, (10i32..18).flat_map(i32::to_le_bytes).collect::<Vec<u8>>()).unwrap();
        let documents = [(2, 16), (0, 0), (3, 0), (1, 12), (1, 28)];
        std::fs::write(path.with_extension("idx"), index(4, &documents)).unwrap();
        let data = Dataset::open(&path, &language_model(3)).unwrap();
        assert_eq!(data.n_samples(), 2);
        assert_eq!((row(&data, "input_ids", 0), row(&data, "labels", 0)), (vec![14, 15, 10], vec![15, 10, 11]));
        assert_eq!((row(&data, "input_ids", 1), row(&data, "labels", 1)), (vec![11, 12, 13], vec![12, 13, 17]));
    }

    #[test]
    fn sequences_in_a_row_are_one_run() {
        let (_, tokens, runs) = read_index(&index(8, &[(3, 0), (2, 6), (1, 20)]), 22).unwrap();
        assert_eq!(tokens, 6);
        assert_eq!(runs, [Run { first_token: 0, begin: 0 }, Run { first_token: 5, begin: 20 }]);
    }

    #[test]
    fn broken_indices_are_refused() {
        let check = |bytes: &[u8], expected: &str| {
            let error = read_index(bytes, 8).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        let good = index(8, &[(4, 0)]);
        check(&good[..good.len() - 1], "cut short");
        check(b"something else entirely", "MMIDIDX");
        check(&index(7, &[(1, 0)]), "dtype code 7");
        check(&index(8, &[(5, 0)]), "ends behind");
        check(&index(8, &[(-1, 0)]), "-1 tokens");
        check(&index(8, &[(1, i64::MAX)]), "ends behind");
        let mut marks = good;
        *marks.last_mut().unwrap() = 9;
        check(&marks, "last document mark");
    }

    #[test]
    fn what_a_stream_cannot_give_is_reported() {
        let path = write_bin("faults.bin", &[1, 2, 3]);
        let open = |spec: DataSpec| messages(Dataset::open(&path, &spec));
        let spec = DataSpec { shift: Some(false), ..language_model(2) };
        assert_eq!(open(spec), ["data-array|`labels`: a stream of tokens has no labels"]);
        let mut spec = language_model(2);
        spec.inputs.push(array("position_ids", I64, &[2]));
        assert_eq!(open(spec), ["data-array|`position_ids`: not in the data"]);
        let spec = DataSpec { labels: Some(array("labels", I64, &[])), ..language_model(2) };
        assert_eq!(open(spec), ["data-array|`labels`: the next tokens are i64[2], the labels are i64[]"]);
        assert!(open(language_model(3))[0].ends_with("3 tokens, expected at least the 4 of one sample"));
        std::fs::write(scratch("odd.bin"), [1, 2, 3]).unwrap();
        assert!(messages(Dataset::open(&scratch("odd.bin"), &language_model(1)))[0].contains("even number"));
    }
}
