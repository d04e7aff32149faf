//! `schedule`: the order in which each stage runs its phases, whether backward is split, and how many micro-batches chunks hold at a time.

use super::split::split_backward;
use crate::strategy::{Pipeline, ScheduleKind, Strategy};
use galvatron_ir::Module;
use galvatron_ir::plan::{PhaseKind, ScheduleStep};

/// Writes the schedule of every stage; without stages, forward and backward of each micro-batch follow one another.
pub fn schedule(module: &mut Module, strategy: &Strategy) {
    if strategy.pipeline.as_ref().is_some_and(|pipeline| pipeline.schedule.splits_backward()) {
        module.chunks.iter_mut().for_each(split_backward);
    }
    let micro_batches = module.mesh.micro_batches() as u32;
    let Module { stages, chunks: all, .. } = module;
    let of_stages = match &strategy.pipeline {
        None => vec![one_forward_one_backward(0, micro_batches)],
        Some(pipeline) => passes(pipeline, micro_batches),
    };
    for (stage, (s, passes)) in stages.iter_mut().zip(of_stages).enumerate() {
        let hosted = strategy.pipeline.as_ref().map_or(vec![0], |pipeline| chunks(pipeline, stage as u32));
        let once = |phase, chunk: &u32| ScheduleStep { phase, chunk: *chunk, micro_batch: None };
        let each = passes.iter().map(|&Pass { phase, chunk, micro_batch }| ScheduleStep {
            phase,
            chunk: hosted[chunk as usize],
            micro_batch: Some(micro_batch),
        });
        // Sums of all chunks end in the first one, and new values of shared weights begin there.
        s.schedule = (hosted.iter().map(|c| once(PhaseKind::Prologue, c)))
            .chain(each)
            .chain(hosted.iter().rev().map(|c| once(PhaseKind::Reduce, c)))
            .chain(hosted.iter().map(|c| once(PhaseKind::Step, c)))
            .collect();
        if strategy.pipeline.is_some() {
            for (number, &chunk) in hosted.iter().enumerate() {
                let kept = most_kept(&passes, number as u32);
                // Where a chunk is alone on its stage and keeps one micro-batch, backward follows forward at once.
                all[chunk as usize].slots.count = if kept == 1 && hosted.len() == 1 { 0 } else { kept };
            }
        }
    }
}

/// The chunks of a stage, in the order of the model.
fn chunks(pipeline: &Pipeline, stage: u32) -> Vec<u32> {
    (stage..pipeline.n_chunks).step_by(pipeline.n_stages as usize).collect()
}

/// Forward or backward of one micro-batch of the `chunk`-th chunk of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Which of them.
    pub phase: PhaseKind,
    /// Number of the chunk on its stage.
    pub chunk: u32,
    /// The micro-batch.
    pub micro_batch: u32,
}

/// The passes of each stage in order.
pub fn passes(pipeline: &Pipeline, micro_batches: u32) -> Vec<Vec<Pass>> {
    let n_stages = pipeline.n_stages;
    let n_chunks = pipeline.n_chunks / n_stages;
    // Of each stage with the number of stages behind it.
    let each = |of: &dyn Fn(u32) -> Vec<Pass>| (0..n_stages).rev().map(of).collect();
    match pipeline.schedule {
        ScheduleKind::Gpipe => {
            let all = |phase| (0..micro_batches).map(move |micro_batch| Pass { phase, chunk: 0, micro_batch });
            each(&|_| all(PhaseKind::Forward).chain(all(PhaseKind::Backward)).collect())
        }
        ScheduleKind::OneForwardOneBackward => each(&|after| one_forward_one_backward(after, micro_batches)),
        ScheduleKind::Interleaved => {
            let warm_up = |after| 2 * after + (n_chunks - 1) * n_stages;
            each(&|after| interleaved(n_stages, n_chunks, warm_up(after), micro_batches))
        }
        ScheduleKind::ZeroBubble => zero_bubble(n_stages, micro_batches, |after| after + 1),
        ScheduleKind::ZeroBubble2p => zero_bubble(n_stages, micro_batches, |after| 2 * after + 1),
    }
}

/// So many micro-batches a stage are enough to see how many each chunk keeps at most, and which schedules run alike: every schedule but
/// GPipe has warmed up by then, and repeats itself.
const WARM_UPS: u32 = 5;

