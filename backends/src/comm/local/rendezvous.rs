//! Where the members of one group meet: they agree on the call, or all learn that they do not.
//!
//! A call has two parts. Until all members have *arrived*, each may still withdraw (time-out, abort). The last arrival
//! *commits* the call: from then on every member is inside it and only moves bounded amounts of data, so nobody may leave
//! early and waiting needs no time-out. Peers read a member's buffer only between the commit and the member's last
//! [`sync`](Rendezvous::sync).

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::world::{Wait, World, locked};
use crate::comm::call::{self, Shape};
use crate::comm::{CommFault, CommKind, Group, Site};

/// The meeting point of one group.
pub(super) struct Rendezvous {
    ranks: Arc<[usize]>,
    arrivals: Mutex<Arrivals>,
    /// The number of calls that were committed.
    n_committed: AtomicU64,
    /// The members disagreed; the group is unusable.
    failed: AtomicBool,
    /// All syncs of all members so far; a multiple of the group size whenever no call is under way.
    n_syncs: AtomicU64,
    /// The buffer each member has published for the current call.
    windows: Vec<AtomicPtr<u8>>,
}

/// One member's call.
#[derive(Clone)]
struct Arrival {
    rank: usize,
    shape: Shape,
    node: String,
}

struct Arrivals {
    /// By index in the group; the entries of earlier calls stay for their memory.
    calls: Vec<Arrival>,
    here: Vec<bool>,
    /// The index of the first member here.
    first: Option<usize>,
    /// The first two members that disagreed.
    conflict: Option<[Arrival; 2]>,
}

impl Rendezvous {
    pub(super) fn new(group: &Group) -> Self {
        let ranks: Arc<[usize]> = group.ranks().into();
        let shape = Shape::new(CommKind::Barrier, 0);
        let calls = ranks.iter().map(|&rank| Arrival { rank, shape, node: String::new() }).collect();
        Self {
            arrivals: Mutex::new(Arrivals { calls, here: vec![false; ranks.len()], first: None, conflict: None }),
            n_committed: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            n_syncs: AtomicU64::new(0),
            windows: ranks.iter().map(|_| AtomicPtr::new(ptr::null_mut())).collect(),
            ranks,
        }
    }

    pub(super) fn n_members(&self) -> usize {
        self.ranks.len()
    }

    /// The buffer that member `index` has published.
    pub(super) fn window(&self, index: usize) -> *mut u8 {
        self.windows[index].load(Ordering::Acquire)
    }

    /// Publishes member `index`'s buffer and waits until the call is committed. On an error nobody has read, or will
    /// read, the buffer.
    pub(super) fn arrive(
        &self,
        world: &World,
        index: usize,
        window: *mut u8,
        shape: Shape,
        site: &Site<'_>,
    ) -> Result<(), CommFault> {
        let rank = self.ranks[index];
        world.enter(rank, shape.kind, site)?;
        self.windows[index].store(window, Ordering::Release);
        let Some(ticket) = self.check_in(world, index, shape, site)? else { return Ok(()) };
        let committed = || self.n_committed.load(Ordering::SeqCst) >= ticket;
        world.note_wait(rank, Some(Wait::Group(Arc::clone(&self.ranks))));
        let waited = world.wait(rank, Some(world.timeout), || {
            committed() || self.failed.load(Ordering::SeqCst) || world.is_aborted()
        });
        if committed() {
            world.note_wait(rank, None);
            return Ok(());
        }
        let arrivals = locked(&self.arrivals);
        if committed() {
            world.note_wait(rank, None);
            return Ok(());
        }
        Err(self.give_up(arrivals, world, index, waited.err().unwrap_or_default(), (shape.kind, site)))
    }

