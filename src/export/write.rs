//! Writes a draft: each file beside its place first, and into its place when all of them are whole.

use super::draft::{Draft, Elements};
use super::elements::{encode, transpose};
use super::matching::Trained;
use super::splice::Piece;
use crate::import::onnx::weights::InitializerSource;
use galvatron_ir::diagnostic::Diagnostic;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A file that is not in its place yet; what is left of it goes when it is dropped.
struct Part {
    path: PathBuf,
    part: PathBuf,
}

impl Part {
    /// Writes a file beside its place.
    fn write(
        path: &Path,
        write: impl FnOnce(&mut BufWriter<File>) -> Result<(), Diagnostic>,
    ) -> Result<Part, Diagnostic> {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.part", std::process::id()));
        let part = Part { path: path.to_path_buf(), part: path.with_file_name(name) };
        let fault = |e| cannot_write(path, &e);
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&part.part).map_err(fault)?);
        write(&mut out)?;
        out.flush().map_err(fault)?;
        Ok(part)
    }

    /// Takes the file's place.
    fn place(self) -> Result<(), Diagnostic> {
        std::fs::rename(&self.part, &self.path).map_err(|e| cannot_write(&self.path, &e))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // After it took its place there is nothing left to remove.
        drop(std::fs::remove_file(&self.part));
    }
}

fn cannot_write(path: &Path, e: &io::Error) -> Diagnostic {
    Diagnostic::new("file", format!("cannot write `{}`: {e}", path.display()))
}

/// Writes the model, and what lies beside it to `data`.
///
/// # Errors
/// Code `file` for what cannot be written, `weights` and `onnx-external-data` for what cannot be read.
pub(super) fn write(draft: &Draft<'_>, original: &[u8], path: &Path, data: &Path) -> Result<(), Diagnostic> {
    let beside = (!draft.beside.is_empty()).then(|| Part::write(data, |out| put_beside(draft, original, data, out)));
    let beside = beside.transpose()?;
    let model = Part::write(path, |out| {
        for piece in &draft.model.list {
            match piece {
                Piece::Copy(range) => put(&original[range.clone()], path, out)?,
                Piece::New(bytes) => put(bytes, path, out)?,
                Piece::Elements(number, _) => put_elements(&draft.elements[*number], original, path, out)?,
            }
        }
        Ok(())
    })?;
    beside.map_or(Ok(()), Part::place)?;
    model.place()
}

fn put(bytes: &[u8], path: &Path, out: &mut impl Write) -> Result<(), Diagnostic> {
    out.write_all(bytes).map_err(|e| cannot_write(path, &e))
}

/// Writes the tensors of a file of weights, with zeros between them.
fn put_beside(draft: &Draft<'_>, original: &[u8], path: &Path, out: &mut impl Write) -> Result<(), Diagnostic> {
    let mut end = 0;
    for &(number, start, n_bytes) in &draft.beside {
        put(&vec![0; (start - end) as usize], path, out)?;
        put_elements(&draft.elements[number], original, path, out)?;
        end = start + n_bytes;
    }
    Ok(())
}

fn put_elements(elements: &Elements<'_>, original: &[u8], path: &Path, out: &mut impl Write) -> Result<(), Diagnostic> {
    match elements {
        Elements::Trained(trained) => put(&trained_bytes(trained)?, path, out),
        Elements::Inside(range) => put(&original[range.clone()], path, out),
        Elements::Beside(source) => copy(source, path, out),
    }
}

/// The bytes of a trained tensor.
fn trained_bytes(trained: &Trained<'_>) -> Result<Vec<u8>, Diagnostic> {
    let Trained { record, archive, stored, transposed } = trained;
    let mut values = archive.read(stored).map_err(|what| Diagnostic::new("weights", what))?;
    if let (true, &[rows, columns]) = (*transposed, &stored.shape[..]) {
        values = transpose(&values, rows as usize, columns as usize);
    }
    encode(&values, record.dtype).map_err(|index| {
        let (name, value) = (&record.name, values[index]);
        let message = format!("element {index} of `{name}` is {value}, for which {} has no room", record.dtype.name());
        Diagnostic::new("weights", message).help("export the model in single precision")
    })
}

/// Copies the elements of a tensor from a file beside the original.
fn copy(source: &InitializerSource, path: &Path, out: &mut impl Write) -> Result<(), Diagnostic> {
    let fault = |what: String| {
        let message = format!("cannot read `{}`, in which a tensor of the model lies: {what}", source.file);
        Diagnostic::new("onnx-external-data", message).help("put it beside the model")
    };
    let open = || {
        let mut file = File::open(&source.file)?;
        file.seek(SeekFrom::Start(source.offset))?;
        Ok(file)
    };
    let mut file = open().map_err(|e: io::Error| fault(e.to_string()))?.take(source.bytes);
    let mut piece = vec![0; 1 << 20];
    let mut n_left = source.bytes;
    while n_left > 0 {
        let n = match file.read(&mut piece) {
            Ok(0) => return Err(fault(format!("it ends {n_left} bytes too early"))),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(fault(e.to_string())),
        };
        put(&piece[..n], path, out)?;
        n_left -= n as u64;
    }
    Ok(())
}
