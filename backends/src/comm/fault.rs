//! What can go wrong when ranks meet: the errors of every collective, with who waits for whom and where.

use std::time::Duration;

use super::CommKind;
use super::standing::{Standing, describe};

/// Why a collective, a send or a receive did not happen. The rank that gets it must not go on with the step: it reports
/// the fault and calls [`Collective::abort`](super::Collective::abort), so that the ranks outside the group stop too.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommFault {
    /// Some members of the group did not arrive in time.
    #[error(
        "rank {rank}: {kind} at `{node}` (step {step}) waited {:.1} s for rank {}{}",
        waited.as_secs_f64(), list(missing), around.describe(*rank)
    )]
    Timeout {
        /// The rank that gave up.
        rank: usize,
        /// The plan node it was at.
        node: String,
        /// The training step it was in.
        step: u64,
        /// What it called.
        kind: CommKind,
        /// How long it waited.
        waited: Duration,
        /// The world ranks that have not arrived, ascending.
        missing: Vec<usize>,
        /// What was known of the others.
        around: Box<Around>,
    },
    /// The members of a group do not make the same call, or a message does not fit the receiver's buffer.
    #[error("rank {rank} at `{node}` (step {step}) does not match rank {peer} at `{peer_node}`: {what}")]
    Mismatch {
        /// The rank that reports.
        rank: usize,
        /// The plan node it was at.
        node: String,
        /// The training step it was in.
        step: u64,
        /// A member that made a different call.
        peer: usize,
        /// The plan node that member was at.
        peer_node: String,
        /// What differs, this rank's value first.
        what: String,
    },
    /// The library or the network that carries messages failed.
    #[error("rank {rank} at `{node}` (step {step}): {what}")]
    Transport {
        /// The rank that reports.
        rank: usize,
        /// The plan node it was at.
        node: String,
        /// The training step it was in.
        step: u64,
        /// What it said.
        what: String,
    },
    /// Another rank failed and took the world down.
    #[error("rank {rank}: stopped because rank {by} failed: {reason}")]
    Aborted {
        /// The rank that reports.
        rank: usize,
        /// The rank that failed first.
        by: usize,
        /// Why it failed.
        reason: String,
    },
}

/// Ranks with commas between them.
pub(super) fn list(ranks: &[usize]) -> String {
    ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

/// What a rank that has waited too long knows of the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Around {
    /// Every other member with the call it was last seen at, ascending by rank.
    pub peers: Vec<(usize, String)>,
    /// What every rank of the world did at that moment, in order; empty where nobody told.
    pub world: Vec<Standing>,
}

impl Around {
    /// What the other ranks do, or else where they were last seen.
    fn describe(&self, rank: usize) -> String {
        if !self.world.is_empty() {
            return describe(rank, &self.world);
        }
        self.peers.iter().map(|(rank, place)| format!("; rank {rank} was last seen at {place}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeout_reads_as_a_sentence() {
        let fault = CommFault::Timeout {
            rank: 0,
            node: "%d".into(),
            step: 3,
            kind: CommKind::AllReduce,
            waited: Duration::from_millis(1500),
            missing: vec![1, 2],
            around: Box::new(Around { peers: vec![(1, "send at `%c` (step 2)".into())], world: Vec::new() }),
        };
        let expected = "rank 0: all_reduce at `%d` (step 3) waited 1.5 s for rank 1, 2; \
                        rank 1 was last seen at send at `%c` (step 2)";
        assert_eq!(fault.to_string(), expected);
    }
}
