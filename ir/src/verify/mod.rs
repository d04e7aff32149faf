//! The verifier: what must hold of a module, whoever made it.
//!
//! A module that verifies means the same as its program, on every rank and for every number of micro-batches: placements are
//! checked op by op, and after erasing collectives, recomputation, phases and `mb` the chunk computes the program.
//!
//! - `G0201` *order*: every node runs once, after the nodes whose results it reads; phases come once each and in order.
//! - `G0202` *types*: result types are what the op infers from its operands.
//! - `G0203` *operands*: the operand placements of a compute node fit the op's factor rule; partial sums enter linear ops only.
//! - `G0204` *results*: result placements follow from the operands by that rule. Factors that are in no operand may be sharded
//!   freely; data is loaded one micro-batch at a time.
//! - `G0205` *placements*: every value of a chunk has a placement that divides its shape and the type of the program value
//!   that it is a copy of; `mb` occurs in forward and backward only. The mesh has no empty axis.
//! - `G0206` *collectives*: a collective is legal for its operand's placement and gives its result's; never over `mb`.
//! - `G0207` *erasure*: a compute node has the op of the program node whose results its results are copies of, or computes it together
//!   with the other ranks of a ring, and its
//!   operands are copies of that node's operands; collectives and sums over micro-batches keep what a value is a copy of.
//! - `G0208` *phases*: what is cut into micro-batches stays in forward and backward; accumulators are read after the last
//!   micro-batch has been added, there too by what runs with that one only; parameters and states are not read after their update.
//! - `G0209` *residents*: one resident a weight and state in each chunk; one `accumulate` an accumulator, one `update` for each update of
//!   the program, each with the value and the placement that its resident needs.
//! - `G0210` *coverage*: the chunks perform every update of the program, each on its own copy, and have its loss and gradient norm.
//! - `G0211` *schedule*: each chunk's prologue, then forward and backward of each micro-batch once and in order, then reduce and
//!   step; no more micro-batches between forward and backward than the chunk has slots; no stage waits for ever for another,
//!   be it for a message or for room for one.
//! - `G0212` *places*: every buffer has an aligned place inside its region; views share their source's, residents persist, and
//!   what a chunk with slots leaves from forward to backward lies in a slot.
//! - `G0213` *overlap*: buffers that are needed at the same time share no bytes, except where one is written over another
//!   that dies ([`reuses`](crate::plan::lifetime::reuses)).
//! - `G0214` *declarations*: inputs, weights, states, updates and outputs of the program are well formed; from level
//!   `training` on every trainable weight has one update.
//! - `G0215` *stages*: stages cover the ranks without overlap, with the same micro-batches; every channel has one send and one receive,
//!   which name each other's chunk and one program value, in one phase and one placement.
//! - `G0216` *host memory*: what lies there is read by copies to the device only, and written by copies from it; copies keep placements.
//!
//! Checks that need others to hold run only if those found nothing.

mod collective;
mod context;
mod coverage;
mod declarations;
mod erasure;
mod finding;
mod host;
mod locate;
mod memory;
mod messages;
mod operand;
mod order;
mod phases;
mod placement;
mod program;
mod residents;
mod schedule;
mod source;
mod stages;
#[cfg(test)]
mod tests;

pub use finding::{Finding, Part, Site};
pub use locate::{Locate, diagnostics, without_text};
pub use source::check;

use crate::mesh::Mesh;
use crate::module::{Level, Module};
use crate::plan::Room;
use context::{ChunkCx, ProgramFacts};

/// Every broken invariant of a module; none if it is sound.
pub fn verify(module: &Module) -> Vec<Finding> {
    let facts = ProgramFacts::new(&module.program);
    let mut findings = program::check(module, &facts);
    findings.extend(chunk_count(module));
    findings.extend(std::iter::once(&module.mesh).chain(module.stages.iter().map(|s| &s.mesh)).filter_map(mesh));
    if findings.is_empty() {
        findings.extend(stages::check(module));
    }
    if findings.is_empty() {
        for index in 0..module.chunks.len() {
            findings.extend(check_chunk(&ChunkCx::new(module, &facts, index)));
        }
    }
    if findings.is_empty() {
        findings.extend(messages::check(module));
    }
    if findings.is_empty() && module.level == Level::Plan {
        findings.extend(schedule::check(module));
    }
    findings
}

/// Stages of a sound plan that wait for ever where messages from one rank to another have so much room.
pub fn deadlocks(module: &Module, room: Room) -> Vec<Finding> {
    schedule::deadlocks(module, room)
}

/// A module has chunks from level `sharded` on and none before.
fn chunk_count(module: &Module) -> Option<Finding> {
    let (found, level) = (module.chunks.len(), module.level.name());
    let message = match (module.level >= Level::Sharded, found) {
        (true, 0) => format!("a module at level `{level}` has at least one chunk"),
        (false, 1..) => format!("a module at level `{level}` has no chunks, found {found}"),
        _ => return None,
    };
    Some(Finding::new("G0201", Site::Module, message))
}

/// Every axis has a position, and the parts of a value can be counted.
fn mesh(mesh: &Mesh) -> Option<Finding> {
    let axes = mesh.axes();
    let parts = axes.iter().try_fold(1u64, |n, a| n.checked_mul(u64::from(a.size)));
    let message =
        || format!("the sizes of the axes, {:?}, are no mesh", axes.iter().map(|a| a.size).collect::<Vec<_>>());
    (parts.is_none_or(|n| n == 0)).then(|| Finding::new("G0205", Site::Module, message()))
}

/// A check of a chunk.
type Check = fn(&ChunkCx<'_>) -> Vec<Finding>;

/// Checks a chunk in rounds; each relies on those before.
fn check_chunk(cx: &ChunkCx<'_>) -> Vec<Finding> {
    let rounds: [&[Check]; 4] = [
        &[order::check_chunk],
        &[placement::check],
        &[
            operand::check,
            collective::check,
            erasure::check,
            phases::check,
            residents::check,
            coverage::check,
            host::check,
        ],
        &[memory::check],
    ];
    let found = rounds.iter().map(|checks| checks.iter().flat_map(|check| check(cx)).collect::<Vec<_>>());
    found.into_iter().find(|findings| !findings.is_empty()).unwrap_or_default()
}
