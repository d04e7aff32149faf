//! Kinds of pipelines: numbers of equal stages with the schedule in which they run their micro-batches.
//!
//! Where the pins leave it open, every number of stages is tried with every schedule but GPipe, which takes the time of one forward and
//! one backward in turn, and more memory. With T_i the time of stage i for all m micro-batches and v chunks a stage, a step takes about
//! max T_i + Σ of the others' T_j / (m v): while the slowest stage works it is never idle, and the others fill and drain it; under zero
//! bubble a part of that is filled. The replay of a plan runs the schedules against each other.

use super::assemble::StagesChoice;
use super::candidates::SpaceBuilder;
use super::pins::PinFault;
use crate::apply::{in_flight, run_alike};
use crate::strategy::{Pipeline, ScheduleKind};
use galvatron_ir::mesh::Mesh;
use std::collections::BTreeMap;
use std::ops::Range;

/// A number of equal stages with a schedule, whatever the number of micro-batches.
#[derive(Clone, Debug)]
pub struct Stages {
    /// The mesh of one stage.
    pub mesh: Mesh,
    n_stages: u32,
    n_chunks: u32,
    schedule: ScheduleKind,
}

/// Chunks a stage of the interleaved schedules that are tried.
const TRIED_CHUNKS: u32 = 2;

impl Stages {
    /// The stages that the pins allow, those of one mesh beside each other.
    ///
    /// # Errors
    /// When the ranks or the layers cannot be cut as pinned.
    pub fn all(builder: &SpaceBuilder<'_>) -> Result<Vec<Stages>, PinFault> {
        let (pins, world) = (builder.pins, &builder.module.mesh);
        let first = Stages::pinned(builder)?;
        if pins.pp.is_some() {
            return Ok(vec![first]);
        }
        let mut all = vec![first];
        let most = cuts(&builder.is_layer).len() as u64 + 1;
        for n_stages in 2..=world.world().min(most) as u32 {
            let Some(mesh) = world.part_of(u64::from(n_stages)) else { continue };
            let stages =
                |each: u32, schedule| Stages { mesh: mesh.clone(), n_stages, n_chunks: n_stages * each, schedule };
            let each = pins.virtual_stages.unwrap_or(TRIED_CHUNKS);
            let tried = [
                stages(1, ScheduleKind::Gpipe),
                stages(1, ScheduleKind::OneForwardOneBackward),
                stages(each, ScheduleKind::Interleaved),
                stages(1, ScheduleKind::ZeroBubble),
                stages(1, ScheduleKind::ZeroBubble2p),
            ];
            let is_asked_for = |stages: &Stages| match pins.schedule {
                Some(schedule) => stages.schedule == schedule,
                // It takes the time of one forward and one backward in turn, and more memory.
                None if stages.schedule == ScheduleKind::Gpipe => false,
                None => pins.virtual_stages.is_none_or(|each| stages.n_chunks == n_stages * each),
            };
            all.extend(tried.into_iter().filter(|s| is_asked_for(s) && s.check_layers(builder).is_ok()));
        }
        Ok(all)
    }

    /// The stages of the pins; one where they say nothing.
    fn pinned(builder: &SpaceBuilder<'_>) -> Result<Stages, PinFault> {
        let (pins, world) = (builder.pins, &builder.module.mesh);
        let n_stages = pins.pp.unwrap_or(1);
        let mesh = world.part_of(u64::from(n_stages)).ok_or_else(|| PinFault {
            code: "world-size",
            message: format!("{} devices cannot be cut into {n_stages} stages along their links", world.world()),
            help: "choose a `pp` that divides the nodes, or a multiple of the nodes that divides the devices".into(),
        })?;
        let of_layers =
            pins.stage_layers.as_ref().map(|layers| layers.len() as u32 / n_stages).filter(|&each| each > 1);
        let each = pins.virtual_stages.or(of_layers).filter(|_| n_stages > 1);
        let default =
            if each.unwrap_or(1) > 1 { ScheduleKind::Interleaved } else { ScheduleKind::OneForwardOneBackward };
        let schedule = pins.schedule.unwrap_or(default);
        let each = each.unwrap_or(if schedule == ScheduleKind::Interleaved && n_stages > 1 { 2 } else { 1 });
        let stages = Stages { mesh, n_stages, n_chunks: n_stages * each, schedule };
        stages.check_layers(builder)?;
        Ok(stages)
    }

