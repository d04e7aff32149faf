//! A device without a GPU that records what one would be told: works, events and waits, in the order of the host.
//!
//! It prepares and orders nodes by the same code as a real device. What kernels would compute it does not: its memory holds what
//! the host wrote.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

use super::command::{Accesses, Command, Program};
use super::fuse;
use super::order::{Event, Order, Queue, Stream};
use super::replay::{Item, Replay, Stage};
use super::table::{lower, lower_move};
use super::unit::Unit;
use crate::comm::{Collective, CommFault, Site};
use crate::device::{Device, Exchange, ExchangeKind, Kernel, Move, NodeSpec, Readout, RunNode, Span, Write};

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
    /// A captured step is launched on the compute stream; what it was captured from follows, up to its end.
    GraphBegins,
    /// The end of a captured step, which is done when all of its work is.
    GraphEnds,
    /// The host writes into a slot of a captured step, which is copied to a part of the arena.
    HostWrites {
        /// Number of the slot.
        slot: usize,
        /// How many bytes.
        bytes: usize,
    },
}

/// The record of one rank.
pub type Log = Arc<Mutex<Vec<Entry>>>;

/// The recording device of one rank.
#[derive(Clone)]
pub struct Recorder(Arc<Mutex<Inner>>);

struct Inner {
    replay: Replay<Work, Graph>,
    tape: Tape,
    units: BTreeSet<Unit>,
}

/// What the recorder knows, as a stage: the log, the order of streams, memory.
struct Tape {
    log: Log,
    order: Order,
    memory: Vec<u8>,
    readouts: Vec<Vec<u8>>,
}

/// Something prepared.
#[derive(Clone, PartialEq)]
enum Work {
    Node(Arc<Program>),
    Exchange(Exchange),
    Readout { at: Span, index: usize },
}

/// A captured step: its part of the log, where its slots go, and which readouts it has.
struct Graph {
    entries: Vec<Entry>,
    slots: Vec<(Span, Vec<u8>)>,
    readouts: Vec<(Span, usize)>,
    log: Log,
}

fn push(log: &Log, entry: Entry) {
    log.lock().expect("invariant: nothing panics with the log").push(entry);
}

/// A queue that notes what it is told.
struct Noted<'a>(&'a Log);

impl Queue for Noted<'_> {
    type Fault = std::convert::Infallible;

    fn record(&mut self, event: Event) -> Result<(), Self::Fault> {
        push(self.0, Entry::Record(event));
        Ok(())
    }

    fn wait(&mut self, stream: Stream, event: Event) -> Result<(), Self::Fault> {
        push(self.0, Entry::Wait(stream, event));
        Ok(())
    }
}

impl Tape {
    fn work(&mut self, stream: Stream, name: &str, accesses: &Accesses, commands: usize) {
        let mut queue = Noted(&self.log);
        let Ok(()) = self.order.before(stream, accesses, &mut queue);
        push(&self.log, Entry::Work { stream, name: name.into(), accesses: accesses.clone(), commands });
        let Ok(()) = self.order.after(stream, accesses, &mut Noted(&self.log));
    }

    fn copy_in(&mut self, at: Span) {
        self.work(Stream::Copy, "fill", &Accesses { reads: Vec::new(), writes: vec![at] }, 1);
    }

    fn copy_out(&mut self, at: Span) {
        self.work(Stream::Copy, "read", &Accesses { reads: vec![at], writes: Vec::new() }, 1);
    }

    fn join(&mut self) {
        let Ok(()) = self.order.join(&mut Noted(&self.log));
    }

    fn host_waits(&self, streams: &[Stream]) {
        streams.iter().for_each(|&stream| push(&self.log, Entry::HostWaits(stream)));
    }

    fn part(&mut self, at: Span) -> &mut [u8] {
        &mut self.memory[at.offset as usize..(at.offset + at.bytes) as usize]
    }

    fn read_out(&mut self, at: Span, index: usize) {
        self.readouts[index] = self.part(at).to_vec();
    }
}

impl Stage for Tape {
    type Work = Work;
    type Graph = Graph;

    fn launch(&mut self, work: &Work) -> Result<(), String> {
        match work {
            Work::Node(program) => {
                self.work(program.stream, &program.name, &program.accesses, program.commands.len());
            }
            Work::Exchange(exchange) => {
                let (name, accesses) = accesses_of(exchange);
                self.work(Stream::Communication, name, &accesses, 1);
            }
            Work::Readout { at, index } => {
                self.copy_out(*at);
                self.read_out(*at, *index);
            }
        }
        Ok(())
    }

    fn fill(&mut self, at: Span, write: Write<'_>) -> Result<(), String> {
        write(self.part(at))?;
        self.copy_in(at);
        Ok(())
    }

