//! How full the arena of each rank is while a step runs: a counter for each region.

use super::us;
use galvatron_ir::NodeId;
use galvatron_ir::mesh::Mesh;
use galvatron_ir::module::Module;
use galvatron_ir::plan::lifetime::{Lifetime, Owner, lifetimes};
use galvatron_ir::plan::{Chunk, Place, Region};
use galvatron_ir::trace::TraceEvent;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Bytes that are needed at one time: all that persists, activations of the micro-batches in flight, and the rest.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Occupancy {
    persistent: u64,
    slots: u64,
    transient: u64,
}

/// The counters of all ranks: a record where a value changes.
pub fn counters(plan: &Module, events: &[TraceEvent]) -> Vec<Value> {
    let chunks: Vec<Buffers> = plan.chunks.iter().map(|chunk| Buffers::new(chunk, plan.mesh_of(chunk))).collect();
    let mut ranks: BTreeMap<usize, Rank> = BTreeMap::new();
    let mut records = Vec::new();
    for event in events {
        let stage = plan.stage_of(event.chunk_in(plan));
        let rank = ranks.entry(event.rank).or_default();
        rank.now_ns = rank.now_ns.max(event.start_ns);
        let occupancy = rank.enter(event, &chunks, stage.arena.persistent);
        if rank.shown != Some(occupancy) {
            rank.shown = Some(occupancy);
            let Occupancy { persistent, slots, transient } = occupancy;
            records.push(json!({
                "name": "arena bytes", "ph": "C", "pid": event.rank, "tid": 0, "ts": us(rank.now_ns),
                "args": {"persistent": persistent, "slots": slots, "transient": transient},
            }));
        }
    }
    records
}

/// A rank on its way through its events.
#[derive(Default)]
struct Rank {
    now_ns: u64,
    shown: Option<Occupancy>,
    /// For each chunk and micro-batch whose activations lie in a slot the position that it has reached.
    in_flight: BTreeMap<(u32, u32), usize>,
    step: u64,
    /// The last node of a micro-batch is running: what lies in its slot is free after it.
    over: Option<(u32, u32)>,
}

impl Rank {
    fn enter(&mut self, event: &TraceEvent, chunks: &[Buffers], persistent: u64) -> Occupancy {
        if std::mem::replace(&mut self.step, event.step) != event.step {
            self.in_flight.clear();
        }
        if let Some(over) = self.over.take() {
            self.in_flight.remove(&over);
        }
        let buffers = &chunks[event.chunk as usize];
        let position = buffers.positions[&event.node];
        if let Some(micro_batch) = event.micro_batch {
            let key = (event.chunk, micro_batch);
            self.in_flight.insert(key, position);
            self.over = (position == buffers.last_of_micro_batch).then_some(key);
        }
        let kept = self.in_flight.iter().map(|(&(chunk, _), &at)| chunks[chunk as usize].slot_bytes[at]);
        Occupancy { persistent, slots: kept.sum(), transient: buffers.transient_bytes[position] }
    }
}

/// What a chunk needs at each position of its nodes.
struct Buffers {
    positions: BTreeMap<NodeId, usize>,
    last_of_micro_batch: usize,
    slot_bytes: Vec<u64>,
    transient_bytes: Vec<u64>,
}

impl Buffers {
    fn new(chunk: &Chunk, mesh: &Mesh) -> Buffers {
        let positions: BTreeMap<NodeId, usize> = chunk.nodes().enumerate().map(|(i, (_, node))| (node, i)).collect();
        let all = lifetimes(chunk, mesh);
        let placed: Vec<(Place, &Lifetime)> = all.iter().filter_map(|l| Some((place(chunk, l)?, l))).collect();
        let n = positions.len();
        let last = chunk.nodes().enumerate().filter(|(_, (phase, _))| phase.is_per_micro_batch()).last();
        Buffers {
            positions,
            last_of_micro_batch: last.map_or(0, |(i, _)| i),
            slot_bytes: bytes_by_position(&placed, Region::Slot, n),
            transient_bytes: bytes_by_position(&placed, Region::Transient, n),
        }
    }
}

/// Where a buffer lies.
fn place(chunk: &Chunk, lifetime: &Lifetime) -> Option<Place> {
    match lifetime.owner {
        Owner::Workspace(node) => chunk.graph.node(node).workspace,
        Owner::Resident(value, _) | Owner::Value(value) => chunk.graph.value(value).place,
    }
}

/// Bytes of the buffers of a region that are needed at each position; what is written over another buffer counts once.
fn bytes_by_position(placed: &[(Place, &Lifetime)], region: Region, n_positions: usize) -> Vec<u64> {
    let inside = || placed.iter().filter(move |(place, _)| place.region == region);
    let mut changes: Vec<(usize, bool, u64, u64)> = Vec::new();
    for (place, lifetime) in inside() {
        changes.push((lifetime.first, true, place.offset, lifetime.bytes));
        changes.push((lifetime.last + 1, false, place.offset, lifetime.bytes));
    }
    changes.sort_unstable();
    let mut changes = changes.into_iter().peekable();
    let mut live: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut total = 0;
    let of = |sizes: &[u64]| sizes.iter().max().copied().unwrap_or(0);
    let bytes = (0..n_positions).map(|position| {
        while let Some((_, starts, offset, bytes)) = changes.next_if(|change| change.0 <= position) {
            let sizes = live.entry(offset).or_default();
            total -= of(sizes);
            match starts {
                true => sizes.push(bytes),
                false => {
                    sizes.iter().position(|&size| size == bytes).map(|i| sizes.swap_remove(i));
                }
            }
            total += of(sizes);
        }
        total
    });
    bytes.collect()
}
