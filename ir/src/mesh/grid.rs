//! The mesh: named axes, ranks and the groups of ranks along some axes.

use crate::cluster::DeviceKind;
use crate::id::AxisId;

/// One axis of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshAxis {
    /// Name in the text format, for example `a0`; the temporal axis is `mb`.
    pub name: String,
    /// Number of positions along the axis.
    pub size: u32,
    /// Link level that the axis belongs to (0 = slowest); `None` for the temporal axis.
    pub level: Option<u32>,
}

/// A mesh of equal devices: axis 0 is the temporal axis `mb`, the others are spatial, slowest link first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    axes: Vec<MeshAxis>,
    device: DeviceKind,
}

impl Mesh {
    /// The temporal axis of micro-batches.
    pub const MB: AxisId = AxisId(0);

    /// A mesh of CPUs of the given link levels (slowest first) whose sizes are split into prime factors, and a number of micro-batches.
    pub fn from_levels(level_sizes: &[u32], micro_batches: u32) -> Mesh {
        let mut axes = vec![MeshAxis { name: "mb".into(), size: micro_batches, level: None }];
        for (level, &size) in level_sizes.iter().enumerate() {
            for prime in prime_factors(size) {
                let name = format!("a{}", axes.len() - 1);
                axes.push(MeshAxis { name, size: prime, level: Some(level as u32) });
            }
        }
        Mesh { axes, device: DeviceKind::Cpu }
    }

    /// A mesh of CPUs with the given spatial axes.
    pub fn new(micro_batches: u32, spatial: Vec<MeshAxis>) -> Mesh {
        let mut axes = vec![MeshAxis { name: "mb".into(), size: micro_batches, level: None }];
        axes.extend(spatial);
        Mesh { axes, device: DeviceKind::Cpu }
    }

    /// The same mesh of devices of another kind.
    pub fn of(self, device: DeviceKind) -> Mesh {
        Mesh { device, ..self }
    }

    /// The kind of the devices; CPUs unless it was said. Any backend may run the plan all the same.
    pub fn device(&self) -> DeviceKind {
        self.device
    }

    /// All axes, the temporal one first.
    pub fn axes(&self) -> &[MeshAxis] {
        &self.axes
    }

    /// Ids of the spatial axes, slowest link first.
    pub fn spatial(&self) -> impl DoubleEndedIterator<Item = AxisId> + use<> {
        (1..self.axes.len() as u32).map(AxisId)
    }

    /// Name of an axis.
    pub fn name(&self, axis: AxisId) -> &str {
        &self.axes[axis.index()].name
    }

    /// Size of an axis.
    pub fn size(&self, axis: AxisId) -> u64 {
        u64::from(self.axes[axis.index()].size)
    }

    /// Product of the sizes of some axes.
    pub fn product(&self, axes: &[AxisId]) -> u64 {
        axes.iter().map(|&a| self.size(a)).product()
    }

    /// The axis of that name.
    pub fn axis(&self, name: &str) -> Option<AxisId> {
        self.axes.iter().position(|a| a.name == name).map(|i| AxisId(i as u32))
    }

    /// Micro-batches in one optimizer step.
    pub fn micro_batches(&self) -> u64 {
        self.size(Mesh::MB)
    }

    /// The same mesh with another number of micro-batches.
    pub fn with_micro_batches(&self, n: u32) -> Mesh {
        let mut mesh = self.clone();
        mesh.axes[0].size = n;
        mesh
    }

