//! Element types.

use std::fmt;

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// The upper half of an IEEE single.
    Bf16,
    /// Signed 64-bit integer: tokens, labels, indices.
    I64,
    /// One byte, 0 or 1.
    Bool,
}

impl DType {
    /// All element types, with their names in the text format.
    pub const ALL: [(DType, &'static str); 4] =
        [(DType::F32, "f32"), (DType::Bf16, "bf16"), (DType::I64, "i64"), (DType::Bool, "bool")];

    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            DType::F32 => 4,
            DType::Bf16 => 2,
            DType::I64 => 8,
            DType::Bool => 1,
        }
    }

    /// Whether gradients flow through values of this type.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::Bf16)
    }

    /// The element type of that name.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.iter().find(|(_, n)| *n == name).map(|(d, _)| *d)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = DType::ALL.iter().find(|(d, _)| d == self).map_or("?", |(_, n)| n);
        f.write_str(name)
    }
}
