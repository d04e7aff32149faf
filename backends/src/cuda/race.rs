//! Finds races in a record of launches, events and waits: two works touch the same bytes, one of them writes, and no chain of
//! events orders them. Also finds reads of bytes that nothing wrote.
//!
//! It knows nothing of how the waits were decided. Order is kept as vector clocks (Fidge 1988, Mattern 1989), one per stream.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::order::{Event, Stream};
use super::record::Entry;
use crate::device::Span;

/// Something that is wrong with a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Race {
    /// Two works are not ordered.
    Unordered {
        /// The work that was launched first.
        first: String,
        /// The work that was launched later.
        second: String,
        /// The bytes that both touch.
        at: Span,
    },
    /// Bytes are read that nothing wrote.
    Unwritten {
        /// Who reads.
        reader: String,
        /// What it reads.
        at: Span,
    },
    /// A stream waits for an event that was never recorded.
    Unrecorded(Event),
    /// A captured step could not have been captured, or not replayed.
    Graph(Capture),
}

/// What is wrong with a captured step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// Work on a stream that did not wait for an event of the step before.
    Outside(Stream),
    /// A wait for an event that was not recorded in the step.
    Foreign(Event),
    /// Computing has not waited for all work of a stream when the step begins or ends.
    Unjoined(Stream),
    /// The host waits inside of the step.
    HostWaits,
    /// The host writes into a slot while the step may be copying from it.
    SlotInUse(usize),
}

impl fmt::Display for Race {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Race::Unordered { first, second, at } => {
                write!(f, "`{second}` does not wait for `{first}` at bytes {} to {}", at.offset, at.offset + at.bytes)
            }
            Race::Unwritten { reader, at } => {
                write!(f, "`{reader}` reads bytes {} to {}, which nothing wrote", at.offset, at.offset + at.bytes)
            }
            Race::Unrecorded(event) => write!(f, "a stream waits for event {} of {:?}", event.slot, event.stream),
            Race::Graph(fault) => write!(f, "a captured step is wrong: {fault:?}"),
        }
    }
}

/// For each stream, up to which of its works something is ordered after.
type Clock = [u64; 3];

/// A work that touched some bytes.
#[derive(Clone)]
struct Touch {
    at: Span,
    stream: Stream,
    number: u64,
    name: String,
}

impl Touch {
    fn is_before(&self, clock: &Clock) -> bool {
        self.number <= clock[self.stream.index()]
    }
}

/// What is known after some entries.
#[derive(Default)]
struct State {
    clocks: [Clock; 3],
    events: BTreeMap<Event, Clock>,
    writes: Vec<Touch>,
    reads: Vec<Touch>,
    races: Vec<Race>,
    /// Inside of a captured step: the streams that take part.
    inside: Option<[bool; 3]>,
    /// The events that were recorded in it.
    own: BTreeSet<Event>,
    /// Up to which work of the compute stream the last captured step reaches.
    graph_end: u64,
    /// Up to which work of the compute stream the host has waited.
    host: u64,
}

/// Everything that is wrong with a record of one rank.
pub fn races(entries: &[Entry]) -> Vec<Race> {
    let mut state = State::default();
    for entry in entries {
        let wrong = state.capture(entry);
        state.races.extend(wrong.map(Race::Graph));
        match entry {
            Entry::Record(event) => {
                state.events.insert(*event, state.clocks[event.stream.index()]);
            }
            Entry::Wait(stream, event) => match state.events.get(event) {
                Some(clock) => join(&mut state.clocks[stream.index()], &clock.clone()),
                None => state.races.push(Race::Unrecorded(*event)),
            },
            Entry::HostWaits(stream) => {
                let clock = state.clocks[stream.index()];
                state.clocks.iter_mut().for_each(|other| join(other, &clock));
                state.host = state.host.max(clock[Stream::Compute.index()]);
            }
            Entry::Work { stream, name, accesses, .. } => {
                state.work(*stream, name, &accesses.reads, &accesses.writes);
            }
            Entry::GraphBegins | Entry::GraphEnds | Entry::HostWrites { .. } => {}
        }
    }
    state.races
}

fn join(clock: &mut Clock, other: &Clock) {
    clock.iter_mut().zip(other).for_each(|(own, other)| *own = (*own).max(*other));
}

