//! `schedule`: the order in which the stage runs its phases; one stage accumulates gradients over micro-batches.

use galvatron_ir::plan::{PhaseKind, ScheduleStep};
use galvatron_ir::{Level, Module};

/// Writes the schedule of the only stage and raises the module to level `plan`.
pub fn schedule(module: &mut Module) {
    let once = |phase| ScheduleStep { phase, chunk: 0, micro_batch: None };
    let each = |phase, i| ScheduleStep { phase, chunk: 0, micro_batch: Some(i) };
    let mut steps = vec![once(PhaseKind::Prologue)];
    for i in 0..module.mesh.micro_batches() as u32 {
        steps.push(each(PhaseKind::Forward, i));
        steps.push(each(PhaseKind::Backward, i));
    }
    steps.push(once(PhaseKind::Reduce));
    steps.push(once(PhaseKind::Step));
    module.schedule = steps;
    module.level = Level::Plan;
}
