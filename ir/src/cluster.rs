//! The machine that a plan is made for, as plain data.

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

/// One device of the cluster; all devices are equal.
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

/// The cluster: equal devices and a hierarchy of links, slowest level first.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Name for reports.
    pub name: String,
    /// The device.
    pub device: DeviceSpec,
    /// Link levels, slowest (outermost) first; the product of their sizes is the world size.
    pub levels: Vec<LinkLevel>,
}

impl Cluster {
    /// Number of devices.
    pub fn world(&self) -> u32 {
        self.levels.iter().map(|l| l.size).product()
    }
}
