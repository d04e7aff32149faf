//! Protobuf on the wire: the fields of a message as byte ranges, and how keys and lengths are written.

use std::ops::Range;

/// A message that is none: its fields do not fill it exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    /// Byte of the file at which that shows.
    pub at: usize,
}

/// How the value of a field is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A number of varying length.
    Varint,
    /// A number of four or eight bytes.
    Fixed,
    /// A length and as many bytes: a string, a message, packed numbers.
    Bytes,
    /// What lies between two keys of the same number; nobody writes it any more.
    Group,
}

/// One field of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    /// Number of the field.
    pub tag: u64,
    /// How its value is written.
    pub kind: Kind,
    /// Key, length and value.
    pub whole: Range<usize>,
    /// The value without its length.
    pub value: Range<usize>,
}

/// The fields of the message that fills a range of bytes, in the order of the file.
pub(super) fn fields(bytes: &[u8], message: Range<usize>) -> impl Iterator<Item = Result<Field, Malformed>> + '_ {
    let mut at = message.start;
    std::iter::from_fn(move || {
        if at >= message.end {
            return None;
        }
        let field = field(&bytes[..message.end], at);
        at = field.as_ref().map_or(message.end, |f| f.whole.end);
        Some(field)
    })
}

/// The field that begins at a byte.
fn field(bytes: &[u8], start: usize) -> Result<Field, Malformed> {
    let (key, at) = varint(bytes, start)?;
    let (kind, value) = match key & 7 {
        0 => (Kind::Varint, at..varint(bytes, at)?.1),
        1 => (Kind::Fixed, at..at + 8),
        2 => {
            let (length, at) = varint(bytes, at)?;
            let end = usize::try_from(length).ok().and_then(|length| at.checked_add(length));
            (Kind::Bytes, at..end.ok_or(Malformed { at })?)
        }
        3 => (Kind::Group, at..group_end(bytes, at)?),
        5 => (Kind::Fixed, at..at + 4),
        _ => return Err(Malformed { at: start }),
    };
    if value.end > bytes.len() {
        return Err(Malformed { at: start });
    }
    Ok(Field { tag: key >> 3, kind, whole: start..value.end, value })
}

/// The byte behind the key that ends the group whose first field begins at `at`.
fn group_end(bytes: &[u8], mut at: usize) -> Result<usize, Malformed> {
    let mut n_open = 1;
    while n_open > 0 {
        let (key, behind) = varint(bytes, at)?;
        match key & 7 {
            3 => n_open += 1,
            4 => n_open -= 1,
            _ => {
                at = field(bytes, at)?.whole.end;
                continue;
            }
        }
        at = behind;
    }
    Ok(at)
}

/// A number of varying length and the byte behind it.
pub(super) fn varint(bytes: &[u8], start: usize) -> Result<(u64, usize), Malformed> {
    let mut value = 0;
    for (i, &byte) in bytes.get(start..).unwrap_or_default().iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7F) << (7 * i);
        if byte < 0x80 {
            return Ok((value, start + i + 1));
        }
    }
    Err(Malformed { at: start })
}

/// Writes a number of varying length.
pub(super) fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Writes a number with its key.
pub(super) fn put_number(tag: u64, value: u64, out: &mut Vec<u8>) {
    put_varint(tag << 3, out);
    put_varint(value, out);
}

/// Writes key and length of a value of bytes, which follow.
pub(super) fn put_length(tag: u64, n_bytes: u64, out: &mut Vec<u8>) {
    put_varint(tag << 3 | 2, out);
    put_varint(n_bytes, out);
}

/// Writes bytes with key and length.
pub(super) fn put_bytes(tag: u64, value: &[u8], out: &mut Vec<u8>) {
    put_length(tag, value.len() as u64, out);
    out.extend(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(bytes: &[u8]) -> Result<Vec<(u64, Kind, usize)>, Malformed> {
        fields(bytes, 0..bytes.len()).map(|f| f.map(|f| (f.tag, f.kind, f.value.len()))).collect()
    }

    #[test]
    fn numbers_are_read_as_they_are_written() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut bytes = Vec::new();
            put_varint(value, &mut bytes);
            assert_eq!(varint(&bytes, 0), Ok((value, bytes.len())));
        }
    }

    #[test]
    fn fields_of_every_kind_fill_a_message() {
        let mut bytes = Vec::new();
        put_number(1, 300, &mut bytes);
        put_bytes(1000, b"abc", &mut bytes);
        bytes.extend([4 << 3 | 5, 0, 0, 0, 0, 5 << 3 | 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([6 << 3 | 3, 6 << 3 | 3, 8, 1, 6 << 3 | 4, 6 << 3 | 4]);
        let expected = [
            (1, Kind::Varint, 2),
            (1000, Kind::Bytes, 3),
            (4, Kind::Fixed, 4),
            (5, Kind::Fixed, 8),
            (6, Kind::Group, 5),
        ];
        assert_eq!(tags(&bytes).unwrap(), expected);
    }

    #[test]
    fn what_does_not_fill_its_range_is_malformed() {
        for bytes in [&[8][..], &[10, 5, 0], &[13, 0], &[9], &[0x1B, 8, 1], &[0x1C], &[15], &[0xFF; 11]] {
            assert!(tags(bytes).is_err(), "{bytes:?}");
        }
        let huge = [10, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1];
        assert_eq!(tags(&huge), Err(Malformed { at: 11 }));
    }
}