    fn check_layers(&self, builder: &SpaceBuilder<'_>) -> Result<(), PinFault> {
        let n_layers = builder.is_layer.iter().filter(|l| **l).count() as u32;
        if let Some(layers) = builder.pins.stage_layers.as_ref().filter(|_| self.n_stages > 1)
            && (layers.iter().sum::<u32>() != n_layers || layers.len() as u32 != self.n_chunks)
        {
            return Err(PinFault {
                code: "too-few-layers",
                message: format!(
                    "`stage_layers` has {} layers in {} chunks, the model has {n_layers}, the pipeline {} chunks",
                    layers.iter().sum::<u32>(),
                    layers.len(),
                    self.n_chunks
                ),
                help: "give each chunk its number of repeated layers".into(),
            });
        }
        if self.n_stages == 1 || cuts(&builder.is_layer).len() as u32 + 1 >= self.n_chunks {
            return Ok(());
        }
        Err(PinFault {
            code: "too-few-layers",
            message: format!("{n_layers} repeated layers cannot be cut into {} chunks", self.n_chunks),
            help: "choose a smaller `pp` or fewer `virtual_stages`".into(),
        })
    }

    /// Whether the schedule has an order for this number of micro-batches.
    ///
    /// # Errors
    /// Interleaved chunks take micro-batches in groups of as many as there are stages.
    pub fn check(&self, micro_batches: u32) -> Result<(), PinFault> {
        if self.schedule != ScheduleKind::Interleaved || micro_batches.is_multiple_of(self.n_stages) {
            return Ok(());
        }
        Err(PinFault {
            code: "divisibility",
            message: format!("{micro_batches} micro-batches are no multiple of the {} stages", self.n_stages),
            help: "an interleaved schedule takes micro-batches in groups of as many as there are stages".into(),
        })
    }

    /// Whether other stages do the same in the same order, though their schedule has another name.
    pub fn runs_as(&self, other: &Stages, micro_batches: u32) -> bool {
        run_alike(&self.uncut(), &other.uncut(), micro_batches)
    }

    /// Number of stages.
    pub fn n_stages(&self) -> u32 {
        self.n_stages
    }

    /// Nanoseconds of a step whose slowest stage and whose stages together take so long for all micro-batches.
    pub fn step_ns(&self, slowest_ns: u64, all_ns: u64, micro_batches: u64) -> u64 {
        let rest = u128::from(all_ns.saturating_sub(slowest_ns));
        let (share, parts) = self.idle_share(micro_batches);
        let idle = rest * u128::from(share) / u128::from(parts);
        slowest_ns.saturating_add(u64::try_from(idle).unwrap_or(u64::MAX))
    }

    /// The part of the others' time that the slowest stage waits, as a fraction.
    ///
    /// Source for zero bubble: Qi et al., "Zero Bubble Pipeline Parallelism" (2024), with forward, backward of activations and backward of
    /// weights of a third each. A stage waits for the way of the first micro-batch forward and back; each later micro-batch, up to
    /// one a stage, leaves a gradient of weights to compute meanwhile.
    fn idle_share(&self, micro_batches: u64) -> (u64, u64) {
        match self.schedule {
            ScheduleKind::ZeroBubble | ScheduleKind::ZeroBubble2p => {
                let others = u64::from(self.n_stages).saturating_sub(1).max(1);
                (2 * others - others.min(micro_batches - 1), 3 * micro_batches * others)
            }
            _ => (1, micro_batches * u64::from(self.n_chunks / self.n_stages)),
        }
    }

