//! Collectives between ranks that are threads of one process: peers read each other's buffers directly.

use std::sync::Arc;
use std::time::Duration;

use galvatron_ir::plan::Room;

use super::{Alarm, Collective, CommFault, CommKind, Group, GroupId, ReduceOp, Site, Stats, Whereabouts};

mod channel;
mod rendezvous;
mod shared;
#[cfg(test)]
mod tests;
mod world;

use rendezvous::Rendezvous;
use shared::Port;
use world::World;

/// The ends of a new world of `n` ranks, in rank order, each to be moved to its own thread. A call that waits longer than
/// `timeout` for its peers fails. Memory for messages is only taken for what is really under way.
pub fn local_world(n: usize, timeout: Duration) -> Vec<LocalComm> {
    local_world_with_room(n, timeout, Room::CHANNEL)
}

/// Like [`local_world`] with so much room for messages from each rank to each other.
pub fn local_world_with_room(n: usize, timeout: Duration, room: Room) -> Vec<LocalComm> {
    let world = Arc::new(World::new(n, timeout, room));
    (0..n)
        .map(|rank| LocalComm { rank, world: Arc::clone(&world), memberships: Vec::new(), stats: Stats::default() })
        .collect()
}

/// One rank's end of a world of threads. Dropping it while its thread panics aborts the world.
pub struct LocalComm {
    rank: usize,
    world: Arc<World>,
    memberships: Vec<Membership>,
    stats: Stats,
}

struct Membership {
    group: Group,
    /// This rank's place in `group`.
    index: usize,
    meeting: Arc<Rendezvous>,
}

impl LocalComm {
    fn port<'a>(&'a self, group: GroupId, site: &Site<'a>) -> Port<'a> {
        let Membership { index, meeting, .. } = &self.memberships[group.0];
        Port { world: &self.world, meeting, index: *index, site: *site }
    }

    fn n_members(&self, group: GroupId) -> usize {
        self.members(group).ranks().len()
    }
}

impl Collective for LocalComm {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world.n_ranks()
    }

    fn group(&mut self, ranks: &[usize]) -> GroupId {
        let group = Group::new(ranks);
        if let Some(known) = self.memberships.iter().position(|membership| membership.group == group) {
            return GroupId(known);
        }
        let index = group.index_of(self.rank).expect("invariant: a rank creates only groups it belongs to");
        assert!(
            group.ranks().iter().all(|&rank| rank < self.world()),
            "invariant: group {ranks:?} is inside the world"
        );
        let meeting = self.world.meeting(&group);
        self.memberships.push(Membership { group, index, meeting });
        GroupId(self.memberships.len() - 1)
    }

    fn members(&self, group: GroupId) -> &Group {
        &self.memberships[group.0].group
    }

    fn all_reduce(&mut self, group: GroupId, buf: &mut [f32], op: ReduceOp, site: &Site<'_>) -> Result<(), CommFault> {
        self.port(group, site).all_reduce(buf, op)?;
        let n = self.n_members(group);
        self.stats.add(CommKind::AllReduce, 2 * size_of_val(buf) * (n - 1) / n);
        Ok(())
    }

    fn reduce_scatter(
        &mut self,
        group: GroupId,
        input: &[f32],
        output: &mut [f32],
        site: &Site<'_>,
    ) -> Result<(), CommFault> {
        self.port(group, site).reduce_scatter(input, output)?;
        self.stats.add(CommKind::ReduceScatter, size_of_val(input) - size_of_val(output));
        Ok(())
    }

    fn all_gather(
        &mut self,
        group: GroupId,
        input: &[u8],
        output: &mut [u8],
        site: &Site<'_>,
    ) -> Result<(), CommFault> {
        self.port(group, site).all_gather(input, output)?;
        self.stats.add(CommKind::AllGather, output.len() - input.len());
        Ok(())
    }

    fn all_gather_in_place(&mut self, group: GroupId, buf: &mut [u8], site: &Site<'_>) -> Result<(), CommFault> {
        self.port(group, site).all_gather_in_place(buf)?;
        let n = self.n_members(group);
        self.stats.add(CommKind::AllGather, buf.len() / n * (n - 1));
        Ok(())
    }

    fn all_to_all(
        &mut self,
        group: GroupId,
        input: &[u8],
        output: &mut [u8],
        site: &Site<'_>,
    ) -> Result<(), CommFault> {
        self.port(group, site).all_to_all(input, output)?;
        let n = self.n_members(group);
        self.stats.add(CommKind::AllToAll, input.len() / n * (n - 1));
        Ok(())
    }

    fn broadcast(
        &mut self,
        group: GroupId,
        root_index: usize,
        buf: &mut [u8],
        site: &Site<'_>,
    ) -> Result<(), CommFault> {
        self.port(group, site).broadcast(root_index, buf)?;
        let is_root = self.memberships[group.0].index == root_index;
        let n_readers = if is_root { self.n_members(group) - 1 } else { 0 };
        self.stats.add(CommKind::Broadcast, buf.len() * n_readers);
        Ok(())
    }

    fn barrier(&mut self, group: GroupId, site: &Site<'_>) -> Result<(), CommFault> {
        self.port(group, site).barrier()?;
        self.stats.add(CommKind::Barrier, 0);
        Ok(())
    }

    fn send(&mut self, to: usize, tag: u64, data: &[u8], site: &Site<'_>) -> Result<(), CommFault> {
        channel::send(&self.world, self.rank, to, tag, data, site)?;
        self.stats.add(CommKind::Send, data.len());
        Ok(())
    }

    fn recv(&mut self, from: usize, tag: u64, data: &mut [u8], site: &Site<'_>) -> Result<(), CommFault> {
        channel::recv(&self.world, from, self.rank, tag, data, site)?;
        self.stats.add(CommKind::Recv, 0);
        Ok(())
    }

    fn abort(&self, reason: &str) {
        self.world.abort(self.rank, reason);
    }

    fn alarm(&self) -> Arc<dyn Alarm> {
        Arc::new(LocalAlarm { rank: self.rank, world: Arc::clone(&self.world) })
    }

    fn watch(&mut self, whereabouts: Arc<dyn Whereabouts>) {
        self.world.watch(self.rank, whereabouts);
    }

    fn stats(&self) -> &Stats {
        &self.stats
    }
}

struct LocalAlarm {
    rank: usize,
    world: Arc<World>,
}

impl Alarm for LocalAlarm {
    fn fault(&self) -> Option<CommFault> {
        self.world.abort_fault(self.rank)
    }
}

impl Drop for LocalComm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.world.abort(self.rank, "its thread panicked");
        }
        self.world.leave(self.rank);
    }
}
