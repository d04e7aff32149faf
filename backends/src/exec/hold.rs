//! A rank that stands still, for tests of what the others say of it.

use std::thread;
use std::time::Duration;

use super::beacon::Beacon;
use crate::comm::{Collective, CommFault, Whereabouts};

/// How long a rank that stands still sleeps between two looks at the alarm.
const LOOK: Duration = Duration::from_millis(2);

/// Where a rank stands still, until the world is taken down: a hook for tests, which have no other way to block a rank for as long
/// as it takes. A run of a user has none.
#[doc(hidden)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The rank.
    pub rank: usize,
    /// How its place begins, as errors name it: the node, and as much of op, phase, micro-batch and step as is wanted.
    pub place: String,
}

impl Hold {
    /// Waits here for the end of the world if this is the place.
    ///
    /// # Errors
    /// The fault that took the world down.
    pub(super) fn at(&self, comm: &dyn Collective, beacon: &Beacon) -> Result<(), CommFault> {
        if comm.rank() != self.rank || !beacon.place().starts_with(&self.place) {
            return Ok(());
        }
        let alarm = comm.alarm();
        loop {
            if let Some(fault) = alarm.fault() {
                return Err(fault);
            }
            thread::sleep(LOOK);
        }
    }
}
