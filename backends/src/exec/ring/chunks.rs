//! Which chunks of the sequence each rank of a ring computes, and which of them see each other.

use galvatron_ir::AxisId;

use crate::device::BufferSpec;
use crate::exec::layout::Layout;

/// A ring as one of its ranks sees it. The sequence is cut into a chunk for each rank, or in a zigzag into two: the rank at position
/// i then computes chunks i and 2 n - 1 - i.
pub(super) struct Ring {
    /// The world ranks by position.
    pub(super) ranks: Vec<usize>,
    /// This rank's position.
    pub(super) own: usize,
    pub(super) scale: f64,
    pub(super) causal: bool,
    pub(super) zigzag: bool,
}

impl Ring {
    pub(super) fn new(layout: &Layout<'_>, axes: &[AxisId], (scale, causal): (f64, bool), zigzag: bool) -> Ring {
        Ring { ranks: layout.group(axes), own: layout.index_along(axes) as usize, scale, causal, zigzag }
    }

    /// Number of ranks.
    pub(super) fn n(&self) -> usize {
        self.ranks.len()
    }

    pub(super) fn next(&self) -> usize {
        self.ranks[(self.own + 1) % self.n()]
    }

    pub(super) fn before(&self) -> usize {
        self.ranks[(self.own + self.n() - 1) % self.n()]
    }

    /// The chunks that the rank at a position computes.
    pub(super) fn chunks(&self, position: usize) -> Vec<usize> {
        if self.zigzag { vec![position, 2 * self.n() - 1 - position] } else { vec![position] }
    }

    /// The position of the rank that computes a chunk of a zigzag, and the chunk's place there.
    pub(super) fn seat_of(&self, chunk: usize) -> (usize, usize) {
        if chunk < self.n() { (chunk, 0) } else { (2 * self.n() - 1 - chunk, 1) }
    }

    /// The chunks of keys and values that are in hand in a round.
    pub(super) fn held(&self, round: usize) -> Vec<usize> {
        self.chunks((self.own + self.n() - round) % self.n())
    }

    /// What is to be computed in a round: the place of a chunk of queries, that of a chunk of keys in hand, and whether a causal rule
    /// runs through the two.
    pub(super) fn tasks(&self, round: usize) -> Vec<(usize, usize, bool)> {
        let mut tasks = Vec::new();
        for (queries, &q) in self.chunks(self.own).iter().enumerate() {
            for (keys, &k) in self.held(round).iter().enumerate() {
                if !self.causal || k <= q {
                    tasks.push((queries, keys, self.causal && k == q));
                }
            }
        }
        tasks
    }

    /// Whether the queries see anything of what is in hand in a round.
    pub(super) fn sees_any(&self, round: usize) -> bool {
        !self.tasks(round).is_empty()
    }

    /// The part of a tensor that holds one chunk, where its chunks lie one after the other.
    pub(super) fn piece(&self, tensor: &BufferSpec, dim: usize, index: usize) -> BufferSpec {
        piece(tensor, dim, index, if self.zigzag { 2 } else { 1 })
    }
}

/// Chunk number `index` of `n` equal ones along a dimension, which lie one after the other.
pub(super) fn piece(tensor: &BufferSpec, dim: usize, index: usize, n: usize) -> BufferSpec {
    let mut part = tensor.clone();
    part.ty.shape[dim] /= n as u64;
    part.global_shape.clone_from(&part.ty.shape);
    part.first.fill(0);
    part.offset += index as u64 * part.ty.bytes();
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(n: usize, own: usize, zigzag: bool) -> Ring {
        Ring { ranks: (0..n).collect(), own, scale: 1.0, causal: true, zigzag }
    }

    /// Pairs of chunks that are computed, those on the diagonal counted half.
    fn halves(n: usize, own: usize, zigzag: bool) -> usize {
        let tasks = (0..n).flat_map(|round| ring(n, own, zigzag).tasks(round));
        tasks.map(|(_, _, causal)| if causal { 1 } else { 2 }).sum()
    }

    #[test]
    fn a_zigzag_gives_every_rank_the_same_to_do() {
        for n in [2, 3, 4, 8] {
            let all: Vec<usize> = (0..n).map(|own| halves(n, own, true)).collect();
            assert_eq!(all, vec![4 * n; n]);
            assert_eq!((halves(n, 0, false), halves(n, n - 1, false)), (1, 2 * n - 1));
        }
    }

    #[test]
    fn every_visible_pair_of_chunks_is_computed_once() {
        for (n, zigzag) in [(3, false), (3, true), (4, true)] {
            let mut pairs = Vec::new();
            for own in 0..n {
                let ring = ring(n, own, zigzag);
                for round in 0..n {
                    let held = ring.held(round);
                    pairs.extend(ring.tasks(round).iter().map(|&(q, k, _)| (ring.chunks(own)[q], held[k])));
                }
            }
            pairs.sort_unstable();
            let n_chunks = if zigzag { 2 * n } else { n };
            let expected: Vec<_> = (0..n_chunks).flat_map(|q| (0..=q).map(move |k| (q, k))).collect();
            assert_eq!(pairs, expected);
        }
    }

    #[test]
    fn chunks_and_seats_agree() {
        let ring = ring(5, 0, true);
        for position in 0..5 {
            for (place, chunk) in ring.chunks(position).into_iter().enumerate() {
                assert_eq!(ring.seat_of(chunk), (position, place));
            }
        }
    }
}
