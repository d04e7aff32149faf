//! `G0212` places and `G0213` overlap: memory of one rank at level `plan`.

use super::context::{ChunkCx, node_name};
use super::{Finding, Part, Site};
use crate::id::ValueId;
use crate::plan::lifetime::{Lifetime, Owner, Reuse, lifetimes, reuses};
use crate::plan::{ALIGNMENT, Place, Region};
use std::collections::{BTreeMap, BTreeSet};

/// Checks the places of all buffers, then that none overlaps another that is needed at the same time.
pub(super) fn check(cx: &ChunkCx<'_>) -> Vec<Finding> {
    if !cx.is_plan() {
        return Vec::new();
    }
    if cx.module.arena.persistent.checked_add(cx.module.arena.transient).is_none() {
        return vec![Finding::new("G0212", Site::Arena, "the arena has more bytes than can be counted")];
    }
    let buffers = lifetimes(cx.chunk, cx.mesh);
    let mut findings: Vec<Finding> = buffers.iter().flat_map(|b| check_places(cx, b)).collect();
    if findings.is_empty() {
        findings.extend(Sweep::new(cx, &buffers).run());
    }
    findings
}

fn check_places(cx: &ChunkCx<'_>, buffer: &Lifetime) -> Vec<Finding> {
    let root = check_place(cx, buffer).map_err(|why| Finding::new("G0212", site(cx, buffer), why));
    let Ok(place) = root else { return root.err().into_iter().collect() };
    let views = buffer.values.iter().skip(1).filter(|v| cx.value(**v).place != place);
    views.map(|&view| misplaced_view(cx, view, buffer.values[0])).collect()
}

fn misplaced_view(cx: &ChunkCx<'_>, view: ValueId, source: ValueId) -> Finding {
    let message = format!("`{}` is a view of `{}` and must have its place", cx.name(view), cx.name(source));
    Finding::new("G0212", cx.site_of(view), message)
}

/// The place of a buffer, or what is wrong with it.
fn check_place(cx: &ChunkCx<'_>, buffer: &Lifetime) -> Result<Option<Place>, String> {
    let name = name(cx, buffer);
    let place = place(cx, buffer).ok_or_else(|| format!("{name} has no place"))?;
    if !place.offset.is_multiple_of(ALIGNMENT) {
        return Err(format!("the offset {} of {name} is no multiple of {ALIGNMENT}", place.offset));
    }
    if matches!(buffer.owner, Owner::Resident(..)) && place.region != Region::Persistent {
        return Err(format!("{name} outlives the step, so its region must be `persistent`"));
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
    match region {
        Region::Persistent => cx.module.arena.persistent,
        Region::Transient => cx.module.arena.transient,
    }
}

fn place(cx: &ChunkCx<'_>, buffer: &Lifetime) -> Option<Place> {
    match buffer.owner {
        Owner::Resident(value, _) | Owner::Value(value) => cx.value(value).place,
        Owner::Workspace(node) => cx.chunk.graph.node(node).workspace,
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
