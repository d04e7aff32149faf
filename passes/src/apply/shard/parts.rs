//! The chunks of a pipeline: which of them computes what, and messages between them.
//!
//! Forward nodes are cut by the strategy. A gradient belongs to the chunk of its forward node, a sum of gradients to the first chunk
//! that contributes, the optimizer of a weight to the first chunk that reads it; others that read it receive its new value.
//! What one chunk computes and another one reads is sent in the placement that it has.

use super::Sharder;
use super::copies::Copies;
use crate::strategy::Strategy;
use galvatron_ir::mesh::Sharding;
use galvatron_ir::module::Program;
use galvatron_ir::op::Op;
use galvatron_ir::op::comm::{Recv, Send};
use galvatron_ir::plan::{Chunk, PhaseKind};
use galvatron_ir::{NodeId, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// What is known of one chunk while others are in work.
#[derive(Default)]
struct Part {
    chunk: Chunk,
    copies: Copies,
    accumulators: BTreeMap<ValueId, ValueId>,
}

/// All chunks but the one in work.
pub struct Parts {
    waiting: Vec<Part>,
    /// Index of the chunk in work.
    at: u32,
    n_stages: u32,
    /// The chunks that read each weight in their forward pass.
    readers: BTreeMap<ValueId, BTreeSet<u32>>,
    /// The chunk that computes each program value.
    home: BTreeMap<ValueId, u32>,
    n_channels: u32,
}

impl Parts {
    /// Empty chunks; the first one is in work.
    pub fn new(program: &Program, strategy: &Strategy) -> Parts {
        let mut readers: BTreeMap<ValueId, BTreeSet<u32>> = BTreeMap::new();
        let chunk_of = |node: &NodeId| strategy.pipeline.as_ref().map_or(0, |p| p.chunk_of[node]);
        for node in strategy.maps.keys() {
            for &arg in &program.graph.node(*node).args {
                readers.entry(arg).or_default().insert(chunk_of(node));
            }
        }
        let (n_chunks, n_stages) = strategy.pipeline.as_ref().map_or((1, 1), |p| (p.n_chunks, p.n_stages));
        let waiting = (0..n_chunks).map(|_| Part::default()).collect();
        Parts { waiting, at: 0, n_stages, readers, home: BTreeMap::new(), n_channels: 0 }
    }

    /// The chunks that have a copy of a weight: those that read it, or the first one.
    pub fn readers_of(&self, weight: ValueId) -> Vec<u32> {
        self.readers.get(&weight).map_or(vec![0], |chunks| chunks.iter().copied().collect())
    }

    /// The chunk that updates a weight.
    pub fn owner_of(&self, weight: ValueId) -> u32 {
        self.readers_of(weight)[0]
    }

    /// Notes which chunk computes a program value.
    pub fn set_home(&mut self, value: ValueId, chunk: u32) {
        self.home.insert(value, chunk);
    }
}

impl Sharder<'_> {
    /// Takes up another chunk.
    pub fn switch(&mut self, to: u32) {
        let from = std::mem::replace(&mut self.parts.at, to);
        if from == to {
            return;
        }
        let part = std::mem::take(&mut self.parts.waiting[to as usize]);
        self.parts.waiting[from as usize] = Part {
            chunk: std::mem::replace(&mut self.chunk, part.chunk),
            copies: std::mem::replace(&mut self.copies, part.copies),
            accumulators: std::mem::replace(&mut self.accumulators, part.accumulators),
        };
    }

    /// All chunks, each on its stage.
    pub fn take_chunks(&mut self) -> Vec<Chunk> {
        // The place of a chunk in work is free.
        self.parts.waiting.push(Part::default());
        self.switch(self.parts.waiting.len() as u32 - 1);
        self.parts.waiting.pop();
        let n_stages = self.parts.n_stages;
        let parts = std::mem::take(&mut self.parts.waiting);
        parts.into_iter().enumerate().map(|(i, p)| Chunk { stage: i as u32 % n_stages, ..p.chunk }).collect()
    }

    /// The chunk that computes a node; `None` where each reader does, since nothing has to be known for it.
    pub fn chunk_of(&self, node: NodeId) -> Option<u32> {
        let Some(pipeline) = &self.strategy.pipeline else { return Some(0) };
        let n = self.program.graph.node(node);
        if n.args.is_empty() {
            return None;
        }
        if let Some(&chunk) = pipeline.chunk_of.get(&node) {
            return Some(chunk);
        }
        if let Some(weight) = self.updated_weight(node) {
            return Some(self.parts.owner_of(weight));
        }
        let fwd = n.fwd.filter(|_| !matches!(n.op, Op::AddN(_))).and_then(|fwd| pipeline.chunk_of.get(&fwd));
        let homes = n.args.iter().filter_map(|a| self.parts.home.get(a));
        Some(fwd.or_else(|| homes.min()).copied().unwrap_or(0))
    }

    /// Fetches copies of what other chunks compute.
    pub fn import_all(&mut self, values: &[ValueId], phase: PhaseKind) {
        for &value in values {
            self.import(value, phase);
        }
    }

    /// Makes a program value known in the chunk in work if another one computes it, for a phase.
    pub fn import(&mut self, of: ValueId, phase: PhaseKind) {
        let is_input = || self.program.inputs.iter().any(|i| i.value == of);
        if !self.copies.all(of).is_empty() || self.copies.find_resident(of).is_some() || is_input() {
            return;
        }
        let phase = if self.step_level.contains(&of) { phase.max(PhaseKind::Reduce) } else { phase };
        let Some(node) = self.program.graph.producer(of) else { return };
        if self.program.graph.node(node).args.is_empty() {
            let layer = self.layer;
            self.emit_here(node);
            self.layer = layer;
        } else if let Some(&home) = self.parts.home.get(&of) {
            self.receive(of, home, phase);
        }
    }

    /// Sends a value from the chunk that computes it to the one in work.
    fn receive(&mut self, of: ValueId, home: u32, phase: PhaseKind) {
        let (here, channel) = (self.parts.at, self.parts.n_channels);
        self.parts.n_channels += 1;
        self.switch(home);
        let (value, sharding, phase) = self.outgoing(of, phase);
        let send = self.push(Send { channel, to: here }.into(), &[value], phase);
        self.chunk.graph.node_mut(send).layer = self.layer;
        self.switch(here);
        let recv = Recv { channel, from: home, ty: self.program.graph.value(of).ty.clone() };
        self.source(of, recv.into(), &sharding, phase);
    }

    /// The copy of a value that leaves the chunk in work, its placement, and the phase in which it does. What a forward phase
    /// computes leaves in that phase: by the time of the backward phase it is too late for a later chunk.
    fn outgoing(&mut self, of: ValueId, phase: PhaseKind) -> (ValueId, Sharding, PhaseKind) {
        if !phase.is_per_micro_batch() && self.copies.is_sum_over_micro_batches(of) {
            self.accumulate(of, None);
        }
        let copies = self.copies.readable(of, phase);
        let copy = copies.min_by_key(|copy| copy.sharding.is_partial()).cloned();
        let copy = copy.expect("invariant: a value is computed before it is sent");
        let phase = match (copy.phase, phase) {
            (Some(PhaseKind::Prologue), p) if p.is_per_micro_batch() => PhaseKind::Prologue,
            (Some(PhaseKind::Forward), PhaseKind::Backward) => PhaseKind::Forward,
            _ => phase,
        };
        (copy.value, copy.sharding, phase)
    }
}
