//! CPU kernels: pure functions on row-major slices, computed in f32, with the same bits at any number of threads.
//!
//! Element-wise kernels have `_inplace` variants for an output that takes the place of an operand.

pub mod along;
pub mod attention;
pub mod attention_grad;
pub mod attention_mask_grad;
pub mod binary;
pub mod broadcast;
pub mod cross_entropy;
pub mod cumulate;
mod dense;
pub mod dropout;
pub mod einsum;
pub mod gather;
pub mod layer_norm;
pub mod moe;
pub mod optimizer;
pub mod reduce;
pub mod rms_norm;
pub mod rotary;
pub mod routed;
pub mod shape;
pub mod softmax;
pub mod sum_parts;
pub mod tile;
pub mod top_k;
pub mod unary;
pub mod window;

/// Elements one task of an element-wise kernel handles.
pub(crate) const GRAIN: usize = 16 * 1024;

#[cfg(test)]
pub(crate) mod testing;