    fn capture(&mut self, items: &[Item<Work>]) -> Result<Graph, String> {
        let (log, order) = (std::mem::take(&mut self.log), std::mem::take(&mut self.order));
        let (mut slots, mut readouts) = (Vec::new(), Vec::new());
        push(&self.log, Entry::GraphBegins);
        for item in items {
            match item {
                Item::Work(work) => self.launch(work)?,
                Item::Fill(at) => {
                    self.copy_in(*at);
                    slots.push((*at, vec![0; at.bytes as usize]));
                }
            }
            if let Item::Work(Work::Readout { at, index }) = item {
                readouts.push((*at, *index));
            }
        }
        self.join();
        push(&self.log, Entry::GraphEnds);
        self.order = order;
        let captured = std::mem::replace(&mut self.log, Arc::clone(&log));
        let entries = captured.lock().expect("invariant: nothing panics with the log").clone();
        Ok(Graph { entries, slots, readouts, log })
    }

    fn replay(&mut self, graph: &mut Graph) -> Result<(), String> {
        self.join();
        graph.slots.iter().for_each(|(at, written)| self.part(*at).copy_from_slice(written));
        graph.readouts.iter().for_each(|&(at, index)| self.read_out(at, index));
        graph.entries.iter().for_each(|entry| push(&self.log, entry.clone()));
        Ok(())
    }

    fn slot(graph: &mut Graph, index: usize) -> &mut [u8] {
        let slot = &mut graph.slots[index].1;
        push(&graph.log, Entry::HostWrites { slot: index, bytes: slot.len() });
        slot
    }

    fn written(graph: &Graph, index: usize) -> &[u8] {
        &graph.slots[index].1
    }
}

impl Recorder {
    /// A recorder with an arena of that many bytes, and its log. With `graphs` steps are captured and replayed.
    pub fn new(arena_bytes: u64, graphs: bool) -> (Recorder, Log) {
        let log = Log::default();
        let memory = vec![0; arena_bytes as usize];
        let tape = Tape { log: Arc::clone(&log), order: Order::default(), memory, readouts: Vec::new() };
        (Recorder(Arc::new(Mutex::new(Inner { replay: Replay::new(graphs), tape, units: BTreeSet::new() }))), log)
    }

    /// The sources of the kernels that were prepared so far.
    pub fn units(&self) -> BTreeSet<Unit> {
        self.inner().units.clone()
    }

    fn program(&self, program: Program) -> Box<dyn Kernel> {
        let launches = program.commands.iter().filter_map(|command| match command {
            Command::Launch(launch) => Some(launch.unit.clone()),
            _ => None,
        });
        self.inner().units.extend(launches);
        Box::new(self.prepared(Work::Node(Arc::new(program))))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        locked(&self.0)
    }

    fn prepared(&self, work: Work) -> Recorded {
        Recorded { inner: Arc::clone(&self.0), work }
    }
}

fn locked(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().expect("invariant: nothing panics with the tape")
}

/// Something prepared that is recorded when it runs.
struct Recorded {
    inner: Arc<Mutex<Inner>>,
    work: Work,
}

impl Kernel for Recorded {
    fn run(&self) -> Result<(), String> {
        let Inner { replay, tape, .. } = &mut *locked(&self.inner);
        replay.run(tape, &self.work)
    }
}

impl Readout for Recorded {
    fn value(&self, out: &mut [u8]) {
        if let Work::Readout { index, .. } = self.work {
            out.copy_from_slice(&locked(&self.inner).tape.readouts[index]);
        }
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
        Ok(self.program(lower(spec)?))
    }

    fn groups(&self, run: &[RunNode<'_>]) -> Vec<usize> {
        fuse::groups(run)
    }

    fn prepare_group(&self, group: &[RunNode<'_>]) -> Result<Box<dyn Kernel>, String> {
        Ok(self.program(fuse::lower(group)?))
    }

    fn prepare_move(&self, spec: &Move) -> Result<Box<dyn Kernel>, String> {
        Ok(self.program(lower_move(spec)?))
    }

    fn exchange(&self, comm: &mut dyn Collective, exchange: &Exchange, site: &Site<'_>) -> Result<(), CommFault> {
        let (rank, node, step) = (comm.rank(), site.node.to_string(), site.step);
        let ran = self.prepared(Work::Exchange(*exchange)).run();
        ran.map_err(|what| CommFault::Transport { rank, node, step, what })
    }

    fn fill(&self, at: Span, write: Write<'_>) -> Result<(), String> {
        let Inner { replay, tape, .. } = &mut *self.inner();
        replay.fill(tape, at, write)
    }

    fn read(&self, at: Span, out: &mut [u8]) {
        let Inner { replay, tape, .. } = &mut *self.inner();
        replay.leave(tape).expect("invariant: recording does not fail");
        tape.copy_out(at);
        tape.host_waits(&[Stream::Copy]);
        out.copy_from_slice(tape.part(at));
    }

    fn prepare_readout(&self, at: Span) -> Result<Box<dyn Readout>, String> {
        let readouts = &mut self.inner().tape.readouts;
        readouts.push(vec![0; at.bytes as usize]);
        Ok(Box::new(self.prepared(Work::Readout { at, index: readouts.len() - 1 })))
    }

    fn begin(&self) {
        self.inner().replay.begin();
    }

    fn finish(&self) -> Result<(), String> {
        let Inner { replay, tape, .. } = &mut *self.inner();
        replay.end(tape)?;
        tape.host_waits(&Stream::ALL);
        tape.order.finished();
        replay.done(tape);
        Ok(())
    }

    fn install(&self, body: &mut (dyn FnMut() + Send)) {
        body();
    }
}