/// Micro-batches that each chunk is between forward and backward of at one time, at most.
pub fn in_flight(pipeline: &Pipeline, micro_batches: u32) -> Vec<u32> {
    if pipeline.schedule == ScheduleKind::Gpipe {
        return vec![micro_batches; pipeline.n_chunks as usize];
    }
    let passes = warmed_up(pipeline, micro_batches);
    let of = |chunk: u32| most_kept(&passes[(chunk % pipeline.n_stages) as usize], chunk / pipeline.n_stages);
    (0..pipeline.n_chunks).map(of).collect()
}

/// Whether the stages of two pipelines do the same in the same order.
pub fn run_alike(a: &Pipeline, b: &Pipeline, micro_batches: u32) -> bool {
    (a.n_stages, a.n_chunks) == (b.n_stages, b.n_chunks) && warmed_up(a, micro_batches) == warmed_up(b, micro_batches)
}

fn warmed_up(pipeline: &Pipeline, micro_batches: u32) -> Vec<Vec<Pass>> {
    passes(pipeline, micro_batches.min(WARM_UPS * pipeline.n_stages))
}

/// Micro-batches that a chunk of the stage is between forward and backward of at one time, at most.
fn most_kept(passes: &[Pass], chunk: u32) -> u32 {
    let is_split = passes.iter().any(|p| p.phase == PhaseKind::BackwardWeight);
    let end = if is_split { PhaseKind::BackwardWeight } else { PhaseKind::Backward };
    let (mut now, mut most) = (0u32, 0);
    for pass in passes.iter().filter(|p| p.chunk == chunk) {
        now += u32::from(pass.phase == PhaseKind::Forward);
        most = most.max(now);
        now -= u32::from(pass.phase == end);
    }
    most
}

/// `warm_up` forwards, then a forward and a backward in turn, then the other backwards.
fn one_forward_one_backward(warm_up: u32, micro_batches: u32) -> Vec<Pass> {
    interleaved(1, 1, warm_up, micro_batches)
}

/// The same over the chunks of a stage: groups of as many micro-batches as there are stages go through one chunk after the other, from
/// the first chunk on forward, from the last one on backward.
fn interleaved(n_stages: u32, n_chunks: u32, warm_up: u32, micro_batches: u32) -> Vec<Pass> {
    let total = n_chunks * micro_batches;
    let pass = |phase, i: u32| {
        let (group, inside) = (i / (n_stages * n_chunks), i % (n_stages * n_chunks));
        let chunk = inside / n_stages;
        let chunk = if phase == PhaseKind::Forward { chunk } else { n_chunks - 1 - chunk };
        Pass { phase, chunk, micro_batch: group * n_stages + inside % n_stages }
    };
    let warm_up = warm_up.min(total);
    let mut passes: Vec<Pass> = (0..warm_up).map(|i| pass(PhaseKind::Forward, i)).collect();
    for i in 0..total {
        passes.extend((warm_up + i < total).then(|| pass(PhaseKind::Forward, warm_up + i)));
        passes.push(pass(PhaseKind::Backward, i));
    }
    passes
}

