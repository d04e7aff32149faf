//! Random damage to texts: the parser reports and never panics.

use super::texts::ALL;
use crate::text::{parse, print};

/// xorshift64* (Vigna, 2016).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n
    }
}

/// Deletes, inserts, copies and swaps a few pieces.
fn damage(text: &str, seed: u64) -> String {
    let mut random = Random(seed * 2 + 1);
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len());
        let other = random.below(bytes.len());
        match random.below(5) {
            0 => drop(bytes.drain(at..(at + 1 + random.below(8)).min(bytes.len()))),
            1 => bytes.insert(at, b"%@[]{}=,:+|/\"\\-_.09aef \n"[random.below(24)]),
            2 => bytes[at] = b"%@[]{}=,:+|/\"\\-_.09aef \n"[random.below(24)],
            3 => bytes.insert(at, random.below(256) as u8),
            _ => {
                let piece = bytes[other..(other + 1 + random.below(20)).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn damaged_texts_are_reported_or_round_trip() {
    let mut read = 0;
    for text in ALL {
        for seed in 0..2000 {
            let damaged = damage(text, seed);
            match parse(&damaged) {
                Ok(module) => {
                    read += 1;
                    let printed = print(&module);
                    let again = parse(&printed).unwrap_or_else(|f| panic!("{}\n{printed}", f[0]));
                    assert_eq!(print(&again), printed);
                }
                Err(faults) => {
                    let spans = faults.iter().filter_map(|f| f.span.clone());
                    assert!(spans.into_iter().all(|s| damaged.get(s).is_some()));
                }
            }
        }
    }
    assert!(read > 100, "damage that does not hurt is rare but exists: {read}");
}

#[test]
fn texts_that_end_anywhere_are_reported() {
    for text in ALL {
        for end in (0..text.trim_end().len()).filter(|&e| text.is_char_boundary(e)) {
            assert!(parse(&text[..end]).is_err(), "{}", &text[..end]);
        }
    }
}
