//! Where the prepared work of one GPU is launched: on its streams, after what it depends on, as it comes or captured as a step.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use cudarc::driver::{result, sys};

use super::arena::Arena;
use super::blas::{Blas, Planned};
use super::comm::Communicators;
use super::command::{Accesses, Place};
use super::context::{Context, Events, wait, words};
use super::graph::{Graph, Slots, capture};
use super::order::{Order, Stream};
use super::pinned::Pinned;
use super::record::accesses_of;
use super::replay::{Item, Replay, Stage};
use super::staging::{SLOT_BYTES, Staging};
use crate::comm::{Group, Site};
use crate::device::{Exchange, Span, Write};

/// How long a GPU that does not finish is asked how far it has come.
const ASKED: Duration = Duration::from_secs(1);

/// What prepared work needs of its device. Fields are dropped in this order, the context last.
pub(super) struct Shared {
    pub(super) replay: Mutex<Replay<Work, Graph>>,
    pub(super) communicators: Communicators,
    pub(super) staging: Mutex<Staging>,
    /// Where readouts are copied to.
    pub(super) readouts: Mutex<Vec<Pinned>>,
    /// Where a GPU that is late says how far it has come.
    pub(super) answer: Mutex<Pinned>,
    pub(super) blas: Blas,
    pub(super) arena: Arena,
    pub(super) order: Mutex<Order>,
    /// All exchanges that were launched once, so that they are known again.
    pub(super) exchanges: Mutex<Vec<Arc<Exchanged>>>,
    /// The exchanges of the step that is under way, in order.
    pub(super) under_way: Mutex<Vec<Arc<Exchanged>>>,
    /// The first thing that went wrong where it could not be returned.
    pub(super) fault: Mutex<Option<String>>,
    pub(super) timeout: Duration,
    pub(super) context: Context,
}

/// Something prepared.
#[derive(Clone)]
pub(super) enum Work {
    Node(Arc<Node>),
    Exchange(Arc<Exchanged>),
    /// A part that is copied to the memory of readout number `index`.
    Readout {
        at: Span,
        index: usize,
    },
}

impl PartialEq for Work {
    fn eq(&self, other: &Work) -> bool {
        match (self, other) {
            (Work::Node(a), Work::Node(b)) => Arc::ptr_eq(a, b),
            (Work::Exchange(a), Work::Exchange(b)) => Arc::ptr_eq(a, b),
            (Work::Readout { index: a, .. }, Work::Readout { index: b, .. }) => a == b,
            _ => false,
        }
    }
}

/// A prepared node.
pub(super) struct Node {
    pub(super) stream: Stream,
    pub(super) accesses: Accesses,
    pub(super) commands: Vec<Ready>,
}

/// An exchange of the plan.
pub(super) struct Exchanged {
    exchange: Exchange,
    group: Group,
    /// The plan node that it comes from.
    node: String,
}

/// A command with everything decided that can be decided before it is launched.
pub(super) enum Ready {
    Launch { function: Function, grid: [u32; 3], block: u32, shared_bytes: u32, params: Vec<Vec<u64>> },
    Matmul(Planned),
    Copy { from: sys::CUdeviceptr, to: sys::CUdeviceptr, bytes: usize },
    Zero { at: sys::CUdeviceptr, bytes: usize },
}

/// A kernel in loaded machine code.
#[derive(Clone, Copy)]
pub(super) struct Function(pub(super) sys::CUfunction);

// SAFETY: a function's handle may be used from any thread; its module is never unloaded while the context lives.
unsafe impl Send for Function {}
// SAFETY: as for `Send`.
unsafe impl Sync for Function {}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("invariant: nothing panics with the lock")
}

