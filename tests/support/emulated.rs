//! A device whose kernels are the CUDA sources, run on the CPU by the emulator under `tests/gpu/emulator`.

use galvatron_backends::comm::{Collective, CommFault, LocalComm, ReduceOp, Site, local_world};
use galvatron_backends::cuda::command::{Arg, Command, Epilogue, Launch, Matmul, Place, Program, SCRATCH_BYTES, Word};
use galvatron_backends::cuda::fuse;
use galvatron_backends::cuda::replay::{Item, Replay, Stage};
use galvatron_backends::cuda::table::{lower, lower_move};
use galvatron_backends::cuda::unit::{Generated, Unit};
use galvatron_backends::device::{
    Device, Exchange, ExchangeKind, Kernel, Move, NodeSpec, Readout, RunNode, Span, Write,
};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// Bytes that a page may have.
const PAGE: u64 = 64 << 10;

/// The emulator, built once; `None` where there is no C++ compiler or no bash.
pub fn program() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let build = || {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/emulator/build.sh");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("emulator-{}", std::process::id()));
        let output = std::process::Command::new(script).arg(&folder).output();
        match output {
            Ok(output) if output.status.success() => Some(folder.join("emulate")),
            Ok(output) => {
                let why = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(why.contains("not found"), "the kernels do not compile as C++:\n{why}");
                eprintln!("SKIPPED: no C++ compiler, the CUDA kernels were not run:\n{why}");
                None
            }
            Err(why) => {
                eprintln!("SKIPPED: no bash, the CUDA kernels were not run: {why}");
                None
            }
        }
    };
    BUILT.get_or_init(build).as_deref()
}

/// Builds a generated kernel as a library beside the emulator, unless that is done.
fn build(program: &Path, kernel: &Generated) {
    static BUILT: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut built = BUILT.lock().unwrap();
    if built.contains(&kernel.name) {
        return;
    }
    let folder = program.parent().expect("it lies in a folder");
    std::fs::write(folder.join(format!("{}.cu", kernel.name)), &kernel.source).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/emulator/build.sh");
    let output = std::process::Command::new(script).arg(folder).arg(&kernel.name).output().unwrap();
    assert!(output.status.success(), "{}\n{}", kernel.source, String::from_utf8_lossy(&output.stderr));
    built.insert(kernel.name.clone());
}

/// The process that runs the kernels of one rank, and the file that is its memory: arena, scratch memory, fault record.
struct Emulator {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    memory: File,
    program: PathBuf,
    path: PathBuf,
    scratch: u64,
}

