//! The device of one CPU rank: its arena, its threads, and how it moves and exchanges bytes.

use std::sync::{Arc, Mutex, MutexGuard};

use galvatron_ir::plan::{ALIGNMENT, Memory};
use galvatron_ir::types::DType;

use super::arena::{Arena, Element};
use super::dispatch;
use super::kernels::shape::copy_block;
use super::kernels::sum_parts::sum_parts;
use super::threads::Threads;
use crate::comm::{Collective, CommFault, ReduceOp, Site};
use crate::device::{
    AttentionBlock, Corner, Device, Exchange, ExchangeKind, HostCopy, Kernel, Move, NodeSpec, Readout, Routing, Span,
    Write,
};

/// A CPU rank. With more than one thread it has a pool of its own.
pub struct Cpu {
    arena: Arc<Arena>,
    /// The second arena, for what a plan puts into host memory.
    host: Arc<Arena>,
    /// The device's own memory; nodes of a rank run one after the other and share it.
    scratch: Span,
    threads: Threads,
    pool: Option<rayon::ThreadPool>,
}

impl Cpu {
    /// A rank with an arena of that many bytes and that many threads; `None` if there is not enough memory or the threads
    /// cannot be started.
    pub fn new(arena_bytes: u64, n_threads: usize) -> Option<Cpu> {
        Cpu::with_memory(&MemoryBytes { device: arena_bytes, ..MemoryBytes::default() }, n_threads)
    }

    /// The same with a second arena, and memory of its own.
    pub fn with_memory(bytes: &MemoryBytes, n_threads: usize) -> Option<Cpu> {
        let scratch = Span { offset: bytes.device.next_multiple_of(ALIGNMENT), bytes: bytes.scratch };
        let threads = Threads::new(n_threads);
        let pool = match threads.get() {
            1 => None,
            n => Some(rayon::ThreadPoolBuilder::new().num_threads(n).build().ok()?),
        };
        let arena = Arc::new(Arena::new(scratch.offset.checked_add(scratch.bytes)?)?);
        let host = Arc::new(Arena::new(bytes.host)?);
        Some(Cpu { arena, host, scratch, threads, pool })
    }
}

/// Bytes that a CPU rank allocates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryBytes {
    /// The arena that everything is computed in.
    pub device: u64,
    /// The arena that stands for host memory.
    pub host: u64,
    /// What lies behind the first arena: f32 copies of bf16 where a node has no workspace for them.
    pub scratch: u64,
}

/// A copy from one arena to the other.
struct Crossing {
    from: (Arc<Arena>, Span),
    to: (Arc<Arena>, Span),
}

impl Kernel for Crossing {
    fn run(&self) -> Result<(), String> {
        let ((from, source), (to, target)) = (&self.from, &self.to);
        to.view_mut::<u8>(*target).copy_from_slice(from.view(*source));
        Ok(())
    }
}

/// A kernel as a function of the arena.
pub(super) struct Prepared<F> {
    arena: Arc<Arena>,
    body: F,
}

/// Boxes a function of the arena as a kernel.
pub(super) fn kernel<F>(arena: &Arc<Arena>, body: F) -> Box<dyn Kernel>
where
    F: Fn(&Arena) -> Result<(), String> + Send + Sync + 'static,
{
    Box::new(Prepared { arena: Arc::clone(arena), body })
}

impl<F: Fn(&Arena) -> Result<(), String> + Send + Sync> Kernel for Prepared<F> {
    fn run(&self) -> Result<(), String> {
        (self.body)(&self.arena)
    }
}

/// A part of the arena as it was when the readout ran.
struct Held {
    arena: Arc<Arena>,
    at: Span,
    bytes: Mutex<Vec<u8>>,
}

impl Held {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().expect("invariant: copies do not panic")
    }
}

impl Kernel for Held {
    fn run(&self) -> Result<(), String> {
        self.bytes().copy_from_slice(self.arena.view(self.at));
        Ok(())
    }
}

