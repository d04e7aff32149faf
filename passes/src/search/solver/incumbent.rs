//! Quick ways to a good assignment within the budget: mixing two known ones, and single changes.

use super::problem::{Assignment, Cost, Problem};

/// An assignment and its cost.
pub(super) type Scored = (Cost, Assignment);

/// The total cost of an assignment that is being changed, kept so that forbidden entries can be left again.
#[derive(Clone, Copy, Default)]
struct Tally {
    time_ns: u128,
    bytes: u128,
    n_forbidden: usize,
}

impl Tally {
    fn add(&mut self, cost: Cost) {
        if cost.is_forbidden() {
            self.n_forbidden += 1;
        } else {
            self.time_ns += u128::from(cost.time_ns);
            self.bytes += u128::from(cost.bytes);
        }
    }

    fn take(&mut self, cost: Cost) {
        if cost.is_forbidden() {
            self.n_forbidden -= 1;
        } else {
            self.time_ns -= u128::from(cost.time_ns);
            self.bytes -= u128::from(cost.bytes);
        }
    }

    fn total(self) -> Cost {
        let part = |x: u128| u64::try_from(x).unwrap_or(u64::MAX);
        let total = Cost::new(part(self.time_ns), part(self.bytes));
        if self.n_forbidden > 0 { Cost::FORBIDDEN } else { total.plus(Cost::ZERO) }
    }
}

/// A problem with the edges of each variable at hand; no edge joins a variable with itself.
struct Neighbourhood<'a> {
    problem: &'a Problem,
    incident: Vec<Vec<usize>>,
}

impl<'a> Neighbourhood<'a> {
    fn new(problem: &'a Problem) -> Self {
        let mut incident = vec![Vec::new(); problem.vars.len()];
        for (e, edge) in problem.edges.iter().enumerate() {
            incident[edge.a].push(e);
            incident[edge.b].push(e);
        }
        Self { problem, incident }
    }

    /// The cost of the variable `v` at `x` and that of each of its edges, the others being as assigned.
    fn local(&self, assignment: &[usize], v: usize, x: usize) -> impl Iterator<Item = Cost> {
        let edge_cost = move |&e: &usize| {
            let edge = &self.problem.edges[e];
            let value = |u: usize| if u == v { x } else { assignment[u] };
            edge.table[value(edge.a) * self.problem.n_values(edge.b) + value(edge.b)]
        };
        std::iter::once(self.problem.vars[v].domain[x]).chain(self.incident[v].iter().map(edge_cost))
    }

    /// Changes the value of `v` to `x`.
    fn change(&self, tally: &mut Tally, assignment: &mut [usize], v: usize, x: usize) {
        self.local(assignment, v, assignment[v]).for_each(|cost| tally.take(cost));
        assignment[v] = x;
        self.local(assignment, v, x).for_each(|cost| tally.add(cost));
    }

    fn tally(&self, assignment: &[usize]) -> Tally {
        let mut tally = Tally::default();
        self.problem.vars.iter().zip(assignment).for_each(|(var, &x)| tally.add(var.domain[x]));
        for e in &self.problem.edges {
            tally.add(e.table[assignment[e.a] * self.problem.n_values(e.b) + assignment[e.b]]);
        }
        tally
    }
}

/// Improves an assignment by single changes that save time and stay within the budget, until none is left.
pub(super) fn polish(problem: &Problem, start: Scored, budget: u64) -> Scored {
    let near = Neighbourhood::new(problem);
    let (mut cost, mut assignment) = start;
    let mut tally = near.tally(&assignment);
    for _ in 0..8 {
        let before = cost;
        for v in 0..assignment.len() {
            let mut rest = tally;
            near.local(&assignment, v, assignment[v]).for_each(|c| rest.take(c));
            let total = |x: usize| {
                let mut changed = rest;
                near.local(&assignment, v, x).for_each(|c| changed.add(c));
                changed.total()
            };
            let fitting = (0..problem.n_values(v)).map(|x| (total(x), x)).filter(|(c, _)| c.bytes <= budget);
            if let Some((least, x)) = fitting.min().filter(|(c, _)| *c < cost && !c.is_forbidden()) {
                near.change(&mut tally, &mut assignment, v, x);
                cost = least;
            }
        }
        if cost == before {
            break;
        }
    }
    (cost, assignment)
}

/// The best of `within` and every mix that takes the first so many variables of `order` from one of the two
/// assignments and the rest from the other. Where layers repeat this switches the plan once, at the best place.
pub(super) fn mix(problem: &Problem, order: &[usize], over: &[usize], within: &Scored, budget: u64) -> Scored {
    let near = Neighbourhood::new(problem);
    let mut best = within.clone();
    for (from, to) in [(over, &within.1[..]), (&within.1[..], over)] {
        let mut assignment = from.to_vec();
        let mut tally = near.tally(&assignment);
        for &v in order {
            near.change(&mut tally, &mut assignment, v, to[v]);
            let cost = tally.total();
            if cost < best.0 && cost.bytes <= budget && !cost.is_forbidden() {
                best = (cost, assignment.clone());
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::super::brute::{brute, each_assignment};
    use super::super::samples::random_problem;
    use super::*;

    #[test]
    fn improvements_are_real_and_fit() {
        for seed in (0..200).filter(|seed| seed % 5 != 4) {
            let problem = random_problem(seed, 6, 4);
            let Some((fast, over)) = brute(&problem, None) else { continue };
            let extents: Vec<usize> = problem.vars.iter().map(|v| v.domain.len()).collect();
            let mut small = (fast, over.clone());
            each_assignment(&extents, |a| small = small.clone().min((problem.cost(a), a.to_vec())));
            let budget = (fast.bytes + small.0.bytes) / 2;
            let Some(within) = brute(&problem, Some(budget)) else { continue };
            let order: Vec<usize> = (0..extents.len()).collect();
            for found in [mix(&problem, &order, &over, &within, budget), polish(&problem, within.clone(), budget)] {
                assert_eq!(found.0, problem.cost(&found.1), "seed {seed}");
                assert!(found.0 <= within.0 && found.0.bytes <= budget, "seed {seed}");
            }
        }
    }
}