impl Ready {
    fn launch(&self, blas: &Blas, stream: sys::CUstream) -> Result<(), String> {
        match self {
            Ready::Launch { function, grid, block, shared_bytes, params } => {
                let mut pointers: Vec<*mut c_void> =
                    params.iter().map(|param| param.as_ptr().cast_mut().cast()).collect();
                let [x, y, z] = *grid;
                // SAFETY: the arguments are those that the kernel declares, as the launch table makes them; they point into
                // the arena and the reserve, which outlive the stream's work.
                let launched = unsafe {
                    result::launch_kernel(function.0, (x, y, z), (*block, 1, 1), *shared_bytes, stream, &mut pointers)
                };
                launched.map_err(|e| words("launch a kernel", e))
            }
            Ready::Matmul(planned) => blas.launch(planned, stream),
            Ready::Copy { from, to, bytes } => {
                // SAFETY: both parts lie in this device's memory.
                unsafe { result::memcpy_dtod_async(*to, *from, *bytes, stream) }.map_err(|e| words("copy", e))
            }
            Ready::Zero { at, bytes } => {
                // SAFETY: the part lies in this device's memory.
                unsafe { result::memset_d8_async(*at, 0, *bytes, stream) }.map_err(|e| words("clear memory", e))
            }
        }
    }
}

impl Shared {
    /// Runs something prepared, at once or with its step.
    pub(super) fn run(&self, work: &Work) -> Result<(), String> {
        locked(&self.replay).run(&mut Live(self), work)
    }

    /// An exchange of a plan node, the same each time.
    pub(super) fn exchanged(&self, exchange: &Exchange, group: &Group, site: &Site<'_>) -> Arc<Exchanged> {
        let mut known = locked(&self.exchanges);
        if let Some(found) = known.iter().find(|known| known.exchange == *exchange && known.node == site.node) {
            return Arc::clone(found);
        }
        let new = Arc::new(Exchanged { exchange: *exchange, group: group.clone(), node: site.node.into() });
        known.push(Arc::clone(&new));
        new
    }

    /// Launches work on a stream after what it depends on.
    fn launch(
        &self,
        stream: Stream,
        accesses: &Accesses,
        work: &mut dyn FnMut(sys::CUstream) -> Result<(), String>,
    ) -> Result<(), String> {
        self.context.bind()?;
        let (mut order, mut events) = (locked(&self.order), Events(&self.context));
        order.before(stream, accesses, &mut events)?;
        work(self.context.stream(stream))?;
        order.after(stream, accesses, &mut events)
    }

    fn exchange(&self, exchanged: &Arc<Exchanged>, stream: sys::CUstream) -> Result<(), String> {
        let number = {
            let mut under_way = locked(&self.under_way);
            under_way.push(Arc::clone(exchanged));
            under_way.len() as u32
        };
        if number == 1 {
            self.mark(0, stream)?;
        }
        self.communicators.exchange(&exchanged.exchange.kind, &exchanged.group, &self.arena, stream)?;
        self.mark(number, stream)
    }

    /// Notes on the GPU how many exchanges of the step have ended.
    fn mark(&self, number: u32, stream: sys::CUstream) -> Result<(), String> {
        // SAFETY: the word lies in the reserve.
        let marked = unsafe { sys::cuMemsetD32Async(self.arena.progress(), number, 1, stream) };
        marked.result().map_err(|e| words("note an exchange", e))
    }

    /// Waits for a stream.
    ///
    /// # Errors
    /// Faults of the GPU and of NCCL, that the world was taken down, or which exchange did not end in time.
    pub(super) fn wait_for(&self, stream: Stream) -> Result<(), String> {
        if self.context.wait_for(stream, self.timeout, &mut || self.communicators.check())? {
            return Ok(());
        }
        Err(self.late())
    }

    /// What is said when the time is over.
    fn late(&self) -> String {
        let seconds = self.timeout.as_secs_f64();
        let under_way = locked(&self.under_way);
        match self.n_ended().and_then(|n| under_way.get(n)) {
            Some(exchanged) => {
                let (node, ranks) = (&exchanged.node, exchanged.group.ranks());
                format!("the exchange at `{node}` between ranks {ranks:?} did not end in {seconds:.0} s")
            }
            None => format!("the GPU did not finish in {seconds:.0} s"),
        }
    }

