//! `G0211` schedule: what runs when.

use super::{Finding, Site};
use crate::module::Module;
use crate::plan::{PhaseKind, ScheduleStep};

/// Checks the schedule entry by entry; phases without nodes may be left out.
pub(super) fn check(module: &Module) -> Vec<Finding> {
    let mut wanted = schedule(module).peekable();
    for (i, step) in module.schedule.iter().enumerate() {
        while wanted.next_if(|want| want != step && is_empty(module, want)).is_some() {}
        match wanted.next() {
            Some(want) if want == *step => {}
            want => return vec![wrong(i, want, Some(*step))],
        }
    }
    let missing = wanted.find(|w| !is_empty(module, w));
    missing.map(|w| wrong(module.schedule.len(), Some(w), None)).into_iter().collect()
}

/// The order in which one chunk runs its phases.
fn schedule(module: &Module) -> impl Iterator<Item = ScheduleStep> + use<> {
    let entry = |phase, micro_batch| ScheduleStep { phase, chunk: 0, micro_batch };
    let micro_batches = 0..module.mesh.micro_batches() as u32;
    let passes = micro_batches.flat_map(|m| [PhaseKind::Forward, PhaseKind::Backward].map(|phase| (phase, Some(m))));
    let once = |phase| std::iter::once((phase, None));
    let steps = once(PhaseKind::Prologue).chain(passes).chain(once(PhaseKind::Reduce)).chain(once(PhaseKind::Step));
    steps.map(move |(phase, micro_batch)| entry(phase, micro_batch))
}

fn is_empty(module: &Module, step: &ScheduleStep) -> bool {
    module.chunks.get(step.chunk as usize).is_none_or(|c| c.phase(step.phase).is_empty())
}

fn wrong(i: usize, want: Option<ScheduleStep>, found: Option<ScheduleStep>) -> Finding {
    let spell = |step: Option<ScheduleStep>| match step {
        Some(step) => match step.micro_batch {
            Some(micro_batch) => format!("`{}{}.{micro_batch}`", step.phase.letter(), step.chunk),
            None => format!("`{}{}`", step.phase.letter(), step.chunk),
        },
        None => "the end".to_string(),
    };
    let message = format!("entry {i} of the schedule must be {}, found {}", spell(want), spell(found));
    let help = "the prologue, then forward and backward of each micro-batch, then reduce and step";
    Finding::new("G0211", Site::Schedule(i), message).help(help)
}
