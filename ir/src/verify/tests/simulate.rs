//! A plan that verifies reads every value before anything overwrites it: two steps on memory whose blocks are marked with the
//! buffer that was last written there.

use super::fixture::mlp;
use super::random::Random;
use super::verify;
use crate::id::{NodeId, ValueId};
use crate::module::{Level, Module};
use crate::op::Op;
use crate::plan::lifetime::{buffer_of_values, lifetimes, workspace_bytes};
use crate::plan::{ALIGNMENT, Place, Region};
use std::collections::BTreeMap;

/// Marks of the blocks of one rank's arena.
struct Memory<'a> {
    module: &'a Module,
    buffer_of: Vec<Option<usize>>,
    marks: BTreeMap<(Region, u64), usize>,
}

impl Memory<'_> {
    fn blocks(&self, place: Place, bytes: u64) -> impl Iterator<Item = (Region, u64)> + use<> {
        (place.offset / ALIGNMENT..(place.offset + bytes).div_ceil(ALIGNMENT)).map(move |b| (place.region, b))
    }

    fn blocks_of(&self, value: ValueId) -> impl Iterator<Item = (Region, u64)> + use<> {
        let chunk = &self.module.chunks[0];
        let bytes = chunk.local_type(value, &self.module.mesh).bytes();
        self.blocks(chunk.graph.value(value).place.unwrap(), bytes)
    }

    fn write(&mut self, value: ValueId) {
        let mark = self.buffer_of[value.index()].unwrap();
        let blocks = self.blocks_of(value);
        self.marks.extend(blocks.map(|b| (b, mark)));
    }

    fn is_intact(&self, value: ValueId) -> bool {
        self.blocks_of(value).all(|b| self.marks.get(&b) == self.buffer_of[value.index()].as_ref())
    }

    /// Scratch memory is overwritten while the node runs.
    fn scribble(&mut self, node: NodeId) {
        let chunk = &self.module.chunks[0];
        if let Some(place) = chunk.graph.node(node).workspace {
            let bytes = workspace_bytes(chunk, node, &self.module.mesh);
            let blocks = self.blocks(place, bytes);
            self.marks.extend(blocks.map(|b| (b, usize::MAX)));
        }
    }

    /// Runs a node; whether it finds its operands.
    fn run(&mut self, id: NodeId, first: bool) -> bool {
        let node = self.module.chunks[0].graph.node(id);
        let place = |v: ValueId| self.module.chunks[0].graph.value(v).place;
        let alias = node.op.alias();
        let (late, early): (Vec<_>, Vec<_>) = node.results.iter().enumerate().partition(|(i, r)| {
            let over = alias.reusable(*i, node.results.len());
            over.iter().filter_map(|&o| node.args.get(o)).any(|&arg| place(arg) == place(**r))
        });
        self.scribble(id);
        early.iter().for_each(|(_, r)| self.write(**r));
        let unread = usize::from(matches!(node.op, Op::Update(_)) || (first && matches!(node.op, Op::Accumulate(_))));
        let intact = node.args.iter().skip(unread).all(|&arg| self.is_intact(arg));
        late.iter().for_each(|(_, r)| self.write(**r));
        self.scribble(id);
        if matches!(node.op, Op::Update(_) | Op::Accumulate(_)) {
            self.write(node.args[0]);
        }
        intact
    }
}

/// Whether every node of two steps finds its operands.
fn runs(module: &Module) -> bool {
    let chunk = &module.chunks[0];
    let buffers = lifetimes(chunk, &module.mesh);
    let mut memory = Memory { module, buffer_of: buffer_of_values(chunk, &buffers), marks: BTreeMap::new() };
    chunk.residents.iter().for_each(|r| memory.write(r.value));
    let mut intact = true;
    for _ in 0..2 {
        for step in &module.stages[0].schedule {
            for &node in chunk.phase(step.phase) {
                intact &= memory.run(node, step.micro_batch == Some(0));
            }
        }
    }
    intact
}

/// Moves a value to the place of another one, or to any block of the arena.
fn move_one(m: &mut Module, random: &mut Random) {
    let graph = &mut m.chunks[0].graph;
    let computed: Vec<ValueId> = graph.value_ids().collect();
    let (v, w) = (computed[random.below(computed.len())], computed[random.below(computed.len())]);
    let anywhere = random.below((m.stages[0].arena.transient / ALIGNMENT) as usize) as u64 * ALIGNMENT;
    let place = Place { region: Region::Transient, offset: anywhere };
    graph.value_mut(v).place = if random.below(2) == 0 { graph.value(w).place } else { Some(place) };
}

#[test]
fn what_verifies_reads_nothing_that_was_overwritten() {
    let good = mlp(Level::Plan);
    assert!(runs(&good));
    let (mut n_good, mut n_broken) = (0, 0);
    for seed in 0..4000 {
        let mut random = Random::new(seed);
        let mut module = good.clone();
        for _ in 0..=random.below(4) {
            move_one(&mut module, &mut random);
        }
        if verify(&module).is_empty() {
            n_good += 1;
            assert!(runs(&module), "seed {seed}");
        } else if module.chunks[0].graph.value_ids().all(|v| module.chunks[0].graph.value(v).place.is_some()) {
            n_broken += usize::from(!runs(&module));
        }
    }
    assert!(n_good > 500 && n_broken > 500, "{n_good} good, {n_broken} broken");
}
