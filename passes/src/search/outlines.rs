//! What a whole space costs at least, without its candidates: so that only those spaces are built that may hold the best plan.
//!
//! The flow of values costs something or nothing, so no plan is faster than the sum over its ops of the least that each costs by
//! itself. What flows at least makes a tighter bound, for spaces that seem worth it. A price on bytes (the Lagrangian relaxation of the memory limit) makes the sum larger where memory is short. Where stages differ
//! in speed, an op that may run on any of them takes the least that it takes on one.

use super::candidates::SpaceBuilder;
use super::devices::Devices;
use super::pins::{LayerPins, PinFault};
use super::price::Piece;
use super::recompute::Recompute;
use super::solver::{Cost, Limits, Problem, eliminate};
use super::spaces::MARGIN_PARTS;
use super::split::Split;
use super::stages::Stages;
use super::threads;
use super::weights::Holding;
use crate::cost::CostModel;
use galvatron_ir::mesh::Mesh;

/// Binary digits of a price on bytes, in nanoseconds per byte, after the point.
const PRICE_BITS: u32 = 40;

/// Prices that are tried, each twice the one before; the middle one values the memory of all devices like the step.
const N_PRICES: u32 = 9;

/// The costs of a group's options that no other option of it beats.
type Group = Vec<Cost>;

/// For each variant and each of its splits, modes and ZeRO levels, what its groups cost.
pub struct Least {
    variants: Vec<Vec<Vec<Group>>>,
}

impl SpaceBuilder<'_> {
    /// What every variant costs at least on a mesh, by the costs of a stage.
    ///
    /// # Errors
    /// When a variant has no candidate: the pin or the extent that leaves none.
    pub(super) fn least(&self, mesh: &Mesh, model: &CostModel) -> Result<Least, PinFault> {
        let of = |(first, pins): &(usize, LayerPins)| {
            let piece = &self.pieces[*first];
            let found = self.least_of(piece, pins, (mesh, model));
            if found.is_empty() { Err(self.why_none(piece, pins, mesh)) } else { Ok(found) }
        };
        Ok(Least { variants: self.variants.iter().map(of).collect::<Result<_, _>>()? })
    }

    fn least_of(&self, piece: &Piece, pins: &LayerPins, (mesh, model): (&Mesh, &CostModel)) -> Vec<Vec<Group>> {
        let recomputes: Vec<Recompute> =
            self.modes(piece, pins).into_iter().map(|mode| Recompute::of(&self.facts, piece, mode)).collect();
        let under = |split: &Split| {
            if self.boundaries(piece, pins, split, mesh).is_empty() {
                return Vec::new();
            }
            let Some(priced) = self.priced(piece, pins, (mesh, model), split) else { return Vec::new() };
            let holdings = self.holdings(piece, pins, mesh);
            let ways =
                recomputes.iter().flat_map(|recompute| holdings.iter().map(move |holding| (recompute, *holding)));
            let groups = |(recompute, holding)| {
                (0..priced.groups().len()).map(|g| unbeaten(priced.unaries(g, recompute, holding, 1))).collect()
            };
            ways.map(groups).collect::<Vec<Vec<Group>>>()
        };
        threads::map(&self.splits(pins, mesh), under).into_iter().flatten().collect()
    }

    /// The least time of each variant on a mesh with what its flows cost, by the costs of a stage; 0 where that is not known.
    pub(super) fn flowing(&self, mesh: &Mesh, model: &CostModel) -> Vec<u64> {
        let of = |(first, pins): &(usize, LayerPins)| self.flowing_of(&self.pieces[*first], pins, (mesh, model));
        self.variants.iter().map(of).collect()
    }

    fn flowing_of(&self, piece: &Piece, pins: &LayerPins, (mesh, model): (&Mesh, &CostModel)) -> u64 {
        // The first mode is the fastest: it recomputes and moves least.
        let Some(mode) = self.modes(piece, pins).into_iter().next() else { return 0 };
        let recompute = Recompute::of(&self.facts, piece, mode);
        let under = |split: &Split| {
            let priced = self.priced(piece, pins, (mesh, model), split)?;
            let edges = priced.edges(&priced.flows(), &recompute);
            let holdings = self.holdings(piece, pins, mesh);
            let placements = self.boundaries(piece, pins, split, mesh).into_iter();
            let times = placements.flat_map(|(_, placed)| {
                let (input, output) = piece.ends(placed.as_ref());
                let border = priced.border_costs(&priced.border(input, output), &recompute);
                let problem = |holding: &Holding| priced.problem((&border, &edges), &recompute, *holding, 1);
                holdings.iter().map(problem).filter_map(|problem| least_ns(&problem)).collect::<Vec<u64>>()
            });
            times.min()
        };
        threads::map(&self.splits(pins, mesh), under).into_iter().flatten().min().unwrap_or(0)
    }

    /// Nanoseconds that all stages together compute at least, where each has its memory and a margin; `least` at each of their speeds.
    pub(super) fn all_ns(&self, least: &[Least], devices: &Devices) -> u64 {
        let times = |price| fastest(least.iter().map(|least| least.times(price)));
        let total = |times: &[u64]| self.total_ns(times);
        let mut all_ns = total(&times(0));
        let limit = devices.most_bytes.saturating_add(devices.most_bytes / MARGIN_PARTS);
        let room: u128 = (0..devices.n_stages()).map(|stage| u128::from(limit - devices.missing_bytes(stage))).sum();
        let middle = (u128::from(all_ns) << PRICE_BITS) / room.max(1);
        for i in 0..N_PRICES {
            let price = (middle << i) >> (N_PRICES / 2);
            let paid = u128::from(total(&times(price)));
            let rest = paid.saturating_sub((room * price) >> PRICE_BITS);
            all_ns = all_ns.max(u64::try_from(rest).unwrap_or(u64::MAX));
        }
        all_ns
    }

    /// Nanoseconds of all segments together, where each of a variant takes `times`.
    pub(super) fn total_ns(&self, times: &[u64]) -> u64 {
        self.variant_of.iter().map(|&v| times[v]).fold(0, u64::saturating_add)
    }

    /// Nanoseconds that a step takes at least, whose stages together take `all_ns`, where each segment of a variant takes `free` at each speed.
    pub(super) fn bound_ns(
        &self,
        free: &[Vec<u64>],
        all_ns: u64,
        (stages, devices): (&Stages, &Devices),
        micro_batches: u32,
    ) -> u64 {
        let slowest_ns = stages.slowest_ns(&self.is_layer, &self.variant_of, free, &devices.speed_of);
        let slowest_ns = slowest_ns.max(all_ns / u64::from(stages.n_stages()));
        stages.step_ns(slowest_ns, all_ns, u64::from(micro_batches))
    }
}

