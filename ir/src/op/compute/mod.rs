//! Ops that compute tensors from tensors.

mod attention;
mod binary;
mod broadcast;
pub mod broadcasting;
mod constants;
mod cross_entropy;
mod einsum;
mod embedding;
mod layer_norm;
mod layout;
mod mse;
mod norms;
mod reduce;
mod rms_norm;
mod select;
mod softmax;
mod unary;

pub use attention::{Attention, AttentionGrad};
pub use binary::{AddN, Binary, BinaryKind};
pub use broadcast::Broadcast;
pub use constants::{CausalMask, Constant, Full, Iota};
pub use cross_entropy::{CountLabels, CrossEntropy, CrossEntropyGrad};
pub use einsum::Einsum;
pub use embedding::{Embedding, EmbeddingGrad};
pub use layer_norm::{LayerNorm, LayerNormGrad, LayerNormParamGrad};
pub use layout::{Cast, Concat, Reshape, Slice, Transpose, reshape_factors};
pub use mse::{Mse, MseGrad};
pub use norms::{ClipScale, SumSquares};
pub use reduce::ReduceSum;
pub use rms_norm::{RmsNorm, RmsNormGrad, RmsNormParamGrad};
pub use select::Where;
pub use softmax::{Softmax, SoftmaxGrad};
pub use unary::{Unary, UnaryGrad, UnaryKind};
