//! `G0212` places and `G0213` overlap: memory of one rank at level `plan`.

use super::context::{ChunkCx, node_name};
use super::{Finding, Part, Site};
use crate::cluster::Cluster;
use crate::id::ValueId;
use crate::plan::lifetime::{Lifetime, Owner, Reuse, lifetimes, reuses};
use crate::plan::{ALIGNMENT, Arena, Chunk, Place, Region, Slots};
use std::collections::{BTreeMap, BTreeSet};

/// Checks the places of all buffers, then that none overlaps another that is needed at the same time.
pub(super) fn check(cx: &ChunkCx<'_>) -> Vec<Finding> {
    if !cx.is_plan() {
        return Vec::new();
    }
    let stage = cx.chunk.stage as usize;
    if let Err(why) = check_regions(cx) {
        return vec![Finding::new("G0212", Site::Arena(stage), why)];
    }
    let buffers = lifetimes(cx.chunk, cx.mesh);
    let regions = Regions::new(cx, &buffers);
    let mut findings: Vec<Finding> =
        buffers.iter().enumerate().flat_map(|(i, b)| check_places(cx, b, regions.allowed[i])).collect();
    findings.extend(regions.shared(cx, &buffers));
    if findings.is_empty() {
        findings.extend(Sweep::new(cx, &buffers).run());
    }
    findings
}

/// The arena can be counted, and the slots lie inside of their region.
fn check_regions(cx: &ChunkCx<'_>) -> Result<(), String> {
    let Arena { persistent, slots, transient, host, host_slots } = cx.module.stage_of(cx.chunk).arena;
    let sum = [persistent, slots, transient, host, host_slots].into_iter().try_fold(0u64, u64::checked_add);
    if sum.is_none() {
        return Err("the arena has more bytes than can be counted".into());
    }
    let limit = cx.module.cluster.as_ref().map_or(u64::MAX, Cluster::host_bytes);
    if host + host_slots > limit {
        let bytes = host + host_slots;
        return Err(format!("{bytes} bytes lie in host memory, of which the cluster lets a device use {limit}"));
    }
    let Slots { count, bytes, offset, host_bytes, host_offset } = cx.chunk.slots;
    let regions = [(Region::Slot, bytes, offset, slots), (Region::HostSlot, host_bytes, host_offset, host_slots)];
    regions.into_iter().try_for_each(|slots| check_slots(cx, count, slots))
}

/// The slots of a chunk lie inside of a region: bytes of one, offset of the first, and bytes of the region.
fn check_slots(
    cx: &ChunkCx<'_>,
    count: u32,
    (region, bytes, offset, limit): (Region, u64, u64, u64),
) -> Result<(), String> {
    if !bytes.is_multiple_of(ALIGNMENT) || !offset.is_multiple_of(ALIGNMENT) {
        return Err(format!("the slots of chunk {} are not aligned to {ALIGNMENT} bytes", cx.index));
    }
    // The last slot may end before its alignment does.
    let end = bytes.checked_mul(u64::from(count)).and_then(|n| n.checked_add(offset));
    if count > 0 && end.is_none_or(|end| end >= limit.saturating_add(ALIGNMENT)) {
        return Err(format!("the slots of chunk {} end behind region `{}` of {limit} bytes", cx.index, region.name()));
    }
    Ok(())
}

/// In which regions the buffers of a chunk must lie, and which part of the arena is the chunk's own.
struct Regions {
    allowed: Vec<Region>,
}

impl Regions {
    /// A buffer that is written over another one lies where that lies.
    fn new(cx: &ChunkCx<'_>, buffers: &[Lifetime]) -> Regions {
        let mut allowed: Vec<Region> = buffers.iter().map(|b| b.region).collect();
        for Reuse { writer, over } in reuses(cx.chunk, buffers) {
            if place(cx, &buffers[writer]) == place(cx, &buffers[over]) {
                allowed[writer] = allowed[over];
            }
        }
        Regions { allowed }
    }

