//! One safetensors file: its header, and its tensors as f32.

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A safetensors file. It is read and not mapped: mapped pages would count as memory of this process.
pub struct Archive {
    path: PathBuf,
    file: Mutex<File>,
    tensors: BTreeMap<String, StoredTensor>,
}

/// Where a tensor lies in its file, and as what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// Element type.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<u64>,
    /// First byte in the file.
    pub offset: u64,
}

impl StoredTensor {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

impl Archive {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(path: &Path) -> Result<Archive, String> {
        let file = File::open(path).map_err(|e| format!("cannot open `{}`: {e}", path.display()))?;
        let (header, start) = read_header(&file).map_err(|what| format!("`{}`: {what}", path.display()))?;
        let stored = |name: String| {
            let info = header.info(&name)?;
            let shape = info.shape.iter().map(|&d| d as u64).collect();
            let offset = start + info.data_offsets.0 as u64;
            Some((name, StoredTensor { dtype: info.dtype, shape, offset }))
        };
        let tensors = header.offset_keys().into_iter().filter_map(stored).collect();
        Ok(Archive { path: path.to_path_buf(), file: Mutex::new(file), tensors })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, StoredTensor> {
        &self.tensors
    }

    /// The tensor of `n` elements that begins at a byte of the file.
    pub fn at(&self, offset: u64, n: u64) -> Option<&StoredTensor> {
        self.tensors.values().find(|t| t.offset == offset && t.elements() == n)
    }

    /// The elements of a tensor; F16 and BF16 are widened.
    ///
    /// # Errors
    /// When it cannot be read, or has another element type.
    pub fn read(&self, tensor: &StoredTensor) -> Result<Vec<f32>, String> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let n = tensor.elements() as usize;
        let floats = match tensor.dtype {
            Dtype::F32 => read_elements(&file, tensor.offset, n, f32::from_le_bytes),
            Dtype::BF16 => {
                read_elements(&file, tensor.offset, n, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16))
            }
            Dtype::F16 => read_elements(&file, tensor.offset, n, |b| from_f16(u16::from_le_bytes(b))),
            other => Err(format!("it holds {other:?} elements; convert them to F32, F16 or BF16")),
        };
        floats.map_err(|what| format!("`{}`: {what}", self.path.display()))
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

/// An IEEE half as a single; exact.
fn from_f16(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (u32::from(bits >> 15) << 31, u32::from(bits >> 10) & 31, u32::from(bits) & 0x3FF);
    match exponent {
        0 => f32::from_bits(sign | (fraction as f32 * (-24f32).exp2()).to_bits()),
        31 => f32::from_bits(sign | 0x7F80_0000 | (fraction << 13)),
        _ => f32::from_bits(sign | ((exponent + 112) << 23) | (fraction << 13)),
    }
}

/// Bytes that are read at a time; a whole number of elements of any size.
pub(super) const PIECE: usize = 1 << 20;

/// `n` elements of N little-endian bytes each from a byte offset on, read in pieces.
pub(super) fn read_elements<const N: usize>(
    mut file: &File,
    offset: u64,
    n: usize,
    decode: impl Fn([u8; N]) -> f32,
) -> Result<Vec<f32>, String> {
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    let bytes = n * N;
    if offset.checked_add(bytes as u64).is_none_or(|end| end > length) {
        return Err(format!("{bytes} bytes from {offset} on are beyond its end"));
    }
    file.seek(SeekFrom::Start(offset)).map_err(|e| e.to_string())?;
    let (mut floats, mut piece) = (Vec::with_capacity(n), vec![0; PIECE.min(bytes)]);
    while floats.len() < n {
        let piece = &mut piece[..PIECE.min(bytes - N * floats.len())];
        file.read_exact(piece).map_err(|e| e.to_string())?;
        floats.extend(piece.as_chunks().0.iter().map(|bytes| decode(*bytes)));
    }
    Ok(floats)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_widened_exactly() {
        let known = [(0x0000, 0.0), (0x3C00, 1.0), (0xC000, -2.0), (0x7BFF, 65504.0), (0x0001, (-24f32).exp2())];
        for (bits, value) in known.into_iter().chain([(0x03FF, 1023.0 * (-24f32).exp2()), (0xFC00, f32::NEG_INFINITY)])
        {
            assert_eq!(from_f16(bits), value, "{bits:#x}");
        }
        assert!(from_f16(0x7E00).is_nan());
    }
}