    /// How many exchanges of the step have ended, if the GPU still tells.
    fn n_ended(&self) -> Option<usize> {
        let (mut answer, stream) = (locked(&self.answer), self.context.aside());
        // SAFETY: the word lies in the reserve, and the memory lives as long as the device.
        unsafe { result::memcpy_dtoh_async(answer.bytes_mut(), self.arena.progress(), stream) }.ok()?;
        // SAFETY: the stream is alive.
        let is_read = wait(ASKED, &mut || unsafe { sys::cuStreamQuery(stream) }, &mut || Ok(()));
        is_read.ok().filter(|&is_read| is_read)?;
        let bytes = answer.bytes().try_into().ok()?;
        Some(u32::from_ne_bytes(bytes) as usize)
    }

    /// Copies memory of the host to a part of the arena. It must be left alone until the copy stream has been waited for.
    fn copy_in(&self, at: Span, data: &[u8]) -> Result<(), String> {
        let (to, accesses) =
            (self.arena.address(Place::Arena(at.offset)), Accesses { reads: Vec::new(), writes: vec![at] });
        self.launch(Stream::Copy, &accesses, &mut |stream| {
            // SAFETY: the part lies in the arena, and the caller keeps the data.
            unsafe { result::memcpy_htod_async(to, data, stream) }.map_err(|e| words("copy to the GPU", e))
        })
    }

    /// Reads a part of the arena on the copy stream.
    pub(super) fn read(&self, at: Span, out: &mut [u8]) -> Result<(), String> {
        locked(&self.replay).leave(&mut Live(self))?;
        let accesses = Accesses { reads: vec![at], writes: Vec::new() };
        let from = self.arena.address(Place::Arena(at.offset));
        self.launch(Stream::Copy, &accesses, &mut |stream| {
            // SAFETY: the part lies in the arena, and `out` lives until the stream has been waited for.
            unsafe { result::memcpy_dtoh_async(out, from, stream) }.map_err(|e| words("copy from the GPU", e))
        })?;
        self.wait_for(Stream::Copy)
    }

    /// What a kernel found wrong in its data.
    fn data_fault(&self) -> Result<(), String> {
        let (at, mut words_read) = (self.arena.address(Place::Fault), [0u64; 4]);
        // SAFETY: the record has 32 bytes.
        unsafe { result::memcpy_dtoh_sync(&mut words_read, at) }.map_err(|e| words("read the faults", e))?;
        let [kind, value, position, extent] = words_read;
        match kind as u32 {
            0 => Ok(()),
            1 => Err(format!("index {} at position {position} is not one of the {extent} rows", value as i64)),
            _ => Err(format!("label {} of row {position} is not one of the {extent} classes", value as i64)),
        }
    }

    pub(super) fn finish(&self) -> Result<(), String> {
        self.context.bind()?;
        locked(&self.replay).end(&mut Live(self))?;
        Stream::ALL.iter().try_for_each(|&stream| self.wait_for(stream))?;
        locked(&self.order).finished();
        locked(&self.under_way).clear();
        if let Some(fault) = locked(&self.fault).take() {
            return Err(fault);
        }
        self.data_fault()?;
        locked(&self.replay).done(&mut Live(self));
        Ok(())
    }
}

/// The streams of a device.
pub(super) struct Live<'a>(pub(super) &'a Shared);

