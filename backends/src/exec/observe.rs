//! The memory that a rank was seen to use: the highest end of any buffer that was bound, never what the plan predicts.

use std::sync::atomic::{AtomicU64, Ordering};

/// The end of the highest buffer in each region, in bytes from the region's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) persistent: u64,
    pub(super) slots: u64,
    pub(super) transient: u64,
}

/// What one rank has used so far; the rank writes it, rank 0 reports it.
#[derive(Debug, Default)]
pub(super) struct Observed {
    persistent: AtomicU64,
    slots: AtomicU64,
    transient: AtomicU64,
}

impl Observed {
    /// Notes that buffers up to these ends are in use.
    pub(super) fn bind(&self, ends: Ends) {
        self.persistent.fetch_max(ends.persistent, Ordering::Relaxed);
        self.slots.fetch_max(ends.slots, Ordering::Relaxed);
        self.transient.fetch_max(ends.transient, Ordering::Relaxed);
    }

    /// What is in use.
    pub(super) fn ends(&self) -> Ends {
        let of = |region: &AtomicU64| region.load(Ordering::Relaxed);
        Ends { persistent: of(&self.persistent), slots: of(&self.slots), transient: of(&self.transient) }
    }

    /// Bytes of all regions together.
    pub(super) fn peak_bytes(&self) -> u64 {
        let Ends { persistent, slots, transient } = self.ends();
        persistent + slots + transient
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_the_sum_of_the_highest_ends() {
        let observed = Observed::default();
        observed.bind(Ends { persistent: 64, slots: 7, transient: 10 });
        observed.bind(Ends { persistent: 32, slots: 5, transient: 100 });
        assert_eq!(observed.peak_bytes(), 171);
    }
}
