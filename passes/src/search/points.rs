//! The assignments of options to the ops of a segment that are kept as candidates.

use super::candidates::Listing;
use super::solver::{Assignment, Cost, Limits, Problem, brute::each_allowed, front, hull};
use std::collections::BTreeSet;

/// Assignments up to which a problem is small.
const SMALL_ASSIGNMENTS: u64 = 1_000_000;

/// Sums of two points that the front of a small problem may take.
const FRONT_SUMS: u64 = 1 << 20;

/// Vertices of the hull kept of each (split, boundary, ZeRO, recomputation) of a large problem.
const HULL_POINTS: usize = 6;

/// An assignment of options with what it costs.
pub struct Point {
    /// On the fastest stage, with the activations of one micro-batch.
    pub cost: Cost,
    /// Nanoseconds at each slower speed.
    pub slower_ns: Vec<u64>,
    /// Bytes of the activations of one more micro-batch.
    pub saved_bytes: u64,
    /// Option of each group.
    pub assignment: Assignment,
}

/// The allowed candidates of a problem that depends on the speed of a stage, and on how many micro-batches are kept: at each speed those
/// for one, and for the most.
pub fn kept_points(
    problem: impl Fn(usize, u64) -> Problem,
    n_speeds: usize,
    in_flight: u64,
    listing: Listing,
) -> Vec<Point> {
    let ones: Vec<Problem> = (0..n_speeds).map(|speed| problem(speed, 1)).collect();
    let most: Vec<Problem> = (0..n_speeds).filter(|_| in_flight > 1).map(|speed| problem(speed, in_flight)).collect();
    let mut found = points(&ones[0], listing);
    let others: Vec<&Problem> = most.iter().chain(&ones[1..]).filter(|_| listing != Listing::All).collect();
    if !others.is_empty() {
        let mut known: BTreeSet<Assignment> = found.iter().map(|(_, a)| a.clone()).collect();
        for other in others {
            let more = points(other, listing).into_iter().map(|(_, a)| a).filter(|a| known.insert(a.clone()));
            found.extend(more.map(|a| (ones[0].cost(&a), a)));
        }
    }
    let saved = |cost: Cost, a: &Assignment| {
        most.first().map_or(0, |most| most.cost(a).bytes.saturating_sub(cost.bytes) / (in_flight - 1))
    };
    let allowed = found.into_iter().filter(|(cost, _)| !cost.is_forbidden());
    let point = |(cost, assignment): (Cost, Assignment)| {
        let slower_ns = ones[1..].iter().map(|slower| slower.cost(&assignment).time_ns).collect();
        Point { cost, slower_ns, saved_bytes: saved(cost, &assignment), assignment }
    };
    allowed.map(point).collect()
}

/// The candidates of a problem.
fn points(problem: &Problem, listing: Listing) -> Vec<(Cost, Assignment)> {
    if listing == Listing::All {
        let mut all = Vec::new();
        each_allowed(problem, |cost, assignment| all.push((cost, assignment.to_vec())));
        return all;
    }
    let n_assignments = problem.vars.iter().fold(1u64, |n, v| n.saturating_mul(v.domain.len() as u64));
    let limits = Limits { point_sums: FRONT_SUMS, hull_points: HULL_POINTS, ..Limits::default() };
    let whole = (n_assignments <= SMALL_ASSIGNMENTS).then(|| front(problem, &limits)).flatten();
    whole.unwrap_or_else(|| hull(problem, &limits).unwrap_or_default())
}
