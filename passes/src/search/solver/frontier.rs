//! Closes the gap that the dual of a path leaves: exact dynamic programming with a Pareto front at every state.
//!
//! A point is dropped when some weighting shows that no completion of it is within the budget and faster than the best
//! choice known, or when another point of the same state is no worse in both components.

use super::Limits;
use super::eliminate::Weights;
use super::lagrange::{Bound, time_bound};
use super::pareto::{OutOfEffort, Point, prune_covered, select};
use super::path::{Path, Sweep};
use super::problem::{Assignment, Cost};

/// Improves the dual's bound and choice until they meet or the effort is spent.
pub(super) fn close_gap(path: &Path<'_>, mut bound: Bound, budget: u64, limits: &Limits) -> Bound {
    let mut points_per_state = 8;
    let mut sums = 0;
    while bound.lower_bound_ns < bound.incumbent.0.time_ns {
        let upper_ns = bound.incumbent.0.time_ns;
        let Some(guides) = guides(path, bound.weights, budget, upper_ns) else {
            bound.lower_bound_ns = upper_ns;
            break;
        };
        let mut run = Run { path, guides, points_per_state, sums, limits, trail: Vec::new(), dropped: None };
        let Ok(fastest) = run.fastest() else { break };
        sums = run.sums;
        if let Some(found) = fastest {
            bound.incumbent = found;
        }
        let upper_ns = bound.incumbent.0.time_ns;
        let lower_bound_ns = run.dropped.map_or(upper_ns, |least| time_bound(bound.weights, least, budget));
        bound.lower_bound_ns = bound.lower_bound_ns.max(lower_bound_ns.min(upper_ns));
        points_per_state *= 8;
    }
    bound
}

/// A sweep, and the weighted cost that a useful choice does not exceed.
struct Guide {
    sweep: Sweep,
    threshold: u128,
}

/// The bounds by price, by time and by bytes; `None` when one of them shows that nothing useful is left.
fn guides(path: &Path<'_>, weights: Weights, budget: u64, upper_ns: u64) -> Option<Vec<Guide>> {
    let faster = u128::from(upper_ns.checked_sub(1)?);
    let all = [weights, Weights { time: 1, bytes: 0 }, Weights { time: 0, bytes: 1 }];
    all.into_iter()
        .map(|weights| {
            let threshold = weights.time * faster + weights.bytes * u128::from(budget);
            let sweep = path.sweep(weights);
            (sweep.least() <= threshold).then_some(Guide { sweep, threshold })
        })
        .collect()
}

const NO_TRAIL: u32 = u32::MAX;

struct Run<'a> {
    path: &'a Path<'a>,
    guides: Vec<Guide>,
    points_per_state: usize,
    sums: u64,
    limits: &'a Limits,
    /// Candidate, and what led to it.
    trail: Vec<(usize, u32)>,
    /// The least bound, in the first guide's weights, of anything that was dropped for want of room.
    dropped: Option<u128>,
}

