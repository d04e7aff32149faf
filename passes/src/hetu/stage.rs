//! The layers of one stage: a path over Galvatron's strategies under what is left of the memory.

use super::language::{allows_layer, pins_of_layer};
use super::price::{Costs, Price, Strategy};
use crate::search::solver::chain::{Candidate, Chain};
use crate::search::solver::{Cost, Limits};
use crate::search::{LayerPins, Pins};
use galvatron_ir::profile::Collective;
use std::ops::Range;

/// What is minimised of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objective {
    /// Its micro-batches without the reduction of gradients, which hides behind others.
    Computation,
    /// With the reduction in the last one.
    Reduction,
}

/// Sums of two points that the fronts of a path may take.
const POINT_SUMS: u64 = 1 << 20;

/// The layers of all stages that run so many micro-batches.
pub struct Layers<'a> {
    /// Prices.
    pub costs: &'a Costs<'a>,
    /// Decisions that are fixed.
    pub pins: &'a Pins,
    /// Micro-batches.
    pub chunks: u32,
    /// What layers may be, with what that costs.
    pub priced: Vec<(Strategy, Price)>,
}

impl Layers<'_> {
    /// The fastest strategies of some layers on a stage with so many MB for them; or else the least MB that they need, if there is any
    /// strategy for each.
    pub fn solve(
        &self,
        (stage, layers): (usize, Range<usize>),
        room_mb: f64,
        objective: Objective,
    ) -> Result<Vec<Strategy>, Option<f64>> {
        let (chain, lists) = self.chain(stage, layers, objective);
        if lists.iter().any(Vec::is_empty) {
            return Err(None);
        }
        let limits = Limits { point_sums: POINT_SUMS, ..Limits::default() };
        // Its search counts whole MB.
        match chain.solve(Some(room_mb.max(0.0) as u64), &limits) {
            Ok(solution) if room_mb >= 0.0 => {
                let strategy = |(&choice, &class): (&usize, &usize)| self.priced[lists[class][choice]].0;
                Ok(solution.assignment.iter().zip(&chain.layers).map(strategy).collect())
            }
            Ok(solution) => Err(Some(solution.cost.bytes as f64)),
            Err(none) => Err((!none.least.is_forbidden()).then_some(none.least.bytes as f64)),
        }
    }

    /// The path, and for each of its classes which strategies it lists. A state is a degree: what two degrees share of a
    /// sample differs. Bytes are MB.
    fn chain(&self, stage: usize, layers: Range<usize>, objective: Objective) -> (Chain, Vec<Vec<usize>>) {
        let pins: Vec<LayerPins> = layers.map(|layer| pins_of_layer(self.pins, layer)).collect();
        let (mut distinct, mut classes): (Vec<&LayerPins>, Vec<usize>) = (Vec::new(), Vec::new());
        for own in &pins {
            if !distinct.contains(&own) {
                distinct.push(own);
            }
            classes.extend(distinct.iter().position(|known| *known == own));
        }
        let allowed = |pins| (0..self.priced.len()).filter(|&i| allows_layer(pins, &self.priced[i].0)).collect();
        let lists: Vec<Vec<usize>> = distinct.into_iter().map(allowed).collect();
        let degrees = self.degrees();
        let candidate = |&i: &usize| {
            let (strategy, price) = &self.priced[i];
            let state = degrees.iter().position(|tp| *tp == strategy.tp).unwrap_or(0) as u16;
            let cost = self.cost(price, stage, objective);
            Candidate { in_state: state, out_state: state, cost, saved_bytes: 0 }
        };
        let switch = degrees.iter().flat_map(|&a| degrees.iter().map(move |&b| (a, b)));
        let chain = Chain {
            classes: lists.iter().map(|list| list.iter().map(candidate).collect()).collect(),
            layers: classes,
            n_states: degrees.len(),
            switch: switch.map(|(a, b)| self.switch(a, b)).collect(),
        };
        (chain, lists)
    }

    fn degrees(&self) -> Vec<u32> {
        let mut degrees: Vec<u32> = self.priced.iter().map(|(strategy, _)| strategy.tp).collect();
        degrees.sort_unstable();
        degrees.dedup();
        degrees
    }

    fn cost(&self, price: &Price, stage: usize, objective: Objective) -> Cost {
        let (without, with) = (price.without_sync_s[0], price.with_sync_s[0]);
        let seconds = match objective {
            Objective::Computation => f64::from(self.chunks) * without,
            Objective::Reduction => f64::from(self.chunks - 1) * without + with,
        };
        Cost::new(nanoseconds(seconds), (price.states_mb[stage] + price.activations_mb[stage]).ceil() as u64)
    }

    /// Between degrees the larger one's ranks gather their parts of a sample, forward and back. Galvatron's search counts that too, its
    /// price of a plan does not.
    fn switch(&self, from: u32, to: u32) -> Cost {
        if from == to {
            return Cost::ZERO;
        }
        let wider = from.max(to);
        let Some((strategy, _)) = self.priced.iter().find(|(s, _)| s.tp == wider) else { return Cost::FORBIDDEN };
        let samples = f64::from(self.costs.global_batch) / f64::from(self.chunks) / f64::from(strategy.dp);
        let bytes = self.costs.activation_bytes(samples);
        let both_ms = self.costs.message_ms(Collective::AllReduce, wider, bytes);
        both_ms.map_or(Cost::FORBIDDEN, |ms| Cost::new(nanoseconds(f64::from(self.chunks) * ms * 1e-3), 0))
    }
}

fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9).round() as u64
}
