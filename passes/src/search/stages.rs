//! Stages of a pipeline: where the path of segments is cut, and what a choice of candidates costs then.
//!
//! Cuts stand in front of layers, or behind the last one. They make the slowest stage fastest where every segment takes its least time.
//! Given the cuts each stage is a path of its own with the whole memory of its devices. With T_i the time of stage i for all m
//! micro-batches and v chunks a stage, a step takes about max T_i + Σ of the others' T_j / (m v): while the slowest stage works it is
//! never idle, and the others fill and drain it. The replay of a plan runs the schedules against each other.

use super::assemble::StagesChoice;
use super::candidates::{Choice, SpaceBuilder};
use super::pins::PinFault;
use super::price::Piece;
use super::solver::chain::{Candidate, Chain};
use super::solver::{Cost, Infeasible, Solution};
use crate::apply::{in_flight, passes};
use crate::strategy::{Pipeline, ScheduleKind};
use galvatron_ir::mesh::Mesh;
use std::collections::BTreeMap;
use std::ops::Range;

/// The stages that are asked for, whatever the number of micro-batches.
pub struct Stages {
    /// The mesh of one stage.
    pub mesh: Mesh,
    n_stages: u32,
    n_chunks: u32,
    schedule: ScheduleKind,
}

impl Stages {
    /// The stages of the pins; one where they say nothing.
    ///
    /// # Errors
    /// When the ranks or the layers cannot be cut so.
    pub fn pinned(builder: &SpaceBuilder<'_>) -> Result<Stages, PinFault> {
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

    fn uncut(&self) -> Pipeline {
        let Stages { n_stages, n_chunks, schedule, .. } = *self;
        Pipeline { n_stages, n_chunks, schedule, chunk_of: BTreeMap::new() }
    }

    /// Micro-batches whose activations a chunk keeps at one time, at most.
    pub fn most_in_flight(&self, micro_batches: u32) -> u64 {
        self.in_flight(micro_batches).into_iter().max().unwrap_or(1)
    }

    /// The same for each chunk.
    fn in_flight(&self, micro_batches: u32) -> Vec<u64> {
        let pipeline = self.uncut();
        let of = |chunk: u32| {
            let passes = passes(&pipeline, chunk % self.n_stages, micro_batches);
            u64::from(in_flight(&passes, chunk / self.n_stages))
        };
        (0..self.n_chunks).map(of).collect()
    }
}

/// A path that is cut into chunks.
#[derive(Clone, Debug)]
pub struct Pipe {
    pipeline: Pipeline,
    micro_batches: u64,
    /// First segment of each chunk.
    starts: Vec<usize>,
    /// Micro-batches whose activations each chunk keeps at one time.
    in_flight: Vec<u64>,
}

impl SpaceBuilder<'_> {
    /// The cuts of a path, where there is more than one stage.
    pub(super) fn pipeline(&self, stages: &Stages, micro_batches: u32, chain: &Chain) -> Option<Pipe> {
        if stages.n_stages == 1 {
            return None;
        }
        let starts = match &self.pins.stage_layers {
            Some(layers) => starts_of(layers, &self.is_layer),
            None => balanced(chain, &cuts(&self.is_layer), stages.n_chunks as usize),
        };
        let in_flight = stages.in_flight(micro_batches);
        Some(Pipe { pipeline: stages.uncut(), micro_batches: u64::from(micro_batches), starts, in_flight })
    }
}

/// The segments in front of which a path may be cut: layers but the first segment, and what follows the last layer.
fn cuts(is_layer: &[bool]) -> Vec<usize> {
    let last = is_layer.iter().rposition(|l| *l);
    (1..is_layer.len()).filter(|&i| is_layer[i] || Some(i) == last.map(|l| l + 1)).collect()
}

