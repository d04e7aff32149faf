//! The exact constrained optimum of a problem whose elimination fits the limits.
//!
//! The dual gives a lower bound, an incumbent and the right price on bytes. What is left is closed in rounds: values
//! whose min-marginal exceeds the incumbent are removed, then fronts are eliminated with at most so many points a
//! cell, and more in every round. A round that dropped nothing for want of room is a proof.

use super::Limits;
use super::eliminate::{Inward, Outward, Weights};
use super::incumbent::Scored;
use super::lagrange::{Bound, Dual, Narrow, dual, time_bound};
use super::order::BucketTree;
use super::pareto::{Effort, Guide, eliminate_fronts};
use super::problem::{Problem, Reduced, restrict};

/// The outcome of a search for an assignment that beats a cutoff.
pub(super) struct Outcome {
    /// The fastest assignment found that fits the budget, if one beats the cutoff.
    pub best: Option<Scored>,
    /// No assignment that fits is faster than this and than the cutoff.
    pub lower_bound_ns: u64,
    /// When nothing fits the budget: an assignment with the least bytes (`FORBIDDEN` if there is none at all).
    pub least: Option<Scored>,
}

/// Searches `problem`, whose elimination by `tree` fits, for the fastest assignment within `budget` bytes that takes
/// less than `cutoff_ns`.
pub(super) fn solve_narrow(
    problem: &Problem,
    tree: &BucketTree,
    budget: Option<u64>,
    cutoff_ns: u64,
    limits: &Limits,
) -> Outcome {
    let under_cutoff = |found: Scored| (found.0.time_ns < cutoff_ns).then_some(found);
    match dual(&Narrow { problem, tree }, budget, limits) {
        Dual::Infeasible(least) => Outcome { best: None, lower_bound_ns: u64::MAX, least: Some(least) },
        Dual::Free(found) => Outcome { lower_bound_ns: found.0.time_ns, best: under_cutoff(found), least: None },
        Dual::Bound(bound) => {
            let budget = budget.expect("invariant: only a budget binds");
            let (bound, upper_ns) = close_gap(problem, bound, budget, cutoff_ns, limits);
            let lower_bound_ns = bound.lower_bound_ns.min(upper_ns);
            Outcome { best: under_cutoff(bound.incumbent), lower_bound_ns, least: None }
        }
    }
}

/// Runs rounds of front elimination until the gap is closed or the effort is spent. Returns the improved bound, and
/// the least of the incumbent's time and the cutoff.
fn close_gap(problem: &Problem, mut bound: Bound, budget: u64, cutoff_ns: u64, limits: &Limits) -> (Bound, u64) {
    let mut upper_ns = bound.incumbent.0.time_ns.min(cutoff_ns);
    let all: Vec<Vec<usize>> = problem.vars.iter().map(|v| (0..v.domain.len()).collect()).collect();
    let mut reduced = restrict(problem, &all);
    let mut points_per_cell = 8;
    while bound.lower_bound_ns < upper_ns {
        let Some((guides, tree)) = guide(&mut reduced, bound.weights, budget, upper_ns) else {
            bound.lower_bound_ns = upper_ns;
            break;
        };
        let effort = Effort { points_per_cell, total_points: limits.total_points, sums: limits.point_sums };
        let Ok(fronts) = eliminate_fronts(&reduced.problem, &tree, &guides, effort) else { break };
        if let Some((cost, assignment)) = fronts.front.into_iter().next() {
            bound.incumbent = (cost.plus(reduced.offset), reduced.lift(&assignment));
            upper_ns = bound.incumbent.0.time_ns;
        }
        let left = budget - reduced.offset.bytes;
        let lower_bound_ns = match fronts.dropped {
            Some(least) => time_bound(bound.weights, least, left).saturating_add(reduced.offset.time_ns).min(upper_ns),
            None => upper_ns,
        };
        bound.lower_bound_ns = bound.lower_bound_ns.max(lower_bound_ns);
        points_per_cell *= 8;
    }
    (bound, upper_ns)
}

/// Removes the values that no assignment within `budget` and faster than `upper_ns` can have, and prepares the
/// bounds for the elimination of what is left; `None` when nothing is left.
fn guide(reduced: &mut Reduced, weights: Weights, budget: u64, upper_ns: u64) -> Option<(Vec<Guide>, BucketTree)> {
    let all = [weights, Weights { time: 1, bytes: 0 }, Weights { time: 0, bytes: 1 }];
    'again: loop {
        let tree = BucketTree::new(&reduced.problem);
        let left = u128::from(budget.checked_sub(reduced.offset.bytes)?);
        let faster = u128::from(upper_ns.checked_sub(1)?.checked_sub(reduced.offset.time_ns)?);
        let mut guides = Vec::with_capacity(all.len());
        for weights in all {
            let inward = Inward::new(&reduced.problem, &tree, weights);
            let outward = Outward::new(&tree, &inward);
            let guide = Guide { inward, outward, threshold: weights.time * faster + weights.bytes * left };
            let keep = useful_values(&guide);
            if keep.iter().any(Vec::is_empty) {
                return None;
            }
            if keep.iter().zip(&reduced.problem.vars).any(|(k, v)| k.len() < v.domain.len()) {
                let inner = restrict(&reduced.problem, &keep);
                *reduced = std::mem::take(reduced).then(inner);
                continue 'again;
            }
            guides.push(guide);
        }
        return Some((guides, tree));
    }
}

/// For each variable the values whose min-marginal is within the threshold.
fn useful_values(guide: &Guide) -> Vec<Vec<usize>> {
    let within = |m: &Vec<u128>| (0..m.len()).filter(|&x| m[x] <= guide.threshold).collect();
    guide.outward.marginals.iter().map(within).collect()
}
