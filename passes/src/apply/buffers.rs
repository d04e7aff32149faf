//! `assign-buffers`: every value of every rank gets its place in the arena of its memory.
//!
//! Residents lie one after the other in the persistent region, or in that of host memory. All other values live for the intervals, and in the regions, that
//! [`lifetimes`] gives; those of a region are packed in order of time, each into the smallest free gap that holds it.
//! A result that may be written over a dying operand shares its place.

use super::held::held_until;
use galvatron_ir::mesh::Mesh;
use galvatron_ir::plan::lifetime::{Lifetime, Owner, Reuse, lifetimes, reuses};
use galvatron_ir::plan::{ALIGNMENT, Arena, Chunk, Place, Region, Slots};
use galvatron_ir::{Level, Module};
use std::collections::BTreeMap;

/// Places all buffers, writes the arenas' sizes and raises the module to level `plan`.
///
/// The chunks of a stage have persistent memory and slots of their own, and share what is transient: one phase runs at a time.
pub fn assign_buffers(module: &mut Module) {
    let Module { stages, chunks, .. } = module;
    for (index, stage) in stages.iter_mut().enumerate() {
        let mut arena = Arena::default();
        for chunk in chunks.iter_mut().filter(|c| c.stage as usize == index) {
            assign(chunk, &stage.mesh, &mut arena);
        }
        stage.arena = arena;
    }
    module.level = Level::Plan;
}

/// Places the buffers of one chunk behind what the arena holds already.
fn assign(chunk: &mut Chunk, mesh: &Mesh, arena: &mut Arena) {
    let buffers = lifetimes(chunk, mesh);
    let reuses = reuses(chunk, &buffers);
    let held = held_until(chunk, mesh, &buffers);
    let starts = [arena.persistent, arena.host].map(|end| end.next_multiple_of(ALIGNMENT));
    let (places, size) = pack(&buffers, held, &reuses, starts);
    for (buffer, place) in buffers.iter().zip(places) {
        write_place(chunk, buffer, place);
    }
    arena.persistent = arena.persistent.max(size.persistent);
    arena.transient = arena.transient.max(size.transient);
    arena.host = arena.host.max(size.host);
    if chunk.slots.count > 0 {
        let (bytes, offset) = put_slots(&mut arena.slots, chunk.slots.count, size.slots);
        let has_host = size.host_slots > 0;
        let host = has_host.then(|| put_slots(&mut arena.host_slots, chunk.slots.count, size.host_slots));
        let (host_bytes, host_offset) = host.unwrap_or_default();
        chunk.slots = Slots { bytes, offset, host_bytes, host_offset, ..chunk.slots };
    }
}

/// Puts slots of some bytes behind the end of those of other chunks: bytes from one to the next, and the offset of the first.
fn put_slots(end: &mut u64, count: u32, bytes: u64) -> (u64, u64) {
    let (stride, offset) = (bytes.next_multiple_of(ALIGNMENT), end.next_multiple_of(ALIGNMENT));
    *end = offset + u64::from(count - 1) * stride + bytes;
    (stride, offset)
}

fn write_place(chunk: &mut Chunk, buffer: &Lifetime, place: Place) {
    for &value in &buffer.values {
        chunk.graph.value_mut(value).place = Some(place);
    }
    if let Owner::Workspace(node) = buffer.owner {
        chunk.graph.node_mut(node).workspace = Some(place);
    }
}

