//! Where the elements of an ONNX tensor lie: inside the file, in a file beside it, or in the message itself.

use std::ops::Range;
use std::path::{Component, Path};

use bytes::Bytes;
use galvatron_ir::diagnostic::Diagnostic;
use prost::Message;

use super::proto::TensorProto;

/// Most elements that a tensor may have; a file that claims more is damaged.
pub const MAX_ELEMENTS: u64 = 1 << 48;

/// Type of the elements of an ONNX tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ElementType {
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
    /// IEEE half precision.
    F16,
    /// The upper half of a single-precision float.
    Bf16,
    /// Signed, 8 bits.
    I8,
    /// Signed, 16 bits.
    I16,
    /// Signed, 32 bits.
    I32,
    /// Signed, 64 bits.
    I64,
    /// Unsigned, 8 bits.
    U8,
    /// Unsigned, 16 bits.
    U16,
    /// Unsigned, 32 bits.
    U32,
    /// Unsigned, 64 bits.
    U64,
    /// Truth value, one byte.
    Bool,
    /// A type that the importer can carry but not compute with.
    Other {
        /// Its `TensorProto.DataType` number.
        number: u8,
        /// Width of one element.
        bits: u8,
    },
}

impl ElementType {
    /// The type behind a `TensorProto.DataType` number; none for strings, `UNDEFINED` and numbers not in use.
    pub fn from_number(number: i32) -> Option<Self> {
        Some(match number {
            1 => Self::F32,
            2 => Self::U8,
            3 => Self::I8,
            4 => Self::U16,
            5 => Self::I16,
            6 => Self::I32,
            7 => Self::I64,
            9 => Self::Bool,
            10 => Self::F16,
            11 => Self::F64,
            12 => Self::U32,
            13 => Self::U64,
            16 => Self::Bf16,
            14 => Self::Other { number: 14, bits: 64 },
            15 => Self::Other { number: 15, bits: 128 },
            17..=20 | 24 => Self::Other { number: number as u8, bits: 8 },
            21..=23 => Self::Other { number: number as u8, bits: 4 },
            25 | 26 => Self::Other { number: number as u8, bits: 2 },
            _ => return None,
        })
    }

    /// Width of one element in bits.
    pub fn bits(self) -> u64 {
        match self {
            Self::Bool | Self::I8 | Self::U8 => 8,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 16,
            Self::F32 | Self::I32 | Self::U32 => 32,
            Self::F64 | Self::I64 | Self::U64 => 64,
            Self::Other { bits, .. } => u64::from(bits),
        }
    }

    /// Whether the elements are floating-point numbers, as weights are.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64 | Self::F16 | Self::Bf16)
    }

    /// Name in messages, as in ONNX documentation.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float",
            Self::F64 => "double",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
            Self::I8 => "int8",
            Self::I16 => "int16",
            Self::I32 => "int32",
            Self::I64 => "int64",
            Self::U8 => "uint8",
            Self::U16 => "uint16",
            Self::U32 => "uint32",
            Self::U64 => "uint64",
            Self::Bool => "bool",
            Self::Other { number: 14 | 15, .. } => "complex",
            Self::Other { .. } => "a sub-byte or 8-bit float type",
        }
    }
}

/// A byte range in a file that holds the elements of one tensor, little-endian and row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitializerSource {
    /// The file as the user typed it, or an external file beside it; it need not exist.
    pub file: String,
    /// Where the elements start.
    pub offset: u64,
    /// How many bytes they take.
    pub bytes: u64,
    /// Type of the elements.
    pub dtype: ElementType,
}

/// The elements of a tensor, or where they are.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorContent {
    /// Inside the ONNX file: the range, and a view of it.
    InFile(InitializerSource, Bytes),
    /// In a file beside the ONNX file.
    External(InitializerSource),
    /// Written as typed fields of the message (small tensors): the same bytes that raw data would hold.
    Values(Bytes),
}

/// A constant tensor of the file: an initializer, or the value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorRecord {
    /// Name of the initializer; usually empty in an attribute.
    pub name: String,
    /// Type of the elements.
    pub dtype: ElementType,
    /// Extents, outermost first; their product is at most [`MAX_ELEMENTS`].
    pub dims: Vec<u64>,
    /// The elements.
    pub content: TensorContent,
}

impl TensorRecord {
    /// The place in a file, unless the values stand in the message as typed fields.
    pub fn source(&self) -> Option<&InitializerSource> {
        match &self.content {
            TensorContent::InFile(source, _) | TensorContent::External(source) => Some(source),
            TensorContent::Values(_) => None,
        }
    }

