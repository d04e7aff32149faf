//! Stages: the parts of the world that run different slices of the model.

use super::ScheduleStep;
use crate::mesh::Mesh;
use std::ops::Range;

/// The devices that host one or more chunks: consecutive ranks with a mesh of their own, each with one arena, and the order in
/// which they run their phases.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// The rank at the first position of the mesh.
    pub first_rank: u64,
    /// The ranks of the stage; all stages have the same micro-batches.
    pub mesh: Mesh,
    /// What its ranks run in order, at level `plan`.
    pub schedule: Vec<ScheduleStep>,
    /// The arena of each of its ranks, at level `plan`.
    pub arena: Arena,
}

impl Stage {
    /// A stage without a schedule.
    pub fn new(first_rank: u64, mesh: Mesh) -> Stage {
        Stage { first_rank, mesh, schedule: Vec::new(), arena: Arena::default() }
    }

    /// The ranks of the stage.
    pub fn ranks(&self) -> Range<u64> {
        self.first_rank..self.first_rank + self.mesh.world()
    }
}

/// Bytes of each region of one rank's arenas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Arena {
    /// What lives across phases and steps.
    pub persistent: u64,
    /// Activation slots of all chunks.
    pub slots: u64,
    /// What lives within one phase, or within one micro-batch of a chunk without slots.
    pub transient: u64,
    /// What lies in host memory and in no slot.
    pub host: u64,
    /// Activation slots of all chunks in host memory.
    pub host_slots: u64,
}

impl Arena {
    /// All bytes of the device's memory.
    pub fn bytes(&self) -> u64 {
        self.persistent + self.slots + self.transient
    }

    /// All bytes of host memory.
    pub fn host_bytes(&self) -> u64 {
        self.host + self.host_slots
    }
}

/// Activation slots of a chunk: equal parts of its stage's regions of slots, in each memory. What the forward phase of a micro-batch leaves to its
/// backward phase lies in slot number *micro-batch modulo count*.
///
/// With a count of 0 backward follows forward at once, and what lies between is transient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Slots {
    /// How many.
    pub count: u32,
    /// Bytes of one, a multiple of the alignment.
    pub bytes: u64,
    /// Where the first one starts in the region.
    pub offset: u64,
    /// Bytes of one in host memory, a multiple of the alignment.
    pub host_bytes: u64,
    /// Where the first one starts there.
    pub host_offset: u64,
}
