//! Damages protobuf files: bytes and bits that flip, files that are cut or joined, and, with all lengths around them right,
//! fields that are dropped, doubled, moved or given numbers and names of others. The same seed gives the same damage.

/// A source of damage.
pub struct Mutator {
    state: u64,
}

/// Numbers at which extents, counts and indices break.
const NUMBERS: [u64; 14] =
    [0, 1, 2, 3, 7, 255, 1 << 16, 1 << 27, (1 << 31) - 1, 1 << 40, (1 << 48) + 1, (1 << 63) - 1, 1 << 63, u64::MAX];

/// How deep messages are taken apart.
const MAX_DEPTH: usize = 9;

/// A field of a message.
#[derive(Clone)]
struct Field {
    tag: u64,
    value: Value,
}

#[derive(Clone)]
enum Value {
    Number(u64),
    Fixed(Vec<u8>),
    Bytes(Vec<u8>),
    Message(Vec<Field>),
}

impl Value {
    /// Whether both are written alike, and, if they are bytes, both or none of them can be text.
    fn is_like(&self, other: &Value) -> bool {
        match (self, other) {
            (Value::Bytes(a), Value::Bytes(b)) => a.is_ascii() == b.is_ascii(),
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

impl Mutator {
    /// Damage of a seed.
    pub fn new(seed: u64) -> Mutator {
        Mutator { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`, or 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// The file with one to three faults; `other` is another file, parts of which may get into it.
    pub fn mutate(&mut self, file: &[u8], other: &[u8]) -> Vec<u8> {
        let mut file = file.to_vec();
        for _ in 0..1 + self.below(3) {
            file = match self.below(24) {
                0 => self.flip(file, 8),
                1 => file[..self.below(file.len())].to_vec(),
                2 => self.join(file, other),
                _ => self.restructure(&file),
            };
        }
        file
    }

    /// Flips one to eight of the lowest bits of bytes; text stays text without the eighth.
    fn flip(&mut self, mut file: Vec<u8>, n_bits: usize) -> Vec<u8> {
        for _ in 0..1 + self.below(8) {
            let at = self.below(file.len());
            let by = 1 << self.below(n_bits);
            if let Some(byte) = file.get_mut(at) {
                *byte ^= by;
            }
        }
        file
    }

    /// Puts a piece of a file into another one, between or over its bytes.
    fn join(&mut self, mut file: Vec<u8>, other: &[u8]) -> Vec<u8> {
        let start = self.below(other.len());
        let piece = &other[start..(start + self.below(256)).min(other.len())];
        let at = self.below(file.len());
        let end = if self.below(2) == 0 { at } else { (at + piece.len()).min(file.len()) };
        file.splice(at..end, piece.iter().copied());
        file
    }

    /// Changes fields, with the lengths around them.
    fn restructure(&mut self, file: &[u8]) -> Vec<u8> {
        let Some(mut fields) = parse(file, 0) else { return file.to_vec() };
        for _ in 0..1 + self.below(3) {
            let n = count(&fields);
            let from = self.below(n);
            let from = nth(&mut fields, &mut { from }).map(|(fields, i)| fields[i].clone());
            let mut at = self.below(n);
            if let (Some((fields, i)), Some(from)) = (nth(&mut fields, &mut at), from) {
                self.change(fields, i, from);
            }
        }
        let mut out = Vec::new();
        write(&fields, &mut out);
        out
    }

    /// Changes one of the fields of a message; `from` is a field of another message.
    fn change(&mut self, fields: &mut Vec<Field>, i: usize, from: Field) {
        match self.below(7) {
            0 => drop(fields.remove(i)),
            1 => fields.insert(i, fields[i].clone()),
            2 if from.value.is_like(&fields[i].value) => fields[i].value = from.value,
            3 => fields.insert(i, from),
            4 => {
                let j = self.below(fields.len());
                fields.swap(i, j);
            }
            _ => fields[i].value = self.changed(fields[i].value.clone()),
        }
    }

    fn changed(&mut self, value: Value) -> Value {
        match value {
            Value::Number(number) => Value::Number(match self.below(4) {
                0 => number.wrapping_add(1),
                1 => number.wrapping_neg(),
                _ => NUMBERS[self.below(NUMBERS.len())],
            }),
            Value::Fixed(bytes) => Value::Fixed(self.flip(bytes, 8)),
            Value::Bytes(bytes) => Value::Bytes(match self.below(4) {
                0 => Vec::new(),
                1 => bytes[..self.below(bytes.len())].to_vec(),
                2 if bytes.len() >= 8 && !bytes.is_ascii() => self.renumbered(bytes),
                _ => self.flip(bytes, 7),
            }),
            Value::Message(mut fields) => {
                let n = self.below(fields.len());
                fields.truncate(n);
                Value::Message(fields)
            }
        }
    }

    /// Writes a number over eight bytes: an element of a tensor of integers.
    fn renumbered(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        let at = self.below(bytes.len() / 8) * 8;
        bytes[at..at + 8].copy_from_slice(&NUMBERS[self.below(NUMBERS.len())].to_le_bytes());
        bytes
    }
}

/// The fields of what is a message as this writes it; nothing for other bytes.
fn parse(bytes: &[u8], depth: usize) -> Option<Vec<Field>> {
    let mut rest = bytes;
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        let tag = key >> 3;
        let value = match key & 7 {
            0 => Value::Number(varint(&mut rest)?),
            1 => Value::Fixed(rest.split_off(..8)?.to_vec()),
            5 => Value::Fixed(rest.split_off(..4)?.to_vec()),
            2 => {
                let n = usize::try_from(varint(&mut rest)?).ok()?;
                let inner = rest.split_off(..n)?;
                let message = if depth < MAX_DEPTH && n > 1 { parse(inner, depth + 1) } else { None };
                message.map_or_else(|| Value::Bytes(inner.to_vec()), Value::Message)
            }
            _ => return None,
        };
        if tag == 0 || tag > 30 {
            return None;
        }
        fields.push(Field { tag, value });
    }
    let mut written = Vec::new();
    write(&fields, &mut written);
    (written == bytes).then_some(fields)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for i in 0..10 {
        let byte = *rest.split_off_first()?;
        value |= u64::from(byte & 0x7F) << (7 * i);
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn write(fields: &[Field], out: &mut Vec<u8>) {
    for Field { tag, value } in fields {
        match value {
            Value::Number(number) => put_number(*tag, *number, out),
            Value::Fixed(bytes) => {
                put(tag << 3 | if bytes.len() == 4 { 5 } else { 1 }, out);
                out.extend(bytes);
            }
            Value::Bytes(bytes) => put_bytes(*tag, bytes, out),
            Value::Message(fields) => {
                let mut inner = Vec::new();
                write(fields, &mut inner);
                put_bytes(*tag, &inner, out);
            }
        }
    }
}

/// Writes a field that is a number.
pub fn put_number(tag: u64, number: u64, out: &mut Vec<u8>) {
    put(tag << 3, out);
    put(number, out);
}

/// Writes a field of bytes.
pub fn put_bytes(tag: u64, bytes: &[u8], out: &mut Vec<u8>) {
    put(tag << 3 | 2, out);
    put(bytes.len() as u64, out);
    out.extend(bytes);
}

fn put(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Number of fields, those of inner messages included.
fn count(fields: &[Field]) -> usize {
    let inner = |field: &Field| if let Value::Message(fields) = &field.value { count(fields) } else { 0 };
    fields.iter().map(|field| 1 + inner(field)).sum()
}

/// The message and the index of a field that is told by its number.
fn nth<'a>(fields: &'a mut Vec<Field>, n: &mut usize) -> Option<(&'a mut Vec<Field>, usize)> {
    let mut inner = None;
    for (i, field) in fields.iter().enumerate() {
        if *n == 0 {
            return Some((fields, i));
        }
        *n -= 1;
        if let Value::Message(message) = &field.value {
            let n_inside = count(message);
            if *n < n_inside {
                inner = Some(i);
                break;
            }
            *n -= n_inside;
        }
    }
    match &mut fields[inner?].value {
        Value::Message(message) => nth(message, n),
        _ => None,
    }
}
