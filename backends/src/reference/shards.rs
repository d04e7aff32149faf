//! From a whole tensor to the parts that the ranks of a mesh hold, and back.

use super::{Tensor, indices, noise};
use galvatron_ir::AxisId;
use galvatron_ir::mesh::{Mesh, Sharding};

/// First index of the part of dimension `dim` that a position on the mesh holds; `shape` is the global one.
pub fn first_index(shape: &[u64], sharding: &Sharding, dim: usize, mesh: &Mesh, coordinates: &[u64]) -> u64 {
    let axes = &sharding.dims[dim];
    mesh.index_along(axes, coordinates) * (shape[dim] / mesh.product(axes))
}

/// The part of a tensor that a rank holds, of micro-batch 0 where the placement mentions `mb`. See [`scatter_at`].
pub fn scatter(tensor: &Tensor, sharding: &Sharding, mesh: &Mesh, rank: u64) -> Tensor {
    scatter_at(tensor, sharding, mesh, &mesh.coordinates(rank))
}

/// The part of a tensor at a position on the mesh; entry 0 of the coordinates is the micro-batch.
///
/// A partial sum is split into summands that look random but depend on nothing but the element and the position.
///
/// # Panics
/// When the placement does not divide the shape.
pub fn scatter_at(tensor: &Tensor, sharding: &Sharding, mesh: &Mesh, coordinates: &[u64]) -> Tensor {
    let local = sharding.local_shape(&tensor.shape, mesh).expect("invariant: placements divide their shapes");
    let first = first_indices(&tensor.shape, sharding, mesh, coordinates);
    let (n_summands, own) = (mesh.product(&sharding.partial), mesh.index_along(&sharding.partial, coordinates));
    Tensor::from_fn(local, |index| {
        let position = tensor.position(&add(&index, &first));
        let summand = |k: u64| noise(k, position as u64);
        match own {
            0 => tensor.data[position] - (1..n_summands).map(summand).sum::<f64>(),
            k => summand(k),
        }
    })
}

/// The whole tensor from the parts of all ranks, or of all ranks for each micro-batch in turn. Partial sums are added up.
///
/// # Errors
/// When parts are missing, differ in shape, or when two ranks that hold the same part do not agree bit for bit.
pub fn assemble(parts: &[Tensor], sharding: &Sharding, mesh: &Mesh) -> Result<Tensor, String> {
    let positions = positions(parts.len() as u64, sharding, mesh)?;
    let local = parts[0].shape.clone();
    let global: Vec<u64> = local.iter().zip(&sharding.dims).map(|(n, axes)| n * mesh.product(axes)).collect();
    let mut whole = Tensor::filled(global, 0.0);
    for (i, (part, at)) in parts.iter().zip(&positions).enumerate() {
        if part.shape != local {
            return Err(format!("part {i} has shape {:?}, part 0 has {local:?}", part.shape));
        }
        let original = original_of(at, sharding, mesh);
        if original != i {
            same_bits(part, &parts[original]).then_some(()).ok_or(format!("parts {original} and {i} differ"))?;
            continue;
        }
        let first = first_indices(&whole.shape, sharding, mesh, at);
        for index in indices(&local) {
            let position = whole.position(&add(&index, &first));
            whole.data[position] += part.at(&index);
        }
    }
    Ok(whole)
}

/// Coordinates of each of `n_parts` parts.
fn positions(n_parts: u64, sharding: &Sharding, mesh: &Mesh) -> Result<Vec<Vec<u64>>, String> {
    let (world, micro_batches) = (mesh.world(), mesh.micro_batches());
    let is_temporal = n_parts == world * micro_batches;
    if !is_temporal && (n_parts != world || sharding.axes().any(|a| a == Mesh::MB)) {
        return Err(format!("{n_parts} parts of a value on {world} ranks and {micro_batches} micro-batches"));
    }
    let at = |i: u64| {
        let mut coordinates = mesh.coordinates(i % world);
        coordinates[Mesh::MB.index()] = i / world;
        coordinates
    };
    Ok((0..n_parts).map(at).collect())
}

/// Index of the first part that holds the same as the part at these coordinates: 0 along the axes that replicate it.
fn original_of(coordinates: &[u64], sharding: &Sharding, mesh: &Mesh) -> usize {
    let mentioned = |axis: usize| sharding.axes().any(|a| a == AxisId(axis as u32));
    let at: Vec<u64> = coordinates.iter().enumerate().map(|(a, &c)| if mentioned(a) { c } else { 0 }).collect();
    (at[Mesh::MB.index()] * mesh.world() + mesh.rank_at(&at)) as usize
}

fn first_indices(shape: &[u64], sharding: &Sharding, mesh: &Mesh, coordinates: &[u64]) -> Vec<u64> {
    (0..shape.len()).map(|dim| first_index(shape, sharding, dim, mesh, coordinates)).collect()
}

fn add(a: &[u64], b: &[u64]) -> Vec<u64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    a.data.iter().map(|x| x.to_bits()).eq(b.data.iter().map(|x| x.to_bits()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use galvatron_ir::op::Fill;

    fn placed(dims: &[&[u32]], partial: &[u32]) -> Sharding {
        let ids = |axes: &[u32]| axes.iter().map(|&a| AxisId(a)).collect::<Vec<_>>();
        Sharding { dims: dims.iter().map(|d| ids(d)).collect(), partial: ids(partial) }
    }

    #[test]
    fn parts_are_cut_major_axis_first() {
        let (mesh, x) = (Mesh::from_levels(&[2, 2], 1), Tensor::from_fn([4], |i| i[0] as f64));
        let part = |sharding: &Sharding| (0..4).map(|r| scatter(&x, sharding, &mesh, r).data[0]).collect::<Vec<_>>();
        assert_eq!(part(&placed(&[&[1, 2]], &[])), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(part(&placed(&[&[2, 1]], &[])), [0.0, 2.0, 1.0, 3.0]);
    }

    #[test]
    fn assembling_undoes_scattering() {
        let (mesh, x) = (Mesh::from_levels(&[2, 3], 2), Tensor::random([4, 6], Fill::Uniform, 1));
        for sharding in [placed(&[&[1], &[2]], &[]), placed(&[&[], &[2]], &[1]), placed(&[&[], &[]], &[1, 2])] {
            let parts: Vec<Tensor> = (0..6).map(|r| scatter(&x, &sharding, &mesh, r)).collect();
            assert!(assemble(&parts, &sharding, &mesh).unwrap().distance(&x) < 1e-14);
        }
        let sharding = placed(&[&[0, 1], &[]], &[2]);
        let at = |i: u64| [&[i / 6], &mesh.coordinates(i % 6)[1..]].concat();
        let parts: Vec<Tensor> = (0..12).map(|i| scatter_at(&x, &sharding, &mesh, &at(i))).collect();
        assert!(assemble(&parts, &sharding, &mesh).unwrap().distance(&x) < 1e-14);
        assert!(assemble(&parts[..6], &sharding, &mesh).is_err());
    }

    #[test]
    fn replicas_must_agree() {
        let (mesh, same) = (Mesh::from_levels(&[2], 1), placed(&[&[]], &[]));
        let part = |x: f64| Tensor::new([1], vec![x]);
        assert_eq!(assemble(&[part(1.0), part(1.0)], &same, &mesh), Ok(part(1.0)));
        assert!(assemble(&[part(1.0), part(1.5)], &same, &mesh).is_err());
    }
}
