//! Times of collectives that were measured, looked up by the group of ranks that some mesh axes make.
//!
//! What counts of a group is its size and its [`Layout`]. Groups of neighbours are those of the fastest axes. Others are priced as
//! strided; but where they stay inside of a node, whose links are all alike, the times of neighbours hold for them too. A
//! reduce-scatter or an all-gather that was not measured takes half of the all-reduce: it is one of the two halves of its ring.

use galvatron_ir::AxisId;
use galvatron_ir::mesh::Mesh;
use galvatron_ir::profile::{Collective, Curve, Layout, MAX_NS, Profile};
use std::collections::BTreeMap;

/// Kind, ranks and layout.
type Key = (Collective, u64, Layout);

/// The measured times of a machine.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    times: BTreeMap<Key, Curve>,
    /// GB/s on the bus.
    bandwidths: BTreeMap<Key, f64>,
    /// GB/s by number of stages.
    point_to_point: BTreeMap<usize, f64>,
    overlap_slowdown: Option<f64>,
    /// Levels of links that the machine has.
    n_levels: usize,
}

impl Measured {
    /// What a profile says of a machine with so many levels of links.
    pub fn new(profile: &Profile, n_levels: usize) -> Measured {
        let times = profile.collectives.iter().filter(|c| !c.times.is_empty());
        Measured {
            times: times.map(|c| ((c.kind, c.ranks.into(), c.layout), Curve::new(&c.times))).collect(),
            bandwidths: profile
                .bandwidths
                .iter()
                .map(|b| ((b.kind, b.ranks.into(), b.layout), b.bus_bandwidth_gbps))
                .collect(),
            point_to_point: profile.point_to_point.iter().map(|p| (p.stages as usize, p.bandwidth_gbps)).collect(),
            overlap_slowdown: profile.overlap_slowdown_ratio,
            n_levels,
        }
    }

    /// Nanoseconds of a collective over some axes; `None` if nothing like it was measured.
    pub fn collective_ns(&self, kind: Collective, mesh: &Mesh, axes: &[AxisId], bytes: u64) -> Option<u64> {
        let group = Group::of(mesh, axes)?;
        group.layouts(self.n_levels).iter().find_map(|&layout| self.ns(kind, group.ranks, layout, bytes))
    }

    fn ns(&self, kind: Collective, ranks: u64, layout: Layout, bytes: u64) -> Option<u64> {
        let key = (kind, ranks, layout);
        if let Some(curve) = self.times.get(&key) {
            return Some(curve.ns(bytes));
        }
        if let Some(gbps) = self.bandwidths.get(&key) {
            let rounds = if kind == Collective::AllReduce { 2.0 } else { 1.0 };
            return Some(((rounds * (ranks - 1) as f64 / ranks as f64 * bytes as f64 / gbps) as u64).min(MAX_NS));
        }
        match kind {
            Collective::ReduceScatter | Collective::AllGather => {
                self.ns(Collective::AllReduce, ranks, layout, bytes).map(|ns| ns / 2)
            }
            Collective::AllReduce | Collective::AllToAll => None,
        }
    }

    /// Nanoseconds of a message from one of some pipeline stages to the next.
    pub fn message_ns(&self, n_stages: usize, bytes: u64) -> Option<u64> {
        self.point_to_point.get(&n_stages).map(|gbps| ((bytes as f64 / gbps) as u64).min(MAX_NS))
    }

    /// How many times longer computation and communication take at the same time.
    pub fn overlap_slowdown(&self) -> Option<f64> {
        self.overlap_slowdown
    }
}

/// The ranks that differ along some axes of the world's mesh or of a stage's.
pub struct Group {
    /// How many, at least 2.
    pub ranks: u64,
    /// Whether they are neighbours.
    pub layout: Layout,
    /// The slowest level of links between them.
    slowest_level: u32,
}

impl Group {
    /// The group of some axes, the temporal one left out; `None` for a single rank.
    pub fn of(mesh: &Mesh, axes: &[AxisId]) -> Option<Group> {
        let counts = |axis: &AxisId| mesh.axes()[axis.index()].level.is_some() && mesh.size(*axis) > 1;
        let axes: Vec<AxisId> = axes.iter().copied().filter(counts).collect();
        let slowest_level = axes.iter().filter_map(|a| mesh.axes()[a.index()].level).min()?;
        let fastest = mesh.spatial().rev().filter(counts).take(axes.len());
        let layout = if fastest.into_iter().all(|a| axes.contains(&a)) { Layout::Consecutive } else { Layout::Strided };
        Some(Group { ranks: mesh.product(&axes), layout, slowest_level })
    }

