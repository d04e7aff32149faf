//! Where a rank is in its plan, told to any thread that asks: the errors of ranks that wait for it name its node.

use std::sync::atomic::{AtomicU64, Ordering};

use galvatron_ir::Module;
use galvatron_ir::plan::{Chunk, PhaseKind};

use super::instr::{Hosted, Instr, phase_index};
use super::rank::Entry;
use crate::comm::Whereabouts;

/// A node as errors name it.
struct Spot {
    name: String,
    op: &'static str,
}

/// A rank's place. Its own thread writes it before every node: two stores.
pub(super) struct Beacon {
    schedule: Vec<Entry>,
    /// For each of the rank's chunks its number and the nodes of each phase.
    chunks: Vec<(u32, [Vec<Spot>; PhaseKind::ALL.len()])>,
    /// The training step; 0 before the first one.
    step: AtomicU64,
    /// Number of the entry, from 1, and of the instruction; 0 between steps.
    at: AtomicU64,
}

impl Beacon {
    pub(super) fn new(module: &Module, schedule: &[Entry], hosted: &[Hosted]) -> Beacon {
        let spots = |h: &Hosted| {
            let chunk = &module.chunks[h.chunk as usize];
            h.slots[0].each_ref().map(|phase| phase.iter().map(|instr| Spot::of(chunk, instr)).collect::<Vec<_>>())
        };
        Beacon {
            schedule: schedule.to_vec(),
            chunks: hosted.iter().map(|h| (h.chunk, spots(h))).collect(),
            step: AtomicU64::new(0),
            at: AtomicU64::new(0),
        }
    }

    /// The rank begins an instruction of an entry of its schedule.
    pub(super) fn enter(&self, step: u64, entry: usize, instr: usize) {
        self.step.store(step, Ordering::Relaxed);
        self.at.store((entry as u64 + 1) << 32 | instr as u64, Ordering::Relaxed);
    }

    /// The rank has run the last node of a step.
    pub(super) fn end_step(&self) {
        self.at.store(0, Ordering::Relaxed);
    }

    /// The node with its op, phase and micro-batch.
    fn spot(&self, at: u64) -> Option<String> {
        let entry = self.schedule.get((at >> 32).checked_sub(1)? as usize)?;
        let (chunk, phases) = self.chunks.get(entry.hosted)?;
        let Spot { name, op } = phases[phase_index(entry.phase)].get(at as u32 as usize)?;
        let phase = entry.phase.name();
        let of = if self.chunks.len() > 1 { format!(" of chunk {chunk}") } else { String::new() };
        let micro_batch = entry.micro_batch.map_or_else(String::new, |mb| format!(", micro-batch {mb}"));
        Some(format!("`{name}` ({op}, {phase}{of}{micro_batch}"))
    }
}

impl Spot {
    fn of(chunk: &Chunk, instr: &Instr) -> Spot {
        Spot { name: instr.name.clone(), op: chunk.graph.node(instr.node).op.mnemonic() }
    }
}

impl Whereabouts for Beacon {
    fn place(&self) -> String {
        let step = self.step.load(Ordering::Relaxed);
        match self.spot(self.at.load(Ordering::Relaxed)) {
            Some(spot) => format!("{spot}, step {step})"),
            None if step == 0 => "what comes before the first step".into(),
            None => format!("the end of step {step}"),
        }
    }
}
