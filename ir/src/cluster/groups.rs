//! Devices that differ: runs of ranks with a memory and a speed of their own.

use super::Cluster;
use std::ops::Range;

/// A run of devices that are equal among themselves.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceGroup {
    /// Name for reports.
    pub name: String,
    /// How many devices.
    pub count: u32,
    /// Bytes that the plan may use on one of them.
    pub memory_bytes: u64,
    /// Factor of the cluster's device: of its operations a second, and of the bytes between it and its memory.
    pub speed: f64,
}

impl Cluster {
    /// The factor of the rates at which some ranks run one program together: that of the slowest.
    pub fn speed(&self, ranks: &Range<u64>) -> f64 {
        self.groups_of(ranks).map(|group| group.speed).reduce(f64::min).unwrap_or(1.0)
    }

    /// Bytes that a program may use on each of some ranks: what the smallest has.
    pub fn memory_bytes(&self, ranks: &Range<u64>) -> u64 {
        self.groups_of(ranks).map(|group| group.memory_bytes).min().unwrap_or(self.device.memory_bytes)
    }

    /// The same machine whose devices have as many bytes as `of` makes of what they have.
    pub fn with_memory(&self, of: impl Fn(u64) -> u64) -> Cluster {
        let mut cluster = self.clone();
        let groups = cluster.groups.iter_mut().map(|group| &mut group.memory_bytes);
        groups.chain([&mut cluster.device.memory_bytes]).for_each(|bytes| *bytes = of(*bytes));
        cluster
    }

    /// The groups that have some of these ranks; none where all devices are equal.
    pub fn groups_of(&self, ranks: &Range<u64>) -> impl Iterator<Item = &DeviceGroup> {
        let mut next = 0;
        let with_ranks = self.groups.iter().map(move |group| {
            let first = next;
            next += u64::from(group.count);
            (group, first..next)
        });
        let has = move |own: &Range<u64>| own.start < ranks.end && ranks.start < own.end;
        with_ranks.filter(move |(_, own)| has(own)).map(|(group, _)| group)
    }

    /// Whether the groups are those of all devices.
    pub(super) fn check_groups(&self) -> Result<(), String> {
        if self.groups.is_empty() {
            return Ok(());
        }
        let is_possible = |group: &DeviceGroup| group.memory_bytes > 0 && group.speed.is_finite() && group.speed > 0.0;
        if let Some(group) = self.groups.iter().find(|group| group.count == 0 || !is_possible(group)) {
            return Err(format!("group `{}`: its count, memory and speed are positive", group.name));
        }
        let (n_grouped, world) = (self.groups.iter().map(|group| u64::from(group.count)).sum::<u64>(), self.world());
        match n_grouped == u64::from(world) {
            true => Ok(()),
            false => Err(format!("the groups have {n_grouped} devices, the cluster has {world}")),
        }
    }

    /// The groups of the first `world` devices.
    pub(super) fn first_groups(&self, world: u32) -> Result<Vec<DeviceGroup>, String> {
        let mut left = world;
        let mut first = Vec::new();
        for group in &self.groups {
            let count = group.count.min(left);
            left -= count;
            first.extend((count > 0).then(|| DeviceGroup { count, ..group.clone() }));
        }
        match first.is_empty() || left == 0 {
            true => Ok(first),
            false => {
                Err(format!("the cluster says of {} devices how they differ, and nothing of {left} more", world - left))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DeviceKind, DeviceSpec, LinkLevel};
    use super::*;

    fn cluster(groups: &[(u32, u64, f64)]) -> Cluster {
        let rate = 1e12;
        let device = DeviceSpec {
            kind: DeviceKind::Cpu,
            memory_bytes: 8,
            f32_flops: rate,
            bf16_flops: rate,
            memory_bandwidth: rate,
        };
        let level = |name: &str, size| LinkLevel { name: name.into(), size, bandwidth: 1e9, latency_ns: 0.0 };
        let group = |&(count, memory_bytes, speed): &_| DeviceGroup { name: "g".into(), count, memory_bytes, speed };
        let groups = groups.iter().map(group).collect();
        Cluster { name: "c".into(), device, groups, host: None, levels: vec![level("inter", 2), level("intra", 4)] }
    }

    #[test]
    fn ranks_are_as_fast_as_the_slowest_and_as_large_as_the_smallest() {
        let of = |groups: &[_], ranks| (cluster(groups).speed(&ranks), cluster(groups).memory_bytes(&ranks));
        let groups = [(3, 8, 1.0), (1, 8, 0.5), (4, 2, 2.0)];
        assert_eq!(of(&groups, 0..3), (1.0, 8));
        assert_eq!(of(&groups, 0..4), (0.5, 8));
        assert_eq!(of(&groups, 3..5), (0.5, 2));
        assert_eq!(of(&groups, 4..8), (2.0, 2));
        assert_eq!(of(&[], 0..8), (1.0, 8));
    }

    #[test]
    fn groups_are_of_all_devices() {
        let faults = |groups: &[_]| cluster(groups).check().err();
        assert_eq!(faults(&[]), None);
        assert_eq!(faults(&[(4, 8, 1.0), (4, 2, 0.5)]), None);
        assert_eq!(faults(&[(4, 8, 1.0)]), Some("the groups have 4 devices, the cluster has 8".into()));
        for wrong in [(0, 8, 1.0), (8, 0, 1.0), (8, 8, 0.0), (8, 8, f64::INFINITY), (8, 8, f64::NAN)] {
            assert!(faults(&[wrong]).is_some_and(|fault| fault.contains("positive")), "{wrong:?}");
        }
    }

    #[test]
    fn the_first_devices_stay_and_no_more_are_known() {
        let three = cluster(&[(3, 8, 1.0), (1, 8, 0.5), (4, 2, 2.0)]);
        let counts = |world| three.resized(world).map(|c| c.groups.iter().map(|g| g.count).collect::<Vec<u32>>());
        assert_eq!(counts(8), Ok(vec![3, 1, 4]));
        assert_eq!(counts(4), Ok(vec![3, 1]));
        assert_eq!(counts(2), Ok(vec![2]));
        assert!(counts(16).is_err_and(|why| why.contains("nothing of 8 more")));
        assert_eq!(three.with_memory(|bytes| bytes + 1).memory_bytes(&(0..8)), 3);
    }
}