/// The passes of stages that go through their micro-batches at one pace: a stage runs the backward that is ready, else a forward
/// if it is ready and fewer than `room` micro-batches are kept, else the gradients of weights that are left over. `room` is asked with the
/// number of stages behind.
fn zero_bubble(n_stages: u32, micro_batches: u32, room: impl Fn(u32) -> u32) -> Vec<Vec<Pass>> {
    let n = n_stages as usize;
    // Passes of each kind that each stage has run.
    let mut done = vec![[0u32; 3]; n];
    let mut orders = vec![Vec::new(); n];
    while done.iter().any(|&[.., weights]| weights < micro_batches) {
        // What the neighbours did in this round is ready in the next one.
        let before = done.clone();
        for s in 0..n {
            let [f, b, w] = before[s];
            let sent = if s == 0 { micro_batches } else { before[s - 1][0] };
            let returned = if s + 1 == n { f } else { before[s + 1][1] };
            let kind = match () {
                () if b < returned.min(f) => 1,
                () if f < sent && f - w < room((n - 1 - s) as u32) => 0,
                () if w < b => 2,
                () => continue,
            };
            let phase = [PhaseKind::Forward, PhaseKind::Backward, PhaseKind::BackwardWeight][kind];
            orders[s].push(Pass { phase, chunk: 0, micro_batch: done[s][kind] });
            done[s][kind] += 1;
        }
    }
    orders
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(schedule: ScheduleKind, n_stages: u32, n_chunks: u32, micro_batches: u32) -> Vec<String> {
        let pipeline = Pipeline { n_stages, n_chunks, schedule, chunk_of: Default::default() };
        let spell = |p: &Pass| format!("{}{}.{}", p.phase.letter(), p.chunk, p.micro_batch);
        let stage = |passes: &Vec<Pass>| passes.iter().map(spell).collect::<Vec<_>>().join(" ");
        passes(&pipeline, micro_batches).iter().map(stage).collect()
    }

    #[test]
    fn stages_warm_up_by_their_distance_from_the_end() {
        assert_eq!(
            text(ScheduleKind::OneForwardOneBackward, 2, 2, 3),
            ["F0.0 F0.1 B0.0 F0.2 B0.1 B0.2", "F0.0 B0.0 F0.1 B0.1 F0.2 B0.2"]
        );
        assert_eq!(text(ScheduleKind::Gpipe, 2, 2, 2), ["F0.0 F0.1 B0.0 B0.1"; 2]);
    }

    #[test]
    fn gradients_of_weights_fill_the_time_of_waiting() {
        assert_eq!(
            text(ScheduleKind::ZeroBubble, 2, 2, 3),
            ["F0.0 F0.1 B0.0 W0.0 F0.2 B0.1 W0.1 B0.2 W0.2", "F0.0 B0.0 W0.0 F0.1 B0.1 W0.1 F0.2 B0.2 W0.2"]
        );
        let counts = |stages: Vec<String>| stages.iter().map(|s| s.split(' ').count()).collect::<Vec<_>>();
        assert_eq!(counts(text(ScheduleKind::ZeroBubble2p, 4, 4, 8)), [24; 4]);
    }

    #[test]
    fn chunks_take_turns_by_groups_of_micro_batches() {
        assert_eq!(
            text(ScheduleKind::Interleaved, 2, 4, 2),
            ["F0.0 F0.1 F1.0 F1.1 B1.0 B1.1 B0.0 B0.1", "F0.0 F0.1 F1.0 B1.0 F1.1 B1.1 B0.0 B0.1"]
        );
    }

    #[test]
    fn gpipe_keeps_all_micro_batches() {
        let kept = |schedule, m| {
            let pipeline = Pipeline { n_stages: 4, n_chunks: 4, schedule, chunk_of: Default::default() };
            in_flight(&pipeline, m)
        };
        assert_eq!(kept(ScheduleKind::Gpipe, 9), [9; 4]);
        assert_eq!(kept(ScheduleKind::OneForwardOneBackward, 9), [4, 3, 2, 1]);
    }

    #[test]
    fn what_chunks_keep_does_not_grow_with_more_micro_batches() {
        let schedules = [
            ScheduleKind::Gpipe,
            ScheduleKind::OneForwardOneBackward,
            ScheduleKind::Interleaved,
            ScheduleKind::ZeroBubble,
            ScheduleKind::ZeroBubble2p,
        ];
        for schedule in schedules {
            for (n_stages, each) in [(1, 1), (2, 1), (3, 1), (5, 1), (8, 1), (2, 2), (3, 2), (4, 3), (2, 5)] {
                if (each > 1) != (schedule == ScheduleKind::Interleaved) {
                    continue;
                }
                let pipeline = Pipeline { n_stages, n_chunks: n_stages * each, schedule, chunk_of: Default::default() };
                for groups in [1, 2, 3, 4, 5, 6, 7, 11] {
                    let m = groups * n_stages;
                    let all = passes(&pipeline, m);
                    let of = |chunk: u32| most_kept(&all[(chunk % n_stages) as usize], chunk / n_stages);
                    let expected: Vec<u32> = (0..pipeline.n_chunks).map(of).collect();
                    assert_eq!(in_flight(&pipeline, m), expected, "{schedule:?} {n_stages} {each} {m}");
                }
            }
        }
    }
}