impl Readout for Held {
    fn value(&self, out: &mut [u8]) {
        out.copy_from_slice(&self.bytes());
    }
}

impl Device for Cpu {
    fn prepare(&self, spec: &NodeSpec<'_>) -> Result<Box<dyn Kernel>, String> {
        dispatch::prepare(&self.arena, self.threads, self.scratch, spec)
    }

    fn prepare_block(&self, block: &AttentionBlock<'_>) -> Result<Box<dyn Kernel>, String> {
        dispatch::prepare_block(&self.arena, self.threads, block)
    }

    fn prepare_routing(&self, task: &Routing<'_>) -> Result<Box<dyn Kernel>, String> {
        dispatch::prepare_routing(&self.arena, self.threads, task)
    }

    fn prepare_move(&self, spec: &Move) -> Result<Box<dyn Kernel>, String> {
        Ok(match spec.clone() {
            Move::Block { dtype, from, to, .. } if from.span(dtype).overlaps(&to.span(dtype)) => {
                return Err("the two sides of a copy overlap in memory".into());
            }
            Move::Block { dtype, extents, from, to } => match dtype {
                DType::F32 => block::<u32>(&self.arena, self.threads, &extents, &from, &to),
                DType::Bf16 => block::<u16>(&self.arena, self.threads, &extents, &from, &to),
                DType::I64 => block::<u64>(&self.arena, self.threads, &extents, &from, &to),
                DType::Bool => block::<u8>(&self.arena, self.threads, &extents, &from, &to),
            },
            Move::Permute { at, to } => kernel(&self.arena, move |arena| {
                permute(arena.view_mut(at), &to);
                Ok(())
            }),
            Move::Sum { parts, to } if parts.overlaps(&to) => return Err("a sum overlaps its parts in memory".into()),
            Move::Sum { parts, to } => {
                let threads = self.threads;
                kernel(&self.arena, move |arena| {
                    sum_parts(arena.view(parts), arena.view_mut(to), threads);
                    Ok(())
                })
            }
        })
    }

    fn prepare_host_copy(&self, copy: &HostCopy) -> Result<Box<dyn Kernel>, String> {
        let (device, host) = ((Arc::clone(&self.arena), copy.device), (Arc::clone(&self.host), copy.host));
        let (from, to) = match copy.to {
            Memory::Host => (device, host),
            Memory::Device => (host, device),
        };
        Ok(Box::new(Crossing { from, to }))
    }

    fn exchange(&self, comm: &mut dyn Collective, exchange: &Exchange, site: &Site<'_>) -> Result<(), CommFault> {
        let (arena, group) = (&*self.arena, exchange.group);
        match exchange.kind {
            ExchangeKind::AllReduce(at) => comm.all_reduce(group, arena.view_mut(at), ReduceOp::Sum, site),
            ExchangeKind::ReduceScatter { input, output } => {
                comm.reduce_scatter(group, arena.view(input), arena.view_mut(output), site)
            }
            ExchangeKind::AllGather { input, output } if input.overlaps(&output) => {
                comm.all_gather_in_place(group, arena.view_mut(output), site)
            }
            ExchangeKind::AllGather { input, output } => {
                comm.all_gather(group, arena.view(input), arena.view_mut(output), site)
            }
            ExchangeKind::AllToAll { input, output } => {
                comm.all_to_all(group, arena.view(input), arena.view_mut(output), site)
            }
        }
    }

    fn messages(&self) -> Result<(), String> {
        Ok(())
    }

    fn send(
        &self,
        comm: &mut dyn Collective,
        (to, tag): (usize, u64),
        at: Span,
        site: &Site<'_>,
    ) -> Result<(), CommFault> {
        comm.send(to, tag, self.arena.view(at), site)
    }

    fn recv(
        &self,
        comm: &mut dyn Collective,
        (from, tag): (usize, u64),
        at: Span,
        site: &Site<'_>,
    ) -> Result<(), CommFault> {
        comm.recv(from, tag, self.arena.view_mut(at), site)
    }

