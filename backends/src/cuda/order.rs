//! Which stream waits for which: decided from what the work on them touches in the arena.
//!
//! Work on the communication and copy streams starts after all that was launched for computing before. Work for computing
//! waits only for those exchanges and copies that it conflicts with, so that others run beside it.

use super::command::Accesses;
pub use super::command::Stream;

/// Events of the communication and copy streams; an event is recorded again when as many newer ones have been.
pub const EVENTS: u64 = 64;

/// An event: the stream that records it, and which of its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Event {
    /// Who records it.
    pub stream: Stream,
    /// Its number, below [`EVENTS`].
    pub slot: u64,
}

/// What can record events and wait for them.
pub trait Queue {
    /// Why that failed.
    type Fault;

    /// Records an event after all that was launched on its stream.
    ///
    /// # Errors
    /// The fault of the device.
    fn record(&mut self, event: Event) -> Result<(), Self::Fault>;

    /// Lets a stream go on only after the event's last record.
    ///
    /// # Errors
    /// The fault of the device.
    fn wait(&mut self, stream: Stream, event: Event) -> Result<(), Self::Fault>;
}

/// An exchange or copy that computing may have to wait for.
struct Pending {
    stream: Stream,
    number: u64,
    accesses: Accesses,
}

/// The order between the streams of one device.
#[derive(Default)]
pub struct Order {
    pending: Vec<Pending>,
    /// Work that was launched, for each stream.
    launched: [u64; 3],
    /// For each stream and each other one, up to which of its work it has waited.
    waited: [[u64; 3]; 3],
}

const COMPUTED: Event = Event { stream: Stream::Compute, slot: 0 };

fn event(stream: Stream, number: u64) -> Event {
    Event { stream, slot: number % EVENTS }
}

impl Order {
    /// Makes a stream wait for what work with these accesses depends on; the work is to be launched next.
    ///
    /// # Errors
    /// The fault of the queue.
    pub fn before<Q: Queue>(&mut self, stream: Stream, accesses: &Accesses, queue: &mut Q) -> Result<(), Q::Fault> {
        if stream != Stream::Compute {
            queue.record(COMPUTED)?;
            queue.wait(stream, COMPUTED)?;
        }
        for other in [Stream::Communication, Stream::Copy] {
            let conflicts = |p: &&Pending| p.stream == other && stream != other && p.accesses.conflicts(accesses);
            let latest = self.pending.iter().filter(conflicts).map(|p| p.number).max().unwrap_or(0);
            let waited = &mut self.waited[stream.index()][other.index()];
            if latest > *waited {
                *waited = latest;
                queue.wait(stream, event(other, latest))?;
            }
        }
        // Other streams wait for computing first, so what computing has waited for is behind them too.
        let waited = self.waited[Stream::Compute.index()];
        self.pending.retain(|p| p.number > waited[p.stream.index()]);
        Ok(())
    }

    /// Notes work that was launched.
    ///
    /// # Errors
    /// The fault of the queue.
    pub fn after<Q: Queue>(&mut self, stream: Stream, accesses: &Accesses, queue: &mut Q) -> Result<(), Q::Fault> {
        if stream == Stream::Compute {
            return Ok(());
        }
        let launched = &mut self.launched[stream.index()];
        *launched += 1;
        self.pending.push(Pending { stream, number: *launched, accesses: accesses.clone() });
        queue.record(event(stream, *launched))
    }

    /// Makes computing wait for all exchanges and copies that it has not waited for, as a capture must before it ends.
    ///
    /// # Errors
    /// The fault of the queue.
    pub fn join<Q: Queue>(&mut self, queue: &mut Q) -> Result<(), Q::Fault> {
        for other in [Stream::Communication, Stream::Copy] {
            let launched = self.launched[other.index()];
            let waited = &mut self.waited[Stream::Compute.index()][other.index()];
            if launched > *waited {
                *waited = launched;
                queue.wait(Stream::Compute, event(other, launched))?;
            }
        }
        self.pending.clear();
        Ok(())
    }

    /// Forgets all exchanges and copies: the host has waited for them, so nothing needs to wait for their events.
    pub fn finished(&mut self) {
        self.pending.clear();
        self.waited = [self.launched; 3];
    }
}
