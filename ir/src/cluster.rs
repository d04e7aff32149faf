//! The machine that a plan is made for, as plain data.

mod groups;

pub use groups::DeviceGroup;

use serde::{Deserialize, Serialize};

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// A rank is a thread (or process) on a CPU with its share of the cores.
    Cpu,
    /// A rank is a CUDA GPU.
    Cuda,
}

impl DeviceKind {
    /// All kinds with their names in the text format.
    pub const ALL: [(DeviceKind, &'static str); 2] = [(DeviceKind::Cpu, "cpu"), (DeviceKind::Cuda, "cuda")];

    /// Name in the text format.
    pub fn name(self) -> &'static str {
        DeviceKind::ALL.iter().find(|(kind, _)| *kind == self).map_or("?", |(_, name)| name)
    }
}

/// One device of the cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceSpec {
    /// CPU or CUDA.
    pub kind: DeviceKind,
    /// Bytes that the plan may use on one device.
    pub memory_bytes: u64,
    /// Peak floating-point operations a second in f32.
    pub f32_flops: f64,
    /// Peak floating-point operations a second in bf16.
    pub bf16_flops: f64,
    /// Bytes a second between the device and its memory.
    pub memory_bandwidth: f64,
}

impl DeviceSpec {
    /// A device that computes and moves bytes through its memory at `speed` times these rates.
    pub fn at_speed(&self, speed: f64) -> DeviceSpec {
        DeviceSpec {
            f32_flops: self.f32_flops * speed,
            bf16_flops: self.bf16_flops * speed,
            memory_bandwidth: self.memory_bandwidth * speed,
            ..self.clone()
        }
    }
}

/// What a device may use of the memory of its host, and the link to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HostMemory {
    /// Bytes that the plan may use there for one device.
    pub memory_bytes: u64,
    /// Bytes a second between the memories of device and host, in each direction.
    pub bandwidth: f64,
    /// Nanoseconds for one copy.
    pub latency_ns: f64,
}

/// One level of the interconnect: `size` groups of the next faster level (or devices) joined by equal links.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkLevel {
    /// Name for reports, for example `inter_node`.
    pub name: String,
    /// How many members one group of this level has.
    pub size: u32,
    /// Bytes a second, per direction and *device* (a node's link is shared by its devices).
    pub bandwidth: f64,
    /// Nanoseconds for one message.
    pub latency_ns: f64,
}

/// The cluster: devices and a hierarchy of links, slowest level first.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Name for reports.
    pub name: String,
    /// The device.
    pub device: DeviceSpec,
    /// In what devices differ from it, in the order of the ranks; empty where all are equal.
    pub groups: Vec<DeviceGroup>,
    /// Memory of the host, where a plan may use it.
    pub host: Option<HostMemory>,
    /// Link levels, slowest (outermost) first; the product of their sizes is the world size.
    pub levels: Vec<LinkLevel>,
}

/// Most devices that a cluster may have.
pub const MAX_WORLD: u64 = 65536;

impl Cluster {
    /// Number of devices.
    pub fn world(&self) -> u32 {
        self.levels.iter().map(|l| l.size).product()
    }

    /// Whether all figures can be computed with.
    ///
    /// # Errors
    /// What is out of range.
    pub fn check(&self) -> Result<(), String> {
        let DeviceSpec { memory_bytes, f32_flops, bf16_flops, memory_bandwidth, .. } = &self.device;
        let world = self.levels.iter().try_fold(1u64, |n, level| n.checked_mul(u64::from(level.size)));
        if !world.is_some_and(|n| (1..=MAX_WORLD).contains(&n)) {
            return Err(format!("a cluster has from 1 to {MAX_WORLD} devices"));
        }
        let rates =
            [f32_flops, bf16_flops, memory_bandwidth].into_iter().chain(self.levels.iter().map(|l| &l.bandwidth));
        let rates = rates.chain(self.host.iter().map(|host| &host.bandwidth));
        if *memory_bytes == 0
            || self.host.is_some_and(|host| host.memory_bytes == 0)
            || !rates.into_iter().all(|&rate| rate.is_finite() && rate > 0.0)
        {
            return Err("memory, operations and bytes a second are positive".into());
        }
        let latencies = self.levels.iter().map(|level| level.latency_ns).chain(self.host.map(|host| host.latency_ns));
        if !latencies.into_iter().all(|ns| ns.is_finite() && ns >= 0.0) {
            return Err("latencies are not negative".into());
        }
        self.check_groups()
    }