    /// The mesh of each of `n` equal parts of consecutive ranks, which part the slowest links first; `None` where `n` does not divide
    /// the ranks along their levels.
    pub fn part_of(&self, n: u64) -> Option<Mesh> {
        let mut levels: Vec<(Option<u32>, u32)> = Vec::new();
        for axis in &self.axes[1..] {
            match levels.last_mut().filter(|(level, _)| *level == axis.level) {
                Some((_, size)) => *size *= axis.size,
                None => levels.push((axis.level, axis.size)),
            }
        }
        let mut rest = n;
        let mut spatial = Vec::new();
        for (level, size) in levels {
            let parts = if spatial.is_empty() { gcd(rest, u64::from(size)) } else { 1 };
            rest /= parts;
            for prime in prime_factors((u64::from(size) / parts) as u32) {
                spatial.push(MeshAxis { name: format!("a{}", spatial.len()), size: prime, level });
            }
        }
        (rest == 1).then(|| Mesh::new(self.axes[0].size, spatial).of(self.device))
    }

    /// Number of ranks.
    pub fn world(&self) -> u64 {
        self.axes[1..].iter().map(|a| u64::from(a.size)).product()
    }

    /// Position of a rank along each axis; the temporal axis gives 0.
    pub fn coordinates(&self, rank: u64) -> Vec<u64> {
        let mut rest = rank;
        let mut at = vec![0; self.axes.len()];
        for i in (1..self.axes.len()).rev() {
            let size = u64::from(self.axes[i].size);
            at[i] = rest % size;
            rest /= size;
        }
        at
    }

    /// Rank at the given coordinates.
    pub fn rank_at(&self, coordinates: &[u64]) -> u64 {
        self.axes.iter().zip(coordinates).skip(1).fold(0, |r, (a, &c)| r * u64::from(a.size) + c)
    }

    /// Row-major index of a position along an ordered list of axes.
    pub fn index_along(&self, axes: &[AxisId], coordinates: &[u64]) -> u64 {
        axes.iter().fold(0, |r, &a| r * self.size(a) + coordinates[a.index()])
    }

    /// The ranks that differ from `rank` only along `axes`, in row-major order over `axes`.
    pub fn group(&self, axes: &[AxisId], rank: u64) -> Vec<u64> {
        let mut at = self.coordinates(rank);
        let count = self.product(axes);
        (0..count)
            .map(|index| {
                let mut rest = index;
                for &a in axes.iter().rev() {
                    at[a.index()] = rest % self.size(a);
                    rest /= self.size(a);
                }
                self.rank_at(&at)
            })
            .collect()
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Prime factors in ascending order; empty for 1.
fn prime_factors(mut n: u32) -> Vec<u32> {
    let mut factors = Vec::new();
    let mut p = 2;
    while n > 1 {
        while n.is_multiple_of(p) {
            factors.push(p);
            n /= p;
        }
        p += 1;
    }
    factors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_cut_along_the_slowest_links() {
        let sizes = |mesh: Option<Mesh>| mesh.map(|m| m.axes()[1..].iter().map(|a| a.size).collect::<Vec<_>>());
        let mesh = Mesh::from_levels(&[2, 12], 4);
        assert_eq!(mesh.part_of(1), Some(mesh.clone()));
        assert_eq!(sizes(mesh.part_of(2)), Some(vec![2, 2, 3]));
        assert_eq!(sizes(mesh.part_of(6)), Some(vec![2, 2]));
        assert_eq!(sizes(mesh.part_of(24)), Some(vec![]));
        assert_eq!(sizes(mesh.part_of(3)), None);
        assert_eq!(sizes(Mesh::from_levels(&[4, 3], 1).part_of(3)), None);
    }

    #[test]
    fn ranks_are_row_major_over_the_spatial_axes() {
        let mesh = Mesh::from_levels(&[2, 6], 3);
        assert_eq!(mesh.world(), 12);
        assert_eq!(mesh.coordinates(7), vec![0, 1, 0, 1]);
        assert_eq!(mesh.rank_at(&mesh.coordinates(11)), 11);
        assert_eq!(mesh.group(&[AxisId(3)], 4), vec![3, 4, 5]);
        assert_eq!(mesh.group(&[AxisId(2), AxisId(1)], 0), vec![0, 6, 3, 9]);
    }
}
