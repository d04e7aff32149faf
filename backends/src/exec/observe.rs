//! The memory that a rank was seen to use: the highest end of any buffer that was bound, never what the plan predicts.

use std::sync::atomic::{AtomicU64, Ordering};

/// The end of the highest buffer in each region, in bytes from the region's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) persistent: u64,
    pub(super) slots: u64,
    pub(super) transient: u64,
    pub(super) host: u64,
    pub(super) host_slots: u64,
}

/// Regions of both memories.
pub(super) const N_REGIONS: usize = 5;

impl Ends {
    /// One number for each region.
    pub(super) fn numbers(self) -> [u64; N_REGIONS] {
        [self.persistent, self.slots, self.transient, self.host, self.host_slots]
    }

    /// What [`numbers`](Self::numbers) gave.
    pub(super) fn of(numbers: [u64; N_REGIONS]) -> Ends {
        let [persistent, slots, transient, host, host_slots] = numbers;
        Ends { persistent, slots, transient, host, host_slots }
    }
}

/// What one rank has used so far; the rank writes it, rank 0 reports it.
#[derive(Debug, Default)]
pub(super) struct Observed([AtomicU64; N_REGIONS]);

impl Observed {
    /// Notes that buffers up to these ends are in use.
    pub(super) fn bind(&self, ends: Ends) {
        for (region, end) in self.0.iter().zip(ends.numbers()) {
            region.fetch_max(end, Ordering::Relaxed);
        }
    }

    /// What is in use.
    pub(super) fn ends(&self) -> Ends {
        Ends::of(self.0.each_ref().map(|region| region.load(Ordering::Relaxed)))
    }

    /// Bytes of all regions of the device's memory together.
    pub(super) fn peak_bytes(&self) -> u64 {
        let Ends { persistent, slots, transient, .. } = self.ends();
        persistent + slots + transient
    }

    /// Bytes of all regions of host memory together.
    pub(super) fn host_bytes(&self) -> u64 {
        let Ends { host, host_slots, .. } = self.ends();
        host + host_slots
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_the_sum_of_the_highest_ends() {
        let observed = Observed::default();
        observed.bind(Ends { persistent: 64, slots: 7, transient: 10, host: 1, host_slots: 9 });
        observed.bind(Ends { persistent: 32, slots: 5, transient: 100, host: 2, host_slots: 0 });
        assert_eq!((observed.peak_bytes(), observed.host_bytes()), (171, 11));
    }
}