    /// The layouts whose times hold for the group on a cluster of so many levels, best first.
    fn layouts(&self, n_levels: usize) -> &'static [Layout] {
        let is_inside = self.slowest_level as usize + 1 == n_levels;
        match (self.layout, is_inside, n_levels) {
            (Layout::Consecutive, ..) | (Layout::Strided, true, 2..) => &[Layout::Consecutive],
            (Layout::Strided, true, _) => &[Layout::Strided, Layout::Consecutive],
            (Layout::Strided, false, _) => &[Layout::Strided],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use galvatron_ir::profile::{CollectiveBandwidth, CollectiveTimes, TimePoint};

    /// Neighbours are told by times, others by bandwidths of 10 GB/s.
    fn measured(n_levels: usize) -> Measured {
        let time = |kind, ranks, time_ns| {
            let times = vec![TimePoint { bytes: 1000, time_ns }];
            CollectiveTimes { kind, ranks, layout: Layout::Consecutive, times }
        };
        let strided = |ranks| {
            let (kind, layout) = (Collective::AllReduce, Layout::Strided);
            CollectiveBandwidth { kind, ranks, layout, bus_bandwidth_gbps: 10.0 }
        };
        let profile = Profile {
            collectives: vec![time(Collective::AllReduce, 2, 200), time(Collective::AllToAll, 2, 60)],
            bandwidths: vec![strided(2), strided(4)],
            ..Profile::default()
        };
        Measured::new(&profile, n_levels)
    }

    /// Nanoseconds of 1000 bytes over axes given by number, from the slowest.
    fn ns(levels: &[u32], kind: Collective, axes: &[u32]) -> Option<u64> {
        let axes: Vec<AxisId> = axes.iter().map(|&a| AxisId(a)).collect();
        measured(levels.len()).collective_ns(kind, &Mesh::from_levels(levels, 4), &axes, 1000)
    }

    #[test]
    fn neighbours_and_strided_groups_are_told_apart() {
        assert_eq!(ns(&[8], Collective::AllReduce, &[3]), Some(200));
        assert_eq!(ns(&[8], Collective::AllReduce, &[1]), Some(100));
        assert_eq!(ns(&[8], Collective::AllReduce, &[2]), Some(100));
        assert_eq!(ns(&[8], Collective::AllReduce, &[1, 2]), Some(150));
    }

    #[test]
    fn half_an_all_reduce_stands_for_what_was_not_measured() {
        assert_eq!(ns(&[8], Collective::AllGather, &[3]), Some(100));
        assert_eq!(ns(&[8], Collective::ReduceScatter, &[1]), Some(50));
        assert_eq!(ns(&[8], Collective::AllToAll, &[1, 2]), None);
        assert_eq!(ns(&[8], Collective::AllReduce, &[1, 2, 3]), None);
    }

    #[test]
    fn inside_of_a_node_all_links_are_alike() {
        // Without times of strided groups those of neighbours hold, on one level; across nodes they do not.
        assert_eq!(ns(&[8], Collective::AllToAll, &[1]), Some(60));
        assert_eq!(ns(&[2, 4], Collective::AllReduce, &[2]), Some(200));
        assert_eq!(ns(&[2, 4], Collective::AllReduce, &[1]), Some(100));
        assert_eq!(ns(&[2, 4], Collective::AllToAll, &[1]), None);
    }

    #[test]
    fn groups_of_a_stage_inside_of_a_node_do_not_cross_nodes() {
        let world = Mesh::from_levels(&[2, 4], 4);
        let stage = world.part_of(2).expect("the nodes are two stages");
        let axes: Vec<AxisId> = stage.spatial().take(1).collect();
        assert_eq!(measured(2).collective_ns(Collective::AllReduce, &stage, &axes, 1000), Some(200));
    }

    #[test]
    fn micro_batches_and_single_ranks_are_no_group() {
        assert_eq!(ns(&[8], Collective::AllReduce, &[0]), None);
        assert_eq!(ns(&[8], Collective::AllReduce, &[0, 3]), Some(200));
    }
}