/// The least time of a problem, if it can be met; 0 where it takes too much memory to find out.
fn least_ns(problem: &Problem) -> Option<u64> {
    let cost = eliminate(problem, &Limits::default()).map_or(Cost::ZERO, |found| found.cost);
    Some(cost.time_ns).filter(|_| !cost.is_forbidden())
}

impl Least {
    /// The least time of each variant with a price on its bytes.
    pub(super) fn times(&self, price: u128) -> Vec<u64> {
        let weight = |cost: &Cost| {
            let paid = u128::from(cost.time_ns) + ((u128::from(cost.bytes) * price) >> PRICE_BITS);
            u64::try_from(paid).unwrap_or(u64::MAX)
        };
        let group = |costs: &Group| costs.iter().map(weight).min().unwrap_or(u64::MAX);
        let sum = |groups: &Vec<Group>| groups.iter().map(group).fold(0, u64::saturating_add);
        self.variants.iter().map(|all| all.iter().map(sum).min().unwrap_or(u64::MAX)).collect()
    }
}

/// The least time of each variant at any of some speeds.
pub(super) fn fastest(mut speeds: impl Iterator<Item = Vec<u64>>) -> Vec<u64> {
    let first = speeds.next().unwrap_or_default();
    speeds.fold(first, |least, times| least.into_iter().zip(times).map(|(a, b)| a.min(b)).collect())
}

/// The costs that no other one beats in time and bytes, fastest first.
fn unbeaten(costs: impl Iterator<Item = Cost>) -> Group {
    let mut all: Vec<Cost> = costs.collect();
    all.sort();
    let mut kept: Group = Vec::new();
    for cost in all {
        if kept.last().is_none_or(|last| cost.bytes < last.bytes) {
            kept.push(cost);
        }
    }
    kept
}
