//! What all ranks of a world share: where each rank was last seen, how it sleeps and wakes, and whether all must stop.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use galvatron_ir::plan::Room;

use super::channel::Channel;
use super::rendezvous::Rendezvous;
use crate::comm::{Around, CommFault, CommKind, Group, Site, Standing, Whereabouts};

/// How often a waiting rank looks before it lets others run.
const N_SPINS: usize = 50;

/// How often it then lets others run before it sleeps: where there are more ranks than cores, giving the core to a rank
/// that is still on its way is several times cheaper than sleeping and being woken.
const N_YIELDS: usize = 50;

/// The state shared by the ends of one world.
pub(super) struct World {
    /// How long a call waits for its peers.
    pub(super) timeout: Duration,
    seats: Vec<Seat>,
    /// From rank `i` to rank `j` at `i * n + j`.
    channels: Vec<Channel>,
    meetings: Mutex<BTreeMap<Group, Arc<Rendezvous>>>,
    aborted: AtomicBool,
    /// The first rank that failed and its reason; set before `aborted`.
    cause: OnceLock<(usize, String)>,
}

/// What others need to know of one rank. Aligned so that the seats share no cache line.
#[repr(align(128))]
#[derive(Default)]
struct Seat {
    /// Whether the rank sleeps or is about to, and has to be woken by whoever changes what it waits for.
    asleep: AtomicBool,
    /// The thread that sleeps.
    thread: Mutex<Option<Thread>>,
    seen: Mutex<Seen>,
    whereabouts: OnceLock<Arc<dyn Whereabouts>>,
}

#[derive(Default)]
struct Seen {
    /// None before the first call.
    kind: Option<CommKind>,
    node: String,
    step: u64,
    /// What the call waits for, if it does.
    wait: Option<Wait>,
    /// The rank's end was dropped: it makes no more calls.
    left: bool,
}

/// Whom a call waits for.
#[derive(Clone)]
pub(super) enum Wait {
    /// The members of a group who are not at the same meeting.
    Group(Arc<[usize]>),
    /// One rank.
    Peer(usize),
}

impl Wait {
    /// Whether two members wait at one meeting.
    fn is_with(&self, other: &Wait) -> bool {
        matches!((self, other), (Wait::Group(a), Wait::Group(b)) if Arc::ptr_eq(a, b))
    }
}

impl World {
    pub(super) fn new(n: usize, timeout: Duration, room: Room) -> Self {
        Self {
            timeout,
            seats: (0..n).map(|_| Seat::default()).collect(),
            channels: (0..n * n).map(|i| Channel::new(if i / n == i % n { Room::OWN } else { room })).collect(),
            meetings: Mutex::default(),
            aborted: AtomicBool::new(false),
            cause: OnceLock::new(),
        }
    }

    pub(super) fn n_ranks(&self) -> usize {
        self.seats.len()
    }

    pub(super) fn channel(&self, from: usize, to: usize) -> &Channel {
        &self.channels[from * self.n_ranks() + to]
    }

    /// The one meeting point of a group, the same for all its members.
    pub(super) fn meeting(&self, group: &Group) -> Arc<Rendezvous> {
        let mut meetings = locked(&self.meetings);
        Arc::clone(meetings.entry(group.clone()).or_insert_with(|| Arc::new(Rendezvous::new(group))))
    }

    /// Notes where `rank` is; fails if the world has been aborted.
    pub(super) fn enter(&self, rank: usize, kind: CommKind, site: &Site<'_>) -> Result<(), CommFault> {
        let mut seen = locked(&self.seats[rank].seen);
        seen.kind = Some(kind);
        seen.node.clear();
        seen.node.push_str(site.node);
        seen.step = site.step;
        seen.wait = None;
        drop(seen);
        self.abort_fault(rank).map_or(Ok(()), Err)
    }

    /// Notes whom the call of `rank` waits for from now on; it is forgotten with the next call, so that a call that has failed
    /// still tells.
    pub(super) fn note_wait(&self, rank: usize, wait: Option<Wait>) {
        locked(&self.seats[rank].seen).wait = wait;
    }

    /// Takes what tells the place of `rank`.
    pub(super) fn watch(&self, rank: usize, whereabouts: Arc<dyn Whereabouts>) {
        let _ = self.seats[rank].whereabouts.set(whereabouts);
    }

