//! The exact solver under the search: least time within a budget of bytes, over a graph of unary and pairwise costs.
//!
//! Where the elimination width is small, variable elimination solves the problem for any price on bytes, the price is
//! found by walking the convex hull, and the gap that remains is closed by elimination with Pareto fronts. Where it is
//! large, branch and bound assigns variables until it is small. Costs are integers, limits are counts, ties go to the
//! first value: the same problem always has the same answer.

mod branch;
pub mod brute;
pub mod chain;
mod eliminate;
mod frontier;
mod ilp;
mod incumbent;
mod lagrange;
mod narrow;
mod order;
mod pareto;
mod path;
mod problem;
#[cfg(test)]
mod samples;

use serde::{Deserialize, Serialize};

use branch::solve_wide;
pub use eliminate::{Eliminated, TooWide, eliminate};
pub use ilp::solve_ilp;
pub use lagrange::hull;
use narrow::{Outcome, solve_narrow};
use order::BucketTree;
pub use order::elimination_width;
use pareto::{Effort, eliminate_fronts};
pub use problem::{Assignment, Cost, Edge, Problem, Var};
use problem::{Reduced, simplify};

/// The most work the solver does. All are counts, never seconds, so that results do not depend on the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Cells of the largest joint table of an elimination.
    pub table_cells: u64,
    /// Cells of all joint tables of one elimination together.
    pub total_cells: u64,
    /// Eliminations in the search for the best price on bytes.
    pub price_steps: u32,
    /// Vertices of a hull.
    pub hull_points: usize,
    /// Points kept in all fronts of one Pareto elimination together.
    pub total_points: usize,
    /// Sums of two points formed in one Pareto elimination.
    pub point_sums: u64,
    /// Cells of all joint tables that branch and bound fills, once it has an assignment.
    pub branch_cells: u64,
    /// Table entries of the largest problem given to the integer linear program.
    pub ilp_entries: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            table_cells: 1 << 24,
            total_cells: 1 << 28,
            price_steps: 64,
            hull_points: 256,
            total_points: 1 << 23,
            point_sums: 1 << 27,
            branch_cells: 1 << 31,
            ilp_entries: 600,
        }
    }
}

/// An assignment within the budget and what is known about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Solution {
    /// One value per variable.
    pub assignment: Assignment,
    /// Its cost.
    pub cost: Cost,
    /// No assignment within the budget takes less time, in nanoseconds.
    pub lower_bound_ns: u64,
    /// The elimination width of the simplified problem.
    pub width: usize,
    /// True when the assignment is optimal: its time is the lower bound.
    pub proven: bool,
}

/// No assignment within the budget was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Infeasible {
    /// The least bytes found, with the time of that assignment; `FORBIDDEN` when every assignment is.
    pub least: Cost,
    /// The assignment with the least bytes; empty when every assignment is forbidden.
    pub assignment: Assignment,
    /// True when there is none, false when the search ended before that was certain.
    pub proven: bool,
}

/// Finds the assignment with the least time whose bytes are at most `budget` (`None`: no limit).
///
/// # Errors
/// `Infeasible` when there is none.
///
/// # Panics
/// When an edge names a missing variable or its table has the wrong size.
pub fn solve(problem: &Problem, budget: Option<u64>, limits: &Limits) -> Result<Solution, Infeasible> {
    assert!(problem.is_well_formed(), "invariant: an edge does not match its variables");
    let nothing = Infeasible { least: Cost::FORBIDDEN, assignment: Vec::new(), proven: true };
    let Some(reduced) = simplify(problem) else { return Err(nothing) };
    let tree = BucketTree::new(&reduced.problem);
    // Nothing fits a budget that the constant part exceeds; the least bytes are then found with no budget to spare.
    let left = budget.map(|most| most.saturating_sub(reduced.offset.bytes));
    let outcome = if tree.fits(limits.table_cells, limits.total_cells) {
        solve_narrow(&reduced.problem, &tree, left, u64::MAX, limits)
    } else {
        with_program(&reduced.problem, left, limits, solve_wide(&reduced.problem, left, limits))
    };
    finish(&reduced, tree.width, budget, outcome)
}

