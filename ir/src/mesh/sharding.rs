//! Placement of one value: which axes shard each dimension and over which axes it is a partial sum.

use super::Mesh;
use crate::id::AxisId;
use crate::types::TensorType;

/// Placement of a value on the mesh. An axis that appears nowhere replicates the value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Sharding {
    /// For each dimension the axes that shard it, major first.
    pub dims: Vec<Vec<AxisId>>,
    /// Axes over which the value is a partial sum, ascending.
    pub partial: Vec<AxisId>,
}

impl Sharding {
    /// Replicated over every axis.
    pub fn replicated(rank: usize) -> Self {
        Sharding { dims: vec![Vec::new(); rank], partial: Vec::new() }
    }

    /// The axes that occur in the placement, sharding or partial.
    pub fn axes(&self) -> impl Iterator<Item = AxisId> + '_ {
        self.dims.iter().flatten().copied().chain(self.partial.iter().copied())
    }

    /// Whether the value is a partial sum over some axis.
    pub fn is_partial(&self) -> bool {
        !self.partial.is_empty()
    }

    /// Whether the axis shards a dimension.
    pub fn is_sharded_over(&self, axis: AxisId) -> bool {
        self.dims.iter().any(|d| d.contains(&axis))
    }

    /// The same placement without partial sums.
    pub fn resolved(&self) -> Self {
        Sharding { dims: self.dims.clone(), partial: Vec::new() }
    }

    /// The same placement without any mention of the axis.
    pub fn without(&self, axis: AxisId) -> Self {
        Sharding {
            dims: self.dims.iter().map(|d| d.iter().copied().filter(|&a| a != axis).collect()).collect(),
            partial: self.partial.iter().copied().filter(|&a| a != axis).collect(),
        }
    }

    /// Shape that one rank holds of one micro-batch, or the dimension that its axes do not divide.
    pub fn local_shape(&self, shape: &[u64], mesh: &Mesh) -> Result<Vec<u64>, usize> {
        let mut local = shape.to_vec();
        for (dim, axes) in self.dims.iter().enumerate() {
            let parts = mesh.product(axes);
            if !shape[dim].is_multiple_of(parts) {
                return Err(dim);
            }
            local[dim] /= parts;
        }
        Ok(local)
    }

    /// Local tensor type; the placement must divide the shape.
    pub fn local_type(&self, ty: &TensorType, mesh: &Mesh) -> TensorType {
        let shape = self.local_shape(&ty.shape, mesh).expect("invariant: placements divide their shapes");
        ty.with_shape(shape)
    }

    /// First faults of the placement itself: wrong rank, an axis used twice, an extent that is not divided.
    pub fn check(&self, shape: &[u64], mesh: &Mesh) -> Result<(), String> {
        if self.dims.len() != shape.len() {
            return Err(format!("placement has {} dimensions, the value has {}", self.dims.len(), shape.len()));
        }
        let mut seen = Vec::new();
        for axis in self.axes() {
            if seen.contains(&axis) {
                return Err(format!("axis `{}` is used twice in one placement", mesh.name(axis)));
            }
            seen.push(axis);
        }
        match self.local_shape(shape, mesh) {
            Ok(_) => Ok(()),
            Err(dim) => Err(format!("extent {} of dimension {dim} is not divided by its axes", shape[dim])),
        }
    }

    /// Text form: `[mb.a0, _, a1]+a2`.
    pub fn display(&self, mesh: &Mesh) -> String {
        let names = |axes: &[AxisId]| axes.iter().map(|&a| mesh.name(a)).collect::<Vec<_>>().join(".");
        let dims: Vec<String> =
            self.dims.iter().map(|d| if d.is_empty() { "_".to_string() } else { names(d) }).collect();
        let partial = if self.partial.is_empty() { String::new() } else { format!("+{}", names(&self.partial)) };
        format!("[{}]{partial}", dims.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_shape_divides_and_refuses() {
        let mesh = Mesh::from_levels(&[4], 2);
        let s = Sharding { dims: vec![vec![Mesh::MB, AxisId(1)], vec![]], partial: vec![AxisId(2)] };
        assert_eq!(s.local_shape(&[8, 3], &mesh), Ok(vec![2, 3]));
        assert_eq!(s.local_shape(&[6, 3], &mesh), Err(0));
        assert_eq!(s.display(&mesh), "[mb.a0, _]+a1");
        assert!(s.check(&[8, 3], &mesh).is_ok());
    }
}
