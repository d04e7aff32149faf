//! α–β times of collectives on the link levels that their group spans.
//!
//! A ring moves 2 (n - 1) / n (all_reduce) or (n - 1) / n (reduce_scatter, all_gather) of the bytes over every member's link.
//! Its latency at a level is that of a ring, or of a binary tree up and down where that has fewer hops.
//! At a level whose members hold k ranks of the group each, the k links of a member carry the traffic together, as NCCL's rings do.

use galvatron_ir::AxisId;
use galvatron_ir::cluster::Cluster;
use galvatron_ir::mesh::Mesh;
use galvatron_ir::profile::Collective;

/// Nanoseconds; `bytes` is the larger of a rank's input and output.
pub fn collective_ns(cluster: &Cluster, kind: Collective, mesh: &Mesh, axes: &[AxisId], bytes: u64) -> u64 {
    let n = mesh.product(axes) as f64;
    if n <= 1.0 {
        return 0;
    }
    let sizes = sizes_by_level(cluster, mesh, axes);
    let rounds = match kind {
        Collective::AllReduce => 2.0,
        _ => 1.0,
    };
    let (mut transfer, mut latency, mut inner) = (0.0f64, 0.0, 1.0);
    for (level, &size) in cluster.levels.iter().zip(&sizes).rev() {
        if size > 1.0 {
            let lanes = if kind == Collective::AllToAll { 1.0 } else { inner };
            let share = if kind == Collective::AllToAll { (size - 1.0) / size } else { (n - 1.0) / n };
            transfer = transfer.max(rounds * share * bytes as f64 / (level.bandwidth * lanes));
            latency += rounds * (size - 1.0).min(size.log2().ceil() * 2.0) * level.latency_ns;
        }
        inner *= size;
    }
    (transfer * 1e9 + latency) as u64
}

/// Nanoseconds in which every rank of a ring passes `bytes` to the next one, over the slowest link that the ring has.
pub fn shift_ns(cluster: &Cluster, mesh: &Mesh, axes: &[AxisId], bytes: u64) -> u64 {
    let sizes = sizes_by_level(cluster, mesh, axes);
    let spanned = cluster.levels.iter().zip(&sizes).filter(|(_, size)| **size > 1.0);
    let slowest = spanned.map(|(level, _)| bytes as f64 / level.bandwidth * 1e9 + level.latency_ns);
    slowest.fold(0.0, f64::max) as u64
}

/// Ranks of the group at each level, slowest first.
fn sizes_by_level(cluster: &Cluster, mesh: &Mesh, axes: &[AxisId]) -> Vec<f64> {
    let mut sizes = vec![1.0; cluster.levels.len()];
    for &axis in axes {
        if let Some(level) = mesh.axes()[axis.index()].level {
            sizes[level as usize] *= mesh.size(axis) as f64;
        }
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;
    use galvatron_ir::cluster::{DeviceKind, DeviceSpec, LinkLevel};

    fn cluster() -> Cluster {
        let device = DeviceSpec {
            kind: DeviceKind::Cuda,
            memory_bytes: 1 << 36,
            f32_flops: 19.5e12,
            bf16_flops: 312e12,
            memory_bandwidth: 2e12,
        };
        let level = |name: &str, size, bandwidth| LinkLevel { name: name.into(), size, bandwidth, latency_ns: 0.0 };
        Cluster {
            name: "c".into(),
            device,
            groups: Vec::new(),
            host: None,
            levels: vec![level("inter", 2, 25e9), level("intra", 8, 300e9)],
        }
    }

    #[test]
    fn a_ring_inside_a_node_moves_twice_its_share() {
        let mesh = Mesh::from_levels(&[2, 8], 1);
        let ns =
            collective_ns(&cluster(), Collective::AllReduce, &mesh, &[AxisId(2), AxisId(3), AxisId(4)], 300_000_000);
        assert_eq!(ns, 1_750_000);
    }

    #[test]
    fn the_slowest_of_three_levels_decides() {
        let level =
            |name: &str, size, bandwidth, latency_ns| LinkLevel { name: name.into(), size, bandwidth, latency_ns };
        let levels = vec![level("hall", 2, 1e9, 9.0), level("rack", 2, 1e9, 5.0), level("node", 4, 300e9, 3.0)];
        let cluster = Cluster { levels, ..cluster() };
        let mesh = Mesh::from_levels(&[2, 2, 4], 1);
        let all: Vec<AxisId> = mesh.spatial().collect();
        // 15/16 of the bytes over the links of all eight ranks below the hall, or of all four of a node; hops 1, 1 and 3.
        assert_eq!(collective_ns(&cluster, Collective::AllGather, &mesh, &all, 64_000), 15_000 + 9 + 5 + 9);
        assert_eq!(collective_ns(&cluster, Collective::AllGather, &mesh, &all[..2], 64_000), 48_000 + 9 + 5);
    }

    #[test]
    fn ranks_of_one_node_share_the_slow_links() {
        let mesh = Mesh::from_levels(&[2, 8], 1);
        let all: Vec<AxisId> = mesh.spatial().collect();
        let strided = collective_ns(&cluster(), Collective::AllGather, &mesh, &[AxisId(1)], 100_000_000);
        let whole = collective_ns(&cluster(), Collective::AllGather, &mesh, &all, 100_000_000);
        assert_eq!(strided, 2_000_000);
        assert!(whole < strided, "{whole}");
    }
}