    /// The little-endian bytes of the elements, unless they are in an external file.
    pub fn bytes(&self) -> Option<&[u8]> {
        match &self.content {
            TensorContent::InFile(_, bytes) | TensorContent::Values(bytes) => Some(bytes),
            TensorContent::External(_) => None,
        }
    }

    /// Number of elements.
    pub fn n_elements(&self) -> u64 {
        self.dims.iter().product()
    }
}

/// The file that tensors are read from.
pub struct TensorFile {
    /// The path as the user typed it.
    pub name: String,
    /// The whole content; raw data of decoded messages are views of it.
    pub bytes: Bytes,
}

impl TensorFile {
    /// Checks one tensor message and finds its elements.
    ///
    /// # Errors
    /// Codes `onnx-dtype`, `onnx-dims`, `onnx-tensor-length` and `onnx-external-data`.
    pub fn tensor(&self, proto: &TensorProto) -> Result<TensorRecord, Diagnostic> {
        let name = &proto.name;
        let dtype = ElementType::from_number(proto.data_type).ok_or_else(|| {
            let message = format!("tensor `{name}` has element type {}, which is not numeric", proto.data_type);
            Diagnostic::new("onnx-dtype", message)
        })?;
        let dims = checked_dims(&proto.dims)
            .ok_or_else(|| Diagnostic::new("onnx-dims", format!("tensor `{name}` has shape {:?}", proto.dims)))?;
        let bytes = (dims.iter().product::<u64>() * dtype.bits()).div_ceil(8);
        let content = if proto.data_location == 1 {
            TensorContent::External(self.external(proto, bytes, dtype)?)
        } else {
            self.inline(proto, bytes, dtype)?
        };
        Ok(TensorRecord { name: name.clone(), dtype, dims, content })
    }

    /// Reads the tensor message that lies at a range of the file.
    ///
    /// # Errors
    /// As [`TensorFile::tensor`], and code `onnx-format` for what is no such message.
    pub fn tensor_at(&self, range: Range<usize>) -> Result<TensorRecord, Diagnostic> {
        let decoded = TensorProto::decode(self.bytes.slice(range.clone()));
        let damaged = |e| Diagnostic::new("onnx-format", format!("no tensor is at byte {}: {e}", range.start));
        self.tensor(&decoded.map_err(damaged)?)
    }

    fn inline(&self, proto: &TensorProto, bytes: u64, dtype: ElementType) -> Result<TensorContent, Diagnostic> {
        let content = match &proto.raw_data {
            Some(raw) if !raw.is_empty() || bytes == 0 => raw.clone(),
            _ => Bytes::from(typed_bytes(proto, dtype)),
        };
        if content.len() as u64 != bytes {
            let message = format!(
                "tensor `{}` of type {} and shape {:?} holds {} bytes where {bytes} were expected",
                proto.name,
                dtype.name(),
                proto.dims,
                content.len()
            );
            return Err(Diagnostic::new("onnx-tensor-length", message));
        }
        Ok(match self.offset_of(&content) {
            Some(offset) => {
                TensorContent::InFile(InitializerSource { file: self.name.clone(), offset, bytes, dtype }, content)
            }
            None => TensorContent::Values(content),
        })
    }

    fn offset_of(&self, view: &Bytes) -> Option<u64> {
        let offset = (view.as_ptr() as usize).checked_sub(self.bytes.as_ptr() as usize)?;
        (!view.is_empty() && offset + view.len() <= self.bytes.len()).then_some(offset as u64)
    }

    /// Reads the external-data keys of ONNX: `location` (relative to the model), `offset` and `length` in bytes.
    fn external(&self, proto: &TensorProto, bytes: u64, dtype: ElementType) -> Result<InitializerSource, Diagnostic> {
        let fault = |what: String| Diagnostic::new("onnx-external-data", format!("tensor `{}`: {what}", proto.name));
        let value = |key: &str| proto.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        let number = |key: &str, default: u64| match value(key) {
            None => Ok(default),
            Some(text) => text.trim().parse().map_err(|_| fault(format!("`{key}` is `{text}`, not a byte count"))),
        };
        let location = value("location").filter(|l| !l.is_empty());
        let location = location.ok_or_else(|| fault("external data without a `location`".into()))?;
        if !Path::new(location).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            return Err(fault(format!("its `location` is `{location}`, which leaves the folder of the model")));
        }
        let offset = number("offset", 0)?;
        let length = number("length", bytes)?;
        if length != bytes || offset.checked_add(bytes).is_none() {
            let expected = format!("{length} bytes at {offset} where type and shape need {bytes}");
            return Err(fault(expected));
        }
        Ok(InitializerSource { file: self.beside(location), offset, bytes, dtype })
    }

    /// The path of a file named relative to the folder of this one.
    fn beside(&self, location: &str) -> String {
        match Path::new(&self.name).parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.join(location).to_string_lossy().into_owned(),
            _ => location.to_string(),
        }
    }
}

