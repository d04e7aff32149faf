//! Cuts of a path into chunks that make the worst chunk best where every segment takes its least time and its least bytes.

use super::solver::chain::{Candidate, Chain};
use std::collections::BTreeMap;

/// What chunks cost at least: a path with the least time and bytes of each segment, summed from its start.
pub struct Balance {
    /// Nanoseconds before each segment.
    time_ns: Vec<u64>,
    /// Bytes before each segment, for each chunk with the micro-batches that it keeps.
    bytes: Vec<Vec<u64>>,
    /// Bytes that a chunk may have.
    room: u64,
}

/// Bytes beyond the room, and nanoseconds, of the worst chunk.
pub type Worst = (u64, u64);

impl Balance {
    /// Of a path whose chunks keep so many micro-batches at one time, and have room for so many bytes.
    pub fn new(chain: &Chain, in_flight: &[u64], room: u64) -> Balance {
        let sums = |of: &dyn Fn(&Candidate) -> u64| {
            let least: Vec<u64> = chain.classes.iter().map(|c| c.iter().map(of).min().unwrap_or(0)).collect();
            let mut sums = vec![0u64];
            for &class in &chain.layers {
                sums.push(sums[sums.len() - 1].saturating_add(least[class]));
            }
            sums
        };
        let mut by_count: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for &n in in_flight {
            by_count.entry(n).or_insert_with(|| sums(&|candidate| keeping(candidate, n)));
        }
        let bytes = in_flight.iter().map(|n| by_count[n].clone()).collect();
        Balance { time_ns: sums(&|candidate| candidate.cost.time_ns), bytes, room }
    }

    /// What a chunk costs of the segments from `start` to `end`.
    pub fn cost(&self, chunk: usize, start: usize, end: usize) -> Worst {
        let bytes = self.bytes[chunk][end] - self.bytes[chunk][start];
        (bytes.saturating_sub(self.room), self.time_ns[end] - self.time_ns[start])
    }

    /// The first segment of each chunk, of cuts that make the worst one best.
    pub fn cut(&self, cuts: &[usize]) -> Vec<usize> {
        let n_segments = self.time_ns.len() - 1;
        let ends: Vec<usize> = [0].into_iter().chain(cuts.iter().copied()).chain([n_segments]).collect();
        // For each number of chunks and each end: the worst chunk, and where the last one starts.
        let first = |&end: &usize| (end > 0).then(|| (self.cost(0, 0, end), 0));
        let mut rows: Vec<Vec<Option<(Worst, usize)>>> = vec![ends.iter().map(first).collect()];
        for chunk in 1..self.bytes.len() {
            let before = &rows[chunk - 1];
            let best = |end: usize| {
                let worst = |start: usize| {
                    let ((bytes, ns), _) = before[start]?;
                    let own = self.cost(chunk, ends[start], ends[end]);
                    Some(((bytes.max(own.0), ns.max(own.1)), start))
                };
                // The later a chunk starts, the less it costs, and the more those before it do: the best start is where both meet.
                let meets =
                    |start: usize| before[start].is_some_and(|(b, _)| b >= self.cost(chunk, ends[start], ends[end]));
                let (mut low, mut high) = (0, end);
                while low < high {
                    let middle = low.midpoint(high);
                    (low, high) = if meets(middle) { (low, middle) } else { (middle + 1, high) };
                }
                [low.saturating_sub(1), low].into_iter().filter(|&start| start < end).filter_map(worst).min()
            };
            rows.push((0..ends.len()).map(best).collect());
        }
        let (mut starts, mut end) = (Vec::new(), ends.len() - 1);
        for row in rows.iter().rev() {
            let (_, start) = row[end].expect("invariant: there are enough layers for the chunks");
            starts.push(ends[start]);
            end = start;
        }
        starts.reverse();
        starts
    }
}

/// Bytes of a candidate that keeps so many micro-batches.
pub fn keeping(candidate: &Candidate, in_flight: u64) -> u64 {
    candidate.cost.bytes.saturating_add((in_flight - 1).saturating_mul(candidate.saved_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balance(segments: &[(u64, u64)], n_chunks: usize, room: u64) -> Balance {
        let sums = |of: fn(&(u64, u64)) -> u64| {
            let sum = |sum: &mut u64, segment: &(u64, u64)| {
                *sum += of(segment);
                Some(*sum)
            };
            [0].into_iter().chain(segments.iter().scan(0, sum)).collect::<Vec<u64>>()
        };
        Balance { time_ns: sums(|s| s.0), bytes: vec![sums(|s| s.1); n_chunks], room }
    }

    #[test]
    fn the_slowest_chunk_is_as_fast_as_it_can_be() {
        let cut = |times: &[u64], cuts: &[usize], n_chunks| {
            let segments: Vec<(u64, u64)> = times.iter().map(|&ns| (ns, 0)).collect();
            balance(&segments, n_chunks, 0).cut(cuts)
        };
        assert_eq!(cut(&[1, 4, 4, 4, 4, 9], &[1, 2, 3, 4, 5], 3), [0, 3, 5]);
        assert_eq!(cut(&[1, 1, 1, 1], &[1, 2, 3], 2), [0, 2]);
        assert_eq!(cut(&[9, 1, 1, 1], &[2, 3], 2), [0, 2]);
    }

    #[test]
    fn no_chunk_has_all_that_remains_of_an_uneven_split() {
        let starts = balance(&[(1, 0); 11], 4, 0).cut(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        let layers: Vec<usize> = starts.iter().zip(starts[1..].iter().chain(&[11])).map(|(a, b)| b - a).collect();
        assert_eq!(layers.iter().max(), Some(&3), "{layers:?}");
    }

    #[test]
    fn a_chunk_without_room_is_worse_than_a_slow_one() {
        let segments = [(1, 50), (1, 10), (1, 10), (1, 10)];
        assert_eq!(balance(&segments, 2, 100).cut(&[1, 2, 3]), [0, 2]);
        assert_eq!(balance(&segments, 2, 55).cut(&[1, 2, 3]), [0, 1]);
    }
}