/// The outcome of branch and bound, improved by the integer linear program where that was not a proof.
fn with_program(problem: &Problem, budget: Option<u64>, limits: &Limits, mut outcome: Outcome) -> Outcome {
    let upper_ns = outcome.best.as_ref().map(|(cost, _)| cost.time_ns);
    if outcome.lower_bound_ns < upper_ns.unwrap_or(u64::MAX)
        && let Some(found) = solve_ilp(problem, budget, upper_ns, limits.ilp_entries)
    {
        outcome.best = Some(found);
    }
    outcome
}

/// Translates an outcome back to the problem that was simplified.
fn finish(reduced: &Reduced, width: usize, budget: Option<u64>, outcome: Outcome) -> Result<Solution, Infeasible> {
    let lower_bound_ns = outcome.lower_bound_ns.saturating_add(reduced.offset.time_ns);
    let certain = outcome.lower_bound_ns == u64::MAX || budget.is_some_and(|most| most < reduced.offset.bytes);
    let (cost, assignment) = match outcome.best.or(outcome.least) {
        Some((cost, assignment)) => (cost.plus(reduced.offset), assignment),
        None => return Err(Infeasible { least: Cost::FORBIDDEN, assignment: Vec::new(), proven: certain }),
    };
    if cost.is_forbidden() {
        return Err(Infeasible { least: cost, assignment: Vec::new(), proven: true });
    }
    let assignment = reduced.lift(&assignment);
    if budget.is_some_and(|most| cost.bytes > most) {
        return Err(Infeasible { least: cost, assignment, proven: certain });
    }
    Ok(Solution { assignment, cost, lower_bound_ns, width, proven: lower_bound_ns >= cost.time_ns })
}

/// The whole Pareto front of (time, bytes), fastest first, each point with an assignment; `None` when it takes more
/// work than `limits` allow. [`hull`] is much cheaper and is what a search with a price on bytes can reach.
pub fn front(problem: &Problem, limits: &Limits) -> Option<Vec<(Cost, Assignment)>> {
    let Some(reduced) = simplify(problem) else { return Some(Vec::new()) };
    let tree = BucketTree::new(&reduced.problem);
    if !tree.fits(limits.table_cells, limits.total_cells) {
        return None;
    }
    let effort = Effort { points_per_cell: usize::MAX, total_points: limits.total_points, sums: limits.point_sums };
    let found = eliminate_fronts(&reduced.problem, &tree, &[], effort).ok()?;
    Some(found.front.into_iter().map(|(cost, a)| (cost.plus(reduced.offset), reduced.lift(&a))).collect())
}

#[cfg(test)]
mod tests {
    use super::brute::brute;
    use super::samples::{Prices, SplitMix, problem_on, random_problem};
    use super::*;

    /// The budgets worth trying: none, those that bind, and one below the least.
    fn budgets(problem: &Problem) -> Vec<Option<u64>> {
        let Some((fast, _)) = brute(problem, None) else { return vec![None] };
        let least = front(problem, &Limits::default()).and_then(|f| f.last().map(|p| p.0.bytes)).expect("feasible");
        let part = |k: u64| Some(least + (fast.bytes - least) * k / 8);
        let mut budgets = vec![None, part(8), part(6), part(4), part(2), part(1), part(0)];
        budgets.extend(least.checked_sub(1).map(Some));
        budgets
    }

