//! The ranks of a plan on GPUs: all of them as threads of this process, or one as a process of its own.

use std::sync::Arc;
use std::time::Duration;

use super::comm::Communicators;
use super::context::{device_count, uuid};
use super::device::Cuda;
use super::meet::{Seat, check_seats, gather_seats};
use super::nccl::Nccl;
use super::probe::Libraries;
use crate::comm::{Collective, local_world};
use crate::device::Device;
use crate::fault::RunFault;

/// A rank's device and its end of the communication.
type Rank = (Box<dyn Device>, Box<dyn Collective>);

/// For each rank its device and its end of the communication.
pub type Ranks = Vec<Rank>;

/// How the ranks on GPUs are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of each rank's arena.
    pub arena_bytes: u64,
    /// How long a rank waits for others, or for its GPU.
    pub timeout: Duration,
    /// Whether whole steps are launched as CUDA graphs after the first ones.
    pub graphs: bool,
    /// Whether operands of f32 products are rounded to TF32.
    pub tf32: bool,
}

/// Devices and ends of the communication for `n_ranks` ranks that are threads of this process. Rank r has GPU r; with fewer
/// GPUs ranks share them, which NCCL allows from version 2.30 on where `NCCL_MULTI_RANK_GPU_ENABLE` is 1.
///
/// # Errors
/// When ranks would share a GPU that they may not share, or a GPU cannot be opened or has too little memory.
pub fn world(libraries: &Libraries, n_ranks: usize, settings: &Settings) -> Result<Ranks, RunFault> {
    let nccl = Arc::new(Nccl::new(libraries).map_err(fault(0))?);
    let ordinals = (0..n_ranks).map(|rank| ordinal(rank).map_err(fault(rank))).collect::<Result<Vec<_>, _>>()?;
    let seats = ordinals.iter().enumerate().map(|(rank, &ordinal)| seat(ordinal).map_err(fault(rank)));
    check_seats(&seats.collect::<Result<Vec<_>, _>>()?).map_err(fault(0))?;
    let rank = |(comm, ordinal)| open(&nccl, Box::new(comm), ordinal, settings);
    local_world(n_ranks, settings.timeout).into_iter().zip(ordinals).map(rank).collect()
}

/// The device of one rank that is a process; the others are other processes. The rank has the GPU with its number on this
/// machine, of those that the driver shows to the process; where there are fewer, as in [`world`].
///
/// # Errors
/// As for [`world`]; where ranks would share a GPU, every rank gets the fault. The other ranks are told of any fault.
pub fn process_rank(
    libraries: &Libraries,
    mut comm: Box<dyn Collective>,
    local_rank: usize,
    settings: &Settings,
) -> Result<Ranks, RunFault> {
    let rank = comm.rank();
    let seated = Nccl::new(libraries).and_then(|nccl| {
        let ordinal = ordinal(local_rank)?;
        Ok((Arc::new(nccl), ordinal, seat(ordinal)?))
    });
    let (nccl, ordinal, own) = seated.map_err(|what| {
        comm.abort(&what);
        fault(rank)(what)
    })?;
    check_seats(&gather_seats(&mut *comm, own)?).map_err(fault(rank))?;
    Ok(vec![open(&nccl, comm, ordinal, settings)?])
}

fn fault(rank: usize) -> impl Fn(String) -> RunFault {
    move |what| RunFault::Device { rank, what }
}

/// The GPU of a rank with that number on its machine.
fn ordinal(local_rank: usize) -> Result<usize, String> {
    match device_count()? {
        0 => Err("the driver finds no GPU".into()),
        n => Ok(local_rank % n),
    }
}

fn seat(ordinal: usize) -> Result<Seat, String> {
    let told = std::env::var("NCCL_MULTI_RANK_GPU_ENABLE").ok().and_then(|value| value.trim().parse::<i64>().ok());
    Ok(Seat { uuid: uuid(ordinal)?, may_share: told.is_some_and(|value| value != 0) })
}

fn open(nccl: &Arc<Nccl>, comm: Box<dyn Collective>, ordinal: usize, settings: &Settings) -> Result<Rank, RunFault> {
    let communicators = Communicators::new(Arc::clone(nccl), &*comm, settings.timeout);
    match Cuda::new(ordinal, communicators, settings) {
        Ok(device) => Ok((Box::new(device), comm)),
        Err(what) => {
            comm.abort(&what);
            Err(fault(comm.rank())(what))
        }
    }
}
