//! A price on bytes: the Lagrangian dual of the constrained problem and the lower convex hull of (bytes, time).
//!
//! The price is the slope of the segment between two known assignments, kept as a pair of integers, so that every
//! elimination is exact. Each one either finds an assignment strictly below the segment or shows that the segment
//! belongs to the hull; so the search ends after finitely many steps.

use std::collections::{BTreeMap, BTreeSet};

use super::Limits;
use super::eliminate::{INFINITE, Inward, TooWide, Weights};
use super::incumbent::{Scored, mix, polish};
use super::order::BucketTree;
use super::problem::{Assignment, Cost, Problem, simplify};

/// What the dual says about a constrained problem.
pub(super) enum Dual {
    /// No assignment fits; the one with the least bytes.
    Infeasible(Scored),
    /// The fastest assignment fits.
    Free(Scored),
    /// The budget binds.
    Bound(Bound),
}

/// The optimum of the dual.
pub(super) struct Bound {
    /// The weights of the segment of the hull that the budget cuts.
    pub weights: Weights,
    /// No assignment within the budget is faster, in nanoseconds.
    pub lower_bound_ns: u64,
    /// The fastest assignment found that fits.
    pub incumbent: Scored,
}

impl Bound {
    /// An optimum without a gap.
    pub fn exact(found: Scored) -> Bound {
        Bound { weights: Weights { time: 1, bytes: 0 }, lower_bound_ns: found.0.time_ns, incumbent: found }
    }
}

/// What the dual asks of a problem.
pub(super) trait Weighable {
    /// Upper bounds on the time and the bytes of any assignment that is not forbidden.
    fn totals(&self) -> (u128, u128);

    /// An assignment with the least weighted cost, its cost, and that weighted cost.
    fn minimise(&self, weights: Weights) -> (Scored, u128);

    /// An assignment within `budget` bytes that is no slower than `within`, made from it and one over the budget.
    fn improve(&self, over: &[usize], within: Scored, budget: u64) -> Scored;
}

/// A cost graph whose elimination fits the limits.
pub(super) struct Narrow<'a> {
    pub problem: &'a Problem,
    pub tree: &'a BucketTree,
}

impl Weighable for Narrow<'_> {
    fn totals(&self) -> (u128, u128) {
        self.problem.totals()
    }

    fn minimise(&self, weights: Weights) -> (Scored, u128) {
        let inward = Inward::new(self.problem, self.tree, weights);
        let assignment = inward.assignment(self.tree);
        ((self.problem.cost(&assignment), assignment), inward.least())
    }

    fn improve(&self, over: &[usize], within: Scored, budget: u64) -> Scored {
        let order: Vec<usize> = self.tree.buckets.iter().map(|b| b.var).collect();
        let mixed = mix(self.problem, &order, over, &within, budget);
        polish(self.problem, mixed, budget).min(polish(self.problem, within, budget))
    }
}

