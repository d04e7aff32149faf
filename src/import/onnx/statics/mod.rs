//! Static evaluation: computes the parts of an ONNX graph that depend on shapes and constants only.
//!
//! Exported graphs are full of index arithmetic: the shapes of reshapes, position ids, attention masks. All of it is
//! known once the batch and the sequence length are. A [`StaticTensor`] holds one such value; [`evaluate`] applies an
//! operator to them. Tensors are *compressed*: a dimension along which a tensor is constant is stored with extent 1, so
//! a causal mask `[batch, 1, seq, seq]` takes `seq * seq` elements whatever the batch.
//!
//! Start with `tensor.rs`; each family of operators is one file; `evaluate.rs` is the list of operators.

mod arithmetic;
mod cast;
mod compare;
mod decode;
mod evaluate;
mod generate;
mod index;
mod layout;
mod matmul;
mod pieces;
mod recognize;
mod reduce;
mod special;
mod tensor;
mod walk;

pub use evaluate::{evaluate, is_supported};
pub use generate::shape_of;
pub use pieces::slice_range;
pub use recognize::{CausalMask, Iota};
pub use tensor::{MAX_STORED, Scalar, StaticTensor, StaticType};

#[cfg(test)]
mod tests;
