//! Where a buffer lies in the arenas of its rank.

/// A memory that a rank has an arena in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Memory {
    /// The device's own, in which everything is computed.
    #[default]
    Device,
    /// The host's, which copies reach over a link.
    Host,
}

/// A part of an arena of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Region {
    /// Lives across steps: parameters, optimizer state, accumulators. Where a chunk has slots, also what lives across phases.
    Persistent,
    /// Lives from forward to backward of one micro-batch, in the slot of that micro-batch.
    Slot,
    /// Lives within one step; where a chunk has slots, within one phase.
    Transient,
    /// In host memory: what is no micro-batch's alone, and where a chunk has no slots all that lies there.
    Host,
    /// In host memory, from forward to backward of one micro-batch, in the slot of that micro-batch.
    HostSlot,
}

impl Region {
    /// All regions with their names in the text format.
    pub const ALL: [(Region, &'static str); 5] = [
        (Region::Persistent, "persistent"),
        (Region::Slot, "slot"),
        (Region::Transient, "transient"),
        (Region::Host, "host"),
        (Region::HostSlot, "host_slot"),
    ];

    /// Name in the text format.
    pub fn name(self) -> &'static str {
        Region::ALL.iter().find(|(r, _)| *r == self).map_or("?", |(_, n)| n)
    }

    /// The memory that it is a part of.
    pub fn memory(self) -> Memory {
        match self {
            Region::Persistent | Region::Slot | Region::Transient => Memory::Device,
            Region::Host | Region::HostSlot => Memory::Host,
        }
    }
}

/// Where a buffer lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The region.
    pub region: Region,
    /// Byte offset in the region.
    pub offset: u64,
}

/// Bytes that every buffer's offset is a multiple of.
pub const ALIGNMENT: u64 = 64;