impl Emulator {
    fn new(program: &Path, arena_bytes: u64) -> Emulator {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("emulated-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let memory = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        let scratch = arena_bytes.next_multiple_of(PAGE);
        memory.set_len(scratch + SCRATCH_BYTES + PAGE).unwrap();
        let mut command = std::process::Command::new(program);
        let mut child = command.arg(&path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (commands, answers) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Emulator { child, commands, answers, memory, program: program.into(), path, scratch }
    }

    fn offset(&self, place: Place) -> u64 {
        match place {
            Place::Arena(offset) => offset,
            Place::Scratch(offset) => self.scratch + offset,
            Place::Fault => self.scratch + SCRATCH_BYTES,
        }
    }

    fn line(&self, command: &Command) -> String {
        match command {
            Command::Launch(launch) => self.launch(launch),
            Command::Matmul(matmul) => self.matmul(matmul),
            Command::Copy { from, to, bytes } => format!("C {} {} {bytes}", self.offset(*from), self.offset(*to)),
            Command::Zero { at, bytes } => format!("Z {} {bytes}", self.offset(*at)),
        }
    }

    fn launch(&self, launch: &Launch) -> String {
        if let Unit::Generated(kernel) = &launch.unit {
            build(&self.program, kernel);
        }
        let [x, y, z] = launch.grid;
        let mut line = format!("L {} {x} {y} {z} {} {}", launch.entry, launch.block, launch.shared_bytes);
        for arg in &launch.args {
            let _ = match arg {
                Arg::At(place) => write!(line, " p{}", self.offset(*place)),
                Arg::Null => write!(line, " n"),
                Arg::Int(v) => write!(line, " i{v}"),
                Arg::Float(v) => write!(line, " f{}", v.to_bits()),
                Arg::Double(v) => write!(line, " d{}", v.to_bits()),
                Arg::Ints(list) => {
                    let list: Vec<String> = list.iter().map(i64::to_string).collect();
                    write!(line, " s{}", list.join(","))
                }
                Arg::Struct(words) => {
                    let words: Vec<String> = words.iter().map(|word| self.word(word)).collect();
                    write!(line, " w{}", words.join(","))
                }
            };
        }
        line
    }

    fn word(&self, word: &Word) -> String {
        match word {
            Word::At(place) => format!("p{}", self.offset(*place)),
            Word::Null => "i0".into(),
            Word::Int(v) => format!("i{v}"),
        }
    }

    fn matmul(&self, matmul: &Matmul) -> String {
        let p = matmul.column_major();
        let mut line = format!("M {} {} {} {} {}", p.dtype, p.m, p.n, p.k, p.batch);
        for side in [&p.a, &p.b] {
            let _ = write!(
                line,
                " {} {} {} {}",
                self.offset(side.at),
                u8::from(side.is_transposed),
                side.leading,
                side.batch
            );
        }
        assert!(!p.c.is_transposed, "{matmul:?}");
        let _ = write!(line, " {} {} {}", self.offset(p.c.at), p.c.leading, p.c.batch);
        line += &match p.epilogue {
            Epilogue::None => " 0 -1".to_string(),
            Epilogue::Accumulate => " 1 -1".to_string(),
            Epilogue::Bias(at, _) => format!(" 0 {}", self.offset(at)),
        };
        line
    }

    fn send(&mut self, line: &str) -> Result<(), String> {
        let commands = self.commands.as_mut().expect("it is open");
        writeln!(commands, "{line}").map_err(|e| format!("the emulator is gone: {e}"))
    }

    /// Waits until all commands are done.
    fn wait(&mut self) -> Result<(), String> {
        self.send("S")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer).map_err(|e| e.to_string())?;
        if answer == "ok\n" { Ok(()) } else { Err("the emulator stopped".into()) }
    }

    /// Waits until all commands are done; what a kernel found wrong is an error.
    fn sync(&mut self) -> Result<(), String> {
        self.wait()?;
        let mut fault = [0; 32];
        self.memory.read_exact_at(&mut fault, self.offset(Place::Fault)).map_err(|e| e.to_string())?;
        if fault[0] == 0 { Ok(()) } else { Err(format!("a kernel found fault {fault:?}")) }
    }

    fn read(&mut self, at: Span) -> Result<Vec<u8>, String> {
        self.wait()?;
        let mut bytes = vec![0; at.bytes as usize];
        self.memory.read_exact_at(&mut bytes, at.offset).map_err(|e| e.to_string())?;
        Ok(bytes)
    }

    fn write(&mut self, at: Span, bytes: &[u8]) -> Result<(), String> {
        self.wait()?;
        self.memory.write_all_at(bytes, at.offset).map_err(|e| e.to_string())
    }

    fn floats(&mut self, at: Span) -> Result<Vec<f32>, String> {
        Ok(self.read(at)?.as_chunks().0.iter().map(|c| f32::from_ne_bytes(*c)).collect())
    }

    fn write_floats(&mut self, at: Span, values: &[f32]) -> Result<(), String> {
        self.write(at, &values.iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<u8>>())
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.commands = None;
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What an arena with that content holds after some commands.
#[allow(dead_code)]
pub fn after(program: &Path, arena: &[u8], commands: &[Command]) -> Vec<u8> {
    let whole = Span { offset: 0, bytes: arena.len() as u64 };
    let mut emulator = Emulator::new(program, whole.bytes);
    emulator.write(whole, arena).unwrap();
    for command in commands {
        let line = emulator.line(command);
        emulator.send(&line).unwrap();
    }
    emulator.read(whole).unwrap()
}

/// One rank's emulated GPU.
#[derive(Clone)]
pub struct Emulated(Arc<Mutex<Inner>>);

struct Inner {
    replay: Replay<Work, Graph>,
    gpu: Gpu,
}

/// The emulator with what stands for NCCL: communication between the devices that the host's has no part in.
struct Gpu {
    emulator: Emulator,
    comm: LocalComm,
    readouts: Vec<Vec<u8>>,
}

/// Something prepared.
#[derive(Clone, PartialEq)]
enum Work {
    /// Lines that the emulator reads.
    Node(Arc<Vec<String>>),
    Exchange(ExchangeKind, Vec<usize>),
    Readout(Span, usize),
}

/// A captured step.
struct Graph {
    items: Vec<Item<Work>>,
    slots: Vec<(Span, Vec<u8>)>,
}

impl Emulated {
    /// The devices of all ranks of a plan; with `graphs` they replay steps.
    pub fn world(program: &Path, n_ranks: usize, arena_bytes: u64, graphs: bool) -> Vec<Emulated> {
        let device = |comm| {
            let gpu = Gpu { emulator: Emulator::new(program, arena_bytes), comm, readouts: Vec::new() };
            Emulated(Arc::new(Mutex::new(Inner { replay: Replay::new(graphs), gpu })))
        };
        local_world(n_ranks, Duration::from_secs(60)).into_iter().map(device).collect()
    }

    /// How many steps were launched as a whole.
    #[allow(dead_code)]
    pub fn n_replayed(&self) -> u64 {
        self.0.lock().unwrap().replay.n_replayed()
    }

    fn prepared(&self, work: Work) -> Prepared {
        Prepared { device: self.clone(), work }
    }

    fn kernel(&self, program: &Program) -> Box<dyn Kernel> {
        let emulator = &self.0.lock().unwrap().gpu.emulator;
        let lines = program.commands.iter().map(|command| emulator.line(command)).collect();
        Box::new(self.prepared(Work::Node(Arc::new(lines))))
    }
}

impl Gpu {
    fn exchange(&mut self, kind: ExchangeKind, ranks: &[usize]) -> Result<(), CommFault> {
        let (group, site) = (self.comm.group(ranks), Site { node: "the emulator", step: 0 });
        let Gpu { emulator: e, comm, .. } = self;
        match kind {
            ExchangeKind::AllReduce(at) => {
                let mut values = e.floats(at).unwrap();
                comm.all_reduce(group, &mut values, ReduceOp::Sum, &site)?;
                e.write_floats(at, &values).unwrap();
            }
            ExchangeKind::ReduceScatter { input, output } => {
                let (values, mut sums) = (e.floats(input).unwrap(), vec![0.0; output.bytes as usize / 4]);
                comm.reduce_scatter(group, &values, &mut sums, &site)?;
                e.write_floats(output, &sums).unwrap();
            }
            ExchangeKind::AllGather { input, output } => {
                let (own, mut all) = (e.read(input).unwrap(), vec![0; output.bytes as usize]);
                comm.all_gather(group, &own, &mut all, &site)?;
                e.write(output, &all).unwrap();
            }
            ExchangeKind::AllToAll { input, output } => {
                let (own, mut all) = (e.read(input).unwrap(), vec![0; output.bytes as usize]);
                comm.all_to_all(group, &own, &mut all, &site)?;
                e.write(output, &all).unwrap();
            }
        }
        Ok(())
    }
}

impl Stage for Gpu {
    type Work = Work;
    type Graph = Graph;

    fn launch(&mut self, work: &Work) -> Result<(), String> {
        match work {
            Work::Node(lines) => lines.iter().try_for_each(|line| self.emulator.send(line)),
            Work::Exchange(kind, ranks) => self.exchange(*kind, ranks).map_err(|fault| fault.to_string()),
            Work::Readout(at, index) => {
                self.readouts[*index] = self.emulator.read(*at)?;
                Ok(())
            }
        }
    }

    fn fill(&mut self, at: Span, write: Write<'_>) -> Result<(), String> {
        let mut bytes = vec![0; at.bytes as usize];
        write(&mut bytes)?;
        self.emulator.write(at, &bytes)
    }

    fn capture(&mut self, items: &[Item<Work>]) -> Result<Graph, String> {
        let slot = |item: &Item<Work>| match item {
            Item::Fill(at) => Some((*at, vec![0; at.bytes as usize])),
            Item::Work(_) => None,
        };
        Ok(Graph { items: items.to_vec(), slots: items.iter().filter_map(slot).collect() })
    }

    fn replay(&mut self, graph: &mut Graph) -> Result<(), String> {
        let mut slots = graph.slots.iter();
        for item in &graph.items {
            match item {
                Item::Work(work) => self.launch(work)?,
                Item::Fill(at) => self.emulator.write(*at, &slots.next().expect("one a fill").1)?,
            }
        }
        Ok(())
    }

    fn slot(graph: &mut Graph, index: usize) -> &mut [u8] {
        &mut graph.slots[index].1
    }

    fn written(graph: &Graph, index: usize) -> &[u8] {
        &graph.slots[index].1
    }
}

/// Something prepared, with its device.
struct Prepared {
    device: Emulated,
    work: Work,
}

impl Kernel for Prepared {
    fn run(&self) -> Result<(), String> {
        let Inner { replay, gpu } = &mut *self.device.0.lock().unwrap();
        replay.run(gpu, &self.work)
    }
}

impl Readout for Prepared {
    fn value(&self, out: &mut [u8]) {
        if let Work::Readout(_, index) = self.work {
            out.copy_from_slice(&self.device.0.lock().unwrap().gpu.readouts[index]);
        }
    }
}

impl Device for Emulated {
    fn prepare(&self, spec: &NodeSpec<'_>) -> Result<Box<dyn Kernel>, String> {
        lower(spec).map(|program| self.kernel(&program))
    }

    fn groups(&self, run: &[RunNode<'_>]) -> Vec<usize> {
        fuse::groups(run)
    }

    fn prepare_group(&self, group: &[RunNode<'_>]) -> Result<Box<dyn Kernel>, String> {
        fuse::lower(group).map(|program| self.kernel(&program))
    }

    fn prepare_move(&self, spec: &Move) -> Result<Box<dyn Kernel>, String> {
        lower_move(spec).map(|program| self.kernel(&program))
    }

    fn exchange(&self, comm: &mut dyn Collective, exchange: &Exchange, site: &Site<'_>) -> Result<(), CommFault> {
        let (rank, node, step) = (comm.rank(), site.node.to_string(), site.step);
        let ranks = comm.members(exchange.group).ranks().to_vec();
        let ran = self.prepared(Work::Exchange(exchange.kind, ranks)).run();
        ran.map_err(|what| CommFault::Transport { rank, node, step, what })
    }

    fn fill(&self, at: Span, write: Write<'_>) -> Result<(), String> {
        let Inner { replay, gpu } = &mut *self.0.lock().unwrap();
        replay.fill(gpu, at, write)
    }

    fn read(&self, at: Span, out: &mut [u8]) {
        let Inner { replay, gpu } = &mut *self.0.lock().unwrap();
        replay.leave(gpu).unwrap();
        out.copy_from_slice(&gpu.emulator.read(at).unwrap());
    }

    fn prepare_readout(&self, at: Span) -> Result<Box<dyn Readout>, String> {
        let readouts = &mut self.0.lock().unwrap().gpu.readouts;
        readouts.push(vec![0; at.bytes as usize]);
        Ok(Box::new(self.prepared(Work::Readout(at, readouts.len() - 1))))
    }

    fn begin(&self) {
        self.0.lock().unwrap().replay.begin();
    }

    fn finish(&self) -> Result<(), String> {
        let Inner { replay, gpu } = &mut *self.0.lock().unwrap();
        replay.end(gpu)?;
        gpu.emulator.sync()?;
        replay.done(gpu);
        Ok(())
    }

    fn install(&self, body: &mut (dyn FnMut() + Send)) {
        body();
    }
}