impl State {
    /// Whether the entry keeps to what can be captured: streams take part from their first wait for the step on, wait only for
    /// its own events, and are waited for by computing at its end. When a step begins, computing must have waited for all that
    /// was launched before, because the step knows nothing of other streams.
    fn capture(&mut self, entry: &Entry) -> Option<Capture> {
        match (entry, &mut self.inside) {
            (Entry::GraphBegins, inside) => {
                *inside = Some([true, false, false]);
                self.own.clear();
                self.unjoined()
            }
            (Entry::GraphEnds, inside) => {
                *inside = None;
                // The end is a point of the compute stream of its own.
                let compute = &mut self.clocks[Stream::Compute.index()][Stream::Compute.index()];
                *compute += 1;
                self.graph_end = *compute;
                self.unjoined()
            }
            (Entry::HostWrites { slot, .. }, _) => (self.host < self.graph_end).then_some(Capture::SlotInUse(*slot)),
            (Entry::Record(event), Some(forked)) => {
                self.own.insert(*event);
                (!forked[event.stream.index()]).then_some(Capture::Outside(event.stream))
            }
            (Entry::Wait(stream, event), Some(forked)) => {
                forked[stream.index()] |= self.own.contains(event);
                (!self.own.contains(event)).then_some(Capture::Foreign(*event))
            }
            (Entry::Work { stream, .. }, Some(forked)) => {
                (!forked[stream.index()]).then_some(Capture::Outside(*stream))
            }
            (Entry::HostWaits(_), Some(_)) => Some(Capture::HostWaits),
            _ => None,
        }
    }

    fn unjoined(&self) -> Option<Capture> {
        let [compute, ..] = self.clocks;
        let is_behind = |stream: &Stream| compute[stream.index()] < self.clocks[stream.index()][stream.index()];
        Stream::ALL.into_iter().find(is_behind).map(Capture::Unjoined)
    }

    fn work(&mut self, stream: Stream, name: &str, reads: &[Span], writes: &[Span]) {
        let clock = self.clocks[stream.index()];
        for at in reads {
            self.meet(&clock, name, at, false);
            self.written(name, at);
        }
        writes.iter().for_each(|at| self.meet(&clock, name, at, true));
        let number = clock[stream.index()] + 1;
        self.clocks[stream.index()][stream.index()] = number;
        let touch = |at: &Span| Touch { at: *at, stream, number, name: name.into() };
        self.reads.extend(reads.iter().filter(|at| at.bytes > 0).map(touch));
        for at in writes.iter().filter(|at| at.bytes > 0) {
            // What the new write covers, and is ordered after, can be forgotten: later work meets the write.
            self.reads = cut(std::mem::take(&mut self.reads), at);
            self.writes = cut(std::mem::take(&mut self.writes), at);
            self.writes.push(touch(at));
        }
    }

    /// Compares an access with earlier ones: all writes, and for a write also all reads.
    fn meet(&mut self, clock: &Clock, name: &str, at: &Span, is_write: bool) {
        let earlier = self.writes.iter().chain(self.reads.iter().filter(|_| is_write));
        let unordered = earlier.filter(|touch| touch.at.overlaps(at) && !touch.is_before(clock));
        let race = |touch: &Touch| Race::Unordered {
            first: touch.name.clone(),
            second: name.into(),
            at: common(&touch.at, at),
        };
        let found: Vec<Race> = unordered.map(race).collect();
        self.races.extend(found);
    }

    fn written(&mut self, name: &str, at: &Span) {
        let mut missing = vec![*at];
        for write in self.writes.iter().filter(|w| w.at.overlaps(at)) {
            missing = missing.iter().flat_map(|span| without(span, &write.at)).collect();
        }
        self.races.extend(missing.iter().map(|at| Race::Unwritten { reader: name.into(), at: *at }));
    }
}

fn common(a: &Span, b: &Span) -> Span {
    let (offset, end) = (a.offset.max(b.offset), (a.offset + a.bytes).min(b.offset + b.bytes));
    Span { offset, bytes: end.saturating_sub(offset) }
}

/// A part without what another one covers.
fn without(span: &Span, hole: &Span) -> Vec<Span> {
    if !span.overlaps(hole) {
        return vec![*span];
    }
    let (end, hole_end) = (span.offset + span.bytes, hole.offset + hole.bytes);
    let before = Span { offset: span.offset, bytes: hole.offset.saturating_sub(span.offset) };
    let after = Span { offset: hole_end.min(end), bytes: end.saturating_sub(hole_end) };
    [before, after].into_iter().filter(|s| s.bytes > 0).collect()
}

