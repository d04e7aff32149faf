//! The plan that Galvatron's formulas find fastest within the memory that they allow.
//!
//! For each number of stages and micro-batches, each way to run embedding and head and each largest degree of the layers, the
//! layers of every stage are a path whose best strategies the solver of our own search finds; Galvatron fills buckets of MB instead. Whole
//! plans are compared by its formulas.

use super::language::{allows_stages, allows_vocabulary, divisors, strategies, vocabularies};
use super::price::{CONTEXT_MB, Costs, Plan, PlanPrice, Price, Vocabulary};
use super::stage::{Layers, Objective};
use crate::search::Pins;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Prices.
    pub costs: Costs<'a>,
    /// MB that a stage may use.
    pub usable_mb: f64,
    /// Decisions that are fixed.
    pub pins: &'a Pins,
}

/// Why there is no plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NoPlan {
    /// Of no plan that the pins allow everything was measured.
    Unpriced,
    /// None fits: the least MB that a stage needs.
    Memory(f64),
}

/// What all layers of a plan have in common.
struct Frame<'a> {
    layers: &'a Layers<'a>,
    division: Vec<usize>,
    vocabulary: Vocabulary,
    /// What of the memory of each stage is left for layers, in MB.
    room_mb: Vec<f64>,
}

impl Frame<'_> {
    /// The best plan, or by how many MB the smallest exceeds its room; nothing where the pins leave no plan.
    fn plan(&self, objective: Objective) -> Result<Plan, Option<f64>> {
        let (mut layers, mut start, mut excess_mb) = (Vec::new(), 0, None::<f64>);
        for (stage, (&n, &room)) in self.division.iter().zip(&self.room_mb).enumerate() {
            match self.layers.solve((stage, start..start + n), room, objective) {
                Ok(found) => layers.extend(found),
                Err(None) => return Err(None),
                Err(Some(least)) => excess_mb = Some(excess_mb.unwrap_or(0.0).max(least - room)),
            }
            start += n;
        }
        let (chunks, division) = (self.layers.chunks, self.division.clone());
        match excess_mb {
            Some(_) => Err(excess_mb),
            None => Ok(Plan { chunks, division, layers, vocabulary: self.vocabulary }),
        }
    }
}

/// The fastest plan with its price. Of equally fast ones it is the first, by stages, micro-batches and degrees.
///
/// # Errors
/// When the pins allow no plan that can be priced, or none fits.
pub fn fastest(request: &Request<'_>) -> Result<(Plan, PlanPrice), NoPlan> {
    let (mut best, mut excess_mb) = (None::<(Plan, PlanPrice)>, None::<f64>);
    for (layers, max_tp) in paths(request) {
        for frame in frames(request, &layers, max_tp) {
            for objective in [Objective::Computation, Objective::Reduction] {
                match frame.plan(objective) {
                    Ok(plan) => keep_faster(&mut best, request, plan),
                    Err(Some(excess)) => excess_mb = Some(excess_mb.map_or(excess, |least| least.min(excess))),
                    Err(None) => {}
                }
            }
        }
    }
    best.ok_or(excess_mb.map_or(NoPlan::Unpriced, |excess| NoPlan::Memory(request.usable_mb + excess)))
}

/// Takes a plan if it fits and is faster than the one that is known.
fn keep_faster(best: &mut Option<(Plan, PlanPrice)>, request: &Request<'_>, plan: Plan) {
    let Some(price) = request.costs.plan(&plan) else { return };
    let fits = price.memory_mb.iter().all(|&mb| mb <= request.usable_mb);
    if fits && best.as_ref().is_none_or(|(_, known)| price.step_s < known.step_s) {
        *best = Some((plan, price));
    }
}

/// The layers for each number of stages and micro-batches, with each largest degree.
fn paths<'a>(request: &'a Request<'a>) -> Vec<(Layers<'a>, u32)> {
    let Request { costs, pins, .. } = request;
    let mut all = Vec::new();
    for pp in divisors(costs.world).filter(|&pp| pp as usize <= costs.n_layers) {
        let ranks = costs.world / pp;
        for chunks in divisors(costs.global_batch).filter(|&n| n >= pp && allows_stages(pins, pp, n)) {
            let samples = costs.global_batch / chunks;
            for max_tp in divisors(ranks) {
                let own = strategies(pp, ranks, max_tp).into_iter().filter(|s| samples.is_multiple_of(s.dp));
                let priced: Vec<_> = own.filter_map(|s| Some((s, costs.layer(s, chunks)?))).collect();
                if priced.iter().any(|(s, _)| s.tp == max_tp) {
                    all.push((Layers { costs, pins, chunks, priced }, max_tp));
                }
            }
        }
    }
    all
}

/// The frames of some layers: one for each way to run embedding and head.
fn frames<'a>(request: &Request<'_>, layers: &'a Layers<'a>, max_tp: u32) -> Vec<Frame<'a>> {
    let (costs, pins) = (&request.costs, request.pins);
    let pp = layers.priced[0].0.pp;
    let ranks = costs.world / pp;
    let samples = costs.global_batch / layers.chunks;
    let division = division(costs.n_layers, pp as usize, pins);
    let frame = |vocabulary: Vocabulary| {
        let Price { states_mb, activations_mb, .. } = costs.outside(pp, vocabulary, layers.chunks)?;
        let gathered = costs.gathered_mb(pp, max_tp, layers.chunks);
        let fixed = states_mb.iter().zip(&activations_mb).map(|(s, a)| (s + a + CONTEXT_MB).ceil() + gathered);
        let room_mb = fixed.map(|mb| request.usable_mb - mb).collect();
        Some(Frame { layers, division: division.clone(), vocabulary, room_mb })
    };
    let allowed = |v: &Vocabulary| samples.is_multiple_of(ranks / v.tp) && allows_vocabulary(pins, v, ranks);
    vocabularies(ranks).filter(allowed).filter_map(frame).collect()
}

/// Layers of each stage: as pinned, or else equally many, and what remains on stages in the middle, which have no embedding or head.
fn division(n_layers: usize, pp: usize, pins: &Pins) -> Vec<usize> {
    if let Some(layers) = pins.stage_layers.as_ref().filter(|_| pp > 1) {
        return layers.iter().map(|&n| n as usize).collect();
    }
    let (each, rest) = (n_layers / pp, n_layers % pp);
    let first = (pp - rest).div_ceil(2);
    (0..pp).map(|stage| each + usize::from((first..first + rest).contains(&stage))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_remains_of_an_uneven_split_is_not_on_one_stage() {
        let of = |n_layers, pp| division(n_layers, pp, &Pins::default());
        assert_eq!(of(32, 4), [8, 8, 8, 8]);
        assert_eq!(of(30, 4), [7, 8, 8, 7]);
        assert_eq!(of(31, 4), [7, 8, 8, 8]);
        assert_eq!(of(5, 2), [2, 3]);
        let pinned = Pins { stage_layers: Some(vec![1, 4]), ..Pins::default() };
        assert_eq!(division(5, 2, &pinned), [1, 4]);
    }
}
