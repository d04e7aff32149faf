//! Communicators of NCCL for the groups of a plan, and the host's end of the communication beside them.
//!
//! A communicator is made when its group first exchanges something, which all members do in the same order. Names of
//! communicators travel through an [`IdSource`]: a map where ranks are threads, a rendezvous where they are processes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::arena::Arena;
use super::command::Place;
use super::nccl::{Handle, Nccl, UniqueId};
use crate::comm::{Collective, CommFault, Group, GroupId, LocalComm, ReduceOp, Site, Stats};
use crate::device::ExchangeKind;
use cudarc::driver::sys::CUstream;

/// Gives all members of a group the same name of a communicator.
pub(super) trait IdSource: Send + Sync {
    /// The name for the group of these ranks, made by `make` on one of them.
    ///
    /// # Errors
    /// Why the name could not be made or did not arrive.
    fn id(&self, ranks: &[usize], make: &dyn Fn() -> Result<UniqueId, String>) -> Result<UniqueId, String>;
}

/// What the ranks of one process share.
#[derive(Default)]
pub(super) struct Threads {
    ids: Mutex<BTreeMap<Vec<usize>, UniqueId>>,
    /// Whether some rank has taken the world down.
    is_down: AtomicBool,
}

impl Threads {
    pub(super) fn is_down(&self) -> bool {
        self.is_down.load(Ordering::Relaxed)
    }
}

impl IdSource for Threads {
    fn id(&self, ranks: &[usize], make: &dyn Fn() -> Result<UniqueId, String>) -> Result<UniqueId, String> {
        let mut ids = self.ids.lock().expect("invariant: nothing panics with the names");
        if let Some(&id) = ids.get(ranks) {
            return Ok(id);
        }
        let id = make()?;
        ids.insert(ranks.to_vec(), id);
        Ok(id)
    }
}

/// One rank's communicators.
pub(super) struct Communicators {
    nccl: Arc<Nccl>,
    world: Arc<Threads>,
    rank: usize,
    timeout: Duration,
    made: Mutex<BTreeMap<Vec<usize>, Handle>>,
}

// SAFETY: handles are used under the lock, by whichever thread runs the rank.
unsafe impl Send for Communicators {}
// SAFETY: as for `Send`.
unsafe impl Sync for Communicators {}

impl Communicators {
    pub(super) fn new(nccl: Arc<Nccl>, world: Arc<Threads>, rank: usize, timeout: Duration) -> Communicators {
        Communicators { nccl, world, rank, timeout, made: Mutex::default() }
    }

    /// The rank's end of a group's communicator.
    fn get(&self, group: &Group) -> Result<Handle, String> {
        let mut made = self.made.lock().expect("invariant: nothing panics with the communicators");
        if let Some(&handle) = made.get(group.ranks()) {
            return Ok(handle);
        }
        let id = self.world.id(group.ranks(), &|| self.nccl.unique_id())?;
        let index = group.index_of(self.rank).expect("invariant: a rank uses only groups it belongs to");
        let handle = self.nccl.begin(id, group.ranks().len(), index)?;
        made.insert(group.ranks().to_vec(), handle);
        self.settle(handle, group)?;
        Ok(handle)
    }

