//! The device of one rank on a GPU: nodes become launches on its streams, ordered by what they touch.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use cudarc::driver::{result, sys};

use super::arena::Arena;
use super::blas::{Blas, Planned};
use super::comm::Communicators;
use super::command::{Accesses, Arg, Command, Launch, Place, Program};
use super::context::{Context, Events, Modules, words};
use super::order::{Order, Stream};
use super::record::accesses_of;
use super::staging::{SLOT_BYTES, Staging};
use super::table::{lower, lower_move};
use super::world::Settings;
use crate::comm::{Collective, CommFault, Site};
use crate::device::{Device, Exchange, Kernel, Move, NodeSpec, Span};

/// A GPU as one rank's device.
pub struct Cuda {
    shared: Arc<Shared>,
    modules: Mutex<Modules>,
}

/// What prepared nodes need of their device. Fields are dropped in this order, the context last.
struct Shared {
    communicators: Communicators,
    staging: Mutex<Staging>,
    blas: Blas,
    arena: Arena,
    order: Mutex<Order>,
    /// The first thing that went wrong where it could not be returned.
    fault: Mutex<Option<String>>,
    timeout: Duration,
    context: Context,
}

/// A command with everything decided that can be decided before it is launched.
enum Ready {
    Launch { function: Function, grid: [u32; 3], block: u32, shared_bytes: u32, params: Vec<Vec<u64>> },
    Matmul(Planned),
    Copy { from: sys::CUdeviceptr, to: sys::CUdeviceptr, bytes: usize },
    Zero { at: sys::CUdeviceptr, bytes: usize },
}

/// A kernel in loaded machine code.
#[derive(Clone, Copy)]
struct Function(sys::CUfunction);

// SAFETY: a function's handle may be used from any thread; its module is never unloaded while the context lives.
unsafe impl Send for Function {}
// SAFETY: as for `Send`.
unsafe impl Sync for Function {}

/// A prepared node.
struct Node {
    shared: Arc<Shared>,
    accesses: Accesses,
    commands: Vec<Ready>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("invariant: nothing panics with the lock")
}

impl Cuda {
    /// The GPU of that number, which exchanges through these communicators.
    pub(super) fn new(ordinal: usize, communicators: Communicators, settings: &Settings) -> Result<Cuda, String> {
        let context = Context::new(ordinal)?;
        context.bind()?;
        let shared = Shared {
            communicators,
            staging: Mutex::new(Staging::new()?),
            blas: Blas::new()?,
            arena: Arena::new(settings.arena_bytes)?,
            order: Mutex::default(),
            fault: Mutex::default(),
            timeout: settings.timeout,
            context,
        };
        Ok(Cuda { shared: Arc::new(shared), modules: Mutex::default() })
    }

    fn node(&self, program: Program) -> Result<Box<dyn Kernel>, String> {
        self.shared.context.bind()?;
        let commands = program.commands.iter().map(|command| self.ready(command)).collect::<Result<_, _>>()?;
        Ok(Box::new(Node { shared: Arc::clone(&self.shared), accesses: program.accesses, commands }))
    }

    fn ready(&self, command: &Command) -> Result<Ready, String> {
        let arena = &self.shared.arena;
        Ok(match command {
            Command::Launch(launch) => Ready::Launch {
                function: self.function(launch)?,
                grid: launch.grid,
                block: launch.block,
                shared_bytes: launch.shared_bytes,
                params: launch.args.iter().map(|arg| param(arg, arena)).collect(),
            },
            Command::Matmul(matmul) => Ready::Matmul(self.shared.blas.plan(matmul, arena)?),
            Command::Copy { from, to, bytes } => {
                Ready::Copy { from: arena.address(*from), to: arena.address(*to), bytes: *bytes as usize }
            }
            Command::Zero { at, bytes } => Ready::Zero { at: arena.address(*at), bytes: *bytes as usize },
        })
    }

    fn function(&self, launch: &Launch) -> Result<Function, String> {
        let (context, mut modules) = (&self.shared.context, locked(&self.modules));
        let module = match modules.get(launch.family) {
            Some(module) => module,
            None => modules.insert(launch.family, context.load(launch.family)?),
        };
        context.function(module, &launch.entry, launch.shared_bytes).map(Function)
    }
}

