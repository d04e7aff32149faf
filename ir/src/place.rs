//! Where a buffer lies in the arena of its rank.

/// A part of a rank's arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Region {
    /// Lives across steps: parameters, optimizer state, accumulators. Where a chunk has slots, also what lives across phases.
    Persistent,
    /// Lives from forward to backward of one micro-batch, in the slot of that micro-batch.
    Slot,
    /// Lives within one step; where a chunk has slots, within one phase.
    Transient,
}

impl Region {
    /// All regions with their names in the text format.
    pub const ALL: [(Region, &'static str); 3] =
        [(Region::Persistent, "persistent"), (Region::Slot, "slot"), (Region::Transient, "transient")];

    /// Name in the text format.
    pub fn name(self) -> &'static str {
        Region::ALL.iter().find(|(r, _)| *r == self).map_or("?", |(_, n)| n)
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
