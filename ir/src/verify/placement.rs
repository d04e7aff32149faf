//! `G0205` placements, each by itself.

use super::Finding;
use super::context::ChunkCx;
use crate::id::ValueId;
use crate::mesh::{Mesh, Sharding};
use crate::plan::PhaseKind;

/// Every value of the chunk has a legal placement and the type of the program value that it is a copy of.
pub(super) fn check(cx: &ChunkCx<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (value, site, phase) in cx.values() {
        let why = well_placed(cx, value, phase).and_then(|()| is_copy(cx, value));
        if let Err(why) = why {
            findings.push(Finding::new("G0205", site, format!("`{}`: {why}", cx.name(value))));
        }
    }
    findings
}

fn well_placed(cx: &ChunkCx<'_>, value: ValueId, phase: Option<PhaseKind>) -> Result<(), String> {
    let value = cx.value(value);
    let sharding = value.sharding.as_ref().ok_or("the value has no placement")?;
    if let Some(axis) = sharding.axes().find(|a| a.index() >= cx.mesh.axes().len()) {
        return Err(format!("the mesh has no axis {}", axis.index()));
    }
    sharding.check(&value.ty.shape, cx.mesh)?;
    if !sharding.partial.is_sorted() {
        return Err("the axes of a partial sum must be in the order of the mesh".into());
    }
    check_temporal(sharding, phase)
}

fn check_temporal(sharding: &Sharding, phase: Option<PhaseKind>) -> Result<(), String> {
    match phase {
        _ if !sharding.axes().any(|a| a == Mesh::MB) => Ok(()),
        None => Err("a resident outlives micro-batches, so `mb` cannot be in its placement".into()),
        Some(phase) if phase.is_per_micro_batch() => Ok(()),
        Some(phase) => Err(format!("`mb` cannot be in a placement of phase `{}`", phase.name())),
    }
}

fn is_copy(cx: &ChunkCx<'_>, value: ValueId) -> Result<(), String> {
    let value = cx.value(value);
    let of = value.of.ok_or("the value does not say which value of the program it is a copy of")?;
    if !cx.facts.knows(of) {
        return Err("it is a copy of a value that the program does not have".into());
    }
    let ty = &cx.program().graph.value(of).ty;
    if *ty == value.ty {
        return Ok(());
    }
    Err(format!("its type is `{}`, that of `{}` in the program is `{ty}`", value.ty, cx.program_name(of)))
}