    /// What lives across phases is not shared with the other chunks of the stage.
    fn shared(&self, cx: &ChunkCx<'_>, buffers: &[Lifetime]) -> Option<Finding> {
        let earlier = cx.module.chunks[..cx.index as usize].iter().filter(|c| c.stage == cx.chunk.stage);
        let range = |region: Region, chunk: &Chunk, buffers: &[Lifetime]| {
            let kept = buffers.iter().filter(|b| b.region == region && b.bytes > 0);
            let ends = kept.filter_map(|b| place_in(chunk, b).map(|p| (p.offset, p.offset.saturating_add(b.bytes))));
            ends.fold((u64::MAX, 0), |(low, high), (start, end)| (low.min(start), high.max(end)))
        };
        let all = |chunk: &Chunk, buffers: &[Lifetime]| {
            let Slots { count, bytes, offset, host_bytes, host_offset } = chunk.slots;
            let slots =
                |offset: u64, bytes: u64| (offset, offset.saturating_add(bytes.saturating_mul(u64::from(count))));
            let [persistent, host] = [Region::Persistent, Region::Host].map(|region| range(region, chunk, buffers));
            [persistent, host, slots(offset, bytes), slots(host_offset, host_bytes)]
        };
        let own = all(cx.chunk, buffers);
        let overlaps = earlier.into_iter().any(|other| {
            let theirs = all(other, &lifetimes(other, cx.mesh));
            own.iter().zip(&theirs).any(|(&(a, b), &(c, d))| a < d && c < b)
        });
        let message = || format!("chunk {} overlaps another chunk of its stage in memory", cx.index);
        overlaps.then(|| Finding::new("G0213", Site::Arena(cx.chunk.stage as usize), message()))
    }
}

fn check_places(cx: &ChunkCx<'_>, buffer: &Lifetime, region: Region) -> Vec<Finding> {
    let root = check_place(cx, buffer, region).map_err(|why| Finding::new("G0212", site(cx, buffer), why));
    let Ok(place) = root else { return root.err().into_iter().collect() };
    let views = buffer.values.iter().skip(1).filter(|v| cx.value(**v).place != place);
    views.map(|&view| misplaced_view(cx, view, buffer.values[0])).collect()
}

fn misplaced_view(cx: &ChunkCx<'_>, view: ValueId, source: ValueId) -> Finding {
    let message = format!("`{}` is a view of `{}` and must have its place", cx.name(view), cx.name(source));
    Finding::new("G0212", cx.site_of(view), message)
}

/// The place of a buffer, or what is wrong with it.
fn check_place(cx: &ChunkCx<'_>, buffer: &Lifetime, region: Region) -> Result<Option<Place>, String> {
    let name = name(cx, buffer);
    let place = place(cx, buffer).ok_or_else(|| format!("{name} has no place"))?;
    if !place.offset.is_multiple_of(ALIGNMENT) {
        return Err(format!("the offset {} of {name} is no multiple of {ALIGNMENT}", place.offset));
    }
    if matches!(buffer.owner, Owner::Resident(..)) && place.region != buffer.region {
        return Err(format!("{name} outlives the step, so its region must be `{}`", buffer.region.name()));
    }
    let is_elsewhere = place.region.memory() != region.memory();
    if place.region != region && (is_elsewhere || cx.chunk.slots.count > 0 || place.region == Region::Slot) {
        let (found, wanted) = (place.region.name(), region.name());
        return Err(format!("{name} lies in region `{found}`, its lifetime asks for `{wanted}`"));
    }
    let (end, limit) = (place.offset.checked_add(buffer.bytes), region_bytes(cx, place.region));
    if end.is_none_or(|end| end > limit) {
        let (bytes, region) = (buffer.bytes, place.region.name());
        return Err(format!(
            "{name}, {bytes} bytes at {}, ends behind region `{region}` of {limit} bytes",
            place.offset
        ));
    }
    Ok(Some(place))
}

fn region_bytes(cx: &ChunkCx<'_>, region: Region) -> u64 {
    let arena = cx.module.stage_of(cx.chunk).arena;
    match region {
        Region::Persistent => arena.persistent,
        Region::Slot => cx.chunk.slots.bytes,
        Region::Transient => arena.transient,
        Region::Host => arena.host,
        Region::HostSlot => cx.chunk.slots.host_bytes,
    }
}

fn place(cx: &ChunkCx<'_>, buffer: &Lifetime) -> Option<Place> {
    place_in(cx.chunk, buffer)
}

