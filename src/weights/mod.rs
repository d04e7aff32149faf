//! Where initial weights come from: the files that the plan names, safetensors files, or a seed.

mod archive;
mod names;
mod plan;
mod random;
mod tensors;

pub use archive::{Archive, StoredTensor};
pub use names::spellings;
pub use plan::PlanWeights;
pub use random::RandomWeights;
pub use tensors::{Resumed, TensorFile, Tensors};

/// Name of a checkpoint in its folder.
pub const CHECKPOINT: &str = "model.safetensors";

/// Name of the list of a checkpoint's files in its folder.
pub const CHECKPOINT_INDEX: &str = "model.safetensors.index.json";

#[cfg(test)]
mod tests;