    /// Takes the call of member `index` back, which has not been committed, and says why.
    fn give_up(
        &self,
        mut arrivals: MutexGuard<'_, Arrivals>,
        world: &World,
        index: usize,
        waited: Duration,
        call: (CommKind, &Site<'_>),
    ) -> CommFault {
        if let Some(fault) = arrivals.mismatch(index, call.1) {
            return fault;
        }
        let (rank, missing) = (self.ranks[index], arrivals.missing(&self.ranks));
        arrivals.withdraw(index);
        drop(arrivals);
        world.abort_fault(rank).unwrap_or_else(|| world.timeout_fault(rank, call, waited, missing, &self.ranks))
    }

    /// Enters the call of member `index`. The last one commits it and gets None; the others get the number of commits to
    /// wait for.
    fn check_in(&self, world: &World, index: usize, shape: Shape, site: &Site<'_>) -> Result<Option<u64>, CommFault> {
        let mut arrivals = locked(&self.arrivals);
        arrivals.enter(index, shape, site);
        if let Some(fault) = arrivals.mismatch(index, site) {
            self.failed.store(true, Ordering::SeqCst);
            drop(arrivals);
            self.wake_peers(world, index);
            return Err(fault);
        }
        let ticket = self.n_committed.load(Ordering::SeqCst) + 1;
        if !arrivals.here.iter().all(|&here| here) {
            return Ok(Some(ticket));
        }
        arrivals.here.fill(false);
        arrivals.first = None;
        self.n_committed.store(ticket, Ordering::SeqCst);
        drop(arrivals);
        self.wake_peers(world, index);
        Ok(None)
    }

    /// Waits, inside a committed call, until every member has called `sync` equally often. What a member did before it is
    /// visible to all after it.
    pub(super) fn sync(&self, world: &World, index: usize) {
        let n = self.n_members() as u64;
        let before = self.n_syncs.fetch_add(1, Ordering::SeqCst);
        let goal = (before / n + 1) * n;
        if before + 1 == goal {
            return self.wake_peers(world, index);
        }
        let all_here = || self.n_syncs.load(Ordering::SeqCst) >= goal;
        world.wait(self.ranks[index], None, all_here).expect("invariant: a wait without limit ends when it is ready");
    }

    fn wake_peers(&self, world: &World, index: usize) {
        self.ranks.iter().enumerate().filter(|&(peer, _)| peer != index).for_each(|(_, &rank)| world.wake(rank));
    }
}

impl Arrivals {
    /// Notes the call of member `index`; a call unlike the first one here is a conflict.
    fn enter(&mut self, index: usize, shape: Shape, site: &Site<'_>) {
        let call = &mut self.calls[index];
        call.shape = shape;
        call.node.clear();
        call.node.push_str(site.node);
        self.here[index] = true;
        let first = *self.first.get_or_insert(index);
        if self.conflict.is_none() && difference(&self.calls[index], &self.calls[first]).is_some() {
            self.conflict = Some([self.calls[first].clone(), self.calls[index].clone()]);
        }
    }

    /// Takes the call of member `index` back.
    fn withdraw(&mut self, index: usize) {
        self.here[index] = false;
        self.first = self.here.iter().position(|&here| here);
    }

    fn missing(&self, ranks: &[usize]) -> Vec<usize> {
        ranks.iter().zip(&self.here).filter(|&(_, &here)| !here).map(|(&rank, _)| rank).collect()
    }

    /// The error of member `index` if the group is in conflict: two calls that differ cannot both equal its own.
    fn mismatch(&self, index: usize, site: &Site<'_>) -> Option<CommFault> {
        let mine = &self.calls[index];
        let (peer, what) =
            self.conflict.as_ref()?.iter().find_map(|other| difference(mine, other).map(|what| (other, what)))?;
        Some(CommFault::Mismatch {
            rank: mine.rank,
            node: mine.node.clone(),
            step: site.step,
            peer: peer.rank,
            peer_node: peer.node.clone(),
            what,
        })
    }
}

/// What two members disagree on, `mine` first.
fn difference(mine: &Arrival, other: &Arrival) -> Option<String> {
    call::difference((&mine.shape, &mine.node), (&other.shape, &other.node))
}
