//! Finds races in a record of launches, events and waits: two works touch the same bytes, one of them writes, and no chain of
//! events orders them. Also finds reads of bytes that nothing wrote.
//!
//! It knows nothing of how the waits were decided. Order is kept as vector clocks (Fidge 1988, Mattern 1989), one per stream.

use std::collections::BTreeMap;
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
}

/// Everything that is wrong with a record of one rank.
pub fn races(entries: &[Entry]) -> Vec<Race> {
    let mut state = State::default();
    for entry in entries {
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
            }
            Entry::Work { stream, name, accesses, .. } => {
                state.work(*stream, name, &accesses.reads, &accesses.writes);
            }
        }
    }
    state.races
}

fn join(clock: &mut Clock, other: &Clock) {
    clock.iter_mut().zip(other).for_each(|(own, other)| *own = (*own).max(*other));
}

impl State {
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

    #[test]
    fn bytes_that_nothing_wrote_are_not_read() {
        let at = Span { offset: 0, bytes: 64 };
        let entries = [work(Stream::Compute, "add", &[0], &[64])];
        assert_eq!(races(&entries), [Race::Unwritten { reader: "add".into(), at }]);
    }
}
