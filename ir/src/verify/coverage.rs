//! `G0210` coverage: the chunk does everything that the program must have done after a step.

use super::context::ChunkCx;
use super::{Finding, Site};
use crate::id::ValueId;
use crate::op::Op;
use crate::plan::{Chunk, PhaseKind, ResidentRole};
use std::collections::BTreeSet;

/// The outputs that a step reports.
const REPORTED: [&str; 2] = ["loss", "grad_norm"];

/// Checks that updates are performed and reported outputs computed.
pub(super) fn check(cx: &ChunkCx<'_>) -> Vec<Finding> {
    let mut findings = missing_updates(cx);
    findings.extend(missing_outputs(cx));
    findings
}

/// Every chunk updates its copies; what no chunk has, the first one misses.
fn missing_updates(cx: &ChunkCx<'_>) -> Vec<Finding> {
    let nodes = cx.nodes().map(|(_, id)| cx.chunk.graph.node(id));
    let done: BTreeSet<ValueId> = nodes.filter(|n| matches!(n.op, Op::Update(_))).map(|n| cx.of(n.args[0])).collect();
    let has = |chunk: &Chunk, old: ValueId| chunk.residents.iter().any(|r| chunk.graph.value(r.value).of == Some(old));
    let is_ours = |old: ValueId| match cx.index {
        0 => has(cx.chunk, old) || !cx.module.chunks.iter().any(|chunk| has(chunk, old)),
        _ => has(cx.chunk, old),
    };
    let updates = cx.program().updates.iter().enumerate();
    updates
        .filter(|&(_, &(old, _))| !done.contains(&old) && is_ours(old))
        .map(|(i, &(old, _))| {
            let message = format!("chunk {} does not update `{}`", cx.index, cx.program_name(old));
            Finding::new("G0210", Site::Update(i), message).help("add an `update` to phase `step`")
        })
        .collect()
}

/// What no chunk has, the last one misses.
fn missing_outputs(cx: &ChunkCx<'_>) -> Vec<Finding> {
    if cx.index as usize + 1 < cx.module.chunks.len() {
        return Vec::new();
    }
    let complete: BTreeSet<ValueId> = cx.module.chunks.iter().flat_map(complete_values).collect();
    let outputs = cx.program().outputs.iter().enumerate();
    let missing = outputs.filter(|(_, (name, v))| REPORTED.contains(&name.as_str()) && !complete.contains(v));
    missing
        .map(|(i, (name, value))| {
            let message =
                format!("chunk {} has no complete copy of `{}`, the {name}", cx.index, cx.program_name(*value));
            let help = "compute it in phase `reduce` or `step`, and resolve its partial sums";
            Finding::new("G0210", Site::Output(i), message).help(help)
        })
        .collect()
}

/// The program values of which every rank of the chunk's stage has a full copy after the last micro-batch.
fn complete_values(chunk: &Chunk) -> impl Iterator<Item = ValueId> + '_ {
    let after = chunk.nodes().filter(|(phase, _)| *phase >= PhaseKind::Reduce);
    let computed = after.flat_map(|(_, node)| chunk.graph.node(node).results.iter().copied());
    let sums = chunk.residents.iter().filter(|r| r.role == ResidentRole::Accumulator).map(|r| r.value);
    let is_whole = |v: &ValueId| chunk.graph.value(*v).sharding.as_ref().is_some_and(|s| s.axes().next().is_none());
    computed.chain(sums).filter(is_whole).filter_map(|v| chunk.graph.value(v).of)
}
