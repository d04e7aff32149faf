//! How long the memory that a collective reads must not be given to others, so that it can run beside computation.
//!
//! What is written where a collective still reads waits for the collective. A value is free after its last reader, and a workspace after its node;
//! where devices communicate aside, both are held until something reads the collective's result, but not beyond the second
//! next collective, which hardly begins before this one has ended, nor beyond the phase. This is room for speed: the order in which
//! the device does its work is right without it.

use super::overlap::{communicates, communicates_aside, copies_host};
use galvatron_ir::ValueId;
use galvatron_ir::mesh::Mesh;
use galvatron_ir::plan::Chunk;
use galvatron_ir::plan::lifetime::{Lifetime, Owner, buffer_of_values};
use std::collections::BTreeMap;

/// Collectives that are begun until the memory of one is given away.
const BEGUN_AFTER: usize = 2;

/// For each buffer the last position at which nothing else may lie in its place.
pub(super) fn held_until(chunk: &Chunk, mesh: &Mesh, buffers: &[Lifetime]) -> Vec<usize> {
    let mut held: Vec<usize> = buffers.iter().map(|b| b.last).collect();
    if !communicates_aside(mesh) {
        return held;
    }
    let buffer_of = buffer_of_values(chunk, buffers);
    let workspaces: BTreeMap<_, usize> = buffers.iter().enumerate().filter_map(|(i, b)| workspace(b, i)).collect();
    let read_at = first_reads(chunk);
    let mut start = 0;
    for phase in &chunk.phases {
        let aside = |&(_, node): &(usize, &_)| communicates(chunk, *node) || copies_host(chunk, *node);
        let begun: Vec<(usize, _)> = phase.body.iter().enumerate().filter(aside).collect();
        for (n, &(i, &id)) in begun.iter().enumerate().filter(|_| phase.kind.is_per_micro_batch()) {
            let node = chunk.graph.node(id);
            let next = begun.get(n + BEGUN_AFTER).map_or(phase.body.len() - 1, |&(next, _)| next);
            let read = node.results.iter().filter_map(|r| read_at.get(r)).min().copied();
            let until = (start + next).min(read.unwrap_or(usize::MAX)).max(start + i);
            let operands = node.args.iter().filter_map(|arg| buffer_of[arg.index()]);
            for buffer in operands.chain(workspaces.get(&id).copied()) {
                held[buffer] = held[buffer].max(until);
            }
        }
        start += phase.body.len();
    }
    held
}

fn workspace(buffer: &Lifetime, index: usize) -> Option<(galvatron_ir::NodeId, usize)> {
    match buffer.owner {
        Owner::Workspace(node) => Some((node, index)),
        _ => None,
    }
}

/// The position of the first node that reads each value.
fn first_reads(chunk: &Chunk) -> BTreeMap<ValueId, usize> {
    let mut first = BTreeMap::new();
    for (position, (_, node)) in chunk.nodes().enumerate() {
        for &arg in &chunk.graph.node(node).args {
            first.entry(arg).or_insert(position);
        }
    }
    first
}
