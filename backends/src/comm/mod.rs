//! Communication between ranks: one object-safe trait, and its implementations.
//!
//! A *rank* is one worker of the plan, numbered from 0 to the world's size. A *group* is a set of ranks that communicate
//! together; a rank's *index* in a group is its place in the group's ascending list of ranks. All members of a group make
//! the same calls in the same order. Every result is a function of the inputs alone: sums are taken in rank order, so
//! all members get the same bits however the ranks are timed.

use std::fmt;
use std::sync::Arc;

mod call;
mod fault;
mod local;
mod reduce;
mod standing;
pub mod tcp;
#[cfg(test)]
mod testing;

pub use fault::{Around, CommFault};
pub use local::{LocalComm, local_world, local_world_with_room};
pub use standing::{Standing, Whereabouts};

/// One rank's end of the world. Buffers are plain memory of this rank; each call blocks until this rank's part is done
/// and its buffers are its own again.
///
/// All calls return [`CommFault`] when peers are missing, disagree, or have failed. Wrong buffer lengths within one rank
/// (such as an output that is not group size times the input) are bugs of the caller and panic.
pub trait Collective: Send {
    /// This rank's number in the world.
    fn rank(&self) -> usize;

    /// The number of ranks in the world.
    fn world(&self) -> usize;

    /// Creates the communicator of `ranks` (in any order, this rank among them), or returns the one this rank already
    /// has for them. All groups are created up front, in the same order on every rank that belongs to them.
    fn group(&mut self, ranks: &[usize]) -> GroupId;

    /// The members of a group created by [`group`](Self::group).
    fn members(&self, group: GroupId) -> &Group;

