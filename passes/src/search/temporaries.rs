//! What lowered plans took on top of the bytes of the surrogate, which does not count what is temporary: what other plans are expected to take.

use super::kinds::Kind;
use std::collections::BTreeMap;

/// Bytes on top of the surrogate's; less than none where it counts what is freed in time.
#[derive(Default)]
pub struct Temporaries<'a> {
    /// Of the last plan of a space and a kind.
    of_kinds: BTreeMap<(usize, Kind<'a>), i128>,
    /// The least of a space.
    of_spaces: BTreeMap<usize, i128>,
}

impl<'a> Temporaries<'a> {
    /// Notes what a plan of a space, and perhaps of a kind, took.
    pub fn note(&mut self, space: usize, kind: Option<Kind<'a>>, bytes: i128) {
        if let Some(kind) = kind {
            self.of_kinds.insert((space, kind.temporaries()), bytes);
        }
        let least = self.of_spaces.entry(space).or_insert(bytes);
        *least = bytes.min(*least);
    }

    /// What a plan of a kind is expected to take: as much as the last one that is cut alike, or as little as any of its space; nothing where
    /// none is known.
    pub fn expected(&self, space: usize, kind: Kind<'a>) -> i128 {
        let of_kind = self.of_kinds.get(&(space, kind.temporaries()));
        of_kind.or_else(|| self.of_spaces.get(&space)).copied().unwrap_or(0)
    }
}
