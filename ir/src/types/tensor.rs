//! Tensor types: element type and global shape.

use super::DType;
use std::fmt;

/// Number of elements of a shape; saturates.
pub fn element_count(shape: &[u64]) -> u64 {
    shape.iter().fold(1u64, |n, &d| n.saturating_mul(d))
}

/// Element type and global shape of a value. Layout is always contiguous and row-major.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Global extents, outermost first.
    pub shape: Vec<u64>,
}

impl TensorType {
    /// A tensor type.
    pub fn new(dtype: DType, shape: impl Into<Vec<u64>>) -> Self {
        TensorType { dtype, shape: shape.into() }
    }

    /// An f32 tensor.
    pub fn f32(shape: impl Into<Vec<u64>>) -> Self {
        TensorType::new(DType::F32, shape)
    }

    /// An i64 tensor.
    pub fn i64(shape: impl Into<Vec<u64>>) -> Self {
        TensorType::new(DType::I64, shape)
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        element_count(&self.shape)
    }

    /// Bytes of the whole tensor.
    pub fn bytes(&self) -> u64 {
        self.elements().saturating_mul(self.dtype.bytes())
    }

    /// The same element type with another shape.
    pub fn with_shape(&self, shape: impl Into<Vec<u64>>) -> Self {
        TensorType { dtype: self.dtype, shape: shape.into() }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, d) in self.shape.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{d}")?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