fn cut(touches: Vec<Touch>, hole: &Span) -> Vec<Touch> {
    let parts = |touch: Touch| without(&touch.at, hole).into_iter().map(move |at| Touch { at, ..touch.clone() });
    touches.into_iter().flat_map(parts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::command::Accesses;

    fn work(stream: Stream, name: &str, reads: &[u64], writes: &[u64]) -> Entry {
        let spans = |at: &[u64]| at.iter().map(|&offset| Span { offset, bytes: 64 }).collect();
        let accesses = Accesses { reads: spans(reads), writes: spans(writes) };
        Entry::Work { stream, name: name.into(), accesses, commands: 1 }
    }

    #[test]
    fn a_read_that_waits_is_no_race_and_one_that_does_not_is() {
        let event = Event { stream: Stream::Communication, slot: 1 };
        let entries = [
            work(Stream::Communication, "all_reduce", &[], &[0]),
            Entry::Record(event),
            Entry::Wait(Stream::Compute, event),
            work(Stream::Compute, "add", &[0], &[64]),
        ];
        assert_eq!(races(&entries), []);
        let without_wait: Vec<Entry> =
            entries.iter().enumerate().filter(|(i, _)| *i != 2).map(|(_, e)| e.clone()).collect();
        let (first, second) = ("all_reduce".into(), "add".into());
        assert_eq!(races(&without_wait), [Race::Unordered { first, second, at: Span { offset: 0, bytes: 64 } }]);
    }

    #[test]
    fn a_write_over_what_another_stream_still_reads_is_a_race() {
        let entries = [
            work(Stream::Compute, "make", &[], &[0]),
            Entry::Record(Event { stream: Stream::Compute, slot: 0 }),
            Entry::Wait(Stream::Communication, Event { stream: Stream::Compute, slot: 0 }),
            work(Stream::Communication, "gather", &[0], &[128]),
            work(Stream::Compute, "reuse", &[], &[0]),
        ];
        assert_eq!(races(&entries).len(), 1);
    }

    /// A step on two streams as it must be captured, between the host's writes.
    fn captured() -> Vec<Entry> {
        let computed = Event { stream: Stream::Compute, slot: 0 };
        let copied = Event { stream: Stream::Copy, slot: 1 };
        vec![
            Entry::HostWrites { slot: 0, bytes: 64 },
            Entry::GraphBegins,
            Entry::Record(computed),
            Entry::Wait(Stream::Copy, computed),
            work(Stream::Copy, "fill", &[], &[0]),
            Entry::Record(copied),
            work(Stream::Compute, "make", &[], &[64]),
            Entry::Wait(Stream::Compute, copied),
            Entry::GraphEnds,
            Entry::HostWaits(Stream::Compute),
        ]
    }

    #[test]
    fn a_step_that_forks_and_joins_its_streams_can_be_captured() {
        assert_eq!(races(&[captured(), captured()].concat()), []);
    }

    #[test]
    fn a_step_that_cannot_be_captured_is_found() {
        let without = |at: usize| {
            let mut entries = captured();
            entries.remove(at);
            races(&[entries, captured()].concat())
        };
        let graph = |fault| Race::Graph(fault);
        let copied = Event { stream: Stream::Copy, slot: 1 };
        assert!(without(2).contains(&Race::Unrecorded(Event { stream: Stream::Compute, slot: 0 })));
        assert!(without(3).contains(&graph(Capture::Outside(Stream::Copy))));
        assert!(without(5).contains(&graph(Capture::Foreign(copied))));
        assert!(without(7).contains(&graph(Capture::Unjoined(Stream::Copy))));
        assert_eq!(without(9), [graph(Capture::SlotInUse(0))]);
        let mut entries = captured();
        entries.insert(5, Entry::HostWaits(Stream::Copy));
        assert_eq!(races(&entries), [graph(Capture::HostWaits)]);
    }

    #[test]
    fn bytes_that_nothing_wrote_are_not_read() {
        let at = Span { offset: 0, bytes: 64 };
        let entries = [work(Stream::Compute, "add", &[0], &[64])];
        assert_eq!(races(&entries), [Race::Unwritten { reader: "add".into(), at }]);
    }
}
