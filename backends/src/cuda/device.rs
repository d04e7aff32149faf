//! The device of one rank on a GPU: nodes become launches with all addresses decided, which run on its streams.

use std::sync::{Arc, Mutex};

use super::arena::Arena;
use super::blas::Blas;
use super::comm::Communicators;
use super::command::{Arg, Command, Launch, Program, Word};
use super::context::{Context, Modules};
use super::fuse;
use super::pinned::Pinned;
use super::replay::Replay;
use super::stage::{Function, Live, Node, Ready, Shared, Work, locked};
use super::staging::Staging;
use super::table::{lower, lower_move};
use super::world::Settings;
use crate::comm::{Collective, CommFault, Site};
use crate::device::{Device, Exchange, Kernel, Move, NodeSpec, Readout, RunNode, Span, Write};

/// A GPU as one rank's device.
pub struct Cuda {
    shared: Arc<Shared>,
    modules: Mutex<Modules>,
}

/// Something prepared, with its device.
struct Prepared {
    shared: Arc<Shared>,
    work: Work,
}

impl Cuda {
    /// The GPU of that number, which exchanges through these communicators.
    pub(super) fn new(ordinal: usize, communicators: Communicators, settings: &Settings) -> Result<Cuda, String> {
        let context = Context::new(ordinal)?;
        context.bind()?;
        let shared = Shared {
            replay: Mutex::new(Replay::new(settings.graphs)),
            communicators,
            staging: Mutex::new(Staging::new()?),
            blas: Blas::new(settings.tf32)?,
            arena: Arena::new(settings.arena_bytes)?,
            readouts: Mutex::default(),
            answer: Mutex::new(Pinned::new(4)?),
            order: Mutex::default(),
            exchanges: Mutex::default(),
            under_way: Mutex::default(),
            fault: Mutex::default(),
            timeout: settings.timeout,
            context,
        };
        Ok(Cuda { shared: Arc::new(shared), modules: Mutex::default() })
    }

    fn node(&self, program: Program) -> Result<Box<dyn Kernel>, String> {
        self.shared.context.bind()?;
        let commands = program.commands.iter().map(|command| self.ready(command)).collect::<Result<_, _>>()?;
        let node = Node { stream: program.stream, accesses: program.accesses, commands };
        Ok(Box::new(self.prepared(Work::Node(Arc::new(node)))))
    }

    fn prepared(&self, work: Work) -> Prepared {
        Prepared { shared: Arc::clone(&self.shared), work }
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
        let module = match modules.get(&launch.unit) {
            Some(module) => module,
            None => modules.insert(launch.unit.clone(), context.load(&launch.unit)?),
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
        Arg::Struct(words) => words.iter().map(|word| field(word, arena)).collect(),
    }
}

fn field(word: &Word, arena: &Arena) -> u64 {
    match word {
        Word::At(place) => arena.address(*place),
        Word::Null => 0,
        Word::Int(v) => *v as u64,
    }
}

impl Kernel for Prepared {
    fn run(&self) -> Result<(), String> {
        self.shared.run(&self.work)
    }
}

impl Readout for Prepared {
    fn value(&self, out: &mut [u8]) {
        if let Work::Readout { index, .. } = self.work {
            out.copy_from_slice(locked(&self.shared.readouts)[index].bytes());
        }
    }
}

impl Device for Cuda {
    fn prepare(&self, spec: &NodeSpec<'_>) -> Result<Box<dyn Kernel>, String> {
        self.node(lower(spec)?)
    }

    fn groups(&self, run: &[RunNode<'_>]) -> Vec<usize> {
        fuse::groups(run)
    }

    fn prepare_group(&self, group: &[RunNode<'_>]) -> Result<Box<dyn Kernel>, String> {
        self.node(fuse::lower(group)?)
    }

    fn prepare_move(&self, spec: &Move) -> Result<Box<dyn Kernel>, String> {
        self.node(lower_move(spec)?)
    }

    fn exchange(&self, comm: &mut dyn Collective, exchange: &Exchange, site: &Site<'_>) -> Result<(), CommFault> {
        let shared = &self.shared;
        let fault = |what| shared.communicators.fault(what, site);
        shared.context.bind().map_err(fault)?;
        shared.communicators.ensure(comm, exchange.group, site)?;
        let exchanged = shared.exchanged(exchange, comm.members(exchange.group), site);
        shared.run(&Work::Exchange(exchanged)).map_err(fault)
    }

    fn fill(&self, at: Span, write: Write<'_>) -> Result<(), String> {
        locked(&self.shared.replay).fill(&mut Live(&self.shared), at, write)
    }

    fn read(&self, at: Span, out: &mut [u8]) {
        if let Err(fault) = self.shared.read(at, out) {
            out.fill(0);
            locked(&self.shared.fault).get_or_insert(fault);
        }
    }

    fn prepare_readout(&self, at: Span) -> Result<Box<dyn Readout>, String> {
        self.shared.context.bind()?;
        let mut readouts = locked(&self.shared.readouts);
        readouts.push(Pinned::new(at.bytes as usize)?);
        Ok(Box::new(self.prepared(Work::Readout { at, index: readouts.len() - 1 })))
    }

    fn begin(&self) {
        locked(&self.shared.replay).begin();
    }

    fn finish(&self) -> Result<(), String> {
        self.shared.finish()
    }

    fn remark(&self) -> Option<String> {
        let replay = locked(&self.shared.replay);
        replay.refusal().map(|why| format!("steps were launched node by node, not as a CUDA graph: {why}"))
    }

    fn install(&self, body: &mut (dyn FnMut() + Send)) {
        body();
    }
}
