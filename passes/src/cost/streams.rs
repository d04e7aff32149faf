//! What a rank computes and communicates at the same time: the nodes of a phase on two streams.
//!
//! As devices with a stream of their own for communication do, a collective begins when all that stands before it has been computed
//! and earlier collectives have ended; what touches memory that a collective reads or writes waits for it. While both streams work, each
//! takes longer by the same factor, because they share memory and cores of the device (the overlap coefficient of Galvatron, Miao et
//! al., 2022). On a device without such a stream everything follows in order.

use super::plan::PhaseTimes;
use crate::apply::overlap::{communicates, copies_host};
use galvatron_ir::mesh::Mesh;
use galvatron_ir::op::Alias;
use galvatron_ir::plan::{Chunk, Place, Region};
use galvatron_ir::{NodeId, ValueId};
use std::collections::VecDeque;

/// An execution of a node, in nanoseconds from the start of its phase or leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ran {
    pub(super) node: NodeId,
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
}

/// Parts of a rank's memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Accesses {
    reads: Vec<Part>,
    writes: Vec<Part>,
}

/// Region, first byte and end.
type Part = (Region, u64, u64);

impl Accesses {
    /// What a placed node reads and writes; nothing where its result is where its operand is.
    pub(super) fn of(chunk: &Chunk, mesh: &Mesh, node: NodeId) -> Accesses {
        let n = chunk.graph.node(node);
        if matches!(n.op.alias(), Alias::View(_)) {
            return Accesses::default();
        }
        let part = |&value: &ValueId| {
            let Place { region, offset } = chunk.graph.value(value).place?;
            Some((region, offset, offset + chunk.local_type(value, mesh).bytes()))
        };
        // Nodes without results write their first operand.
        let written = usize::from(n.results.is_empty()).min(n.args.len());
        let reads = n.args.iter().filter_map(part).collect();
        let writes = n.results.iter().chain(&n.args[..written]).filter_map(part);
        Accesses { reads, writes: writes.collect() }
    }

    fn conflicts(&self, other: &Accesses) -> bool {
        let meet = |a: &[Part], b: &[Part]| a.iter().any(|x| b.iter().any(|y| x.0 == y.0 && x.1 < y.2 && y.1 < x.2));
        meet(&self.writes, &other.writes) || meet(&self.writes, &other.reads) || meet(&self.reads, &other.writes)
    }
}

/// A collective that has not ended.
struct Begun {
    /// Its entry in what has run.
    index: usize,
    /// Nanoseconds that it takes yet, by itself.
    left_ns: u64,
    accesses: Accesses,
}

/// The two streams of a rank in one phase.
pub(super) struct Streams {
    /// How many times longer both take while they work together, if they can.
    slowdown: Option<f64>,
    now_ns: u64,
    begun: VecDeque<Begun>,
    ran: Vec<Ran>,
}

impl Streams {
    pub(super) fn new(slowdown: Option<f64>) -> Streams {
        Streams { slowdown, now_ns: 0, begun: VecDeque::new(), ran: Vec::new() }
    }

    /// Runs the next node, or begins it where it is a collective.
    pub(super) fn run(&mut self, chunk: &Chunk, mesh: &Mesh, node: NodeId, times: PhaseTimes) {
        let is_aside = communicates(chunk, node) || copies_host(chunk, node);
        if self.slowdown.is_none() {
            return self.compute(node, times.compute_ns + times.communication_ns);
        }
        match is_aside {
            true => self.begin(node, times.communication_ns, Accesses::of(chunk, mesh, node)),
            false => {
                self.wait_to_read(chunk, mesh, node);
                self.compute(node, times.compute_ns + times.communication_ns);
            }
        }
    }

    /// Waits for what a node reads.
    pub(super) fn wait_to_read(&mut self, chunk: &Chunk, mesh: &Mesh, node: NodeId) {
        if !self.begun.is_empty() {
            self.wait_for(&Accesses::of(chunk, mesh, node));
        }
    }

    /// How many nodes have been begun, and the nanoseconds of what was computed.
    pub(super) fn at(&self) -> (usize, u64) {
        (self.ran.len(), self.now_ns)
    }

