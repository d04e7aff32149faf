//! A path that is cut into the stages of a pipeline: where it is cut, and what a choice of candidates costs then.
//!
//! Given the cuts each stage is a path of its own, at the speed and with the whole memory of its devices. With one chunk a stage the best cut is found
//! exactly: no range of the path is left out that could be a stage of a faster pipeline than the one that is known. Chunks that share a
//! stage are cut where the least times of their segments balance, or in the best of all ways where these are few.

use super::assemble::StagesChoice;
use super::balance::Balance;
use super::candidates::SpaceBuilder;
use super::devices::Devices;
use super::outlines::fastest;
use super::paths::{Paths, each_combination, segments};
use super::price::Piece;
use super::solver::chain::Chain;
use super::solver::{Cost, Infeasible, Solution};
use super::stages::{Stages, cuts, starts_of};
use crate::strategy::Pipeline;
use std::rc::Rc;

/// A path that is cut into chunks.
pub struct Pipe {
    pub(super) kind: Stages,
    pub(super) micro_batches: u64,
    /// Micro-batches whose activations each chunk keeps at one time.
    pub(super) in_flight: Vec<u64>,
    /// First segment of each chunk, if that is pinned.
    fixed: Option<Vec<usize>>,
    /// Segments in front of which the path may be cut.
    pub(super) cuts: Vec<usize>,
    /// What the stages run on.
    pub(super) devices: Rc<Devices>,
    /// No cut and no candidates take less, in nanoseconds.
    pub(super) bound_ns: u64,
}

/// Candidates of a path with the first segment of each of its chunks.
#[derive(Clone, Debug)]
pub struct Solved {
    /// The candidates.
    pub solution: Solution,
    /// First segment of each chunk; only 0 where there is one stage.
    pub starts: Vec<usize>,
}

/// Solves the path of a stage within a budget.
pub type Solver<'s> = &'s dyn Fn(&Chain, Option<u64>) -> Result<Solution, Infeasible>;

impl SpaceBuilder<'_> {
    /// How a path is cut, where there is more than one stage; no plan of the space takes less than `bound_ns`.
    pub(super) fn pipe(&self, kind: &Stages, devices: &Rc<Devices>, micro_batches: u32, bound_ns: u64) -> Option<Pipe> {
        if kind.n_stages() == 1 {
            return None;
        }
        Some(Pipe {
            kind: kind.clone(),
            micro_batches: u64::from(micro_batches),
            in_flight: kind.in_flight(micro_batches),
            fixed: self.pins.stage_layers.as_ref().map(|layers| starts_of(layers, &self.is_layer)),
            cuts: cuts(&self.is_layer),
            devices: devices.clone(),
            bound_ns,
        })
    }
}

impl Pipe {
    /// Number of stages.
    pub fn n_stages(&self) -> u64 {
        u64::from(self.kind.n_stages())
    }

    /// Nanoseconds that a step takes at least, whatever the cut, where each segment of a variant takes `times` at each speed of a stage.
    pub fn least_ns(&self, is_layer: &[bool], variant_of: &[usize], times: &[Vec<u64>]) -> u64 {
        let slowest_ns = self.kind.slowest_ns(is_layer, variant_of, times, &self.devices.speed_of);
        let least = fastest(times.iter().cloned());
        let all_ns = variant_of.iter().map(|&v| least[v]).fold(0, u64::saturating_add);
        self.kind.step_ns(slowest_ns, all_ns, self.micro_batches)
    }

    /// Number of chunks of all stages together.
    pub fn n_chunks(&self) -> usize {
        self.in_flight.len()
    }

    /// Nanoseconds of a step whose stages take `times`.
    pub fn step_ns(&self, times: &[u64]) -> u64 {
        let (slowest, all) = (times.iter().max().copied().unwrap_or(0), times.iter().sum::<u64>());
        self.kind.step_ns(slowest, all, self.micro_batches)
    }

