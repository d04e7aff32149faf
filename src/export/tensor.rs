//! A tensor's message with other elements; all its other fields stay as they are.

use super::schema::{DATA_LOCATION, EXTERNAL_DATA, RAW_DATA, is_data};
use super::splice::{Piece, Pieces};
use super::wire::{Malformed, fields, put_bytes, put_length, put_number};
use std::ops::Range;

/// Where the elements of a tensor go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whereto<'a> {
    /// Into the message.
    Inside,
    /// Into a file beside the model, from a byte on.
    Beside(&'a str, u64),
}

/// The message at a range with elements that are told by their number and take `n_bytes`.
pub(super) fn with_elements(
    file: &[u8],
    at: Range<usize>,
    number: usize,
    n_bytes: u64,
    whereto: Whereto<'_>,
) -> Result<Pieces, Malformed> {
    let mut pieces = Pieces::default();
    let mut is_written = false;
    for field in fields(file, at) {
        let field = field?;
        let is_location = field.tag == DATA_LOCATION;
        // A location that says "inside", as some exporters write it, stays where it is.
        let stays = is_location && whereto == Whereto::Inside && file[field.value.clone()] == [0];
        if stays || !(is_location || is_data(field.tag)) {
            pieces.push(Piece::Copy(field.whole));
        } else if !is_written && !is_location {
            put_elements(&mut pieces, number, n_bytes, whereto);
            is_written = true;
        }
    }
    if !is_written {
        put_elements(&mut pieces, number, n_bytes, whereto);
    }
    Ok(pieces)
}

fn put_elements(pieces: &mut Pieces, number: usize, n_bytes: u64, whereto: Whereto<'_>) {
    let mut head = Vec::new();
    match whereto {
        Whereto::Inside => {
            put_length(RAW_DATA, n_bytes, &mut head);
            pieces.push(Piece::New(head));
            pieces.push(Piece::Elements(number, n_bytes));
        }
        Whereto::Beside(location, offset) => {
            put_entry("location", location, &mut head);
            put_entry("offset", &offset.to_string(), &mut head);
            put_entry("length", &n_bytes.to_string(), &mut head);
            put_number(DATA_LOCATION, 1, &mut head);
            pieces.push(Piece::New(head));
        }
    }
}

/// A key and a value of `external_data`.
fn put_entry(key: &str, value: &str, out: &mut Vec<u8>) {
    let mut entry = Vec::new();
    put_bytes(1, key.as_bytes(), &mut entry);
    put_bytes(2, value.as_bytes(), &mut entry);
    put_bytes(EXTERNAL_DATA, &entry, out);
}