impl Stage for Live<'_> {
    type Work = Work;
    type Graph = Graph;

    fn launch(&mut self, work: &Work) -> Result<(), String> {
        let shared = self.0;
        match work {
            Work::Node(node) => shared.launch(node.stream, &node.accesses, &mut |stream| {
                node.commands.iter().try_for_each(|command| command.launch(&shared.blas, stream))
            }),
            Work::Exchange(exchanged) => {
                let (_, accesses) = accesses_of(&exchanged.exchange);
                shared.launch(Stream::Communication, &accesses, &mut |stream| shared.exchange(exchanged, stream))
            }
            Work::Readout { at, index } => {
                let accesses = Accesses { reads: vec![*at], writes: Vec::new() };
                let (from, mut readouts) = (shared.arena.address(Place::Arena(at.offset)), locked(&shared.readouts));
                let out = readouts[*index].bytes_mut();
                shared.launch(Stream::Copy, &accesses, &mut |stream| {
                    // SAFETY: the part lies in the arena; the memory is read only after the streams have been waited for.
                    unsafe { result::memcpy_dtoh_async(out, from, stream) }.map_err(|e| words("copy from the GPU", e))
                })
            }
        }
    }

    fn fill(&mut self, at: Span, write: Write<'_>) -> Result<(), String> {
        let (shared, bytes) = (self.0, at.bytes as usize);
        if bytes > SLOT_BYTES {
            let mut data = vec![0; bytes];
            write(&mut data)?;
            shared.copy_in(at, &data)?;
            return shared.wait_for(Stream::Copy);
        }
        let (to, accesses) =
            (shared.arena.address(Place::Arena(at.offset)), Accesses { reads: Vec::new(), writes: vec![at] });
        let mut staging = locked(&shared.staging);
        // SAFETY: the event is alive.
        let query = |event| move || unsafe { sys::cuEventQuery(event) };
        let mut free = |event| {
            let is_free = wait(shared.timeout, &mut query(event), &mut || shared.communicators.check())?;
            if is_free { Ok(()) } else { Err(shared.late()) }
        };
        shared.launch(Stream::Copy, &accesses, &mut |stream| staging.send(to, bytes, stream, write, &mut free))
    }

    fn capture(&mut self, items: &[Item<Work>]) -> Result<Graph, String> {
        let shared = self.0;
        shared.context.bind()?;
        let fills = items.iter().filter_map(|item| if let Item::Fill(at) = item { Some(*at) } else { None });
        let slots = Slots::new(fills)?;
        // Nothing outside of the capture is waited for in it, nor the other way round.
        let outside = std::mem::take(&mut *locked(&shared.order));
        let executable = capture(&shared.context, &mut || {
            let mut n_fills = 0;
            for item in items {
                match item {
                    Item::Work(work) => self.launch(work)?,
                    Item::Fill(at) => {
                        shared.copy_in(*at, slots.get(n_fills))?;
                        n_fills += 1;
                    }
                }
            }
            locked(&shared.order).join(&mut Events(&shared.context))
        });
        *locked(&shared.order) = outside;
        let exchanges = std::mem::take(&mut *locked(&shared.under_way));
        Ok(Graph { executable: executable?, slots, exchanges })
    }

    fn replay(&mut self, graph: &mut Graph) -> Result<(), String> {
        let shared = self.0;
        shared.context.bind()?;
        locked(&shared.under_way).extend(graph.exchanges.iter().cloned());
        locked(&shared.order).join(&mut Events(&shared.context))?;
        graph.executable.launch(&shared.context)
    }

    fn slot(graph: &mut Graph, index: usize) -> &mut [u8] {
        graph.slots.get_mut(index)
    }

    fn written(graph: &Graph, index: usize) -> &[u8] {
        graph.slots.get(index)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.context.bind().is_err() {
            return;
        }
        // A communicator ends only when no graph refers to it any more. What of the graph still runs ends with the
        // communicators; only then may memory be freed that it touches.
        let replay = std::mem::replace(&mut self.replay, Mutex::new(Replay::new(false)));
        let graph = replay.into_inner().ok().and_then(Replay::into_graph);
        let slots = graph.map(|graph| graph.slots);
        self.communicators.abort();
        drop(slots);
    }
}
