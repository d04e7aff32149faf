//! Element types, tensor types and scalars that can be compared and hashed.

pub mod bf16;
mod dtype;
mod scalar;
mod tensor;

pub use dtype::DType;
pub use scalar::Scalar;
pub use tensor::{TensorType, element_count};
