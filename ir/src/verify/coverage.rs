//! `G0210` coverage: the chunk does everything that the program must have done after a step.

use super::context::ChunkCx;
use super::{Finding, Site};
use crate::id::ValueId;
use crate::op::Op;
use crate::plan::{PhaseKind, ResidentRole};
use std::collections::BTreeSet;

/// The outputs that a step reports.
const REPORTED: [&str; 2] = ["loss", "grad_norm"];

/// Checks that updates are performed and reported outputs computed.
pub(super) fn check(cx: &ChunkCx<'_>) -> Vec<Finding> {
    let mut findings = missing_updates(cx);
    findings.extend(missing_outputs(cx));
    findings
}

fn missing_updates(cx: &ChunkCx<'_>) -> Vec<Finding> {
    let nodes = cx.nodes().map(|(_, id)| cx.chunk.graph.node(id));
    let done: BTreeSet<ValueId> = nodes.filter(|n| matches!(n.op, Op::Update(_))).map(|n| cx.of(n.args[0])).collect();
    let updates = cx.program().updates.iter().enumerate();
    updates
        .filter(|(_, (old, _))| !done.contains(old))
        .map(|(i, &(old, _))| {
            let message = format!("chunk {} does not update `{}`", cx.index, cx.program_name(old));
            Finding::new("G0210", Site::Update(i), message).help("add an `update` to phase `step`")
        })
        .collect()
}

fn missing_outputs(cx: &ChunkCx<'_>) -> Vec<Finding> {
    let complete: BTreeSet<ValueId> = complete_values(cx).collect();
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

/// The program values of which every rank has a full copy after the last micro-batch.
fn complete_values<'c>(cx: &'c ChunkCx<'_>) -> impl Iterator<Item = ValueId> + 'c {
    let after = cx.values().filter(|(value, _, phase)| match phase {
        Some(phase) => *phase >= PhaseKind::Reduce,
        None => cx.role(*value) == Some(ResidentRole::Accumulator),
    });
    let whole = after.filter(|(value, ..)| cx.sharding(*value).axes().next().is_none());
    whole.map(|(value, ..)| cx.of(value))
}
