//! Frames on a connection between two ranks: a header of fixed size, the name of the plan node, the data.

use std::io::{self, Read};

use crate::comm::call::Shape;
use crate::comm::{CommKind, ReduceOp};

/// Bytes of a header.
const HEADER_BYTES: usize = 64;

/// Longest name of a node, and longest reason of an abort, in bytes.
pub(super) const MAX_TEXT_BYTES: usize = 1 << 16;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A member's part of a collective.
    Part = 1,
    /// A message of [`send`](crate::comm::Collective::send).
    Message = 2,
    /// The receiver has taken `tag` bytes of messages.
    Credit = 3,
    /// All must stop: rank `tag` failed for the reason in the text.
    Abort = 4,
    /// The sender makes no more calls.
    Leave = 5,
    /// The sender has waited too long and asks what the receiver does.
    Ask = 6,
    /// What the sender does: whom it waits for and its place, in the text.
    Standing = 7,
}

/// Everything about a frame but its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) shape: Shape,
    /// The part's place in a call of more than one round.
    pub(super) round: u8,
    /// The key of the group; see [`group_key`].
    pub(super) group: u64,
    /// The tag of a message, the bytes of a credit, the rank of an abort.
    pub(super) tag: u64,
    /// The training step.
    pub(super) step: u64,
    /// The plan node, or the reason of an abort.
    pub(super) text: String,
}

impl Header {
    /// A frame without a call.
    pub(super) fn plain(kind: Kind, tag: u64, text: &str) -> Header {
        let end = (0..=text.len().min(MAX_TEXT_BYTES)).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        let shape = Shape::new(CommKind::Barrier, 0);
        Header { kind, shape, round: 0, group: 0, tag, step: 0, text: text[..end].to_string() }
    }

    /// Appends the frame without its data, of which there are `n_data` bytes.
    pub(super) fn encode(&self, n_data: usize, out: &mut Vec<u8>) {
        let comm = CommKind::ALL.iter().position(|&k| k == self.shape.kind).expect("invariant: all kinds are listed");
        let op = match self.shape.op {
            None => 0,
            Some(ReduceOp::Sum) => 1,
            Some(ReduceOp::Max) => 2,
        };
        let root = self.shape.root_index.map_or(0, |root| root as u64 + 1);
        out.extend([self.kind as u8, comm as u8, op, self.round]);
        out.extend((self.text.len() as u32).to_le_bytes());
        for number in [root, self.shape.n_bytes as u64, self.group, self.tag, self.step, n_data as u64, 0] {
            out.extend(number.to_le_bytes());
        }
        out.extend(self.text.as_bytes());
    }

    /// Reads a frame without its data; returns it with the number of bytes of data that follow. `None` at the end of the
    /// stream.
    ///
    /// # Errors
    /// Those of the stream, and `InvalidData` for what is no frame.
    pub(super) fn read(stream: &mut impl Read) -> io::Result<Option<(Header, usize)>> {
        let mut bytes = [0; HEADER_BYTES];
        if stream.read(&mut bytes[..1])? == 0 {
            return Ok(None);
        }
        stream.read_exact(&mut bytes[1..])?;
        let n_text = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
        let (mut header, n_data) = decode(&bytes).filter(|_| n_text <= MAX_TEXT_BYTES).ok_or_else(no_frame)?;
        let mut text = vec![0; n_text];
        stream.read_exact(&mut text)?;
        header.text = String::from_utf8(text).map_err(|_| no_frame())?;
        Ok(Some((header, n_data)))
    }
}

fn no_frame() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "what came is no frame")
}

/// The header without its text, and the bytes of data.
fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<(Header, usize)> {
    let kind = match bytes[0] {
        1 => Kind::Part,
        2 => Kind::Message,
        3 => Kind::Credit,
        4 => Kind::Abort,
        5 => Kind::Leave,
        6 => Kind::Ask,
        7 => Kind::Standing,
        _ => return None,
    };
    let op = match bytes[2] {
        0 => None,
        1 => Some(ReduceOp::Sum),
        2 => Some(ReduceOp::Max),
        _ => return None,
    };
    let numbers = bytes[8..].as_chunks::<8>().0;
    let number = |i: usize| u64::from_le_bytes(numbers[i]);
    let size = |i: usize| usize::try_from(number(i)).ok();
    let shape = Shape {
        kind: *CommKind::ALL.get(usize::from(bytes[1]))?,
        n_bytes: size(1)?,
        op,
        root_index: size(0)?.checked_sub(1),
    };
    let (group, tag, step) = (number(2), number(3), number(4));
    Some((Header { kind, shape, round: bytes[3], group, tag, step, text: String::new() }, size(5)?))
}

/// What frames call a group: the FNV-1a hash of its ranks.
pub(super) fn group_key(ranks: &[usize]) -> u64 {
    let bytes = ranks.iter().flat_map(|&rank| (rank as u64).to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_what_was_written() {
        let shape = Shape { op: Some(ReduceOp::Max), root_index: Some(0), ..Shape::new(CommKind::Broadcast, 12) };
        let header = Header { kind: Kind::Part, shape, round: 1, group: 7, tag: 9, step: 3, text: "%ä".into() };
        let mut bytes = Vec::new();
        header.encode(5, &mut bytes);
        assert_eq!(Header::read(&mut &bytes[..]).unwrap(), Some((header, 5)));
        assert_eq!(Header::read(&mut &bytes[..0]).unwrap(), None);
        assert!(Header::read(&mut &bytes[..10]).is_err());
        bytes[0] = 77;
        assert_eq!(Header::read(&mut &bytes[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let header = Header::plain(Kind::Abort, 0, &"ä".repeat(MAX_TEXT_BYTES));
        assert_eq!(header.text.len(), MAX_TEXT_BYTES);
    }
}
