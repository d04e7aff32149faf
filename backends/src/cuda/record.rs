//! A device without a GPU that records what one would be told: works, events and waits, in the order of the host.
//!
//! It prepares and orders nodes by the same code as a real device. What kernels would compute it does not: its memory holds what
//! the host wrote.

use std::sync::{Arc, Mutex};

use super::command::{Accesses, Program};
use super::order::{Event, Order, Queue, Stream};
use super::table::{lower, lower_move};
use crate::comm::{Collective, CommFault, Site};
use crate::device::{Device, Exchange, ExchangeKind, Kernel, Move, NodeSpec, Span};

/// One entry of a record.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// Work on a stream.
    Work {
        /// Where it runs.
        stream: Stream,
        /// The op's mnemonic, `move`, `fill`, `read` or the kind of exchange.
        name: String,
        /// What it touches.
        accesses: Accesses,
        /// How many commands it is.
        commands: usize,
    },
    /// An event is recorded after all that was launched on its stream.
    Record(Event),
    /// A stream waits for an event's last record.
    Wait(Stream, Event),
    /// The host waits for all that was launched on a stream.
    HostWaits(Stream),
}

/// The record of one rank.
pub type Log = Arc<Mutex<Vec<Entry>>>;

/// The recording device of one rank.
pub struct Recorder {
    tape: Arc<Mutex<Tape>>,
    memory: Mutex<Vec<u8>>,
}

struct Tape {
    log: Log,
    order: Order,
}

/// A queue that notes what it is told.
struct Noted<'a>(&'a Log);

impl Noted<'_> {
    fn push(&mut self, entry: Entry) {
        self.0.lock().expect("invariant: nothing panics with the log").push(entry);
    }
}

impl Queue for Noted<'_> {
    type Fault = std::convert::Infallible;

    fn record(&mut self, event: Event) -> Result<(), Self::Fault> {
        self.push(Entry::Record(event));
        Ok(())
    }

    fn wait(&mut self, stream: Stream, event: Event) -> Result<(), Self::Fault> {
        self.push(Entry::Wait(stream, event));
        Ok(())
    }
}

impl Tape {
    fn work(&mut self, stream: Stream, name: &str, accesses: &Accesses, commands: usize) {
        let mut queue = Noted(&self.log);
        let Ok(()) = self.order.before(stream, accesses, &mut queue);
        queue.push(Entry::Work { stream, name: name.into(), accesses: accesses.clone(), commands });
        let Ok(()) = self.order.after(stream, accesses, &mut queue);
    }
}

impl Recorder {
    /// A recorder with an arena of that many bytes, and its log.
    pub fn new(arena_bytes: u64) -> (Recorder, Log) {
        let log = Log::default();
        let tape = Tape { log: Arc::clone(&log), order: Order::default() };
        (Recorder { tape: Arc::new(Mutex::new(tape)), memory: Mutex::new(vec![0; arena_bytes as usize]) }, log)
    }

    fn tape(&self) -> std::sync::MutexGuard<'_, Tape> {
        self.tape.lock().expect("invariant: nothing panics with the tape")
    }
}

/// A node that is recorded when it runs.
struct Recorded {
    tape: Arc<Mutex<Tape>>,
    program: Program,
}

impl Kernel for Recorded {
    fn run(&self) -> Result<(), String> {
        let Program { name, commands, accesses } = &self.program;
        let mut tape = self.tape.lock().expect("invariant: nothing panics with the tape");
        tape.work(Stream::Compute, name, accesses, commands.len());
        Ok(())
    }
}

/// What an exchange touches, and its name.
pub fn accesses_of(exchange: &Exchange) -> (&'static str, Accesses) {
    let (name, read, write) = match exchange.kind {
        ExchangeKind::AllReduce(at) => ("all_reduce", at, at),
        ExchangeKind::ReduceScatter { input, output } => ("reduce_scatter", input, output),
        ExchangeKind::AllGather { input, output } => ("all_gather", input, output),
        ExchangeKind::AllToAll { input, output } => ("all_to_all", input, output),
    };
    (name, Accesses { reads: vec![read], writes: vec![write] })
}

impl Device for Recorder {
    fn prepare(&self, spec: &NodeSpec<'_>) -> Result<Box<dyn Kernel>, String> {
        Ok(Box::new(Recorded { tape: Arc::clone(&self.tape), program: lower(spec)? }))
    }

    fn prepare_move(&self, spec: &Move) -> Result<Box<dyn Kernel>, String> {
        Ok(Box::new(Recorded { tape: Arc::clone(&self.tape), program: lower_move(spec)? }))
    }

    fn exchange(&self, _comm: &mut dyn Collective, exchange: &Exchange, _site: &Site<'_>) -> Result<(), CommFault> {
        let (name, accesses) = accesses_of(exchange);
        self.tape().work(Stream::Communication, name, &accesses, 1);
        Ok(())
    }

    fn fill(&self, at: Span, write: &mut dyn FnMut(&mut [u8]) -> Result<(), String>) -> Result<(), String> {
        let mut memory = self.memory.lock().expect("invariant: writers do not panic");
        write(&mut memory[at.offset as usize..(at.offset + at.bytes) as usize])?;
        self.tape().work(Stream::Copy, "fill", &Accesses { reads: Vec::new(), writes: vec![at] }, 1);
        Ok(())
    }

    fn read(&self, at: Span, out: &mut [u8]) {
        let mut tape = self.tape();
        tape.work(Stream::Copy, "read", &Accesses { reads: vec![at], writes: Vec::new() }, 1);
        Noted(&tape.log).push(Entry::HostWaits(Stream::Copy));
        let memory = self.memory.lock().expect("invariant: writers do not panic");
        out.copy_from_slice(&memory[at.offset as usize..(at.offset + at.bytes) as usize]);
    }

    fn install(&self, body: &mut (dyn FnMut() + Send)) {
        body();
    }
}
