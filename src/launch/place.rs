//! Which rank of which world this process is: by flags, or by what a launcher has put into the environment.

use super::environment::{self, Launcher};
use galvatron_ir::Diagnostic;

/// What the command line says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags<'a> {
    /// `--rank`.
    pub rank: Option<usize>,
    /// `--world-size`.
    pub world: Option<usize>,
    /// `--rendezvous`.
    pub rendezvous: Option<&'a str>,
}

/// A rank that is a process of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The rank.
    pub rank: usize,
    /// The number of ranks.
    pub world: usize,
    /// Its number on this machine, where the launcher says it.
    pub local_rank: Option<usize>,
    /// `HOST:PORT` at which rank 0 listens.
    pub rendezvous: String,
    /// Who said so: `the flags`, `torchrun`, `Slurm`, `Open MPI` or `PMI`.
    pub source: &'static str,
}

/// Finds the place of this process; none when all ranks are to be threads of it. `variable` reads the environment.
///
/// The flags come first, then torchrun, Slurm, Open MPI and PMI; the first that names a rank is taken. A world of one is no
/// world of processes.
///
/// # Errors
/// `launch` when a flag or variable is missing or no number, or when nobody says where the ranks meet.
pub fn discover(flags: &Flags<'_>, variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Place>, Diagnostic> {
    if let Some(rank) = flags.rank {
        let world = flags.world.ok_or_else(|| {
            fault("`--rank` is given, but not the number of ranks").help("give `--world-size N`, too")
        })?;
        return place("the flags", (rank, world), None, flags, environment::master(variable)?);
    }
    if flags.world.is_some() {
        return Err(fault("`--world-size` is given, but not the rank of this process").help("give `--rank R`, too"));
    }
    for (i, launcher) in Launcher::ALL.iter().enumerate() {
        if let Some((rank, world)) = launcher.rank_and_world(variable)? {
            if launcher.is_allocator && is_contradicted((rank, world), &Launcher::ALL[i + 1..], variable)? {
                continue;
            }
            let address = launcher.rendezvous(variable)?;
            return place(launcher.name, (rank, world), launcher.local_rank(variable), flags, address);
        }
    }
    match flags.rendezvous {
        Some(_) => Err(fault("`--rendezvous` is given, but nobody says which rank this process is")
            .help("give `--rank R --world-size N`, or start it by torchrun, Slurm or mpirun")),
        None => Ok(None),
    }
}