/// The extents, if none is negative and the tensor they span is of a credible extent.
pub fn checked_dims(dims: &[i64]) -> Option<Vec<u64>> {
    let dims = dims.iter().map(|&d| u64::try_from(d).ok()).collect::<Option<Vec<u64>>>()?;
    let product = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d.max(1)))?;
    (product <= MAX_ELEMENTS).then_some(dims)
}

/// The elements of the typed field that belongs to `dtype`, as raw data would hold them.
fn typed_bytes(proto: &TensorProto, dtype: ElementType) -> Vec<u8> {
    let narrow = |n_bytes: usize| proto.int32_data.iter().flat_map(move |v| v.to_le_bytes().into_iter().take(n_bytes));
    match dtype {
        ElementType::F32 => proto.float_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ElementType::F64 => proto.double_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ElementType::I64 => proto.int64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ElementType::U64 => proto.uint64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ElementType::U32 => proto.uint64_data.iter().flat_map(|&v| (v as u32).to_le_bytes()).collect(),
        ElementType::I32 => narrow(4).collect(),
        ElementType::F16 | ElementType::Bf16 | ElementType::I16 | ElementType::U16 => narrow(2).collect(),
        ElementType::Bool | ElementType::I8 | ElementType::U8 => narrow(1).collect(),
        ElementType::Other { number: 14, .. } => proto.float_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ElementType::Other { number: 15, .. } => proto.double_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ElementType::Other { .. } => narrow(1).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::proto::StringStringEntryProto;
    use super::*;

    fn file() -> TensorFile {
        TensorFile { name: "models/m.onnx".into(), bytes: Bytes::from(vec![0; 16]) }
    }

    fn external(keys: &[(&str, &str)]) -> TensorProto {
        let entry = |&(k, v): &(&str, &str)| StringStringEntryProto { key: k.into(), value: v.into() };
        let external_data = keys.iter().map(entry).collect();
        TensorProto { dims: vec![2, 3], data_type: 1, data_location: 1, external_data, ..Default::default() }
    }

    #[test]
    fn raw_data_inside_the_file_is_named_by_its_offset() {
        let file = file();
        let raw = file.bytes.slice(4..12);
        let proto = TensorProto { dims: vec![1], data_type: 7, raw_data: Some(raw), ..Default::default() };
        let source = file.tensor(&proto).unwrap().source().unwrap().clone();
        assert_eq!((source.file.as_str(), source.offset, source.bytes), ("models/m.onnx", 4, 8));
    }

    #[test]
    fn external_data_lies_beside_the_model() {
        let record = file().tensor(&external(&[("location", "m.weights"), ("offset", "8"), ("length", "24")])).unwrap();
        let source = record.source().unwrap();
        assert_eq!((source.file.as_str(), source.offset, source.bytes), ("models/m.weights", 8, 24));
        assert!(record.bytes().is_none());
    }

    #[test]
    fn typed_fields_give_raw_bytes() {
        let proto = TensorProto { dims: vec![2], data_type: 10, int32_data: vec![0x3c00, 1], ..Default::default() };
        assert_eq!(file().tensor(&proto).unwrap().bytes().unwrap(), [0, 0x3c, 1, 0]);
    }

    #[test]
    fn faults_are_named() {
        let code = |proto: TensorProto| file().tensor(&proto).unwrap_err().code;
        assert_eq!(code(external(&[])), "onnx-external-data");
        assert_eq!(code(external(&[("location", "w"), ("length", "23")])), "onnx-external-data");
        assert_eq!(code(external(&[("location", "w"), ("offset", "-1")])), "onnx-external-data");
        assert_eq!(code(external(&[("location", "../w")])), "onnx-external-data");
        assert_eq!(code(external(&[("location", "/etc/passwd")])), "onnx-external-data");
        assert_eq!(code(TensorProto { data_type: 8, ..Default::default() }), "onnx-dtype");
        assert_eq!(code(TensorProto { data_type: 1, dims: vec![-1], ..Default::default() }), "onnx-dims");
        let absurd = vec![1 << 40, 1 << 40];
        assert_eq!(code(TensorProto { data_type: 1, dims: absurd, ..Default::default() }), "onnx-dims");
        assert_eq!(code(TensorProto { data_type: 1, dims: vec![i64::MAX], ..Default::default() }), "onnx-dims");
        let short = TensorProto { data_type: 1, dims: vec![2], float_data: vec![1.0], ..Default::default() };
        assert_eq!(code(short), "onnx-tensor-length");
    }
}