    /// What every rank does; empty if `asker` does not tell itself.
    fn standings(&self, asker: usize) -> Vec<Standing> {
        if self.seats[asker].whereabouts.get().is_none() {
            return Vec::new();
        }
        let waits: Vec<Option<Wait>> = self.seats.iter().map(|seat| locked(&seat.seen).wait.clone()).collect();
        let is_away = |rank: usize, wait: &Wait| !waits[rank].as_ref().is_some_and(|other| other.is_with(wait));
        let waits_for = |wait: &Wait| match wait {
            Wait::Group(ranks) => ranks.iter().copied().filter(|&rank| is_away(rank, wait)).collect(),
            Wait::Peer(rank) => vec![*rank],
        };
        let place = |rank: usize| self.seats[rank].whereabouts.get().map_or_else(|| self.place(rank), |w| w.place());
        let standing = |(rank, wait): (usize, &Option<Wait>)| Standing {
            rank,
            place: place(rank),
            waits_for: wait.as_ref().map_or_else(Vec::new, waits_for),
        };
        waits.iter().enumerate().map(standing).collect()
    }

    /// Notes that `rank` makes no more calls.
    pub(super) fn leave(&self, rank: usize) {
        locked(&self.seats[rank].seen).left = true;
    }

    /// Blocks `rank` until `ready` holds, or at most for `timeout`; then the error is the time waited. `ready` must load
    /// with `SeqCst` what others store with `SeqCst` before they [`wake`](Self::wake) this rank.
    pub(super) fn wait(
        &self,
        rank: usize,
        timeout: Option<Duration>,
        ready: impl Fn() -> bool,
    ) -> Result<(), Duration> {
        for look in 0..N_SPINS + N_YIELDS {
            if ready() {
                return Ok(());
            }
            if look < N_SPINS { std::hint::spin_loop() } else { thread::yield_now() }
        }
        let seat = &self.seats[rank];
        *locked(&seat.thread) = Some(thread::current());
        let outcome = seat.sleep(timeout, ready);
        seat.asleep.store(false, Ordering::SeqCst);
        outcome
    }

    /// Wakes `rank` if it sleeps, so that it looks again.
    pub(super) fn wake(&self, rank: usize) {
        let seat = &self.seats[rank];
        if seat.asleep.load(Ordering::SeqCst)
            && seat.asleep.swap(false, Ordering::SeqCst)
            && let Some(thread) = &*locked(&seat.thread)
        {
            thread.unpark();
        }
    }

    /// Stops every rank; only the first call has an effect.
    pub(super) fn abort(&self, by: usize, reason: &str) {
        if self.cause.set((by, reason.to_owned())).is_ok() {
            self.aborted.store(true, Ordering::SeqCst);
            (0..self.n_ranks()).for_each(|rank| self.wake(rank));
        }
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::SeqCst)
    }

    /// The error for `rank` if the world has been aborted.
    pub(super) fn abort_fault(&self, rank: usize) -> Option<CommFault> {
        if !self.is_aborted() {
            return None;
        }
        let (by, reason) = self.cause.get().expect("invariant: the cause is set before the flag");
        Some(CommFault::Aborted { rank, by: *by, reason: reason.clone() })
    }

    /// The time-out of `rank`, which has waited for `missing` among the members `ranks`.
    pub(super) fn timeout_fault(
        &self,
        rank: usize,
        (kind, site): (CommKind, &Site<'_>),
        waited: Duration,
        missing: Vec<usize>,
        ranks: &[usize],
    ) -> CommFault {
        let peers = ranks.iter().filter(|&&peer| peer != rank).map(|&peer| (peer, self.place(peer))).collect();
        let around = Box::new(Around { peers, world: self.standings(rank) });
        CommFault::Timeout { rank, node: site.node.to_owned(), step: site.step, kind, waited, missing, around }
    }

    /// Where a rank was last seen, in words.
    fn place(&self, rank: usize) -> String {
        let seen = locked(&self.seats[rank].seen);
        let end = if seen.left { ", and has finished since" } else { "" };
        match seen.kind {
            None => format!("its start{end}"),
            Some(kind) => format!("{kind} at `{}` (step {}){end}", seen.node, seen.step),
        }
    }
}

impl Seat {
    fn sleep(&self, timeout: Option<Duration>, ready: impl Fn() -> bool) -> Result<(), Duration> {
        let start = Instant::now();
        loop {
            self.asleep.store(true, Ordering::SeqCst);
            if ready() {
                return Ok(());
            }
            let Some(timeout) = timeout else {
                thread::park();
                continue;
            };
            let waited = start.elapsed();
            if waited >= timeout {
                return Err(waited);
            }
            thread::park_timeout(timeout - waited);
        }
    }
}

/// Locks a mutex whose data stays consistent even if a holder panics.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
