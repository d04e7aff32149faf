//! Model files, read into modules at level `graph`.

pub mod onnx;

pub use onnx::{ImportOptions, Imported, import};