    /// Nanoseconds that the slowest stage takes at least, whatever the cut, where each segment of a variant takes `times` at each speed, and
    /// each stage has the speed `speed_of`.
    pub fn slowest_ns(&self, is_layer: &[bool], variant_of: &[usize], times: &[Vec<u64>], speed_of: &[usize]) -> u64 {
        let sum =
            |run: Range<usize>, times: &[u64]| variant_of[run].iter().map(|&v| times[v]).fold(0, u64::saturating_add);
        let n_segments = is_layer.len();
        match (self.n_stages, self.n_chunks) {
            (1, _) => sum(0..n_segments, &times[speed_of[0]]),
            (stages, chunks) if stages == chunks => {
                let cuts = cuts(is_layer);
                let parts = |times: &Vec<u64>| runs(&cuts, n_segments).map(|run| sum(run, times)).collect();
                least_bottleneck(&times.iter().map(parts).collect::<Vec<Vec<u64>>>(), speed_of)
            }
            // The chunks of a stage may lie anywhere.
            _ => {
                let segments = |times: &Vec<u64>| variant_of.iter().map(|&v| times[v]).collect();
                least_share(&times.iter().map(segments).collect::<Vec<Vec<u64>>>(), speed_of)
            }
        }
    }

    /// The choice for reports, with the layers of each chunk.
    pub fn decision(&self, layers: Vec<u32>) -> StagesChoice {
        StagesChoice { n_stages: self.n_stages, schedule: self.schedule, layers }
    }

    /// The pipeline without its cut.
    pub fn uncut(&self) -> Pipeline {
        let Stages { n_stages, n_chunks, schedule, .. } = *self;
        Pipeline { n_stages, n_chunks, schedule, chunk_of: BTreeMap::new() }
    }

    /// Micro-batches whose activations a chunk keeps at one time, at most.
    pub fn most_in_flight(&self, micro_batches: u32) -> u64 {
        self.in_flight(micro_batches).into_iter().max().unwrap_or(1)
    }

    /// The same for each chunk.
    pub fn in_flight(&self, micro_batches: u32) -> Vec<u64> {
        in_flight(&self.uncut(), micro_batches).into_iter().map(u64::from).collect()
    }
}

/// The segments in front of which a path may be cut: layers but the first segment, and what follows the last layer.
pub fn cuts(is_layer: &[bool]) -> Vec<usize> {
    let last = is_layer.iter().rposition(|l| *l);
    (1..is_layer.len()).filter(|&i| is_layer[i] || Some(i) == last.map(|l| l + 1)).collect()
}

/// The segments between neighbouring cuts.
fn runs(cuts: &[usize], n_segments: usize) -> impl Iterator<Item = Range<usize>> {
    let ends = cuts.iter().copied().chain([n_segments]);
    [0].into_iter().chain(cuts.iter().copied()).zip(ends).map(|(start, end)| start..end)
}

/// The first segment of each chunk, from its number of layers; what stands between layers belongs to those before it.
pub fn starts_of(layers: &[u32], is_layer: &[bool]) -> Vec<usize> {
    let positions: Vec<usize> = (0..is_layer.len()).filter(|&i| is_layer[i]).collect();
    let mut before = 0;
    let start = |(chunk, n): (usize, &u32)| {
        let first = before as usize;
        before += n;
        match positions.get(first) {
            _ if chunk == 0 => 0,
            Some(&position) => position,
            None => positions.last().map_or(0, |last| last + 1),
        }
    };
    layers.iter().enumerate().map(start).collect()
}