fn place_in(chunk: &Chunk, buffer: &Lifetime) -> Option<Place> {
    match buffer.owner {
        Owner::Resident(value, _) | Owner::Value(value) => chunk.graph.value(value).place,
        Owner::Workspace(node) => chunk.graph.node(node).workspace,
    }
}

fn site(cx: &ChunkCx<'_>, buffer: &Lifetime) -> Site {
    match buffer.owner {
        Owner::Resident(value, _) | Owner::Value(value) => cx.site_of(value),
        Owner::Workspace(node) => cx.site(node, Part::Whole),
    }
}

fn name(cx: &ChunkCx<'_>, buffer: &Lifetime) -> String {
    match buffer.owner {
        Owner::Resident(value, _) | Owner::Value(value) => format!("`{}`", cx.name(value)),
        Owner::Workspace(node) => format!("the workspace of {}", node_name(&cx.chunk.graph, node)),
    }
}

/// Goes through the positions in order with the buffers that are live, by region and offset; no two of them overlap.
struct Sweep<'c, 'a> {
    cx: &'c ChunkCx<'a>,
    buffers: &'c [Lifetime],
    reuses: BTreeSet<Reuse>,
    /// Region and offset of a live buffer: its end and its index.
    live: BTreeMap<(Region, u64), (u64, usize)>,
    /// For each buffer the resident whose place it has taken over.
    resident: Vec<Option<usize>>,
}

impl<'c, 'a> Sweep<'c, 'a> {
    fn new(cx: &'c ChunkCx<'a>, buffers: &'c [Lifetime]) -> Self {
        let reuses = reuses(cx.chunk, buffers).into_iter().collect();
        Sweep { cx, buffers, reuses, live: BTreeMap::new(), resident: vec![None; buffers.len()] }
    }

    fn run(mut self) -> Vec<Finding> {
        let mut ending: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut findings = Vec::new();
        for (index, buffer) in self.buffers.iter().enumerate() {
            while let Some(entry) = ending.first_entry()
                && *entry.key() < buffer.first
            {
                entry.remove().into_iter().for_each(|ended| self.end(ended));
            }
            findings.extend(self.start(index));
            ending.entry(buffer.last).or_default().push(index);
        }
        findings
    }

    fn key(&self, index: usize) -> (Region, u64) {
        let place = place(self.cx, &self.buffers[index]).expect("invariant: places were checked");
        (place.region, place.offset)
    }

    /// Adds a buffer, unless it overlaps a live one.
    fn start(&mut self, index: usize) -> Option<Finding> {
        let (key, bytes) = (self.key(index), self.buffers[index].bytes);
        let end = key.1 + bytes;
        if bytes == 0 {
            return None;
        }
        let below = self.live.range(..(key.0, end)).next_back();
        if let Some((&at, &(other_end, other))) = below
            && at.0 == key.0
            && other_end > key.1
        {
            if at != key || !self.reuses.contains(&Reuse { writer: index, over: other }) {
                return Some(self.overlap(index, other));
            }
            let is_resident = matches!(self.buffers[other].owner, Owner::Resident(..));
            self.resident[index] = if is_resident { Some(other) } else { self.resident[other].take() };
        }
        self.live.insert(key, (end, index));
        None
    }

    /// Removes a buffer, unless another has been written over it; a resident that it was written over stays.
    fn end(&mut self, index: usize) {
        let key = self.key(index);
        if self.live.get(&key).is_some_and(|&(_, live)| live == index) {
            self.live.remove(&key);
            if let Some(resident) = self.resident[index].take() {
                self.live.insert(key, (key.1 + self.buffers[resident].bytes, resident));
            }
        }
    }

    fn overlap(&self, index: usize, other: usize) -> Finding {
        let (buffer, live) = (&self.buffers[index], &self.buffers[other]);
        let (name, live_name) = (name(self.cx, buffer), name(self.cx, live));
        let message = match self.cx.nodes().nth(live.last_read) {
            _ if matches!(live.owner, Owner::Resident(..)) => format!("{name} overlaps the resident {live_name}"),
            Some((_, reader)) if live.last_read > buffer.first => {
                let reader = node_name(&self.cx.chunk.graph, reader);
                format!("{name} overlaps {live_name}, which {reader} still reads")
            }
            _ => format!("{name} overlaps {live_name}, which is needed at the same time"),
        };
        Finding::new("G0213", site(self.cx, buffer), message)
    }
}