    /// Bytes that the plan may use in host memory for one device.
    pub fn host_bytes(&self) -> u64 {
        self.host.map_or(0, |host| host.memory_bytes)
    }

    /// The same machine with another number of devices: full groups of the inner levels, and as many of them at the outermost
    /// level as it takes. Fewer devices than a group has are a part of one. Of devices that differ the first ones stay.
    ///
    /// # Errors
    /// Why there is no such cluster.
    pub fn resized(&self, world: u32) -> Result<Cluster, String> {
        let (mut left, mut levels) = (world, Vec::new());
        for (i, level) in self.levels.iter().enumerate().rev() {
            let is_outermost = i == 0 && self.levels.len() > 1;
            let size = if is_outermost { left } else { left.min(level.size) };
            if size == 0
                || !left.is_multiple_of(size)
                || (left < level.size && !level.size.is_multiple_of(size) && i > 0)
            {
                return Err(format!(
                    "{world} devices are no whole number of `{}` groups of {}",
                    level.name, level.size
                ));
            }
            left /= size;
            levels.push(LinkLevel { size, ..level.clone() });
        }
        if left > 1 {
            return Err(format!(
                "{world} devices are more than one `{}` group has, and the cluster has no link beyond it",
                self.levels[0].name
            ));
        }
        levels.reverse();
        let used = levels.iter().any(|l| l.size > 1);
        levels.retain(|l| !used || l.size > 1);
        levels.truncate(if used { levels.len() } else { 1 });
        let cluster = Cluster { levels, groups: self.first_groups(world)?, ..self.clone() };
        cluster.check().map(|()| cluster)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(levels: &[(&str, u32)]) -> Cluster {
        let device = DeviceSpec {
            kind: DeviceKind::Cuda,
            memory_bytes: 1 << 30,
            f32_flops: 1e12,
            bf16_flops: 1e12,
            memory_bandwidth: 1e12,
        };
        let level =
            |&(name, size): &(&str, u32)| LinkLevel { name: name.into(), size, bandwidth: 1e9, latency_ns: 0.0 };
        Cluster { name: "c".into(), device, groups: Vec::new(), host: None, levels: levels.iter().map(level).collect() }
    }

    fn sizes(cluster: &Cluster, world: u32) -> Result<Vec<(String, u32)>, String> {
        Ok(cluster.resized(world)?.levels.into_iter().map(|l| (l.name, l.size)).collect())
    }

    #[test]
    fn nodes_are_added_and_a_node_is_cut() {
        let two = cluster(&[("inter", 2), ("intra", 8)]);
        assert_eq!(sizes(&two, 32).unwrap(), [("inter".into(), 4), ("intra".into(), 8)]);
        assert_eq!(sizes(&two, 4).unwrap(), [("intra".into(), 4)]);
        assert_eq!(sizes(&two, 1).unwrap().len(), 1);
        assert_eq!(two.resized(16).unwrap(), two);
    }

    #[test]
    fn what_makes_no_whole_groups_is_refused() {
        let two = cluster(&[("inter", 2), ("intra", 8)]);
        for world in [0, 3, 12, 1 << 20] {
            assert!(two.resized(world).is_err(), "{world}");
        }
        assert!(cluster(&[("intra", 8)]).resized(16).unwrap_err().contains("no link beyond it"));
    }
}
