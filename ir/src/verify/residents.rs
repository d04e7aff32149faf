//! `G0209` residents: who writes them, how often, with what.

use super::context::ChunkCx;
use super::{Finding, Part, Site};
use crate::graph::Node;
use crate::id::NodeId;
use crate::mesh::Mesh;
use crate::op::Op;
use crate::plan::ResidentRole;
use std::collections::BTreeSet;

/// Checks residents and the nodes that write them.
pub(super) fn check(cx: &ChunkCx<'_>) -> Vec<Finding> {
    let mut findings = duplicates(cx);
    let mut n_writes = vec![0; cx.chunk.residents.len()];
    for (_, id) in cx.nodes() {
        let node = cx.chunk.graph.node(id);
        let found = match node.op {
            Op::Accumulate(_) => check_accumulate(cx, id, node),
            Op::Update(_) => check_update(cx, id, node),
            _ => continue,
        };
        findings.extend(found);
        if let Some(resident) = cx.resident[node.args[0].index()] {
            n_writes[resident] += 1;
            findings.extend((n_writes[resident] == 2).then(|| twice(cx, id, node)));
        }
    }
    findings.extend(never_accumulated(cx, &n_writes));
    findings
}

/// Two copies of one weight would drift apart.
fn duplicates(cx: &ChunkCx<'_>) -> Vec<Finding> {
    let mut seen = BTreeSet::new();
    let mut values = BTreeSet::new();
    let mut findings = Vec::new();
    for (i, resident) in cx.chunk.residents.iter().enumerate() {
        let of = cx.of(resident.value);
        let is_copy = resident.role != ResidentRole::Accumulator && !seen.insert(of);
        if is_copy || !values.insert(resident.value) {
            let message = format!("`{}` is a second resident of `{}`", cx.name(resident.value), cx.program_name(of));
            findings.push(Finding::new("G0209", Site::Resident(cx.index, i), message));
        }
    }
    findings
}

fn twice(cx: &ChunkCx<'_>, id: NodeId, node: &Node) -> Finding {
    let message = format!("`{}` is written by more than one `{}`", cx.name(node.args[0]), node.op.mnemonic());
    cx.finding("G0209", id, Part::Whole, message)
}

fn never_accumulated(cx: &ChunkCx<'_>, n_writes: &[u32]) -> Vec<Finding> {
    let residents = cx.chunk.residents.iter().enumerate();
    let idle = residents.filter(|(i, r)| r.role == ResidentRole::Accumulator && n_writes[*i] == 0);
    idle.map(|(i, r)| {
        let message = format!("no `accumulate` adds to the accumulator `{}`", cx.name(r.value));
        Finding::new("G0209", Site::Resident(cx.index, i), message)
    })
    .collect()
}

/// A term is the resident's value with the sum over `mb` still open.
fn check_accumulate(cx: &ChunkCx<'_>, id: NodeId, node: &Node) -> Option<Finding> {
    if cx.role(node.args[0]) != Some(ResidentRole::Accumulator) {
        let message = format!("`{}` is no accumulator", cx.name(node.args[0]));
        return Some(cx.finding("G0209", id, Part::Arg(0), message));
    }
    let mut expected = cx.sharding(node.args[0]).clone();
    expected.partial.insert(0, Mesh::MB);
    let found = cx.sharding(node.args[1]);
    let message = || {
        let (expected, found) = (expected.display(cx.mesh), found.display(cx.mesh));
        format!("operand 1 is placed `{found}`, a term of this accumulator must be `{expected}`")
    };
    (*found != expected).then(|| cx.finding("G0209", id, Part::Arg(1), message()))
}

/// The new value is the one that the program gives the weight or state, placed like the resident.
fn check_update(cx: &ChunkCx<'_>, id: NodeId, node: &Node) -> Option<Finding> {
    let (resident, new) = (node.args[0], node.args[1]);
    if !matches!(cx.role(resident), Some(ResidentRole::Parameter | ResidentRole::State)) {
        let message = format!("`{}` is no parameter and no state", cx.name(resident));
        return Some(cx.finding("G0209", id, Part::Arg(0), message));
    }
    let Some(&(_, expected)) = cx.facts.updates.get(&cx.of(resident)) else {
        let message = format!("the program does not update `{}`", cx.program_name(cx.of(resident)));
        return Some(cx.finding("G0209", id, Part::Arg(0), message));
    };
    if cx.of(new) != expected {
        let (found, expected) = (cx.program_name(cx.of(new)), cx.program_name(expected));
        let message = format!("the new value must be a copy of `{expected}`, not of `{found}`");
        return Some(cx.finding("G0209", id, Part::Arg(1), message));
    }
    let (have, want) = (cx.sharding(new), cx.sharding(resident));
    let message = || {
        let (have, want) = (have.display(cx.mesh), want.display(cx.mesh));
        format!("the new value is placed `{have}`, the resident `{want}`")
    };
    (have != want).then(|| cx.finding("G0209", id, Part::Arg(1), message()))
}