    fn check(seed: u64, problem: &Problem, limits: &Limits) {
        for budget in budgets(problem) {
            let label = format!("seed {seed}, budget {budget:?}");
            match (solve(problem, budget, limits), brute(problem, budget)) {
                (Ok(found), Some((cost, _))) => {
                    assert_eq!(found.cost.time_ns, cost.time_ns, "{label}");
                    assert_eq!(problem.cost(&found.assignment), found.cost, "{label}");
                    assert!(found.proven && found.lower_bound_ns == cost.time_ns, "{label}");
                    assert!(budget.is_none_or(|most| found.cost.bytes <= most), "{label}");
                }
                (Err(none), None) => {
                    assert!(none.proven, "{label}");
                    let least = front(problem, &Limits::default()).expect("small").last().map(|p| p.0.bytes);
                    assert_eq!(none.least.bytes, least.unwrap_or(u64::MAX), "{label}");
                }
                (found, expected) => panic!("{label}: {found:?} but enumeration has {expected:?}"),
            }
        }
    }

    #[test]
    fn the_solver_agrees_with_enumeration() {
        for seed in 0..1500 {
            check(seed, &random_problem(seed, 8, 4), &Limits::default());
        }
    }

    #[test]
    fn branch_and_bound_agrees_with_enumeration() {
        let limits = Limits { table_cells: 6, ..Limits::default() };
        for seed in 0..400 {
            check(seed, &random_problem(seed, 7, 4), &limits);
        }
    }

    #[test]
    fn bounds_hold_when_the_effort_is_spent() {
        for seed in 0..300 {
            let problem = random_problem(seed, 8, 4);
            let limits = Limits {
                point_sums: 200,
                total_points: 50,
                branch_cells: 30,
                ilp_entries: 0,
                table_cells: 20,
                ..Limits::default()
            };
            for budget in budgets(&problem) {
                let (Ok(found), Some((cost, _))) = (solve(&problem, budget, &limits), brute(&problem, budget)) else {
                    continue;
                };
                assert!(found.lower_bound_ns <= cost.time_ns && cost.time_ns <= found.cost.time_ns, "seed {seed}");
                assert!(!found.proven || found.cost.time_ns == cost.time_ns, "seed {seed}");
            }
        }
    }

    /// Each variable shares a table with the one before and the one before that.
    fn ladder(n: usize, n_values: usize) -> Problem {
        let pairs: Vec<_> = (1..n).flat_map(|v| [(v - 1, v), (v.max(2) - 2, v)]).collect();
        let prices = Prices { most: 1_000_000, forbid_one_in: 20 };
        problem_on(n, &pairs, n_values, true, prices, &mut SplitMix(n as u64))
    }

    #[test]
    fn a_thousand_variables_are_solved_exactly_and_always_alike() {
        let (problem, limits) = (ladder(1000, 6), Limits::default());
        let free = solve(&problem, None, &limits).expect("feasible");
        let least = solve(&problem, Some(0), &limits).expect_err("nothing is free").least.bytes;
        let budget = Some(least + (free.cost.bytes - least) / 3);
        let found = solve(&problem, budget, &limits).expect("feasible");
        assert!(free.proven && found.proven && found.width == 2);
        assert!(free.cost.time_ns < found.cost.time_ns && Some(found.cost.bytes) <= budget);
        assert_eq!(solve(&problem, budget, &limits), Ok(found));
    }

    #[test]
    fn the_relabelled_problem_has_the_same_optimum() {
        for seed in 0..50 {
            let problem = random_problem(seed, 40, 5);
            let mut reversed = problem.clone();
            reversed.vars.reverse();
            let last = problem.vars.len() - 1;
            reversed.edges.iter_mut().for_each(|e| (e.a, e.b) = (last - e.a, last - e.b));
            let budget = solve(&problem, None, &Limits::default()).map(|s| s.cost.bytes / 4 * 3).ok();
            let time = |p: &Problem| solve(p, budget, &Limits::default()).map(|s| (s.cost.time_ns, s.proven)).ok();
            assert_eq!(time(&problem), time(&reversed), "seed {seed}");
        }
    }

    #[test]
    fn an_empty_problem_costs_nothing() {
        let found = solve(&Problem::default(), Some(0), &Limits::default()).expect("nothing to decide");
        assert_eq!((found.cost, found.proven), (Cost::ZERO, true));
    }
}
