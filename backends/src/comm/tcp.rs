//! Collectives between ranks that are processes, on one machine or several: a TCP connection for each pair of ranks.
//!
//! Ranks find each other through [`join`]. Every call sends a part to every other member of its group, with the call's kind,
//! node and size, so that each member sees for itself whether all make the same call. Sums are taken by their owner in rank
//! order, so the bits are those of [`LocalComm`](super::LocalComm).

use std::sync::Arc;
use std::time::Instant;

use galvatron_ir::plan::Room;

use super::call::Shape;
use super::reduce::chunk;
use super::{Alarm, Around, Collective, CommFault, CommKind, Group, GroupId, ReduceOp, Site, Stats, Whereabouts};

mod calls;
mod handshake;
mod inbox;
mod join;
mod lobby;
mod mesh;
#[cfg(test)]
mod tests;
mod wire;

pub use join::{JoinFault, JoinOptions, decline, join};

use calls::{Call, sum_parts};
use mesh::{Halt, Mesh};
use wire::{Header, Kind, group_key};

/// Elements up to which an all-reduce sends whole buffers, which saves a round: 16 KiB.
const SMALL: usize = 4 << 10;

/// One rank's end of a world of processes. Dropping it while its thread panics aborts the world.
pub struct TcpComm {
    mesh: Arc<Mesh>,
    memberships: Vec<Membership>,
    stats: Stats,
    room: Room,
    machine: Machine,
}

/// This rank among the ranks of its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// How many ranks of the world run on the machine, this one included.
    pub n_ranks: usize,
    /// How many of them are lower ranks than this one.
    pub local_rank: usize,
}

/// A group with this rank's place in it.
struct Membership {
    group: Group,
    index: usize,
    key: u64,
}

impl TcpComm {
    /// This rank among the ranks of its machine.
    pub fn machine(&self) -> Machine {
        self.machine
    }

    fn call<'a>(&'a self, group: GroupId, shape: Shape, site: &'a Site<'a>) -> Result<Call<'a>, CommFault> {
        self.mesh.abort_fault().map_or(Ok(()), Err)?;
        let Membership { group, index, key } = &self.memberships[group.0];
        Ok(Call {
            mesh: &self.mesh,
            ranks: group.ranks(),
            index: *index,
            key: *key,
            shape,
            site,
            start: Instant::now(),
        })
    }

    fn place(&self, group: GroupId) -> (usize, usize) {
        let membership = &self.memberships[group.0];
        (membership.group.ranks().len(), membership.index)
    }

    /// The fault of a wait for one peer.
    fn fault(&self, halt: Halt, kind: CommKind, site: &Site<'_>, peer: usize) -> CommFault {
        let waited = match halt {
            Halt::Aborted(fault) => return fault,
            Halt::TimedOut(waited) => waited,
        };
        let world = self.mesh.standings(&[peer]);
        // Who was faster has asked while all could answer.
        if let Some(fault) = self.mesh.abort_fault() {
            return fault;
        }
        let (rank, node, step) = (self.mesh.rank, site.node.to_owned(), site.step);
        let peers = vec![(peer, self.mesh.inbox().peers[peer].place())];
        let around = Box::new(Around { peers, world });
        CommFault::Timeout { rank, node, step, kind, waited, missing: vec![peer], around }
    }

    /// Waits until a message of `n_bytes` may be sent to `to`, and counts it as under way.
    fn take_credit(&self, to: usize, n_bytes: usize, start: Instant) -> Result<(), Halt> {
        let room = if to == self.mesh.rank { Room::OWN } else { self.room };
        self.mesh.wait(start, self.mesh.timeout, |inbox| {
            inbox.waits_for = vec![to];
            inbox.peers[to].under_way.add(n_bytes as u64, room).then_some(())
        })
    }

    fn send_message(&self, to: usize, tag: u64, data: &[u8], site: &Site<'_>) -> Result<(), Halt> {
        let start = Instant::now();
        self.take_credit(to, data.len(), start)?;
        let shape = Shape::new(CommKind::Send, data.len());
        let text = site.node.to_owned();
        let header = Header { kind: Kind::Message, shape, round: 0, group: 0, tag, step: site.step, text };
        self.mesh.write(to, header, data, start)
    }
}

/// The chunk of a buffer that member `index` of `n` has, where all are equal.
fn equal_chunk(len: usize, n: usize, index: usize) -> std::ops::Range<usize> {
    len / n * index..len / n * (index + 1)
}

