//! Placements of the value that crosses from one segment to the next.

use super::options::Split;
use galvatron_ir::mesh::{Mesh, Sharding};
use galvatron_ir::types::TensorType;

/// How the tensor axes lie on a boundary value whose batch is over the data axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BoundaryKind {
    /// They shard the batch too.
    Batch,
    /// They replicate the value.
    Replicated,
    /// They shard dimension 1, the sequence.
    Sequence,
}

/// The boundary placements of one split, where the extents divide.
pub fn boundary_placements(ty: &TensorType, batch: usize, split: &Split, mesh: &Mesh) -> Vec<(BoundaryKind, Sharding)> {
    let mut base = Sharding::replicated(ty.rank());
    if mesh.micro_batches() > 1 {
        base.dims[batch].push(Mesh::MB);
    }
    base.dims[batch].extend(&split.data);
    let with = |dim: usize| {
        let mut s = base.clone();
        s.dims[dim].extend(&split.tensor);
        s
    };
    let mut all = vec![(BoundaryKind::Batch, with(batch))];
    if !split.tensor.is_empty() {
        all.push((BoundaryKind::Replicated, base.clone()));
        if ty.rank() >= 3 && batch == 0 {
            all.push((BoundaryKind::Sequence, with(1)));
        }
    }
    all.retain(|(_, s)| s.local_shape(&ty.shape, mesh).is_ok());
    all
}