/// The weights for which two assignments, the first faster and the second smaller, weigh the same.
fn between(fast: Cost, small: Cost, totals: (u128, u128)) -> Weights {
    let (dt, db) = (u128::from(small.time_ns - fast.time_ns), u128::from(fast.bytes - small.bytes));
    let shared = gcd(dt, db);
    Weights::fit(db / shared, dt / shared, totals)
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The least time, in nanoseconds, of an assignment that weighs `least` or more and has at most `budget` bytes.
pub(super) fn time_bound(weights: Weights, least: u128, budget: u64) -> u64 {
    let rest = least.saturating_sub(weights.bytes * u128::from(budget));
    u64::try_from(rest.div_ceil(weights.time.max(1))).unwrap_or(u64::MAX)
}

/// Solves the Lagrangian dual of minimising time within `budget` bytes.
pub(super) fn dual(problem: &impl Weighable, budget: Option<u64>, limits: &Limits) -> Dual {
    let totals = problem.totals();
    let (fast, _) = problem.minimise(Weights::time_first(totals));
    let budget = budget.unwrap_or(u64::MAX);
    if fast.0.is_forbidden() {
        return Dual::Infeasible(fast);
    }
    if fast.0.bytes <= budget {
        return Dual::Free(fast);
    }
    let (small, _) = problem.minimise(Weights::bytes_first(totals));
    if small.0.bytes > budget {
        return Dual::Infeasible(small);
    }
    Dual::Bound(descend(problem, budget, fast, small, limits))
}

/// Walks along the hull to the segment from an assignment over the budget to one within it.
fn descend(problem: &impl Weighable, budget: u64, over: Scored, within: Scored, limits: &Limits) -> Bound {
    let totals = problem.totals();
    let (mut over, mut within) = (over, within);
    let mut bound = Bound { lower_bound_ns: over.0.time_ns, ..Bound::exact(within.clone()) };
    for _ in 0..limits.price_steps {
        let weights = between(over.0, within.0, totals);
        let (found, least) = problem.minimise(weights);
        let lower_bound_ns = time_bound(weights, least, budget);
        if weights.time > 0 && lower_bound_ns >= bound.lower_bound_ns {
            (bound.weights, bound.lower_bound_ns) = (weights, lower_bound_ns);
        }
        if least >= weights.of(over.0).min(weights.of(within.0)) {
            break;
        }
        if found.0.bytes > budget { over = found } else { within = found }
    }
    bound.incumbent = problem.improve(&over.1, within, budget);
    bound
}

/// The vertices of the lower convex hull of (bytes, time) over all assignments, from the fastest to the smallest,
/// each with an assignment; empty when every assignment is forbidden. There are at most `limits.hull_points`: when
/// the hull has more vertices, those left out lie closest to the segments that are kept.
///
/// # Errors
/// `TooWide` when elimination needs larger tables than `limits` allow.
pub fn hull(problem: &Problem, limits: &Limits) -> Result<Vec<(Cost, Assignment)>, TooWide> {
    let Some(reduced) = simplify(problem) else { return Ok(Vec::new()) };
    let tree = BucketTree::new(&reduced.problem);
    if !tree.fits(limits.table_cells, limits.total_cells) {
        return Err(TooWide { width: tree.width });
    }
    let totals = reduced.problem.totals();
    let narrow = Narrow { problem: &reduced.problem, tree: &tree };
    let (fast, least) = narrow.minimise(Weights::time_first(totals));
    if least >= INFINITE {
        return Ok(Vec::new());
    }
    let (small, _) = narrow.minimise(Weights::bytes_first(totals));
    let vertices = refine(&narrow, fast, small, limits.hull_points);
    let lifted = strict(vertices).into_iter().map(|(cost, a)| (cost.plus(reduced.offset), reduced.lift(&a)));
    Ok(lifted.collect())
}

/// The vertices of the hull from `fast` to `small`. The segment that encloses most time · bytes is refined first.
fn refine(problem: &impl Weighable, fast: Scored, small: Scored, most: usize) -> Vec<Scored> {
    let totals = problem.totals();
    let area = |a: Cost, b: Cost| u128::from(b.time_ns - a.time_ns) * u128::from(a.bytes - b.bytes);
    let mut open = BTreeMap::new();
    let mut vertices = BTreeSet::from([fast.clone(), small.clone()]);
    if small.0.bytes < fast.0.bytes {
        open.insert((area(fast.0, small.0), fast.0), small.0);
    }
    while let Some(((_, start), end)) = open.pop_last() {
        if vertices.len() >= most {
            break;
        }
        let weights = between(start, end, totals);
        let (found, least) = problem.minimise(weights);
        if least < weights.of(start).min(weights.of(end)) {
            open.insert((area(start, found.0), start), found.0);
            open.insert((area(found.0, end), found.0), end);
            vertices.insert(found);
        }
    }
    let mut vertices: Vec<Scored> = vertices.into_iter().collect();
    vertices.dedup_by_key(|v| v.0);
    vertices
}

/// Drops the points on the segment between their neighbours, which an elimination with ties may return.
fn strict(points: Vec<Scored>) -> Vec<Scored> {
    let mut kept: Vec<Scored> = Vec::with_capacity(points.len());
    for point in points {
        while let [.., a, b] = &kept[..] {
            if turns(a.0, b.0, point.0) {
                break;
            }
            kept.pop();
        }
        kept.push(point);
    }
    kept
}

/// True when `b` lies strictly below the segment from `a` to `c`; time ascends and bytes descend from a to c.
fn turns(a: Cost, b: Cost, c: Cost) -> bool {
    let d = |x: u64, y: u64| u128::from(x - y);
    d(b.time_ns, a.time_ns) * d(a.bytes, c.bytes) < d(c.time_ns, a.time_ns) * d(a.bytes, b.bytes)
}

#[cfg(test)]
mod tests {
    use super::super::brute::each_assignment;
    use super::super::pareto::prune_covered;
    use super::super::samples::random_problem;
    use super::*;

    #[test]
    fn the_hull_is_that_of_all_assignments() {
        for seed in 0..200 {
            let problem = random_problem(seed, 6, 4);
            let found = hull(&problem, &Limits::default()).expect("small");
            found.iter().for_each(|(cost, a)| assert_eq!(problem.cost(a), *cost, "seed {seed}"));
            let costs: Vec<Cost> = found.iter().map(|f| f.0).collect();
            assert_eq!(costs, enumerated_hull(&problem), "seed {seed}");
        }
    }

    fn enumerated_hull(problem: &Problem) -> Vec<Cost> {
        let extents: Vec<usize> = problem.vars.iter().map(|v| v.domain.len()).collect();
        let mut costs = Vec::new();
        each_assignment(&extents, |a| costs.push(problem.cost(a)));
        costs.retain(|c| !c.is_forbidden());
        prune_covered(&mut costs, |c| *c);
        let mut hull: Vec<Cost> = Vec::new();
        for c in costs {
            while hull.len() > 1 && !turns(hull[hull.len() - 2], hull[hull.len() - 1], c) {
                hull.pop();
            }
            hull.push(c);
        }
        hull
    }
}