    /// Waits until the calls to a communicator have been taken.
    fn settle(&self, handle: Handle, group: &Group) -> Result<(), String> {
        let start = Instant::now();
        while !self.nccl.is_settled(handle)? {
            if self.world.is_down() {
                return Err("another rank failed".into());
            }
            if start.elapsed() > self.timeout {
                let (seconds, ranks) = (self.timeout.as_secs_f64(), group.ranks());
                return Err(format!("ranks {ranks:?} did not all arrive in {seconds:.0} s"));
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    /// Launches an exchange on a stream.
    ///
    /// # Errors
    /// What NCCL says, or that others did not arrive.
    pub(super) fn exchange(
        &self,
        kind: &ExchangeKind,
        group: &Group,
        arena: &Arena,
        stream: CUstream,
    ) -> Result<(), String> {
        let (handle, n_ranks, nccl) = (self.get(group)?, group.ranks().len(), &self.nccl);
        let at = |offset| arena.address(Place::Arena(offset));
        match *kind {
            ExchangeKind::AllReduce(span) => nccl.all_reduce(at(span.offset), span.bytes as usize / 4, handle, stream),
            ExchangeKind::ReduceScatter { input, output } => {
                nccl.reduce_scatter([at(input.offset), at(output.offset)], output.bytes as usize / 4, handle, stream)
            }
            ExchangeKind::AllGather { input, output } => {
                nccl.all_gather([at(input.offset), at(output.offset)], input.bytes as usize, handle, stream)
            }
            ExchangeKind::AllToAll { input, output } => {
                let n = (input.bytes as usize / n_ranks, n_ranks);
                nccl.all_to_all([at(input.offset), at(output.offset)], n, handle, stream)
            }
        }?;
        self.settle(handle, group)
    }

    /// Whether waiting is still of use.
    ///
    /// # Errors
    /// The fault of a communicator, or that another rank has failed.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.world.is_down() {
            return Err("another rank failed".into());
        }
        let made = self.made.lock().expect("invariant: nothing panics with the communicators");
        made.values().try_for_each(|&handle| self.nccl.is_settled(handle).map(|_| ()))
    }

    /// Ends all communicators; what waits in them is given up.
    pub(super) fn abort(&self) {
        let mut made = self.made.lock().expect("invariant: nothing panics with the communicators");
        std::mem::take(&mut *made).values().for_each(|&handle| self.nccl.abort(handle));
    }
}

impl Drop for Communicators {
    fn drop(&mut self) {
        self.abort();
    }
}

/// The host's end of a rank whose device exchanges through NCCL: groups, barriers and aborts go through memory of this process.
pub(super) struct CudaComm {
    pub(super) host: LocalComm,
    pub(super) world: Arc<Threads>,
}

impl Collective for CudaComm {
    fn rank(&self) -> usize {
        self.host.rank()
    }

    fn world(&self) -> usize {
        self.host.world()
    }

    fn group(&mut self, ranks: &[usize]) -> GroupId {
        self.host.group(ranks)
    }

    fn members(&self, group: GroupId) -> &Group {
        self.host.members(group)
    }

    fn all_reduce(&mut self, group: GroupId, buf: &mut [f32], op: ReduceOp, site: &Site<'_>) -> Result<(), CommFault> {
        self.host.all_reduce(group, buf, op, site)
    }

    fn reduce_scatter(
        &mut self,
        group: GroupId,
        input: &[f32],
        output: &mut [f32],
        site: &Site<'_>,
    ) -> Result<(), CommFault> {
        self.host.reduce_scatter(group, input, output, site)
    }

    fn all_gather(
        &mut self,
        group: GroupId,
        input: &[u8],
        output: &mut [u8],
        site: &Site<'_>,
    ) -> Result<(), CommFault> {
        self.host.all_gather(group, input, output, site)
    }

    fn all_gather_in_place(&mut self, group: GroupId, buf: &mut [u8], site: &Site<'_>) -> Result<(), CommFault> {
        self.host.all_gather_in_place(group, buf, site)
    }

    fn all_to_all(
        &mut self,
        group: GroupId,
        input: &[u8],
        output: &mut [u8],
        site: &Site<'_>,
    ) -> Result<(), CommFault> {
        self.host.all_to_all(group, input, output, site)
    }

    fn broadcast(
        &mut self,
        group: GroupId,
        root_index: usize,
        buf: &mut [u8],
        site: &Site<'_>,
    ) -> Result<(), CommFault> {
        self.host.broadcast(group, root_index, buf, site)
    }

    fn barrier(&mut self, group: GroupId, site: &Site<'_>) -> Result<(), CommFault> {
        self.host.barrier(group, site)
    }

    fn send(&mut self, to: usize, tag: u64, data: &[u8], site: &Site<'_>) -> Result<(), CommFault> {
        self.host.send(to, tag, data, site)
    }

    fn recv(&mut self, from: usize, tag: u64, data: &mut [u8], site: &Site<'_>) -> Result<(), CommFault> {
        self.host.recv(from, tag, data, site)
    }

    fn abort(&self, reason: &str) {
        self.world.is_down.store(true, Ordering::Relaxed);
        self.host.abort(reason);
    }

    fn stats(&self) -> &Stats {
        self.host.stats()
    }
}
