//! What the stages of a plan need of the memory that their devices have.

use crate::cluster::Cluster;
use crate::module::Module;

/// The memory of one stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageMemory {
    /// Index of the stage.
    pub stage: usize,
    /// Bytes of the arena of each of its ranks.
    pub peak_bytes: u64,
    /// Bytes that a plan may use on each of its devices.
    pub memory_bytes: u64,
}

impl StageMemory {
    /// Bytes that it lacks.
    pub fn excess_bytes(&self) -> u64 {
        self.peak_bytes.saturating_sub(self.memory_bytes)
    }

    /// Bytes that it leaves.
    pub fn left_bytes(&self) -> u64 {
        self.memory_bytes.saturating_sub(self.peak_bytes)
    }

    /// Whether it fits.
    pub fn fits(&self) -> bool {
        self.peak_bytes <= self.memory_bytes
    }
}

impl Module {
    /// The memory of each stage on the devices of a cluster.
    pub fn memory_by_stage(&self, cluster: &Cluster) -> Vec<StageMemory> {
        let stages = self.stages.iter().enumerate();
        let memory = stages.map(|(stage, s)| StageMemory {
            stage,
            peak_bytes: s.arena.bytes(),
            memory_bytes: cluster.memory_bytes(&s.ranks()),
        });
        memory.collect()
    }

    /// The stage that lacks most bytes or leaves least, the first of several; one that needs nothing where there is none.
    pub fn tightest_stage(&self, cluster: &Cluster) -> StageMemory {
        let all = self.memory_by_stage(cluster);
        let none = StageMemory { stage: 0, peak_bytes: 0, memory_bytes: cluster.device.memory_bytes };
        let order = |s: &&StageMemory| i128::from(s.memory_bytes) - i128::from(s.peak_bytes);
        all.iter().min_by_key(order).copied().unwrap_or(none)
    }
}