/// The bytes of an argument, in whole words; the driver reads as many as the kernel declares.
fn param(arg: &Arg, arena: &Arena) -> Vec<u64> {
    match arg {
        Arg::At(place) => vec![arena.address(*place)],
        Arg::Null => vec![0],
        Arg::Int(v) => vec![*v as u64],
        Arg::Float(v) => vec![u64::from(v.to_bits())],
        Arg::Double(v) => vec![v.to_bits()],
        Arg::Ints(list) => list.iter().map(|&v| v as u64).collect(),
    }
}

impl Shared {
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

    fn wait_for(&self, stream: Stream) -> Result<(), String> {
        self.context.wait_for(stream, self.timeout, &mut || self.communicators.check())
    }

    /// Reads a part of the arena on the copy stream.
    fn read(&self, at: Span, out: &mut [u8]) -> Result<(), String> {
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

    fn finish(&self) -> Result<(), String> {
        self.context.bind()?;
        Stream::ALL.iter().try_for_each(|&stream| self.wait_for(stream))?;
        locked(&self.order).finished();
        match locked(&self.fault).take() {
            Some(fault) => Err(fault),
            None => self.data_fault(),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Without this the memory below would be freed under exchanges that wait for ranks that are gone.
        if self.context.bind().is_ok() {
            self.communicators.abort();
        }
    }
}

impl Kernel for Node {
    fn run(&self) -> Result<(), String> {
        let shared = &self.shared;
        shared.launch(Stream::Compute, &self.accesses, &mut |stream| {
            self.commands.iter().try_for_each(|command| command.launch(&shared.blas, stream))
        })
    }
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

impl Device for Cuda {
    fn prepare(&self, spec: &NodeSpec<'_>) -> Result<Box<dyn Kernel>, String> {
        self.node(lower(spec)?)
    }

    fn prepare_move(&self, spec: &Move) -> Result<Box<dyn Kernel>, String> {
        self.node(lower_move(spec)?)
    }

    fn exchange(&self, comm: &mut dyn Collective, exchange: &Exchange, site: &Site<'_>) -> Result<(), CommFault> {
        let (shared, (_, accesses)) = (&self.shared, accesses_of(exchange));
        shared.context.bind().map_err(|what| shared.communicators.fault(what, site))?;
        shared.communicators.ensure(comm, exchange.group, site)?;
        let group = comm.members(exchange.group);
        let launched = shared.launch(Stream::Communication, &accesses, &mut |stream| {
            if exchange.widened.is_some() {
                return Err("sums of bf16 are not supported on GPUs".into());
            }
            shared.communicators.exchange(&exchange.kind, group, &shared.arena, stream)
        });
        launched.map_err(|what| shared.communicators.fault(what, site))
    }

    fn fill(&self, at: Span, write: &mut dyn FnMut(&mut [u8]) -> Result<(), String>) -> Result<(), String> {
        let (shared, bytes) = (&self.shared, at.bytes as usize);
        let (to, accesses) =
            (shared.arena.address(Place::Arena(at.offset)), Accesses { reads: Vec::new(), writes: vec![at] });
        if bytes <= SLOT_BYTES {
            let mut staging = locked(&shared.staging);
            return shared.launch(Stream::Copy, &accesses, &mut |stream| staging.send(to, bytes, stream, write));
        }
        let mut data = vec![0; bytes];
        write(&mut data)?;
        shared.launch(Stream::Copy, &accesses, &mut |stream| {
            // SAFETY: the part lies in the arena, and the data lives until the stream has been waited for.
            unsafe { result::memcpy_htod_async(to, &data, stream) }.map_err(|e| words("copy to the GPU", e))
        })?;
        shared.wait_for(Stream::Copy)
    }

    fn read(&self, at: Span, out: &mut [u8]) {
        if let Err(fault) = self.shared.read(at, out) {
            out.fill(0);
            locked(&self.shared.fault).get_or_insert(fault);
        }
    }

    fn finish(&self) -> Result<(), String> {
        self.shared.finish()
    }

    fn install(&self, body: &mut (dyn FnMut() + Send)) {
        body();
    }
}