    fn fill(&self, at: Span, write: Write<'_>) -> Result<(), String> {
        write(self.arena.view_mut(at))
    }

    fn read(&self, at: Span, out: &mut [u8]) {
        out.copy_from_slice(self.arena.view(at));
    }

    fn fill_host(&self, at: Span, write: Write<'_>) -> Result<(), String> {
        write(self.host.view_mut(at))
    }

    fn read_host(&self, at: Span, out: &mut [u8]) {
        out.copy_from_slice(self.host.view(at));
    }

    fn prepare_readout(&self, at: Span) -> Result<Box<dyn Readout>, String> {
        let bytes = Mutex::new(vec![0; at.bytes as usize]);
        Ok(Box::new(Held { arena: Arc::clone(&self.arena), at, bytes }))
    }

    fn remark(&self) -> Option<String> {
        let bytes = self.scratch.bytes;
        (bytes > 0)
            .then(|| format!("the plan is for GPUs: f32 copies of bf16, {bytes} bytes, lie outside of its arena"))
    }

    fn install(&self, body: &mut (dyn FnMut() + Send)) {
        match &self.pool {
            Some(pool) => pool.install(body),
            None => body(),
        }
    }
}

/// A tensor that a block is read from or written to.
struct Side {
    offset: u64,
    shape: Vec<usize>,
    first: Vec<usize>,
}

impl Side {
    fn new(corner: &Corner) -> Side {
        Side { offset: corner.offset, shape: to_usize(&corner.shape), first: to_usize(&corner.first) }
    }

    fn len(&self) -> usize {
        self.shape.iter().product()
    }
}

fn to_usize(values: &[u64]) -> Vec<usize> {
    values.iter().map(|&v| v as usize).collect()
}

fn block<T: Element>(
    arena: &Arc<Arena>,
    threads: Threads,
    extents: &[u64],
    from: &Corner,
    to: &Corner,
) -> Box<dyn Kernel> {
    let (extents, from, to) = (to_usize(extents), Side::new(from), Side::new(to));
    kernel(arena, move |arena| {
        let source = (arena.slice::<T>(from.offset, from.len()), &from.shape[..], &from.first[..]);
        let target = (arena.slice_mut::<T>(to.offset, to.len()), &to.shape[..], &to.first[..]);
        copy_block(source, target, &extents, threads);
        Ok(())
    })
}

/// Moves chunk `i` to place `to[i]`, cycle by cycle, with a small buffer.
fn permute(bytes: &mut [u8], to: &[usize]) {
    let chunk = bytes.len() / to.len();
    let mut buffer = [0u8; 4096];
    for first in (0..to.len()).filter(|&i| cycle_starts_at(to, i)) {
        for start in (0..chunk).step_by(buffer.len()) {
            let len = buffer.len().min(chunk - start);
            let carried = &mut buffer[..len];
            carried.copy_from_slice(&bytes[first * chunk + start..][..len]);
            let mut at = first;
            loop {
                at = to[at];
                carried.swap_with_slice(&mut bytes[at * chunk + start..][..len]);
                if at == first {
                    break;
                }
            }
        }
    }
}

/// Whether `i` is the smallest member of a cycle of more than one chunk.
fn cycle_starts_at(to: &[usize], i: usize) -> bool {
    let mut at = to[i];
    while at > i {
        at = to[at];
    }
    at == i && to[i] != i
}

#[cfg(test)]
mod tests {
    use super::permute;

    #[test]
    fn chunks_move_to_their_places() {
        let to = [2, 0, 1, 3, 5, 4];
        let mut bytes: Vec<u8> = (0..6u8).flat_map(|i| vec![i; 5000]).collect();
        permute(&mut bytes, &to);
        for (i, &place) in to.iter().enumerate() {
            assert!(bytes[place * 5000..(place + 1) * 5000].iter().all(|&b| b == i as u8));
        }
    }
}
