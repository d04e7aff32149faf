//! Where a plan runs: CPU ranks, or GPUs if their libraries are there.

use galvatron_backends::RunFault;
use galvatron_backends::comm::Collective;
use galvatron_backends::exec::{DataSource, Flow, RunOptions, RunReport, StepReport, WeightSource, run_ranks};
use galvatron_ir::{Diagnostic, Module};

/// Where a plan runs.
pub enum Backend {
    /// On CPU ranks that are threads of this process.
    Cpu,
    /// On one CPU rank, while other processes run the rest.
    CpuProcess(Box<dyn Collective>),
    /// On GPUs, through these libraries.
    #[cfg(feature = "cuda")]
    Cuda(galvatron_backends::cuda::probe::Libraries),
}

impl Backend {
    /// The backend of that name, once what it needs was found.
    ///
    /// # Errors
    /// A diagnostic that lists what was looked for and where, or that there is no such backend.
    pub fn open(name: &str) -> Result<Backend, Diagnostic> {
        match name {
            "cpu" => Ok(Backend::Cpu),
            #[cfg(feature = "cuda")]
            "cuda" => galvatron_backends::cuda::probe::probe().map(Backend::Cuda).map_err(|missing| {
                let help = missing.help();
                Diagnostic::new("cuda", missing.to_string()).help(help)
            }),
            #[cfg(not(feature = "cuda"))]
            "cuda" => Err(Diagnostic::new("unsupported", "this program was built without the backend `cuda`")
                .help("build it with `--features cuda`, or leave `--backend` out to train on CPU ranks")),
            other => Err(Diagnostic::new("unsupported", format!("there is no backend `{other}`"))
                .help("`cpu` and `cuda` are known")),
        }
    }

    /// Whether rank 0 runs in this process.
    pub fn has_first_rank(&self) -> bool {
        !matches!(self, Backend::CpuProcess(comm) if comm.rank() != 0)
    }

    /// Ends the other processes, if there are any.
    pub fn abort(&self, reason: &str) {
        if let Backend::CpuProcess(comm) = self {
            comm.abort(reason);
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
        match self {
            Backend::Cpu => galvatron_backends::run(module, options, data, weights, observer),
            Backend::CpuProcess(comm) => run_ranks(module, vec![comm], options, (data, weights), observer),
            #[cfg(feature = "cuda")]
            Backend::Cuda(libraries) => {
                use galvatron_backends::exec::{arena_bytes, launch};
                let n_ranks = module.mesh.world() as usize;
                let bytes = arena_bytes(module);
                let world = galvatron_backends::cuda::world(&libraries, n_ranks, bytes, options.timeout)?;
                launch(module, world, options, (data, weights), observer)
            }
        }
    }
}