/// The first segment of each chunk, from its number of layers; what stands between layers belongs to those before it.
fn starts_of(layers: &[u32], is_layer: &[bool]) -> Vec<usize> {
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

/// The cuts that make the slowest chunk fastest, where every segment takes the least time of its candidates.
fn balanced(chain: &Chain, cuts: &[usize], n_chunks: usize) -> Vec<usize> {
    let least: Vec<u64> =
        chain.classes.iter().map(|class| class.iter().map(|c| c.cost.time_ns).min().unwrap_or(0)).collect();
    let mut until = vec![0u64];
    for &class in &chain.layers {
        until.push(until[until.len() - 1].saturating_add(least[class]));
    }
    let ends: Vec<usize> = [0].into_iter().chain(cuts.iter().copied()).chain([chain.layers.len()]).collect();
    // For each number of chunks and each end: the time of the slowest chunk, and where the last one starts.
    let mut best: Vec<Option<(u64, usize)>> = ends.iter().map(|&end| (end > 0).then(|| (until[end], 0))).collect();
    let mut back = vec![best.clone()];
    for _ in 1..n_chunks {
        let next = |end: usize| {
            let options = (0..end).filter_map(|start| {
                let (before, _) = best[start]?;
                Some((before.max(until[ends[end]] - until[ends[start]]), start))
            });
            options.min()
        };
        best = (0..ends.len()).map(next).collect();
        back.push(best.clone());
    }
    let mut starts = Vec::new();
    let mut end = ends.len() - 1;
    for row in back.iter().rev() {
        let (_, start) = row[end].expect("invariant: there are enough layers for the chunks");
        starts.push(ends[start]);
        end = start;
    }
    starts.reverse();
    starts
}

impl Pipe {
    /// Number of stages.
    pub fn n_stages(&self) -> u64 {
        u64::from(self.pipeline.n_stages)
    }

    /// The segments of a chunk of a path of `n` segments.
    fn segments(&self, chunk: usize, n: usize) -> Range<usize> {
        self.starts[chunk]..self.starts.get(chunk + 1).copied().unwrap_or(n)
    }

    /// Solves every stage by itself; the cost is the time of a step and the bytes of the largest stage.
    ///
    /// # Errors
    /// When a stage has no candidates within the budget: the least bytes of the largest stage.
    pub fn solve(
        &self,
        chain: &Chain,
        choices: &[Vec<Choice>],
        solve: impl Fn(&Chain) -> Result<Solution, Infeasible>,
    ) -> Result<Solution, Infeasible> {
        let mut assignment = vec![0; chain.layers.len()];
        let (mut times, mut bounds, mut bytes) = (Vec::new(), Vec::new(), 0);
        let (mut fits, mut proven, mut width) = (true, true, 0);
        for stage in 0..self.pipeline.n_stages {
            let (own, segments) = self.stage(stage, chain, choices);
            let (cost, bound, chosen) = match solve(&own) {
                Ok(found) => {
                    proven &= found.proven;
                    width = width.max(found.width);
                    (found.cost, found.lower_bound_ns, found.assignment)
                }
                Err(none) if none.least.is_forbidden() => return Err(none),
                Err(none) => {
                    (fits, proven) = (false, proven && none.proven);
                    (none.least, none.least.time_ns, none.assignment)
                }
            };
            times.push(cost.time_ns);
            bounds.push(bound);
            bytes = bytes.max(cost.bytes);
            segments.iter().zip(chosen).for_each(|(&segment, choice)| assignment[segment] = choice);
        }
        let cost = Cost::new(self.step_ns(&times), bytes);
        match fits {
            true => Ok(Solution { assignment, cost, lower_bound_ns: self.step_ns(&bounds), width, proven }),
            false => Err(Infeasible { least: cost, assignment, proven }),
        }
    }

    /// The path of one stage, and its segments.
    fn stage(&self, stage: u32, chain: &Chain, choices: &[Vec<Choice>]) -> (Chain, Vec<usize>) {
        let (mut layers, mut segments, mut classes) = (Vec::new(), Vec::new(), Vec::new());
        let mut known: BTreeMap<(usize, u64), usize> = BTreeMap::new();
        for chunk in (stage as usize..self.starts.len()).step_by(self.pipeline.n_stages as usize) {
            for segment in self.segments(chunk, chain.layers.len()) {
                let (class, in_flight) = (chain.layers[segment], self.in_flight[chunk]);
                let own = *known.entry((class, in_flight)).or_insert_with(|| {
                    let kept = |(candidate, choice): (&Candidate, &Choice)| {
                        let more = Cost::new(0, (in_flight - 1).saturating_mul(choice.saved_bytes));
                        Candidate { cost: candidate.cost.plus(more), ..*candidate }
                    };
                    classes.push(chain.classes[class].iter().zip(&choices[class]).map(kept).collect());
                    classes.len() - 1
                });
                layers.push(own);
                segments.push(segment);
            }
        }
        (Chain { classes, layers, ..chain.clone() }, segments)
    }

    fn step_ns(&self, times: &[u64]) -> u64 {
        let (slowest, all) = (times.iter().max().copied().unwrap_or(0), times.iter().sum::<u64>());
        let each = u64::from(self.pipeline.n_chunks / self.pipeline.n_stages);
        slowest + (all - slowest) / (self.micro_batches * each)
    }

    /// What the passes apply.
    pub fn strategy(&self, pieces: &[Piece]) -> Pipeline {
        let chunks = (0..self.starts.len()).flat_map(|c| self.segments(c, pieces.len()).map(move |s| (c, s)));
        let nodes = chunks.flat_map(|(c, s)| pieces[s].nodes.iter().map(move |&node| (node, c as u32)));
        Pipeline { chunk_of: nodes.collect(), ..self.pipeline.clone() }
    }

    /// The same for reports.
    pub fn decision(&self, is_layer: &[bool]) -> StagesChoice {
        let layers = |c: usize| self.segments(c, is_layer.len()).filter(|&s| is_layer[s]).count() as u32;
        StagesChoice {
            n_stages: self.pipeline.n_stages,
            schedule: self.pipeline.schedule,
            layers: (0..self.starts.len()).map(layers).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(times: &[u64]) -> Chain {
        let candidate = |&ns: &u64| vec![Candidate { in_state: 0, out_state: 0, cost: Cost::new(ns, 0) }];
        let classes = times.iter().map(candidate).collect();
        Chain { classes, layers: (0..times.len()).collect(), n_states: 1, switch: vec![Cost::ZERO] }
    }

    #[test]
    fn the_slowest_chunk_is_as_fast_as_it_can_be() {
        assert_eq!(balanced(&chain(&[1, 4, 4, 4, 4, 9]), &[1, 2, 3, 4, 5], 3), [0, 3, 5]);
        assert_eq!(balanced(&chain(&[1, 1, 1, 1]), &[1, 2, 3], 2), [0, 2]);
        assert_eq!(balanced(&chain(&[9, 1, 1, 1]), &[2, 3], 2), [0, 2]);
    }

    #[test]
    fn cuts_stand_before_layers_and_behind_the_last() {
        let is_layer = [false, true, true, false, true, false, false];
        assert_eq!(cuts(&is_layer), [1, 2, 4, 5]);
        assert_eq!(starts_of(&[1, 2], &is_layer), [0, 2]);
        assert_eq!(starts_of(&[0, 3, 0], &is_layer), [0, 1, 5]);
        assert_eq!(starts_of(&[2, 1], &is_layer), [0, 4]);
    }
}