impl Run<'_> {
    /// The fastest choice within the thresholds.
    fn fastest(&mut self) -> Result<Option<(Cost, Assignment)>, OutOfEffort> {
        let n_states = self.path.chain.n_states;
        let mut fronts = vec![vec![Point { cost: Cost::ZERO, trail: NO_TRAIL }]; n_states];
        for layer in 0..self.path.chain.layers.len() {
            if layer > 0 {
                fronts = self.switch(layer, &fronts)?;
            }
            fronts = self.layer(layer, &fronts)?;
        }
        let points = fronts.into_iter().flatten();
        Ok(points.min_by_key(|p| p.cost).map(|p| (p.cost, self.assignment(p.trail))))
    }

    /// From the fronts at the states that a layer's predecessor leaves to those at the states that it takes.
    fn switch(&mut self, layer: usize, fronts: &[Vec<Point>]) -> Result<Vec<Vec<Point>>, OutOfEffort> {
        let mut entered = Vec::with_capacity(fronts.len());
        for to in 0..fronts.len() {
            let rest: Vec<u128> = self.guides.iter().map(|g| g.sweep.rest[layer][to]).collect();
            let mut offers = Vec::new();
            for (from, front) in fronts.iter().enumerate() {
                let cost = self.path.switch(from, to);
                self.spend(front.len())?;
                let moved = front.iter().map(|p| Point { cost: p.cost.plus(cost), trail: p.trail });
                offers.extend(moved.filter(|p| self.admits(p.cost, &rest)));
            }
            entered.push(self.settle(offers, &rest));
        }
        Ok(entered)
    }

    /// From the fronts at the states that a layer takes to those at the states that it leaves.
    fn layer(&mut self, layer: usize, fronts: &[Vec<Point>]) -> Result<Vec<Vec<Point>>, OutOfEffort> {
        let path = self.path;
        let class = path.chain.layers[layer];
        let mut left: Vec<Vec<(Point, usize)>> = vec![Vec::new(); fronts.len()];
        for group in &path.groups[class] {
            let rest: Vec<u128> = self.guides.iter().map(|g| g.sweep.onward[layer + 1][group.to]).collect();
            let front = &fronts[group.from];
            self.spend(front.len() * group.candidates.len())?;
            for &candidate in &group.candidates {
                let cost = path.cost(class, candidate);
                let sums = front.iter().map(|p| Point { cost: p.cost.plus(cost), trail: p.trail });
                left[group.to].extend(sums.filter(|p| self.admits(p.cost, &rest)).map(|p| (p, candidate)));
            }
        }
        let mut settled = Vec::with_capacity(left.len());
        for (to, mut offers) in left.into_iter().enumerate() {
            let rest: Vec<u128> = self.guides.iter().map(|g| g.sweep.onward[layer + 1][to]).collect();
            prune_covered(&mut offers, |(p, _)| p.cost);
            let start = self.trail.len();
            self.trail.extend(offers.iter().map(|(p, candidate)| (*candidate, p.trail)));
            let numbered = offers.iter().enumerate().map(|(i, (p, _))| Point { trail: (start + i) as u32, ..*p });
            settled.push(self.settle(numbered.collect(), &rest));
        }
        if self.trail.len() > self.limits.total_points { Err(OutOfEffort) } else { Ok(settled) }
    }

    fn spend(&mut self, sums: usize) -> Result<(), OutOfEffort> {
        self.sums += sums as u64;
        if self.sums > self.limits.point_sums { Err(OutOfEffort) } else { Ok(()) }
    }

    fn admits(&self, cost: Cost, rest: &[u128]) -> bool {
        let within = |(g, rest): (&Guide, &u128)| g.sweep.weights.of(cost) + rest <= g.threshold;
        !cost.is_forbidden() && self.guides.iter().zip(rest).all(within)
    }

    /// Prunes the points of a state to a front that fits; notes the least bound among those dropped for want of room.
    fn settle(&mut self, mut points: Vec<Point>, rest: &[u128]) -> Vec<Point> {
        prune_covered(&mut points, |p| p.cost);
        if points.len() <= self.points_per_state {
            return points;
        }
        let scores: Vec<u128> = points.iter().map(|p| self.guides[0].sweep.weights.of(p.cost) + rest[0]).collect();
        let costs: Vec<Cost> = points.iter().map(|p| p.cost).collect();
        let kept = select(&costs, &scores, self.points_per_state);
        let least = (0..points.len()).filter(|&i| !kept[i]).map(|i| scores[i]).min();
        self.dropped = self.dropped.into_iter().chain(least).min();
        let mut kept = kept.into_iter();
        points.retain(|_| kept.next().unwrap_or(false));
        points
    }

    fn assignment(&self, mut trail: u32) -> Assignment {
        let mut reversed = Vec::with_capacity(self.path.chain.layers.len());
        while trail != NO_TRAIL {
            let (candidate, before) = self.trail[trail as usize];
            reversed.push(candidate);
            trail = before;
        }
        reversed.reverse();
        reversed
    }
}
