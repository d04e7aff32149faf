//! Cuts of a path into chunks that make the worst chunk best where every segment takes its least time, at the speed of its chunk, and its
//! least bytes.

use super::devices::Devices;
use super::outlines::fastest;
use super::solver::chain::{Candidate, Chain};
use std::collections::BTreeMap;
use std::rc::Rc;

/// What chunks cost at least: a path with the least time and bytes of each segment, summed from its start.
pub struct Balance {
    /// Nanoseconds before each segment at each speed, fastest first.
    time_ns: Vec<Vec<u64>>,
    chunks: Vec<OfChunk>,
    /// Nanoseconds of all segments, each at the speed at which it takes least.
    pub all_ns: u64,
}

/// What of a chunk decides its costs.
#[derive(Clone)]
struct OfChunk {
    speed: usize,
    /// Bytes that it may have.
    room: u64,
    /// Bytes before each segment, with the micro-batches that it keeps.
    bytes: Rc<Vec<u64>>,
}

/// Bytes beyond the room, and nanoseconds, of the worst chunk.
pub type Worst = (u64, u64);

impl Balance {
    /// Of a path at each speed, whose chunks keep so many micro-batches at one time and lie on these devices.
    pub fn new(chains: &[Chain], in_flight: &[u64], devices: &Devices) -> Balance {
        let layers = &chains[0].layers;
        let least = |chain: &Chain, of: &dyn Fn(&Candidate) -> u64| -> Vec<u64> {
            chain.classes.iter().map(|class| class.iter().map(of).min().unwrap_or(0)).collect()
        };
        let times: Vec<Vec<u64>> =
            chains.iter().map(|chain| least(chain, &|candidate| candidate.cost.time_ns)).collect();
        let all_ns = sums(&fastest(times.iter().cloned()), layers).pop().unwrap_or(0);
        let time_ns = times.iter().map(|times| sums(times, layers)).collect();
        let mut by_count: BTreeMap<u64, Rc<Vec<u64>>> = BTreeMap::new();
        for &n in in_flight {
            let bytes = || Rc::new(sums(&least(&chains[0], &|candidate| keeping(candidate, n)), layers));
            by_count.entry(n).or_insert_with(bytes);
        }
        let each = (in_flight.len() / devices.n_stages()) as u64;
        let chunk = |(chunk, n): (usize, &u64)| {
            let stage = chunk % devices.n_stages();
            let (speed, room) = (devices.speed_of[stage], devices.memory_bytes[stage] / each);
            OfChunk { speed, room, bytes: by_count[n].clone() }
        };
        Balance { time_ns, chunks: in_flight.iter().enumerate().map(chunk).collect(), all_ns }
    }

    /// The same where a stage has no more than a budget of counted bytes.
    pub fn within(&self, budget: u64, devices: &Devices) -> Balance {
        let each = (self.chunks.len() / devices.n_stages()) as u64;
        let chunk = |(i, chunk): (usize, &OfChunk)| {
            let room = budget.saturating_sub(devices.missing_bytes(i % devices.n_stages())) / each;
            OfChunk { room: room.min(chunk.room), ..chunk.clone() }
        };
        let chunks = self.chunks.iter().enumerate().map(chunk).collect();
        Balance { time_ns: self.time_ns.clone(), chunks, all_ns: self.all_ns }
    }

    /// What a chunk costs of the segments from `start` to `end`.
    pub fn cost(&self, chunk: usize, start: usize, end: usize) -> Worst {
        let OfChunk { speed, room, bytes } = &self.chunks[chunk];
        let time_ns = &self.time_ns[*speed];
        ((bytes[end] - bytes[start]).saturating_sub(*room), time_ns[end] - time_ns[start])
    }

    /// The first segment of each chunk, of cuts that make the worst one best.
    pub fn cut(&self, cuts: &[usize]) -> Vec<usize> {
        let n_segments = self.time_ns[0].len() - 1;
        let ends: Vec<usize> = [0].into_iter().chain(cuts.iter().copied()).chain([n_segments]).collect();
        // For each number of chunks and each end: the worst chunk, and where the last one starts.
        let first = |&end: &usize| (end > 0).then(|| (self.cost(0, 0, end), 0));
        let mut rows: Vec<Vec<Option<(Worst, usize)>>> = vec![ends.iter().map(first).collect()];
        for chunk in 1..self.chunks.len() {
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

/// Sums before each segment of what its class has, and of all.
fn sums(of_class: &[u64], layers: &[usize]) -> Vec<u64> {
    let mut sums = vec![0u64];
    for &class in layers {
        sums.push(sums[sums.len() - 1].saturating_add(of_class[class]));
    }
    sums
}

/// Bytes of a candidate that keeps so many micro-batches.
pub fn keeping(candidate: &Candidate, in_flight: u64) -> u64 {
    candidate.cost.bytes.saturating_add((in_flight - 1).saturating_mul(candidate.saved_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chunks of these speeds, where segments take the time of the first speed times the number of theirs.
    fn balance(segments: &[(u64, u64)], speeds: &[usize], room: u64) -> Balance {
        let layers: Vec<usize> = (0..segments.len()).collect();
        let of = |part: fn(&(u64, u64)) -> u64, times: u64| {
            sums(&segments.iter().map(|s| part(s) * times).collect::<Vec<u64>>(), &layers)
        };
        let bytes = Rc::new(of(|s| s.1, 1));
        let chunk = |&speed: &usize| OfChunk { speed, room, bytes: bytes.clone() };
        let time_ns = (1..4).map(|times| of(|s| s.0, times)).collect();
        Balance { time_ns, chunks: speeds.iter().map(chunk).collect(), all_ns: 0 }
    }

    fn cut(times: &[u64], cuts: &[usize], speeds: &[usize]) -> Vec<usize> {
        let segments: Vec<(u64, u64)> = times.iter().map(|&ns| (ns, 0)).collect();
        balance(&segments, speeds, 0).cut(cuts)
    }

    #[test]
    fn the_slowest_chunk_is_as_fast_as_it_can_be() {
        assert_eq!(cut(&[1, 4, 4, 4, 4, 9], &[1, 2, 3, 4, 5], &[0; 3]), [0, 3, 5]);
        assert_eq!(cut(&[1, 1, 1, 1], &[1, 2, 3], &[0; 2]), [0, 2]);
        assert_eq!(cut(&[9, 1, 1, 1], &[2, 3], &[0; 2]), [0, 2]);
    }

    #[test]
    fn a_chunk_on_slow_devices_is_shorter() {
        assert_eq!(cut(&[1; 7], &[1, 2, 3, 4, 5, 6], &[0, 2, 0]), [0, 3, 4]);
        assert_eq!(cut(&[1; 6], &[1, 2, 3, 4, 5], &[1, 0]), [0, 2]);
    }

    #[test]
    fn no_chunk_has_all_that_remains_of_an_uneven_split() {
        let starts = balance(&[(1, 0); 11], &[0; 4], 0).cut(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        let layers: Vec<usize> = starts.iter().zip(starts[1..].iter().chain(&[11])).map(|(a, b)| b - a).collect();
        assert_eq!(layers.iter().max(), Some(&3), "{layers:?}");
    }

    #[test]
    fn a_chunk_without_room_is_worse_than_a_slow_one() {
        let segments = [(1, 50), (1, 10), (1, 10), (1, 10)];
        assert_eq!(balance(&segments, &[0; 2], 100).cut(&[1, 2, 3]), [0, 2]);
        assert_eq!(balance(&segments, &[0; 2], 55).cut(&[1, 2, 3]), [0, 1]);
    }
}