/// A place for each buffer, which is given to no other until the last position in `last`, and the ends of the regions; what lives across
/// steps starts at `persistent` and `host`.
fn pack(
    buffers: &[Lifetime],
    mut last: Vec<usize>,
    reuses: &[Reuse],
    [mut persistent, mut host]: [u64; 2],
) -> (Vec<Place>, Arena) {
    let leader = leaders(buffers.len(), reuses);
    for (i, &l) in leader.iter().enumerate() {
        last[l] = last[l].max(last[i]);
    }
    let mut places = vec![Place { region: Region::Transient, offset: 0 }; buffers.len()];
    let is_resident = |b: &Lifetime| matches!(b.owner, Owner::Resident(..));
    for (i, buffer) in buffers.iter().enumerate().filter(|(_, b)| is_resident(b)) {
        let end = if buffer.region == Region::Host { &mut host } else { &mut persistent };
        places[i] = Place { region: buffer.region, offset: *end };
        *end += buffer.bytes.next_multiple_of(ALIGNMENT);
    }
    // What lives across phases lies behind the residents.
    let heap = |(region, _)| match region {
        Region::Persistent => Heap::starting_at(persistent),
        Region::Host => Heap::starting_at(host),
        Region::Slot | Region::Transient | Region::HostSlot => Heap::default(),
    };
    let mut heaps = Region::ALL.map(heap);
    // Buffers come in order of their first position.
    for (i, buffer) in buffers.iter().enumerate().filter(|(i, b)| leader[*i] == *i && !is_resident(b)) {
        let bytes = buffer.bytes.next_multiple_of(ALIGNMENT);
        let heap = &mut heaps[buffer.region as usize];
        places[i] = Place { region: buffer.region, offset: heap.allocate(bytes, buffer.first, last[i]) };
    }
    for i in 0..places.len() {
        places[i] = places[leader[i]];
    }
    let end = |region| {
        let ends = places.iter().zip(buffers).filter(|(p, _)| p.region == region).map(|(p, b)| p.offset + b.bytes);
        ends.max().unwrap_or(0)
    };
    let arena = Arena {
        persistent: end(Region::Persistent),
        slots: end(Region::Slot),
        transient: end(Region::Transient),
        host: end(Region::Host),
        host_slots: end(Region::HostSlot),
    };
    (places, arena)
}

/// For each buffer the first one of those that share its place.
fn leaders(n_buffers: usize, reuses: &[Reuse]) -> Vec<usize> {
    let mut leader: Vec<usize> = (0..n_buffers).collect();
    for reuse in reuses {
        leader[reuse.writer] = leader[reuse.over];
    }
    leader
}

/// A heap in simulated time.
#[derive(Default)]
struct Heap {
    /// Free gaps below `top`: length by offset.
    free: BTreeMap<u64, u64>,
    /// Buffers in use: (last position, offset) to length.
    used: BTreeMap<(usize, u64), u64>,
    /// Highest end so far.
    top: u64,
}

impl Heap {
    /// An empty heap above what others use.
    fn starting_at(top: u64) -> Heap {
        Heap { top, ..Heap::default() }
    }

    fn allocate(&mut self, bytes: u64, first: usize, last: usize) -> u64 {
        while let Some((&(end, offset), &len)) = self.used.first_key_value() {
            if end >= first {
                break;
            }
            self.used.remove(&(end, offset));
            self.release(offset, len);
        }
        let fitting = self.free.iter().filter(|(_, len)| **len >= bytes).map(|(&o, &len)| (len, o)).min();
        let offset = match fitting {
            Some((len, offset)) => {
                self.free.remove(&offset);
                if len > bytes {
                    self.free.insert(offset + bytes, len - bytes);
                }
                offset
            }
            None => self.grow(bytes),
        };
        if bytes > 0 {
            self.used.insert((last, offset), bytes);
        }
        offset
    }

    /// Room at the top, a free gap there included.
    fn grow(&mut self, bytes: u64) -> u64 {
        let gap = self.free.last_key_value().map(|(&o, &len)| (o, len)).filter(|(o, len)| o + len == self.top);
        let offset = match gap {
            Some((offset, _)) => {
                self.free.remove(&offset);
                offset
            }
            None => self.top,
        };
        self.top = offset + bytes;
        offset
    }

    /// Gives a gap back and joins it with its neighbours.
    fn release(&mut self, offset: u64, len: u64) {
        let (mut offset, mut len) = (offset, len);
        if let Some((&o, &l)) = self.free.range(..offset).next_back()
            && o + l == offset
        {
            self.free.remove(&o);
            (offset, len) = (o, len + l);
        }
        if let Some(l) = self.free.remove(&(offset + len)) {
            len += l;
        }
        self.free.insert(offset, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_that_do_not_meet_share_memory() {
        let mut heap = Heap::default();
        let a = heap.allocate(128, 0, 1);
        let b = heap.allocate(64, 1, 5);
        let c = heap.allocate(64, 2, 3);
        let d = heap.allocate(64, 2, 3);
        assert_eq!((a, b, c, d, heap.top), (0, 128, 0, 64, 192));
        assert_eq!(heap.allocate(192, 9, 9), 0);
    }
}