    /// Waits for all collectives; gives what has run, in the order in which it was begun, and the nanoseconds that it took.
    pub(super) fn end(mut self) -> (Vec<Ran>, u64) {
        while !self.begun.is_empty() {
            self.end_first();
        }
        (self.ran, self.now_ns)
    }

    fn begin(&mut self, node: NodeId, left_ns: u64, accesses: Accesses) {
        self.begun.push_back(Begun { index: self.ran.len(), left_ns, accesses });
        self.ran.push(Ran { node, start_ns: self.now_ns, end_ns: self.now_ns });
    }

    fn wait_for(&mut self, accesses: &Accesses) {
        let n_ended = self.begun.iter().rposition(|b| b.accesses.conflicts(accesses)).map_or(0, |last| last + 1);
        (0..n_ended).for_each(|_| self.end_first());
    }

    /// Lets the collective in work end while nothing is computed.
    fn end_first(&mut self) {
        if let Some(first) = self.begun.front() {
            self.now_ns += first.left_ns;
            self.pop();
        }
    }

    /// The collective in work has ended; the next one starts.
    fn pop(&mut self) {
        if let Some(ended) = self.begun.pop_front() {
            self.ran[ended.index].end_ns = self.now_ns;
        }
        if let Some(next) = self.begun.front() {
            self.ran[next.index].start_ns = self.now_ns;
        }
    }

    fn compute(&mut self, node: NodeId, ns: u64) {
        let (start_ns, mut left_ns, slowdown) = (self.now_ns, ns, self.slowdown.unwrap_or(1.0));
        while left_ns > 0
            && let Some(first) = self.begun.front_mut()
        {
            let together_ns = left_ns.min(first.left_ns);
            self.now_ns += (together_ns as f64 * slowdown) as u64;
            left_ns -= together_ns;
            first.left_ns -= together_ns;
            if first.left_ns == 0 {
                self.pop();
            }
        }
        self.now_ns += left_ns;
        self.ran.push(Ran { node, start_ns, end_ns: self.now_ns });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(at: u64) -> Part {
        (Region::Transient, at, at + 8)
    }

    fn accesses(reads: &[u64], writes: &[u64]) -> Accesses {
        let parts = |at: &[u64]| at.iter().map(|&at| part(at)).collect();
        Accesses { reads: parts(reads), writes: parts(writes) }
    }

    /// A gather of 100 ns beside computing of 50 and 80 ns, of which the second one reads what is gathered.
    #[test]
    fn what_reads_a_result_waits_and_what_runs_beside_takes_longer() {
        let mut streams = Streams::new(Some(1.5));
        streams.begin(NodeId(0), 100, accesses(&[0], &[64]));
        streams.wait_for(&accesses(&[8], &[16]));
        streams.compute(NodeId(1), 50);
        assert_eq!(streams.now_ns, 75);
        streams.wait_for(&accesses(&[64], &[24]));
        streams.compute(NodeId(2), 80);
        let (ran, ns) = streams.end();
        let times: Vec<(u64, u64)> = ran.iter().map(|r| (r.start_ns, r.end_ns)).collect();
        assert_eq!((times, ns), (vec![(0, 125), (0, 75), (125, 205)], 205));
    }

    #[test]
    fn collectives_follow_one_another_and_are_waited_for_at_the_end() {
        let mut streams = Streams::new(Some(1.0));
        streams.begin(NodeId(0), 10, accesses(&[], &[0]));
        streams.begin(NodeId(1), 20, accesses(&[], &[8]));
        streams.compute(NodeId(2), 15);
        let (ran, ns) = streams.end();
        let times: Vec<(u64, u64)> = ran.iter().map(|r| (r.start_ns, r.end_ns)).collect();
        assert_eq!((times, ns), (vec![(0, 10), (10, 30), (0, 15)], 30));
    }

    /// Memory that a collective still reads is written after it.
    #[test]
    fn what_is_read_is_not_overwritten() {
        let mut streams = Streams::new(Some(1.0));
        streams.begin(NodeId(0), 10, accesses(&[0], &[64]));
        streams.wait_for(&accesses(&[0], &[8]));
        assert_eq!(streams.now_ns, 0);
        streams.wait_for(&accesses(&[], &[4]));
        assert_eq!(streams.now_ns, 10);
    }
}
