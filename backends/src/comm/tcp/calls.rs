//! The exchange that every collective is made of: a part to every member, a part from every member, all of the same call.

use std::ops::Range;
use std::time::Instant;

use super::inbox::{Inbox, Message};
use super::mesh::{Halt, Mesh};
use super::wire::{Header, Kind};
use crate::comm::call::{Shape, difference};
use crate::comm::reduce::{BLOCK, fold};
use crate::comm::{Around, CommFault, ReduceOp, Site};

/// The reason when a rank ended while another one still needs it.
pub(super) const LEFT: &str = "it ended while others still wait for it";

/// What came from each member, by index; none from this one.
pub(super) type Parts = Vec<Option<Message>>;

/// One call of one group.
pub(super) struct Call<'a> {
    pub(super) mesh: &'a Mesh,
    /// The members, ascending.
    pub(super) ranks: &'a [usize],
    /// This rank's place among them.
    pub(super) index: usize,
    pub(super) key: u64,
    pub(super) shape: Shape,
    pub(super) site: &'a Site<'a>,
    pub(super) start: Instant,
}

/// What a look at the inbox finds.
enum Found {
    All,
    /// The member with this index makes another call.
    Other(usize, String),
    /// This rank makes no more calls.
    Left(usize),
}

impl Call<'_> {
    /// Sends `data(index)` to every other member and waits for theirs.
    pub(super) fn exchange<'d>(&self, round: u8, data: impl Fn(usize) -> &'d [u8]) -> Result<Parts, CommFault> {
        let n = self.ranks.len();
        for peer in (1..n).map(|offset| (self.index + offset) % n) {
            let header = Header {
                kind: Kind::Part,
                shape: self.shape,
                round,
                group: self.key,
                tag: 0,
                step: self.site.step,
                text: self.site.node.to_owned(),
            };
            let written = self.mesh.write(self.ranks[peer], header, data(peer), self.start);
            written.map_err(|halt| self.fault(halt, vec![self.ranks[peer]]))?;
        }
        let mut parts: Parts = (0..n).map(|_| None).collect();
        let found = self.mesh.wait(self.start, self.mesh.timeout, |inbox| self.look(inbox, round, &mut parts));
        let missing = || self.others().filter(|&i| parts[i].is_none()).map(|i| self.ranks[i]).collect();
        match found.map_err(|halt| self.fault(halt, missing()))? {
            Found::All => Ok(parts),
            Found::Other(peer, what) => Err(self.mismatch(&parts[peer], peer, what)),
            Found::Left(rank) => Err(self.mesh.fail(rank, LEFT)),
        }
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<'_> {
        (0..self.ranks.len()).filter(|&i| i != self.index)
    }

    /// Takes what has come; none while parts are missing.
    fn look(&self, inbox: &mut Inbox, round: u8, parts: &mut Parts) -> Option<Found> {
        let (mut is_complete, mut left) = (true, None);
        inbox.waits_for.clear();
        for i in self.others() {
            if parts[i].is_some() {
                continue;
            }
            let peer = &mut inbox.peers[self.ranks[i]];
            parts[i] = peer.part(self.key, round);
            match &parts[i] {
                Some(part) => {
                    let other = (&part.header.shape, part.header.text.as_str());
                    if let Some(what) = difference((&self.shape, self.site.node), other) {
                        return Some(Found::Other(i, what));
                    }
                }
                None => {
                    is_complete = false;
                    inbox.waits_for.push(self.ranks[i]);
                    left = left.or(peer.has_left.then_some(self.ranks[i]));
                }
            }
        }
        if is_complete { Some(Found::All) } else { left.map(Found::Left) }
    }

    fn mismatch(&self, part: &Option<Message>, peer: usize, what: String) -> CommFault {
        CommFault::Mismatch {
            rank: self.mesh.rank,
            node: self.site.node.to_owned(),
            step: self.site.step,
            peer: self.ranks[peer],
            peer_node: part.as_ref().map(|part| part.header.text.clone()).unwrap_or_default(),
            what,
        }
    }

    fn fault(&self, halt: Halt, missing: Vec<usize>) -> CommFault {
        let waited = match halt {
            Halt::Aborted(fault) => return fault,
            Halt::TimedOut(waited) => waited,
        };
        let world = self.mesh.standings(&missing);
        // Who was faster has asked while all could answer.
        if let Some(fault) = self.mesh.abort_fault() {
            return fault;
        }
        let inbox = self.mesh.inbox();
        let peers = self.others().map(|i| (self.ranks[i], inbox.peers[self.ranks[i]].place())).collect();
        let (node, kind) = (self.site.node.to_owned(), self.shape.kind);
        let around = Box::new(Around { peers, world });
        CommFault::Timeout { rank: self.mesh.rank, node, step: self.site.step, kind, waited, missing, around }
    }

    /// Copies every member's part to its place.
    pub(super) fn copy<T: bytemuck::Pod>(&self, parts: Parts, place: impl Fn(usize) -> Range<usize>, out: &mut [T]) {
        for (i, part) in parts.iter().enumerate() {
            if let Some(part) = part {
                bytemuck::cast_slice_mut(&mut out[place(i)]).copy_from_slice(&part.data);
            }
        }
        self.recycle(parts);
    }

    /// Gives the memory of parts back.
    pub(super) fn recycle(&self, parts: Parts) {
        parts.into_iter().flatten().for_each(|part| self.mesh.recycle(part));
    }
}

/// Reduces the parts of all members in the order of their indices; that of this member is in `own`, where the result goes.
pub(super) fn sum_parts(parts: &Parts, own: &mut [f32], op: ReduceOp) {
    for (block, own) in own.chunks_mut(BLOCK).enumerate() {
        let (mut acc, mut part) = ([0.0; BLOCK], [0.0; BLOCK]);
        let (acc, part) = (&mut acc[..own.len()], &mut part[..own.len()]);
        for (i, message) in parts.iter().enumerate() {
            match message {
                Some(message) => {
                    let bytes = &message.data[block * BLOCK * 4..][..4 * part.len()];
                    bytemuck::cast_slice_mut(part).copy_from_slice(bytes);
                }
                None => part.copy_from_slice(own),
            }
            if i == 0 { acc.copy_from_slice(part) } else { fold(acc, part, op) }
        }
        own.copy_from_slice(acc);
    }
}
