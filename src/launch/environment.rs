//! What launchers put into the environment of the processes that they start.

use super::place::fault;
use galvatron_ir::Diagnostic;

/// Reads a variable.
type Variables<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// First port that is derived from a Slurm job, and how many there are.
const SLURM_PORTS: (u64, u64) = (20_000, 10_000);

/// A launcher and its variables.
pub(super) struct Launcher {
    pub(super) name: &'static str,
    /// Whether other launchers are started inside of what it allocates.
    pub(super) is_allocator: bool,
    rank: &'static str,
    /// The number of ranks; the first that is there.
    world: &'static [&'static str],
    local_rank: &'static [&'static str],
    address: fn(&Variables<'_>) -> Result<Option<String>, Diagnostic>,
}

impl Launcher {
    /// All launchers, in the order in which they are looked for.
    pub(super) const ALL: [Launcher; 4] = [
        Launcher {
            name: "torchrun",
            is_allocator: false,
            rank: "RANK",
            world: &["WORLD_SIZE"],
            local_rank: &["LOCAL_RANK"],
            address: torchrun,
        },
        Launcher {
            name: "Slurm",
            is_allocator: true,
            rank: "SLURM_PROCID",
            world: &["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"],
            local_rank: &["SLURM_LOCALID"],
            address: slurm,
        },
        Launcher {
            name: "Open MPI",
            is_allocator: false,
            rank: "OMPI_COMM_WORLD_RANK",
            world: &["OMPI_COMM_WORLD_SIZE"],
            local_rank: &["OMPI_COMM_WORLD_LOCAL_RANK"],
            address: |_| Ok(None),
        },
        Launcher {
            name: "PMI",
            is_allocator: false,
            rank: "PMI_RANK",
            world: &["PMI_SIZE"],
            local_rank: &["MPI_LOCALRANKID"],
            address: |_| Ok(None),
        },
    ];

    /// The rank and the number of ranks, if this launcher names a rank.
    pub(super) fn rank_and_world(&self, variable: &Variables<'_>) -> Result<Option<(usize, usize)>, Diagnostic> {
        let Some(rank) = number(variable, self.rank)? else { return Ok(None) };
        for name in self.world {
            if let Some(world) = number(variable, name)? {
                return Ok(Some((rank, world)));
            }
        }
        let (name, missing) = (self.rank, self.world[self.world.len() - 1]);
        Err(fault(&format!("`{name}` is set, but not `{missing}`"))
            .help(format!("set `{missing}` to the number of ranks, or unset `{name}`")))
    }

    /// The number of this rank on its machine.
    pub(super) fn local_rank(&self, variable: &Variables<'_>) -> Option<usize> {
        self.local_rank.iter().find_map(|name| variable(name)?.parse().ok())
    }

    /// Where the ranks meet, as far as the environment says.
    pub(super) fn rendezvous(&self, variable: &Variables<'_>) -> Result<Option<String>, Diagnostic> {
        match (self.address)(variable)? {
            Some(address) => Ok(Some(address)),
            None => master(variable),
        }
    }
}

/// `MASTER_ADDR` and `MASTER_PORT`.
pub(super) fn master(variable: &Variables<'_>) -> Result<Option<String>, Diagnostic> {
    let port = number(variable, "MASTER_PORT")?;
    Ok(variable("MASTER_ADDR").zip(port).map(|(host, port)| joined(&host, port as u64)))
}

/// The master's address; where torchrun's agent listens at its port for itself, the next port.
fn torchrun(variable: &Variables<'_>) -> Result<Option<String>, Diagnostic> {
    let is_taken = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|v| v.eq_ignore_ascii_case("true"));
    let port = number(variable, "MASTER_PORT")?;
    let next = |port: usize| if port >= usize::from(u16::MAX) { port - 1 } else { port + 1 };
    let port = port.map(|port| if is_taken { next(port) } else { port });
    Ok(variable("MASTER_ADDR").zip(port).map(|(host, port)| joined(&host, port as u64)))
}

/// The first node of the job, where Slurm puts rank 0, and a port that is derived from the job.
fn slurm(variable: &Variables<'_>) -> Result<Option<String>, Diagnostic> {
    if let Some(master) = master(variable)? {
        return Ok(Some(master));
    }
    let nodes = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"];
    let host = nodes.iter().find_map(|name| first_host(&variable(name)?));
    let host = host.or_else(|| variable("SLURM_LAUNCH_NODE_IPADDR"));
    let job = match number(variable, "SLURM_JOB_ID")? {
        Some(job) => Some(job),
        None => number(variable, "SLURM_JOBID")?,
    };
    let (first, n) = SLURM_PORTS;
    Ok(host.zip(job).map(|(host, job)| joined(&host, first + job as u64 % n)))
}

/// The first host of a list such as `gpu[07-09,12],cpu1`.
fn first_host(list: &str) -> Option<String> {
    let end = list.find([',', '[']).unwrap_or(list.len());
    let (prefix, rest) = list.split_at(end);
    let Some(rest) = rest.strip_prefix('[') else { return Some(prefix.to_string()).filter(|host| !host.is_empty()) };
    let (numbers, after) = rest.split_once(']')?;
    let number = numbers.split([',', '-']).next()?;
    let suffix = first_host(after).filter(|_| !after.starts_with(',')).unwrap_or_default();
    Some(format!("{prefix}{number}{suffix}"))
}

fn joined(host: &str, port: u64) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn number(variable: &Variables<'_>, name: &str) -> Result<Option<usize>, Diagnostic> {
    let Some(text) = variable(name) else { return Ok(None) };
    let number = text.trim().parse();
    let fault =
        || fault(&format!("`{name}` is `{text}`, which is no number")).help(format!("correct or unset `{name}`"));
    number.map(Some).map_err(|_| fault())
}

#[cfg(test)]
mod tests {
    use super::first_host;

    #[test]
    fn host_lists_begin_with_their_first_host() {
        let check = |list: &str, host: Option<&str>| assert_eq!(first_host(list).as_deref(), host, "{list}");
        check("node1", Some("node1"));
        check("node1,node2", Some("node1"));
        check("gpu[07-09,12],cpu1", Some("gpu07"));
        check("rack[1-2]n[3,4]", Some("rack1n3"));
        check("a[5]-ib,b", Some("a5-ib"));
        check("", None);
        check("a[5", None);
    }
}