impl Collective for TcpComm {
    fn rank(&self) -> usize {
        self.mesh.rank
    }

    fn world(&self) -> usize {
        self.mesh.n_ranks
    }

    fn group(&mut self, ranks: &[usize]) -> GroupId {
        let group = Group::new(ranks);
        if let Some(known) = self.memberships.iter().position(|membership| membership.group == group) {
            return GroupId(known);
        }
        let index = group.index_of(self.rank()).expect("invariant: a rank creates only groups it belongs to");
        assert!(
            group.ranks().iter().all(|&rank| rank < self.world()),
            "invariant: group {ranks:?} is inside the world"
        );
        let key = group_key(group.ranks());
        self.memberships.push(Membership { group, index, key });
        GroupId(self.memberships.len() - 1)
    }

    fn members(&self, group: GroupId) -> &Group {
        &self.memberships[group.0].group
    }

    fn all_reduce(&mut self, group: GroupId, buf: &mut [f32], op: ReduceOp, site: &Site<'_>) -> Result<(), CommFault> {
        let (n, me) = self.place(group);
        let (len, n_bytes) = (buf.len(), size_of_val(buf));
        let call = self.call(group, Shape { op: Some(op), ..Shape::new(CommKind::AllReduce, n_bytes) }, site)?;
        if len <= SMALL {
            let parts = call.exchange(0, |_| bytemuck::cast_slice(buf))?;
            sum_parts(&parts, buf, op);
            call.recycle(parts);
        } else {
            let parts = call.exchange(0, |peer| bytemuck::cast_slice(&buf[chunk(len, n, peer)]))?;
            sum_parts(&parts, &mut buf[chunk(len, n, me)], op);
            call.recycle(parts);
            let parts = call.exchange(1, |_| bytemuck::cast_slice(&buf[chunk(len, n, me)]))?;
            call.copy(parts, |peer| chunk(len, n, peer), buf);
        }
        self.stats.add(CommKind::AllReduce, 2 * n_bytes * (n - 1) / n);
        Ok(())
    }

    fn reduce_scatter(
        &mut self,
        group: GroupId,
        input: &[f32],
        output: &mut [f32],
        site: &Site<'_>,
    ) -> Result<(), CommFault> {
        let (n, me) = self.place(group);
        let len = output.len();
        assert_eq!(input.len(), len * n, "invariant: the input is one output per member");
        let call = self.call(group, Shape::new(CommKind::ReduceScatter, size_of_val(input)), site)?;
        let parts = call.exchange(0, |peer| bytemuck::cast_slice(&input[peer * len..(peer + 1) * len]))?;
        output.copy_from_slice(&input[me * len..(me + 1) * len]);
        sum_parts(&parts, output, ReduceOp::Sum);
        call.recycle(parts);
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
        let (n, me) = self.place(group);
        let len = output.len();
        assert_eq!(len, input.len() * n, "invariant: the output is one input per member");
        let call = self.call(group, Shape::new(CommKind::AllGather, input.len()), site)?;
        let parts = call.exchange(0, |_| input)?;
        output[equal_chunk(len, n, me)].copy_from_slice(input);
        call.copy(parts, |peer| equal_chunk(len, n, peer), output);
        self.stats.add(CommKind::AllGather, len - input.len());
        Ok(())
    }

    fn all_gather_in_place(&mut self, group: GroupId, buf: &mut [u8], site: &Site<'_>) -> Result<(), CommFault> {
        let (n, me) = self.place(group);
        let len = buf.len();
        assert_eq!(len % n, 0, "invariant: the buffer is equal chunks");
        let call = self.call(group, Shape::new(CommKind::AllGather, len / n), site)?;
        let parts = call.exchange(0, |_| &buf[equal_chunk(len, n, me)])?;
        call.copy(parts, |peer| equal_chunk(len, n, peer), buf);
        self.stats.add(CommKind::AllGather, len / n * (n - 1));
        Ok(())
    }

