//! The ranks of a plan on the GPUs of this machine, one thread each.

use std::sync::Arc;
use std::time::Duration;

use super::comm::{Communicators, CudaComm, Threads};
use super::context::device_count;
use super::device::Cuda;
use super::nccl::Nccl;
use super::probe::Libraries;
use crate::comm::{Collective, local_world};
use crate::device::Device;
use crate::fault::RunFault;

/// For each rank its device and its end of the communication.
pub type Ranks = Vec<(Box<dyn Device>, Box<dyn Collective>)>;

/// Devices and ends of the communication for `n_ranks` ranks with arenas of that many bytes. Rank r has GPU r; with fewer GPUs
/// ranks share them, which NCCL allows from version 2.30 on where `NCCL_MULTI_RANK_GPU_ENABLE` is 1.
///
/// # Errors
/// When a GPU cannot be opened or has too little memory.
pub fn world(libraries: &Libraries, n_ranks: usize, arena_bytes: u64, timeout: Duration) -> Result<Ranks, RunFault> {
    let fault = |what: String| RunFault::Plan(what);
    let nccl = Arc::new(Nccl::new(libraries).map_err(fault)?);
    let n_gpus = device_count().map_err(fault)?;
    if n_gpus == 0 {
        return Err(fault("the driver finds no GPU".into()));
    }
    let threads = Arc::new(Threads::default());
    let rank = |(rank, host)| {
        let communicators = Communicators::new(Arc::clone(&nccl), Arc::clone(&threads), rank, timeout);
        let device = Cuda::new(rank % n_gpus, arena_bytes, communicators, timeout);
        let device = device.map_err(|what| fault(format!("rank {rank}: {what}")))?;
        let comm = CudaComm { host, world: Arc::clone(&threads) };
        Ok((Box::new(device) as Box<dyn Device>, Box::new(comm) as Box<dyn Collective>))
    };
    local_world(n_ranks, timeout).into_iter().enumerate().map(rank).collect()
}