    /// Replaces `buf` by its reduction over the group: `((r0 + r1) + r2) + …` in rank order, the same bits on every
    /// member.
    fn all_reduce(&mut self, group: GroupId, buf: &mut [f32], op: ReduceOp, site: &Site<'_>) -> Result<(), CommFault>;

    /// Sums `input`, which is group-size equal contiguous chunks, over the group and leaves chunk number *my index* in
    /// `output`; the sum is taken in rank order.
    fn reduce_scatter(
        &mut self,
        group: GroupId,
        input: &[f32],
        output: &mut [f32],
        site: &Site<'_>,
    ) -> Result<(), CommFault>;

    /// Concatenates the `input` of all members in group order into `output`.
    fn all_gather(&mut self, group: GroupId, input: &[u8], output: &mut [u8], site: &Site<'_>)
    -> Result<(), CommFault>;

    /// Like [`all_gather`](Self::all_gather) with the input already at its place: `buf` is group-size equal chunks, of
    /// which number *my index* is this rank's contribution.
    fn all_gather_in_place(&mut self, group: GroupId, buf: &mut [u8], site: &Site<'_>) -> Result<(), CommFault>;

    /// Sends chunk `j` of `input` to member `j` and receives member `j`'s chunk for this rank at place `j` of `output`.
    /// Both are group-size equal chunks.
    fn all_to_all(&mut self, group: GroupId, input: &[u8], output: &mut [u8], site: &Site<'_>)
    -> Result<(), CommFault>;

    /// Copies `buf` of the member with index `root_index` over `buf` of all others.
    fn broadcast(
        &mut self,
        group: GroupId,
        root_index: usize,
        buf: &mut [u8],
        site: &Site<'_>,
    ) -> Result<(), CommFault>;

    /// Waits until all members have arrived.
    fn barrier(&mut self, group: GroupId, site: &Site<'_>) -> Result<(), CommFault>;

    /// Sends a message to world rank `to`. It is buffered: the call returns before the receiver arrives, unless there is no
    /// [room](galvatron_ir::plan::Room) for more messages to that rank.
    fn send(&mut self, to: usize, tag: u64, data: &[u8], site: &Site<'_>) -> Result<(), CommFault>;

    /// Receives the oldest message with this `tag` from world rank `from`; its length must be that of `data`.
    fn recv(&mut self, from: usize, tag: u64, data: &mut [u8], site: &Site<'_>) -> Result<(), CommFault>;

    /// Takes the world down: every rank that waits, and every later call, returns [`CommFault::Aborted`]. The first
    /// abort is the one that is reported.
    fn abort(&self, reason: &str);

    /// What tells, from any thread, whether the world has been taken down. Who waits for something else than a call, such as
    /// a device, looks at it from time to time.
    fn alarm(&self) -> Arc<dyn Alarm>;

    /// Takes what tells this rank's place in the plan. Then the errors of ranks that wait in vain say what this one does; before
    /// that, where it was last seen. Only the first one is taken.
    fn watch(&mut self, whereabouts: Arc<dyn Whereabouts>);

    /// What this rank has communicated so far.
    fn stats(&self) -> &Stats;
}

/// Tells whether a world has been taken down.
pub trait Alarm: Send + Sync {
    /// What every call of this rank returns from now on, once the world has been taken down.
    fn fault(&self) -> Option<CommFault>;
}

/// Where in the plan a call comes from. Only errors use it, and the check that all members are at the same node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Site<'a> {
    /// The name of the plan node.
    pub node: &'a str,
    /// The training step.
    pub step: u64,
}

/// The handle of a communicator, valid for the [`Collective`] that created it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub(crate) usize);

/// The members of a communicator.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// World ranks, ascending and distinct. Never empty.
    ranks: Vec<usize>,
}

impl Group {
    /// The group of `ranks`, sorted; panics if there are none or if one repeats.
    pub fn new(ranks: &[usize]) -> Self {
        let mut ranks = ranks.to_vec();
        ranks.sort_unstable();
        assert!(!ranks.is_empty(), "invariant: a group has members");
        assert!(ranks.windows(2).all(|pair| pair[0] < pair[1]), "invariant: a rank is in a group once: {ranks:?}");
        Self { ranks }
    }

    /// The world ranks, ascending.
    pub fn ranks(&self) -> &[usize] {
        &self.ranks
    }

    /// The place of a world rank in the group, if it belongs.
    pub fn index_of(&self, rank: usize) -> Option<usize> {
        self.ranks.binary_search(&rank).ok()
    }
}

/// How an [`all_reduce`](Collective::all_reduce) combines elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReduceOp {
    /// The sum, in rank order, in f32.
    Sum,
    /// The largest value; a NaN anywhere makes the result NaN.
    Max,
}

/// The calls of [`Collective`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CommKind {
    /// [`Collective::all_reduce`].
    AllReduce,
    /// [`Collective::reduce_scatter`].
    ReduceScatter,
    /// [`Collective::all_gather`] and its form in place.
    AllGather,
    /// [`Collective::all_to_all`].
    AllToAll,
    /// [`Collective::broadcast`].
    Broadcast,
    /// [`Collective::barrier`].
    Barrier,
    /// [`Collective::send`].
    Send,
    /// [`Collective::recv`].
    Recv,
}

impl CommKind {
    /// Every kind, in declaration order.
    pub const ALL: [Self; 8] = [
        Self::AllReduce,
        Self::ReduceScatter,
        Self::AllGather,
        Self::AllToAll,
        Self::Broadcast,
        Self::Barrier,
        Self::Send,
        Self::Recv,
    ];

    /// The method's name, such as `all_reduce`.
    pub fn name(self) -> &'static str {
        match self {
            Self::AllReduce => "all_reduce",
            Self::ReduceScatter => "reduce_scatter",
            Self::AllGather => "all_gather",
            Self::AllToAll => "all_to_all",
            Self::Broadcast => "broadcast",
            Self::Barrier => "barrier",
            Self::Send => "send",
            Self::Recv => "recv",
        }
    }
}

impl fmt::Display for CommKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What one rank has communicated, by kind. Only calls that succeeded count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    by_kind: [Traffic; CommKind::ALL.len()],
}

impl Stats {
    /// The calls of one kind.
    pub fn of(&self, kind: CommKind) -> Traffic {
        self.by_kind[kind as usize]
    }

    /// All kinds with at least one call, in the order of [`CommKind::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (CommKind, Traffic)> + '_ {
        CommKind::ALL.into_iter().map(|kind| (kind, self.of(kind))).filter(|(_, traffic)| traffic.n_calls > 0)
    }

    pub(crate) fn add(&mut self, kind: CommKind, sent_bytes: usize) {
        let traffic = &mut self.by_kind[kind as usize];
        traffic.n_calls += 1;
        traffic.sent_bytes += sent_bytes as u64;
    }
}

/// The calls of one kind and the bytes of this rank that its peers took: for a group of `n` and a buffer of `b` bytes
/// 2b(n-1)/n for `all_reduce`, b(n-1)/n for `reduce_scatter` and `all_to_all` (`b` is the input), b(n-1) for
/// `all_gather` (`b` is the input) and for the root of a `broadcast`, b for `send`, 0 otherwise. Rounded down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// The number of calls.
    pub n_calls: u64,
    /// The bytes that left this rank.
    pub sent_bytes: u64,
}
