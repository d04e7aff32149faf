//! Puts new messages in the place of tensors: every other byte of the file is copied, and only the lengths of what lies
//! around a changed tensor are written anew.

use super::schema::Message;
use super::wire::{Field, Kind, Malformed, fields, put_length};
use std::collections::BTreeMap;
use std::ops::Range;

/// A part of a file that is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Bytes of the original.
    Copy(Range<usize>),
    /// New bytes.
    New(Vec<u8>),
    /// The elements of a new tensor, by its number, and how many bytes they take.
    Elements(usize, u64),
}

/// Parts of a file, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pieces {
    /// The parts; neighbours in the original are one.
    pub list: Vec<Piece>,
    /// How many bytes they take.
    pub n_bytes: u64,
}

impl Pieces {
    pub(super) fn push(&mut self, piece: Piece) {
        self.n_bytes += match &piece {
            Piece::Copy(range) => range.len() as u64,
            Piece::New(bytes) => bytes.len() as u64,
            Piece::Elements(_, n_bytes) => *n_bytes,
        };
        match (self.list.last_mut(), piece) {
            (Some(Piece::Copy(last)), Piece::Copy(next)) if last.end == next.start => last.end = next.end,
            (_, piece) => self.list.push(piece),
        }
    }

    /// Adds a field that holds a message.
    fn nest(&mut self, tag: u64, message: Pieces) {
        let mut head = Vec::new();
        put_length(tag, message.n_bytes, &mut head);
        self.push(Piece::New(head));
        message.list.into_iter().for_each(|piece| self.push(piece));
    }
}

/// The file with other tensors: what is to stand in the place of a tensor, by the first byte of its message.
///
/// The messages have been walked before, so that they lie in each other no deeper than the walk went.
pub(super) fn splice(file: &[u8], new: &mut BTreeMap<usize, Pieces>) -> Result<Pieces, Malformed> {
    Ok(message(file, Message::Model, 0..file.len(), new)?.unwrap_or_else(|| {
        let mut whole = Pieces::default();
        whole.push(Piece::Copy(0..file.len()));
        whole
    }))
}

/// The message with other tensors; nothing if it stays what it is.
fn message(
    file: &[u8],
    kind: Message,
    range: Range<usize>,
    new: &mut BTreeMap<usize, Pieces>,
) -> Result<Option<Pieces>, Malformed> {
    if new.range(range.clone()).next().is_none() {
        return Ok(None);
    }
    let mut pieces = Pieces::default();
    for field in fields(file, range) {
        let Field { tag, kind: written, whole, value } = field?;
        let changed = match kind.inside(tag).filter(|_| written == Kind::Bytes) {
            Some(Message::Tensor) => new.remove(&value.start),
            Some(inside) => message(file, inside, value, new)?,
            None => None,
        };
        match changed {
            Some(changed) => pieces.nest(tag, changed),
            None => pieces.push(Piece::Copy(whole)),
        }
    }
    Ok(Some(pieces))
}