/// The least that the slowest stage can take, where each takes a run of neighbours or nothing, and part i takes `times[speed][i]`.
fn least_bottleneck(times: &[Vec<u64>], speed_of: &[usize]) -> u64 {
    let n_parts = times[0].len();
    let fits = |most: u64| {
        let mut next = 0;
        for times in speed_of.iter().map(|&speed| &times[speed]) {
            let mut sum = 0u64;
            while next < n_parts && sum.saturating_add(times[next]) <= most {
                sum = sum.saturating_add(times[next]);
                next += 1;
            }
        }
        next == n_parts
    };
    let least = |part: usize| times.iter().map(|times| times[part]).min().unwrap_or(0);
    let mut low = (0..n_parts).map(least).max().unwrap_or(0);
    let mut high = times[speed_of[0]].iter().copied().fold(0, u64::saturating_add);
    while low < high {
        let middle = low.midpoint(high);
        if fits(middle) { high = middle } else { low = middle + 1 }
    }
    high
}

/// What the slowest stage takes at least, where every segment may run on any, and segment i takes `times[speed][i]`: no weighted mean
/// of what stages take is above the slowest. The weights are the stages' speeds, over all segments.
fn least_share(times: &[Vec<u64>], speed_of: &[usize]) -> u64 {
    let total = |times: &Vec<u64>| times.iter().copied().fold(0, u64::saturating_add).max(1);
    let weights: Vec<u128> = times.iter().map(|times| (1 << 64) / u128::from(total(times))).collect();
    let weighed = |segment: usize| weights.iter().zip(times).map(|(w, times)| w * u128::from(times[segment])).min();
    let all: u128 = (0..times[0].len()).filter_map(weighed).sum();
    let share = all / speed_of.iter().map(|&speed| weights[speed]).sum::<u128>();
    u64::try_from(share).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_stage_is_as_fast_as_it_can_be() {
        let equal = |times: &[u64], n| least_bottleneck(&[times.to_vec()], &vec![0; n]);
        assert_eq!(equal(&[1, 4, 4, 4, 4, 9], 3), 9);
        assert_eq!(equal(&[1, 4, 4, 4, 4, 2], 3), 8);
        assert_eq!(equal(&[5, 5], 1), 10);
        let slow = [vec![2; 8], vec![6; 8]];
        assert_eq!(least_bottleneck(&slow, &[0, 1, 0]), 8);
        assert_eq!(least_bottleneck(&slow, &[1, 1]), 24);
        assert_eq!(least_bottleneck(&slow, &[1, 0]), 12);
    }

    #[test]
    fn stages_share_by_their_speed() {
        assert_eq!(least_share(&[vec![5, 6, 7]], &[0, 0]), 9);
        assert_eq!(least_share(&[vec![2; 8], vec![4; 8]], &[0, 1]), 10);
        assert_eq!(least_share(&[vec![2; 8], vec![4; 8]], &[1, 0, 0, 0]), 4);
    }

    #[test]
    fn a_slow_stage_in_the_middle_is_counted() {
        let schedules = [
            ScheduleKind::Gpipe,
            ScheduleKind::OneForwardOneBackward,
            ScheduleKind::ZeroBubble,
            ScheduleKind::ZeroBubble2p,
        ];
        for schedule in schedules {
            let stages = Stages { mesh: Mesh::from_levels(&[1], 1), n_stages: 3, n_chunks: 3, schedule };
            // Stages of 1, 10 and 1 ms with 8 micro-batches.
            let step_ns = stages.step_ns(80_000_000, 96_000_000, 8);
            assert!((80_000_000..=82_000_000).contains(&step_ns), "{schedule:?}: {step_ns}");
        }
    }

    #[test]
    fn cuts_stand_in_front_of_layers_and_behind_the_last_one() {
        let is_layer = [false, true, true, false, true, false, false];
        assert_eq!(cuts(&is_layer), [1, 2, 4, 5]);
        assert_eq!(starts_of(&[1, 2], &is_layer), [0, 2]);
        assert_eq!(starts_of(&[3, 0], &is_layer), [0, 5]);
    }
}
