//! What ranks tell each other about the run when they are not all in one process: memory that was used, parts of what is
//! collected, and whether to go on. Where all are in one process they share it in memory.

use std::time::Duration;

use galvatron_ir::module::Module;

use super::gate::Flow;
use super::layout::Layout;
use super::observe::{Ends, N_REGIONS};
use super::rank::{Shared, Worker, part};
use super::weights::Stored;
use crate::comm::Site;
use crate::device::{BufferSpec, Device};
use crate::fault::RunFault;

/// Tags of messages with parts of gradients begin here; those of parameters and states are their entries.
const GRADIENTS: u64 = 1 << 32;

/// Where the end of a step is, for errors.
pub(super) const END_OF_STEP: &str = "the end of the step";

/// A part that a rank of another process sends to rank 0.
pub(super) struct Parcel {
    from: usize,
    /// Index of the entry in the collection.
    index: usize,
    /// Where the part lies in the whole value.
    buffer: BufferSpec,
}

/// The parts that rank 0 gets.
#[derive(Default)]
pub(super) struct Expected {
    stored: Vec<Parcel>,
    gradients: Vec<Parcel>,
}

impl Expected {
    /// What rank 0 gets from all others.
    pub(super) fn new(shared: &Shared<'_>, stored: &[Stored]) -> Result<Expected, RunFault> {
        let mut expected = Expected::default();
        for from in 1..shared.observed.len() {
            let parcel = |(index, buffer)| Parcel { from, index, buffer };
            expected.stored.extend(held(shared.module, from, stored)?.into_iter().map(parcel));
            for (index, optimizer) in shared.optimizers.iter().enumerate() {
                let Some(layout) = Layout::hosted(shared.module, optimizer.chunk, from) else { continue };
                let gradient = layout.chunk.graph.node(optimizer.node).args[1];
                if layout.is_first_replica(&layout.sharding(gradient)) {
                    expected.gradients.push(parcel((index, layout.buffer(gradient)?)));
                }
            }
        }
        Ok(expected)
    }
}

/// The parameters and states that a rank is the first holder of.
pub(super) fn held(module: &Module, rank: usize, stored: &[Stored]) -> Result<Vec<(usize, BufferSpec)>, RunFault> {
    let mut held = Vec::new();
    for (i, s) in stored.iter().enumerate() {
        let Some(layout) = Layout::hosted(module, s.chunk, rank) else { continue };
        let value = layout.chunk.residents[s.resident].value;
        if layout.is_first_replica(&layout.sharding(value)) {
            held.push((i, layout.buffer(value)?));
        }
    }
    Ok(held)
}

/// How to go on, as rank 0 says it to other processes.
#[derive(Clone, Copy)]
enum Word {
    Continue = 0,
    Stop = 1,
    /// The caller has not answered yet.
    Wait = 2,
}

impl Worker {
    /// Waits until the caller, who is in the process of rank 0, has answered the report of `step`.
    pub(super) fn flow(&mut self, shared: &Shared<'_>, step: u64) -> Result<Flow, RunFault> {
        if shared.is_whole {
            return Ok(shared.gate.wait(step));
        }
        let site = Site { node: "the caller's answer", step };
        loop {
            let mut word = [Word::Wait as u8];
            if self.rank == 0 {
                word = [answer(shared, step, shared.options.timeout / 2) as u8];
            }
            self.comm.broadcast(self.world, 0, &mut word, &site)?;
            match word[0] {
                word if word == Word::Continue as u8 => return Ok(Flow::Continue),
                word if word == Word::Stop as u8 => return Ok(Flow::Stop),
                _ => {}
            }
        }
    }

    /// The end of a step: all ranks have come to it, and each knows what the others have used.
    pub(super) fn meet(&mut self, shared: &Shared<'_>, step: u64) -> Result<(), RunFault> {
        let site = Site { node: END_OF_STEP, step };
        if shared.is_whole {
            return Ok(self.comm.barrier(self.world, &site)?);
        }
        let own = shared.observed[self.rank].ends().numbers().map(u64::to_le_bytes);
        let mut all = vec![0; own.as_flattened().len() * shared.observed.len()];
        self.comm.all_gather(self.world, own.as_flattened(), &mut all, &site)?;
        let numbers = all.as_chunks::<8>().0.as_chunks::<N_REGIONS>().0;
        for (observed, numbers) in shared.observed.iter().zip(numbers) {
            observed.bind(Ends::of(numbers.map(u64::from_le_bytes)));
        }
        Ok(())
    }

    /// The end of the run, before step number `step`: what is asked for is collected, and nobody leaves before all have it.
    pub(super) fn finish(&mut self, device: &dyn Device, shared: &Shared<'_>, step: u64) -> Result<(), RunFault> {
        if shared.options.collect {
            self.collect(device, shared, step)?;
        }
        if shared.is_whole { Ok(()) } else { self.meet(shared, step) }
    }

    /// Brings this rank's parameters and states to where they are assembled.
    pub(super) fn collect(&mut self, device: &dyn Device, shared: &Shared<'_>, step: u64) -> Result<(), RunFault> {
        let site = Site { node: "the collection of parameters", step };
        if shared.is_whole || self.rank == 0 {
            self.stored.iter().for_each(|(index, buffer)| shared.trained.write(*index, device, buffer));
        } else {
            for (index, buffer) in &self.stored {
                self.comm.send(0, *index as u64, &part(device, buffer), &site)?;
            }
        }
        for Parcel { from, index, buffer } in &self.expected.stored {
            let mut bytes = vec![0; buffer.ty.bytes() as usize];
            self.comm.recv(*from, *index as u64, &mut bytes, &site)?;
            shared.trained.write_bytes(*index, buffer, &bytes);
        }
        Ok(())
    }

    /// Brings the gradients of the first step to where they are assembled.
    pub(super) fn collect_gradients(&mut self, shared: &Shared<'_>, step: u64) -> Result<(), RunFault> {
        if !shared.options.dumps_at(step) {
            return Ok(());
        }
        let site = Site { node: "the collection of gradients", step };
        for (index, bytes) in std::mem::take(&mut self.pending) {
            self.comm.send(0, GRADIENTS + index as u64, &bytes, &site)?;
        }
        for Parcel { from, index, buffer } in &self.expected.gradients {
            let mut bytes = vec![0; buffer.ty.bytes() as usize];
            self.comm.recv(*from, GRADIENTS + *index as u64, &mut bytes, &site)?;
            shared.gradients.write_bytes(*index, buffer, &bytes);
        }
        Ok(())
    }
}

/// The caller's answer, if it comes soon.
fn answer(shared: &Shared<'_>, step: u64, soon: Duration) -> Word {
    match shared.gate.wait_for(step, soon) {
        Some(Flow::Continue) => Word::Continue,
        Some(Flow::Stop) => Word::Stop,
        None => Word::Wait,
    }
}
