//! Puts dropouts that train into an ONNX file, behind all nodes of some operators. The file is edited as protobuf.

/// A field of a message.
struct Field<'a> {
    number: u64,
    /// With its tag.
    raw: &'a [u8],
    /// What it holds.
    payload: &'a [u8],
}

/// The file with a `Dropout` of that ratio behind each node of these operators; its operands are constants.
pub fn with_dropouts(model: &[u8], operators: &[&str], ratio: f32) -> Vec<u8> {
    let changed =
        |f: &Field<'_>| if f.number == 7 { field(7, &graph(f.payload, operators, ratio)) } else { f.raw.into() };
    fields(model).iter().flat_map(changed).collect()
}

fn graph(graph: &[u8], operators: &[&str], ratio: f32) -> Vec<u8> {
    let mut out = Vec::new();
    for f in fields(graph) {
        match f.number == 1 && operators.iter().any(|operator| operator.as_bytes() == part(f.payload, 4)) {
            true => out.extend(dropped(f.payload)),
            false => out.extend(f.raw),
        }
    }
    // Tensors have element type, name and raw elements: 1 is f32, 9 is bool.
    let tensor = |dtype: u8, name: &str, raw: &[u8]| {
        field(5, &[&[2 << 3, dtype][..], &field(8, name.as_bytes()), &field(9, raw)].concat())
    };
    out.extend(tensor(1, "dropout.ratio", &ratio.to_le_bytes()));
    out.extend(tensor(9, "dropout.on", &[1]));
    out
}

/// The node under another name of its first result, and the dropout that gives that result.
fn dropped(node: &[u8]) -> Vec<u8> {
    let result = part(node, 2);
    let kept = [result, b".kept"].concat();
    let mut is_first = true;
    let renamed = fields(node).into_iter().flat_map(|f| {
        let is_result = f.number == 2 && std::mem::replace(&mut is_first, false);
        if is_result { field(2, &kept) } else { f.raw.to_vec() }
    });
    let renamed: Vec<u8> = renamed.collect();
    let operands = [&kept[..], b"dropout.ratio", b"dropout.on"].map(|name| field(1, name)).concat();
    let dropout = [operands, field(2, result), field(4, b"Dropout")].concat();
    [field(1, &renamed), field(1, &dropout)].concat()
}

/// The first field of a number.
fn part(message: &[u8], number: u64) -> &[u8] {
    fields(message).into_iter().find(|f| f.number == number).map_or(&[], |f| f.payload)
}

fn fields(message: &[u8]) -> Vec<Field<'_>> {
    let (mut at, mut found) = (0, Vec::new());
    while at < message.len() {
        let start = at;
        let tag = varint(message, &mut at);
        let length = match tag & 7 {
            0 => {
                varint(message, &mut at);
                0
            }
            1 => 8,
            2 => varint(message, &mut at) as usize,
            _ => 4,
        };
        let payload = &message[at..at + length];
        at += length;
        found.push(Field { number: tag >> 3, raw: &message[start..at], payload });
    }
    found
}

fn varint(bytes: &[u8], at: &mut usize) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = bytes[*at];
        *at += 1;
        value |= u64::from(byte & 127) << shift;
        if byte < 128 {
            break;
        }
    }
    value
}

/// A field of bytes.
fn field(number: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![(number << 3 | 2) as u8];
    let mut length = payload.len();
    while length > 127 {
        out.push((length & 127) as u8 | 128);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend(payload);
    out
}
