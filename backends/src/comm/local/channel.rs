//! Messages from one rank to another: copied into reused buffers, so that the sender need not wait for the receiver.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use galvatron_ir::plan::{Room, UnderWay};

use super::world::{Wait, World, locked};
use crate::comm::{CommFault, CommKind, Site};

/// What is under way from one rank to one other.
pub(super) struct Channel {
    room: Room,
    queue: Mutex<Queue>,
    /// Counts changes of the queue, for those who wait for one.
    version: AtomicU64,
}

#[derive(Default)]
struct Queue {
    /// Oldest first.
    messages: VecDeque<Message>,
    under_way: UnderWay,
    /// Buffers of received messages, to be used again.
    spare: Vec<Vec<u8>>,
}

struct Message {
    tag: u64,
    /// The plan node that sent it.
    node: String,
    data: Vec<u8>,
}

/// Sends `data` from rank `from`, waiting only while the channel is full.
pub(super) fn send(
    world: &World,
    from: usize,
    to: usize,
    tag: u64,
    data: &[u8],
    site: &Site<'_>,
) -> Result<(), CommFault> {
    world.enter(from, CommKind::Send, site)?;
    let channel = world.channel(from, to);
    let mut copy = channel.until(world, (from, to), (CommKind::Send, site), |queue| {
        queue.under_way.add(data.len() as u64, channel.room).then(|| queue.take_spare(data.len()))
    })?;
    copy.extend_from_slice(data);
    channel.change(|queue| {
        queue.messages.push_back(Message { tag, node: site.node.to_owned(), data: copy });
    });
    world.wake(to);
    Ok(())
}

/// Receives into `data`, on rank `to`, the oldest message from `from` that has this tag.
pub(super) fn recv(
    world: &World,
    from: usize,
    to: usize,
    tag: u64,
    data: &mut [u8],
    site: &Site<'_>,
) -> Result<(), CommFault> {
    world.enter(to, CommKind::Recv, site)?;
    let channel = world.channel(from, to);
    let message = channel.until(world, (to, from), (CommKind::Recv, site), |queue| queue.take(tag))?;
    if message.data.len() != data.len() {
        let what = format!("recv expects {} bytes, the message with tag {tag} has {}", data.len(), message.data.len());
        let (node, peer_node) = (site.node.to_owned(), message.node);
        return Err(CommFault::Mismatch { rank: to, node, step: site.step, peer: from, peer_node, what });
    }
    data.copy_from_slice(&message.data);
    channel.change(|queue| queue.spare.push(message.data));
    world.wake(from);
    Ok(())
}

impl Channel {
    pub(super) fn new(room: Room) -> Self {
        Self { room, queue: Mutex::default(), version: AtomicU64::new(0) }
    }

    /// Blocks rank `me` until `attempt` succeeds on the queue; `peer` is who has to change it.
    fn until<T>(
        &self,
        world: &World,
        (me, peer): (usize, usize),
        call: (CommKind, &Site<'_>),
        attempt: impl Fn(&mut Queue) -> Option<T>,
    ) -> Result<T, CommFault> {
        let mut left = world.timeout;
        loop {
            let mut queue = locked(&self.queue);
            if let Some(done) = attempt(&mut queue) {
                world.note_wait(me, None);
                return Ok(done);
            }
            let version = self.version.load(Ordering::SeqCst);
            drop(queue);
            world.note_wait(me, Some(Wait::Peer(peer)));
            let start = Instant::now();
            let changed = || self.version.load(Ordering::SeqCst) != version;
            let waited = world.wait(me, Some(left), || changed() || world.is_aborted());
            if let Some(fault) = world.abort_fault(me) {
                return Err(fault);
            }
            if waited.is_err() {
                return Err(world.timeout_fault(me, call, world.timeout, vec![peer], &[peer]));
            }
            left = left.checked_sub(start.elapsed()).unwrap_or(Duration::ZERO);
        }
    }

    fn change(&self, edit: impl FnOnce(&mut Queue)) {
        edit(&mut locked(&self.queue));
        self.version.fetch_add(1, Ordering::SeqCst);
    }
}

impl Queue {
    /// Removes the oldest message with this tag.
    fn take(&mut self, tag: u64) -> Option<Message> {
        let place = self.messages.iter().position(|message| message.tag == tag)?;
        let message = self.messages.remove(place)?;
        self.under_way.remove(message.data.len() as u64);
        Some(message)
    }

    /// An empty buffer with room for `n_bytes`: the smallest spare that has it, else the largest one, grown.
    fn take_spare(&mut self, n_bytes: usize) -> Vec<u8> {
        let fitting = (0..self.spare.len()).filter(|&i| self.spare[i].capacity() >= n_bytes);
        let best = fitting
            .min_by_key(|&i| self.spare[i].capacity())
            .or_else(|| (0..self.spare.len()).max_by_key(|&i| self.spare[i].capacity()));
        let mut buffer = best.map(|i| self.spare.swap_remove(i)).unwrap_or_default();
        buffer.clear();
        buffer.reserve_exact(n_bytes);
        buffer
    }
}
