//! `offload`: what the strategy puts into host memory lies there while nothing needs it.
//!
//! An activation is copied to host memory once it is computed, and back before its first reader in the backward phase. The optimizer
//! states of a weight are residents of host memory: each is copied to the device before its first reader in the step, and its new value back
//! once that is computed.

use crate::strategy::Strategy;
use galvatron_ir::op::Op;
use galvatron_ir::op::mem::{ToDevice, ToHost};
use galvatron_ir::plan::{Chunk, Memory, PhaseKind, ResidentRole};
use galvatron_ir::{Module, NodeId, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// Writes the copies of every chunk.
pub fn offload(module: &mut Module, strategy: &Strategy) {
    if strategy.host_states.is_empty() && strategy.host_activations.is_empty() {
        return;
    }
    let Module { program, chunks, .. } = module;
    let of_host = program.states.iter().filter(|state| strategy.host_states.contains(&state.weight));
    let states: BTreeSet<ValueId> = of_host.map(|state| state.value).collect();
    for chunk in chunks {
        offload_states(chunk, &states);
        offload_activations(chunk, &strategy.host_activations);
    }
}

/// Moves these states of the program to host memory.
fn offload_states(chunk: &mut Chunk, states: &BTreeSet<ValueId>) {
    let mut moved: BTreeSet<ValueId> = BTreeSet::new();
    for resident in chunk.residents.iter_mut().filter(|r| r.role == ResidentRole::State) {
        if chunk.graph.value(resident.value).of.is_some_and(|of| states.contains(&of)) {
            resident.memory = Memory::Host;
            moved.insert(resident.value);
        }
    }
    let new_values = new_values(chunk, &moved);
    for (phase, ..) in PhaseKind::ALL {
        let mut copies = Copies::default();
        for id in std::mem::take(chunk.phase_mut(phase)) {
            let node = chunk.graph.node(id);
            copies.layer = node.layer;
            match node.op {
                Op::Update(_) if moved.contains(&node.args[0]) => {
                    copies.replace(chunk, id, 1, |copies, chunk, new| Some(copies.of(chunk, ToHost.into(), new)));
                }
                _ => copies.replace(chunk, id, 0, |copies, chunk, state| {
                    moved.contains(&state).then(|| copies.of(chunk, ToDevice.into(), state))
                }),
            }
            copies.body.push(id);
            let results = chunk.graph.node(id).results.clone();
            for new in results.into_iter().filter(|result| new_values.contains(result)) {
                copies.of(chunk, ToHost.into(), new);
            }
        }
        *chunk.phase_mut(phase) = copies.body;
    }
}

/// What becomes the new value of one of these residents.
fn new_values(chunk: &Chunk, residents: &BTreeSet<ValueId>) -> BTreeSet<ValueId> {
    let nodes = chunk.nodes().map(|(_, id)| chunk.graph.node(id));
    let updates = nodes.filter(|node| matches!(node.op, Op::Update(_)) && residents.contains(&node.args[0]));
    updates.map(|node| node.args[1]).collect()
}

/// Moves what the forward phase leaves of these values of the program to the backward phase through host memory.
fn offload_activations(chunk: &mut Chunk, values: &BTreeSet<ValueId>) {
    let crossing = crossing(chunk, values);
    let mut host = Copies::default();
    for id in std::mem::take(chunk.phase_mut(PhaseKind::Forward)) {
        host.body.push(id);
        let results = chunk.graph.node(id).results.clone();
        for result in results.into_iter().filter(|result| crossing.contains(result)) {
            host.of(chunk, ToHost.into(), result);
        }
    }
    let mut device = Copies::default();
    for id in std::mem::take(chunk.phase_mut(PhaseKind::Backward)) {
        device.replace(chunk, id, 0, |device, chunk, value| {
            host.known.get(&value).map(|&copy| device.of(chunk, ToDevice.into(), copy))
        });
        device.body.push(id);
    }
    *chunk.phase_mut(PhaseKind::Forward) = host.body;
    *chunk.phase_mut(PhaseKind::Backward) = device.body;
}

/// The copies of these values of the program that the forward phase computes and the backward phase reads.
fn crossing(chunk: &Chunk, values: &BTreeSet<ValueId>) -> BTreeSet<ValueId> {
    let forward: BTreeSet<NodeId> = chunk.phase(PhaseKind::Forward).iter().copied().collect();
    let args = chunk.phase(PhaseKind::Backward).iter().flat_map(|&id| &chunk.graph.node(id).args);
    let is_moved = |value: &&ValueId| {
        let is_left = chunk.graph.producer(**value).is_some_and(|node| forward.contains(&node));
        is_left && chunk.graph.value(**value).of.is_some_and(|of| values.contains(&of))
    };
    args.filter(is_moved).copied().collect()
}

/// A phase as it is written anew, with the copies that it makes.
#[derive(Default)]
struct Copies {
    body: Vec<NodeId>,
    /// The segment that copies of residents are for.
    layer: Option<u32>,
    /// By what is copied.
    known: BTreeMap<ValueId, ValueId>,
}

impl Copies {
    /// The copy of a value that an op makes, written where the phase is unless it is known.
    fn of(&mut self, chunk: &mut Chunk, op: Op, value: ValueId) -> ValueId {
        if let Some(&copy) = self.known.get(&value) {
            return copy;
        }
        let graph = &mut chunk.graph;
        let source = graph.value(value).clone();
        let suffix = if matches!(op, Op::ToHost(_)) { "host" } else { "device" };
        let name = format!("{}.{suffix}", source.name.trim_end_matches(".host"));
        let layer = graph.producer(value).map_or(self.layer, |node| graph.node(node).layer);
        let node = graph.add_typed(op, &[value], vec![source.ty], &[name]);
        let copy = graph.node(node).results[0];
        graph.node_mut(node).layer = layer;
        graph.value_mut(copy).sharding = source.sharding;
        graph.value_mut(copy).of = source.of;
        self.body.push(node);
        self.known.insert(value, copy);
        copy
    }

    /// Lets a node read what `instead` gives for its operands from the `first` one on.
    fn replace(
        &mut self,
        chunk: &mut Chunk,
        node: NodeId,
        first: usize,
        mut instead: impl FnMut(&mut Copies, &mut Chunk, ValueId) -> Option<ValueId>,
    ) {
        for i in first..chunk.graph.node(node).args.len() {
            let arg = chunk.graph.node(node).args[i];
            if let Some(copy) = instead(self, chunk, arg) {
                chunk.graph.node_mut(node).args[i] = copy;
            }
        }
    }
}
