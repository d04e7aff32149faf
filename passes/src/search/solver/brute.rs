//! Complete enumeration: the reference that the other solvers are checked against.

use super::problem::{Assignment, Cost, Problem};

/// The most assignments that `brute` looks at.
pub const MOST_ASSIGNMENTS: u64 = 1_000_000;

/// The assignment with the least time among those within `budget` bytes, then the least bytes, then the first one
/// in lexicographic order; `None` when no assignment is allowed.
///
/// # Panics
/// When there are more than `MOST_ASSIGNMENTS`.
pub fn brute(problem: &Problem, budget: Option<u64>) -> Option<(Cost, Assignment)> {
    let mut best: Option<(Cost, Assignment)> = None;
    each_allowed(problem, |cost, assignment| {
        let fits = budget.is_none_or(|most| cost.bytes <= most);
        if fits && best.as_ref().is_none_or(|(least, _)| cost < *least) {
            best = Some((cost, assignment.to_vec()));
        }
    });
    best
}

/// Calls `visit` for every allowed assignment with its cost, in lexicographic order.
///
/// # Panics
/// When there are more than `MOST_ASSIGNMENTS`.
pub fn each_allowed(problem: &Problem, mut visit: impl FnMut(Cost, &[usize])) {
    let extents: Vec<usize> = problem.vars.iter().map(|v| v.domain.len()).collect();
    let n_assignments = extents.iter().fold(1u64, |n, &d| n.saturating_mul(d as u64));
    assert!(n_assignments <= MOST_ASSIGNMENTS, "{n_assignments} assignments are too many to enumerate");
    each_assignment(&extents, |assignment| {
        let cost = problem.cost(assignment);
        if !cost.is_forbidden() {
            visit(cost, assignment);
        }
    });
}

/// Calls `visit` for every assignment of variables with these many values, in lexicographic order.
pub fn each_assignment(extents: &[usize], mut visit: impl FnMut(&[usize])) {
    if extents.contains(&0) {
        return;
    }
    let mut assignment = vec![0; extents.len()];
    loop {
        visit(&assignment);
        let Some(last) = (0..extents.len()).rev().find(|&v| assignment[v] + 1 < extents[v]) else { return };
        assignment[last] += 1;
        assignment[last + 1..].fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::problem::Var;
    use super::*;

    #[test]
    fn the_budget_excludes_the_fastest_value() {
        let problem = Problem { vars: vec![Var { domain: vec![Cost::new(1, 9), Cost::new(2, 3)] }], edges: vec![] };
        assert_eq!(brute(&problem, None), Some((Cost::new(1, 9), vec![0])));
        assert_eq!(brute(&problem, Some(8)), Some((Cost::new(2, 3), vec![1])));
        assert_eq!(brute(&problem, Some(2)), None);
    }
}