/// Whether another launcher, which was started inside, says otherwise.
fn is_contradicted(
    found: (usize, usize),
    inner: &[Launcher],
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<bool, Diagnostic> {
    for launcher in inner {
        if launcher.rank_and_world(variable)?.is_some_and(|other| other != found) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn place(
    source: &'static str,
    (rank, world): (usize, usize),
    local_rank: Option<usize>,
    flags: &Flags<'_>,
    address: Option<String>,
) -> Result<Option<Place>, Diagnostic> {
    if world == 0 || rank >= world {
        let message = format!("{source} says that this is rank {rank} of {world}");
        return Err(fault(&message).help("ranks are numbered from 0 to the number of ranks less one"));
    }
    if world == 1 {
        return Ok(None);
    }
    let rendezvous = flags.rendezvous.map(str::to_string).or(address).ok_or_else(|| {
        fault(&format!("{source} does not say where the {world} ranks meet"))
            .help("give `--rendezvous HOST:PORT` with the host of rank 0 and a free port, the same on every rank")
    })?;
    if rendezvous.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err()) {
        return Err(fault(&format!("`{rendezvous}` is no address to meet at")).help("it must be HOST:PORT"));
    }
    Ok(Some(Place { rank, world, local_rank, rendezvous, source }))
}

pub(super) fn fault(message: &str) -> Diagnostic {
    Diagnostic::new("launch", message.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(flags: Flags<'_>, variables: &[(&str, &str)]) -> Result<Option<Place>, String> {
        let variable = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string());
        discover(&flags, &variable).map_err(|fault| fault.message)
    }

    #[track_caller]
    fn check(variables: &[(&str, &str)], expected: (usize, usize, Option<usize>, &str, &str)) {
        let (rank, world, local_rank, rendezvous, source) = expected;
        let place = found(Flags::default(), variables).unwrap().unwrap();
        assert_eq!((place.rank, place.world, place.local_rank), (rank, world, local_rank));
        assert_eq!((place.rendezvous.as_str(), place.source), (rendezvous, source));
    }

    const TORCH: [(&str, &str); 5] =
        [("RANK", "3"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "n0"), ("MASTER_PORT", "29500")];

    #[test]
    fn every_launcher_is_recognised() {
        check(&TORCH, (3, 8, Some(1), "n0:29500", "torchrun"));
        let agent = [&TORCH[..], &[("TORCHELASTIC_USE_AGENT_STORE", "True")]].concat();
        check(&agent, (3, 8, Some(1), "n0:29501", "torchrun"));
        let slurm = [("SLURM_PROCID", "2"), ("SLURM_NTASKS", "4"), ("SLURM_LOCALID", "0"), ("SLURM_JOB_ID", "45678")];
        let with = |more: (&'static str, &'static str)| [&slurm[..], &[more]].concat();
        check(&with(("SLURM_JOB_NODELIST", "gpu[07-09,12],cpu1")), (2, 4, Some(0), "gpu07:25678", "Slurm"));
        check(&with(("SLURM_JOB_NODELIST", "a,b")), (2, 4, Some(0), "a:25678", "Slurm"));
        check(&with(("SLURM_LAUNCH_NODE_IPADDR", "10.0.0.7")), (2, 4, Some(0), "10.0.0.7:25678", "Slurm"));
        let master = [("MASTER_ADDR", "::1"), ("MASTER_PORT", "7")];
        let ompi = [("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2"), ("OMPI_COMM_WORLD_LOCAL_RANK", "0")];
        check(&[&ompi[..], &master].concat(), (0, 2, Some(0), "[::1]:7", "Open MPI"));
        check(&[&[("PMI_RANK", "1"), ("PMI_SIZE", "2")], &master[..]].concat(), (1, 2, None, "[::1]:7", "PMI"));
    }

    /// Inside of an allocation every process sees the variables of the batch script.
    #[test]
    fn mpirun_inside_of_a_slurm_job_is_recognised() {
        let slurm = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "2"), ("MASTER_ADDR", "n"), ("MASTER_PORT", "7")];
        let inside = |rank| [&slurm[..], &[("OMPI_COMM_WORLD_RANK", rank), ("OMPI_COMM_WORLD_SIZE", "2")]].concat();
        check(&inside("1"), (1, 2, None, "n:7", "Open MPI"));
        check(&inside("0"), (0, 2, None, "n:7", "Slurm"));
    }

    #[test]
    fn flags_come_before_the_environment() {
        let flags = Flags { rank: Some(1), world: Some(2), rendezvous: Some("h:5") };
        let place = found(flags, &TORCH).unwrap().unwrap();
        assert_eq!((place.rank, place.world, place.rendezvous.as_str(), place.source), (1, 2, "h:5", "the flags"));
        let flags = Flags { rendezvous: Some("h:5"), ..Flags::default() };
        assert_eq!(found(flags, &TORCH).unwrap().unwrap().rendezvous, "h:5");
    }

    #[test]
    fn without_other_ranks_there_are_threads() {
        assert_eq!(found(Flags::default(), &[]), Ok(None));
        assert_eq!(found(Flags::default(), &[("RANK", "0"), ("WORLD_SIZE", "1")]), Ok(None));
        assert_eq!(found(Flags::default(), &[("SLURM_NTASKS", "4")]), Ok(None));
    }

    #[test]
    fn what_is_missing_is_named() {
        let says = |flags, variables: &[(&str, &str)], words: &str| {
            let message = found(flags, variables).unwrap_err();
            assert!(message.contains(words), "{message}");
        };
        says(Flags { rank: Some(1), ..Flags::default() }, &[], "not the number of ranks");
        says(Flags { world: Some(1), ..Flags::default() }, &[], "not the rank");
        says(Flags { rendezvous: Some("a:1"), ..Flags::default() }, &[], "which rank");
        says(Flags { rank: Some(2), world: Some(2), rendezvous: Some("a:1") }, &[], "rank 2 of 2");
        says(Flags { rank: Some(0), world: Some(2), rendezvous: Some("a") }, &[], "no address");
        says(Flags::default(), &[("PMI_RANK", "0"), ("PMI_SIZE", "2")], "where the 2 ranks meet");
        says(Flags::default(), &[("RANK", "0")], "`WORLD_SIZE`");
        says(Flags::default(), &[("RANK", "x"), ("WORLD_SIZE", "2")], "`RANK` is `x`");
    }
}
