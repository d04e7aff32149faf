//! Placements of the value that crosses from one segment to the next.

use super::split::Split;
use galvatron_ir::mesh::{Mesh, Sharding};
use galvatron_ir::types::TensorType;

/// How the tensor axes lie on a boundary value whose batch is over the data axes, and its sequence over the context axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BoundaryKind {
    /// They shard the batch too.
    Batch,
    /// They replicate the value.
    Replicated,
    /// They shard dimension 1, the sequence.
    Sequence,
}

/// The boundary placements of one split, where the extents divide. Beside context axes the tensor axes leave the batch alone: they could
/// be data axes.
pub fn boundary_placements(ty: &TensorType, batch: usize, split: &Split, mesh: &Mesh) -> Vec<(BoundaryKind, Sharding)> {
    let has_sequence = ty.rank() >= 3 && batch == 0;
    let mut base = Sharding::replicated(ty.rank());
    if mesh.micro_batches() > 1 {
        base.dims[batch].push(Mesh::MB);
    }
    base.dims[batch].extend(&split.data);
    let mut all = Vec::new();
    match split.context.is_empty() {
        true => all.push((BoundaryKind::Batch, with(&base, batch, split))),
        false if has_sequence => base.dims[SEQUENCE].extend(&split.context),
        false => return all,
    }
    if !split.tensor.is_empty() {
        all.push((BoundaryKind::Replicated, base.clone()));
        if has_sequence {
            all.push((BoundaryKind::Sequence, with(&base, SEQUENCE, split)));
        }
    }
    all.retain(|(_, s)| s.local_shape(&ty.shape, mesh).is_ok());
    all
}

/// The dimension of the sequence.
pub const SEQUENCE: usize = 1;

fn with(base: &Sharding, dim: usize, split: &Split) -> Sharding {
    let mut s = base.clone();
    s.dims[dim].extend(&split.tensor);
    s
}
