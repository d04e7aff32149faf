//! What has come from the peers and waits to be taken.

use std::collections::VecDeque;

use galvatron_ir::plan::UnderWay;

use super::wire::{Header, Kind};
use crate::comm::{CommKind, Standing};

/// Buffers that are kept for frames to come, for each peer.
const N_SPARE: usize = 4;

/// A frame with its data.
pub(super) struct Message {
    pub(super) header: Header,
    pub(super) data: Vec<u8>,
}

/// Everything that came, and what it says about the peers.
pub(super) struct Inbox {
    /// By rank.
    pub(super) peers: Vec<Peer>,
    /// The first rank that failed and its reason.
    pub(super) cause: Option<(usize, String)>,
    /// The ranks that this rank's own call waits for; none if it waits for nobody.
    pub(super) waits_for: Vec<usize>,
    spare: Vec<Vec<u8>>,
}

/// One peer as this rank sees it.
#[derive(Default)]
pub(super) struct Peer {
    /// Parts of collectives, oldest first.
    parts: VecDeque<Message>,
    /// Messages, oldest first.
    messages: VecDeque<Message>,
    /// Messages to the peer that it has not taken.
    pub(super) under_way: UnderWay,
    /// Whether its connection is read.
    pub(super) is_open: bool,
    /// Whether it makes no more calls.
    pub(super) has_left: bool,
    /// The last call that came from it: kind, node, step.
    seen: Option<(CommKind, String, u64)>,
    /// What it does, if it has answered.
    pub(super) standing: Option<Standing>,
}

impl Inbox {
    pub(super) fn new(n_ranks: usize) -> Inbox {
        Inbox {
            peers: (0..n_ranks).map(|_| Peer::default()).collect(),
            cause: None,
            waits_for: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// Sorts a frame of `peer` in.
    pub(super) fn take_in(&mut self, rank: usize, header: Header, data: Vec<u8>) {
        let peer = &mut self.peers[rank];
        match header.kind {
            Kind::Part | Kind::Message => {
                peer.seen = Some((header.shape.kind, header.text.clone(), header.step));
                let queue = if header.kind == Kind::Part { &mut peer.parts } else { &mut peer.messages };
                queue.push_back(Message { header, data });
                return;
            }
            Kind::Credit => peer.under_way.remove(header.tag),
            Kind::Leave => peer.has_left = true,
            Kind::Standing => peer.standing = standing(rank, &header.text),
            Kind::Abort | Kind::Ask => {}
        }
        self.keep(data);
    }

    /// An empty buffer; the largest that is spare.
    pub(super) fn buffer(&mut self) -> Vec<u8> {
        let largest = (0..self.spare.len()).max_by_key(|&i| self.spare[i].capacity());
        let mut buffer = largest.map(|i| self.spare.swap_remove(i)).unwrap_or_default();
        buffer.clear();
        buffer
    }

    /// Gives the memory of a message back.
    pub(super) fn recycle(&mut self, message: Message) {
        self.keep(message.data);
    }

    fn keep(&mut self, data: Vec<u8>) {
        if data.capacity() > 0 && self.spare.len() < N_SPARE * self.peers.len() {
            self.spare.push(data);
        }
    }
}

/// How a frame says what a rank does.
pub(super) fn standing_text(waits_for: &[usize], place: &str) -> String {
    let ranks: Vec<String> = waits_for.iter().map(usize::to_string).collect();
    format!("{}|{place}", ranks.join(","))
}

/// What a frame says that `rank` does.
fn standing(rank: usize, text: &str) -> Option<Standing> {
    let (ranks, place) = text.split_once('|')?;
    let ranks = ranks.split(',').filter(|rank| !rank.is_empty());
    Some(Standing { rank, place: place.into(), waits_for: ranks.map(str::parse).collect::<Result<_, _>>().ok()? })
}

impl Peer {
    /// Removes the oldest part of a call of the group, in that round.
    pub(super) fn part(&mut self, group: u64, round: u8) -> Option<Message> {
        let place = self.parts.iter().position(|part| part.header.group == group)?;
        if self.parts[place].header.round == round { self.parts.remove(place) } else { None }
    }

    /// Removes the oldest message with this tag.
    pub(super) fn message(&mut self, tag: u64) -> Option<Message> {
        let place = self.messages.iter().position(|message| message.header.tag == tag)?;
        self.messages.remove(place)
    }

    /// Where the peer was last seen, in words.
    pub(super) fn place(&self) -> String {
        let end = if self.has_left { ", and has finished since" } else { "" };
        match &self.seen {
            None => format!("its start{end}"),
            Some((kind, node, step)) => format!("{kind} at `{node}` (step {step}){end}"),
        }
    }
}