    fn all_to_all(
        &mut self,
        group: GroupId,
        input: &[u8],
        output: &mut [u8],
        site: &Site<'_>,
    ) -> Result<(), CommFault> {
        let (n, me) = self.place(group);
        let len = input.len();
        assert!(len == output.len() && len.is_multiple_of(n), "invariant: both are equal chunks, one per member");
        let call = self.call(group, Shape::new(CommKind::AllToAll, len), site)?;
        let parts = call.exchange(0, |peer| &input[equal_chunk(len, n, peer)])?;
        output[equal_chunk(len, n, me)].copy_from_slice(&input[equal_chunk(len, n, me)]);
        call.copy(parts, |peer| equal_chunk(len, n, peer), output);
        self.stats.add(CommKind::AllToAll, len / n * (n - 1));
        Ok(())
    }

    fn broadcast(
        &mut self,
        group: GroupId,
        root_index: usize,
        buf: &mut [u8],
        site: &Site<'_>,
    ) -> Result<(), CommFault> {
        let (n, me) = self.place(group);
        assert!(root_index < n, "invariant: the root is a member");
        let shape = Shape { root_index: Some(root_index), ..Shape::new(CommKind::Broadcast, buf.len()) };
        let call = self.call(group, shape, site)?;
        let is_root = me == root_index;
        let parts = call.exchange(0, |_| if is_root { &buf[..] } else { &[] })?;
        if let Some(part) = &parts[root_index] {
            buf.copy_from_slice(&part.data);
        }
        call.recycle(parts);
        self.stats.add(CommKind::Broadcast, if is_root { buf.len() * (n - 1) } else { 0 });
        Ok(())
    }

    fn barrier(&mut self, group: GroupId, site: &Site<'_>) -> Result<(), CommFault> {
        let call = self.call(group, Shape::new(CommKind::Barrier, 0), site)?;
        let parts = call.exchange(0, |_| &[])?;
        call.recycle(parts);
        self.stats.add(CommKind::Barrier, 0);
        Ok(())
    }

    fn send(&mut self, to: usize, tag: u64, data: &[u8], site: &Site<'_>) -> Result<(), CommFault> {
        self.mesh.abort_fault().map_or(Ok(()), Err)?;
        let sent = self.send_message(to, tag, data, site);
        sent.map_err(|halt| self.fault(halt, CommKind::Send, site, to))?;
        self.stats.add(CommKind::Send, data.len());
        Ok(())
    }

    fn recv(&mut self, from: usize, tag: u64, data: &mut [u8], site: &Site<'_>) -> Result<(), CommFault> {
        let start = Instant::now();
        let found = self.mesh.wait(start, self.mesh.timeout, |inbox| {
            inbox.waits_for = vec![from];
            let peer = &mut inbox.peers[from];
            let message = peer.message(tag);
            if message.is_none() && peer.has_left { Some(None) } else { message.map(Some) }
        });
        let message = found.map_err(|halt| self.fault(halt, CommKind::Recv, site, from))?;
        let Some(message) = message else { return Err(self.mesh.fail(from, calls::LEFT)) };
        if message.data.len() != data.len() {
            let (want, found) = (data.len(), message.data.len());
            let what = format!("recv expects {want} bytes, the message with tag {tag} has {found}");
            let (rank, node, peer_node) = (self.rank(), site.node.to_owned(), message.header.text);
            return Err(CommFault::Mismatch { rank, node, step: site.step, peer: from, peer_node, what });
        }
        data.copy_from_slice(&message.data);
        self.mesh.recycle(message);
        if self.mesh.inbox().peers[from].has_left {
            self.stats.add(CommKind::Recv, 0);
            return Ok(());
        }
        let credit = Header::plain(Kind::Credit, data.len() as u64, "");
        let given = self.mesh.write(from, credit, &[], start);
        given.map_err(|halt| self.fault(halt, CommKind::Recv, site, from))?;
        self.stats.add(CommKind::Recv, 0);
        Ok(())
    }

    fn abort(&self, reason: &str) {
        self.mesh.fail(self.mesh.rank, reason);
    }

    fn alarm(&self) -> Arc<dyn Alarm> {
        Arc::clone(&self.mesh) as Arc<dyn Alarm>
    }

    fn watch(&mut self, whereabouts: Arc<dyn Whereabouts>) {
        self.mesh.watch(whereabouts);
    }

    fn stats(&self) -> &Stats {
        &self.stats
    }
}

impl Alarm for Mesh {
    fn fault(&self) -> Option<CommFault> {
        self.abort_fault()
    }
}

impl Drop for TcpComm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abort("its thread panicked");
        }
        self.mesh.close();
    }
}