    /// Chooses the cut, and the candidates of every stage by themselves; `chains` has the path at each speed of a stage. The cost is the time
    /// of a step and the bytes of the largest stage, counted as [`Devices`] counts them.
    ///
    /// # Errors
    /// When a stage has no candidates within the budget: the least bytes of the largest stage.
    pub fn solve(&self, chains: &[Chain], budget: Option<u64>, solver: Solver<'_>) -> Result<Solved, Infeasible> {
        let paths = Paths { pipe: self, chains, budget };
        if let Some(starts) = &self.fixed {
            return paths.at(starts, solver);
        }
        let balance = Balance::new(chains, &self.in_flight, &self.devices);
        let mut first = paths.at(&balance.cut(&self.cuts), solver);
        let differ = self.devices.differ();
        if let (Err(none), Some(budget), true) = (&first, budget, differ) {
            // A fast stage, or one of little memory, may have more than it can hold while others have room.
            let least_bytes = none.least.bytes;
            let other = paths.at(&balance.within(budget, &self.devices).cut(&self.cuts), solver);
            if other.as_ref().map_or_else(|none| none.least.bytes < least_bytes, |_| true) {
                first = other;
            }
        }
        match (self.n_chunks() as u64 == self.n_stages(), &first) {
            (false, _) => paths.best_of_few(first, solver),
            (true, Err(_)) if !differ => first,
            (true, _) => paths.best(&balance, first, solver),
        }
    }

    /// Every way to cut the path: the first segment of each chunk.
    pub fn all_cuts(&self) -> Vec<Vec<usize>> {
        if let Some(starts) = &self.fixed {
            return vec![starts.clone()];
        }
        let mut all = Vec::new();
        each_combination(&self.cuts, self.n_chunks() - 1, &mut |chosen| all.push([&[0], chosen].concat()));
        all
    }

    /// The surrogate cost of each stage under a cut and a candidate a segment, its bytes counted as [`Devices`] counts them.
    pub fn stage_costs(&self, chains: &[Chain], starts: &[usize], chosen: &[usize]) -> Vec<Cost> {
        let paths = Paths { pipe: self, chains, budget: None };
        let stage = |stage| {
            let ranges = paths.ranges(starts, stage);
            let own: Vec<usize> = ranges.iter().flat_map(|(_, range)| chosen[range.clone()].iter().copied()).collect();
            paths.cost(stage, &ranges, &own)
        };
        (0..self.n_stages() as usize).map(stage).collect()
    }

    /// The surrogate cost of a cut and a candidate a segment.
    pub fn cost(&self, chains: &[Chain], starts: &[usize], chosen: &[usize]) -> Cost {
        let stages = self.stage_costs(chains, starts, chosen);
        if stages.iter().any(|cost| cost.is_forbidden()) {
            return Cost::FORBIDDEN;
        }
        let times: Vec<u64> = stages.iter().map(|cost| cost.time_ns).collect();
        Cost::new(self.step_ns(&times), stages.iter().map(|cost| cost.bytes).max().unwrap_or(0))
    }

    /// What the passes apply.
    pub fn strategy(&self, pieces: &[Piece], starts: &[usize]) -> Pipeline {
        let chunks = (0..starts.len()).flat_map(|c| segments(starts, c, pieces.len()).map(move |s| (c, s)));
        let nodes = chunks.flat_map(|(c, s)| pieces[s].nodes.iter().map(move |&node| (node, c as u32)));
        Pipeline { chunk_of: nodes.collect(), ..self.kind.uncut() }
    }

    /// The same for reports.
    pub fn decision(&self, is_layer: &[bool], starts: &[usize]) -> StagesChoice {
        let layers = |c: usize| segments(starts, c, is_layer.len()).filter(|&s| is_layer[s]).count() as u32;
        self.kind.decision((0..starts.len()).map(layers).collect())
    }
}
