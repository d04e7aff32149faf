//! Communicators of NCCL for the groups of a plan.
//!
//! A communicator is made when its group first exchanges something, which all members do in the same order. Its name travels
//! over the host's communication, so that it does not matter whether ranks are threads or processes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::arena::Arena;
use super::command::Place;
use super::meet;
use super::nccl::{Handle, Nccl};
use crate::comm::{Alarm, Collective, CommFault, Group, GroupId, Site};
use crate::device::ExchangeKind;
use cudarc::driver::sys::CUstream;

/// One rank's communicators.
pub(super) struct Communicators {
    nccl: Arc<Nccl>,
    alarm: Arc<dyn Alarm>,
    rank: usize,
    timeout: Duration,
    made: Mutex<BTreeMap<Group, Handle>>,
}

// SAFETY: handles are used under the lock, by whichever thread runs the rank.
unsafe impl Send for Communicators {}
// SAFETY: as for `Send`.
unsafe impl Sync for Communicators {}

impl Communicators {
    /// None yet, for the rank of this end of the host's communication.
    pub(super) fn new(nccl: Arc<Nccl>, comm: &dyn Collective, timeout: Duration) -> Communicators {
        Communicators { nccl, alarm: comm.alarm(), rank: comm.rank(), timeout, made: Mutex::default() }
    }

    fn made(&self) -> MutexGuard<'_, BTreeMap<Group, Handle>> {
        self.made.lock().expect("invariant: nothing panics with the communicators")
    }

    /// Makes the communicator of a group with all of its members, unless there is one.
    ///
    /// # Errors
    /// What NCCL says, that members did not arrive, or that the world was taken down.
    pub(super) fn ensure(&self, comm: &mut dyn Collective, group: GroupId, site: &Site<'_>) -> Result<(), CommFault> {
        let members = comm.members(group).clone();
        if self.made().contains_key(&members) {
            return Ok(());
        }
        let id = meet::name(comm, group, site, &mut || self.nccl.unique_id())?;
        let index = members.index_of(self.rank).expect("invariant: a rank uses only groups it belongs to");
        let made = self.nccl.begin(id, members.ranks().len(), index).and_then(|handle| {
            self.made().insert(members.clone(), handle);
            self.settle(handle, &members)
        });
        made.map_err(|what| self.fault(what, site))
    }

    /// A fault of an exchange: that of the world, if it was taken down, because it is nearer to the cause.
    pub(super) fn fault(&self, what: String, site: &Site<'_>) -> CommFault {
        let own = || CommFault::Transport { rank: self.rank, node: site.node.to_string(), step: site.step, what };
        self.alarm.fault().unwrap_or_else(own)
    }

    /// Waits until the calls to a communicator have been taken. NCCL answers from the host's memory alone, so this may be
    /// asked while a stream is captured.
    fn settle(&self, handle: Handle, group: &Group) -> Result<(), String> {
        let start = Instant::now();
        while !self.nccl.is_settled(handle)? {
            self.check_alarm()?;
            if start.elapsed() > self.timeout {
                let (seconds, ranks) = (self.timeout.as_secs_f64(), group.ranks());
                return Err(format!("ranks {ranks:?} did not all arrive in {seconds:.0} s"));
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    fn check_alarm(&self) -> Result<(), String> {
        self.alarm.fault().map_or(Ok(()), |fault| Err(fault.to_string()))
    }

    /// Launches an exchange on a stream, through the communicator that [`ensure`](Self::ensure) has made.
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
        let handle = self.made().get(group).copied().ok_or("its communicator was not made")?;
        let (n_ranks, nccl) = (group.ranks().len(), &self.nccl);
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
    /// The fault of a communicator, or that the world was taken down.
    pub(super) fn check(&self) -> Result<(), String> {
        self.check_alarm()?;
        let made = self.made();
        let check = |(group, &handle): (&Group, &Handle)| {
            let settled = self.nccl.is_settled(handle).map(|_| ());
            settled.map_err(|what| format!("between ranks {:?}: {what}", group.ranks()))
        };
        made.iter().try_for_each(check)
    }

    /// Ends all communicators; what waits in them is given up.
    pub(super) fn abort(&self) {
        std::mem::take(&mut *self.made()).values().for_each(|&handle| self.nccl.abort(handle));
    }
}

impl Drop for Communicators {
    fn drop(&mut self) {
        self.abort();
    }
}
