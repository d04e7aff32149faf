//! Where a plan runs: CPU ranks, or GPUs if their libraries are there; all ranks in this process, or one of them.

use galvatron_backends::RunFault;
use galvatron_backends::comm::Collective;
use galvatron_backends::exec::{DataSource, Flow, RunOptions, RunReport, StepReport, WeightSource, run_ranks};
use galvatron_ir::{Diagnostic, Module};

/// Where a plan runs.
pub struct Backend {
    kind: Kind,
    /// The rank that this process is; none when all ranks are threads of it.
    process: Option<Process>,
}

/// A rank that is a process.
pub struct Process {
    /// Its end of the communication with the others.
    pub comm: Box<dyn Collective>,
    /// Its number on this machine.
    pub local_rank: usize,
}

/// How GPUs are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuFlags {
    /// Whether whole steps are launched as CUDA graphs after the first ones.
    pub graphs: bool,
    /// Whether operands of f32 products are rounded to TF32.
    pub tf32: bool,
}

enum Kind {
    Cpu,
    /// GPUs, through these libraries.
    #[cfg(feature = "cuda")]
    Cuda {
        libraries: galvatron_backends::cuda::probe::Libraries,
        flags: GpuFlags,
    },
}

impl Backend {
    /// CPU ranks that are threads of this process.
    pub fn cpu() -> Backend {
        Backend { kind: Kind::Cpu, process: None }
    }

    /// The backend of that name, once what it needs was found; `flags` are for GPUs.
    ///
    /// # Errors
    /// A diagnostic that lists what was looked for and where, or that there is no such backend or device.
    pub fn open(name: &str, flags: GpuFlags) -> Result<Backend, Diagnostic> {
        let kind = match name {
            "cpu" => Kind::Cpu,
            #[cfg(feature = "cuda")]
            "cuda" => Kind::Cuda { libraries: cuda()?, flags },
            #[cfg(not(feature = "cuda"))]
            "cuda" => {
                let _ = flags;
                let message = "this program was built without the backend `cuda`";
                return Err(Diagnostic::new("unsupported", message)
                    .help("build it with `--features cuda`, or leave `--backend` out to train on CPU ranks"));
            }
            other => {
                let message = format!("there is no backend `{other}`");
                return Err(Diagnostic::new("unsupported", message).help("`cpu` and `cuda` are known"));
            }
        };
        Ok(Backend { kind, process: None })
    }

    /// The same with one rank in this process, while other processes run the rest.
    pub fn in_process(self, process: Process) -> Backend {
        Backend { process: Some(process), ..self }
    }

    /// Whether rank 0 runs in this process.
    pub fn has_first_rank(&self) -> bool {
        self.process.as_ref().is_none_or(|process| process.comm.rank() == 0)
    }

    /// Ends the other processes, if there are any.
    pub fn abort(&self, reason: &str) {
        if let Some(process) = &self.process {
            process.comm.abort(reason);
        }
    }

    /// Runs a plan; see [`galvatron_backends::run`].
    ///
    /// # Errors
    /// What ended the run.
    pub fn run(
        self,
        module: &Module,
        options: &RunOptions,
        (data, weights): (&dyn DataSource, &dyn WeightSource),
        observer: &mut dyn FnMut(StepReport) -> Flow,
    ) -> Result<RunReport, RunFault> {
        match (self.kind, self.process) {
            (Kind::Cpu, None) => galvatron_backends::run(module, options, data, weights, observer),
            (Kind::Cpu, Some(own)) => run_ranks(module, vec![own.comm], options, (data, weights), observer),
            #[cfg(feature = "cuda")]
            (Kind::Cuda { libraries, flags: GpuFlags { graphs, tf32 } }, process) => {
                use galvatron_backends::cuda::{Settings, process_rank, world};
                use galvatron_backends::exec::{arena_bytes, launch};
                let settings = Settings { arena_bytes: arena_bytes(module), timeout: options.timeout, graphs, tf32 };
                let ranks = match process {
                    None => world(&libraries, module.mesh.world() as usize, &settings),
                    Some(Process { comm, local_rank }) => process_rank(&libraries, comm, local_rank, &settings),
                };
                launch(module, ranks?, options, (data, weights), observer)
            }
        }
    }
}

/// The libraries of CUDA, if there is a GPU, too.
#[cfg(feature = "cuda")]
fn cuda() -> Result<galvatron_backends::cuda::probe::Libraries, Diagnostic> {
    use galvatron_backends::cuda::{device_count, probe::probe};
    let libraries = probe().map_err(|missing| Diagnostic::new("cuda", missing.to_string()).help(missing.help()))?;
    let missing = match device_count() {
        Ok(0) => "the driver finds no GPU".to_string(),
        Ok(_) => return Ok(libraries),
        Err(what) => what,
    };
    Err(Diagnostic::new("cuda", missing).help("check `nvidia-smi`, CUDA_VISIBLE_DEVICES and the driver's version"))
}
