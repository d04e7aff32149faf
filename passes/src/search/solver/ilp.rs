//! The same problem as an integer linear program, through good_lp and microlp.
//!
//! Flow form: a binary per variable and value, of which one is chosen; a continuous entry per pair of values of an
//! edge whose row sums and column sums equal the binaries; one knapsack over the bytes. Forbidden entries have no
//! variable. The solver computes in floating point, so its answer is evaluated again in integers and is not a proof.

use good_lp::{Expression, ProblemVariables, Solution, SolverModel, Variable, microlp, variable};

use super::incumbent::Scored;
use super::problem::{Cost, Problem};

/// Solves the program. `None` when it has no solution within `budget` bytes that takes less than `cutoff_ns`, or
/// more than `most_entries` table entries, which microlp would not solve in useful time.
pub fn solve_ilp(
    problem: &Problem,
    budget: Option<u64>,
    cutoff_ns: Option<u64>,
    most_entries: usize,
) -> Option<Scored> {
    let n_entries: usize =
        problem.vars.iter().map(|v| v.domain.len()).chain(problem.edges.iter().map(|e| e.table.len())).sum();
    if n_entries > most_entries {
        return None;
    }
    let mut program = Program::new(problem);
    problem.edges.iter().for_each(|edge| program.add_edge(edge.a, edge.b, &edge.table, problem.n_values(edge.b)));
    let assignment = program.solve(budget, cutoff_ns)?;
    let cost = problem.cost(&assignment);
    let allowed = !cost.is_forbidden() && budget.is_none_or(|most| cost.bytes <= most);
    (allowed && cutoff_ns.is_none_or(|cutoff| cost.time_ns < cutoff)).then_some((cost, assignment))
}

struct Program {
    variables: ProblemVariables,
    /// For each variable and value its binary, unless forbidden.
    choices: Vec<Vec<Option<Variable>>>,
    time: Expression,
    bytes: Expression,
    /// Expressions that equal zero.
    zeros: Vec<Expression>,
    /// What one unit of time, and one of bytes, stands for; it keeps the coefficients near one.
    units: (f64, f64),
}

impl Program {
    fn new(problem: &Problem) -> Self {
        let (time, bytes) = problem.totals();
        let units = ((time.max(1) as f64) / 1e3, (bytes.max(1) as f64) / 1e3);
        let (time, bytes) = (Expression::default(), Expression::default());
        let mut program =
            Self { variables: ProblemVariables::new(), choices: Vec::new(), time, bytes, zeros: Vec::new(), units };
        for var in &problem.vars {
            let choices: Vec<Option<Variable>> =
                var.domain.iter().map(|&cost| program.add_variable(cost, true)).collect();
            let one_chosen: Expression = choices.iter().flatten().copied().sum();
            program.zeros.push(one_chosen - 1);
            program.choices.push(choices);
        }
        program
    }

    /// A variable in [0, 1] with this cost, unless the cost is forbidden.
    fn add_variable(&mut self, cost: Cost, binary: bool) -> Option<Variable> {
        if cost.is_forbidden() {
            return None;
        }
        let definition = if binary { variable().binary() } else { variable().bounds(0.0..1.0) };
        let added = self.variables.add(definition);
        self.time.add_mul(cost.time_ns as f64 / self.units.0, added);
        self.bytes.add_mul(cost.bytes as f64 / self.units.1, added);
        Some(added)
    }

    /// The entries of one edge, whose margins equal the choices of its two ends.
    fn add_edge(&mut self, a: usize, b: usize, table: &[Cost], columns: usize) {
        let entries: Vec<Option<Variable>> = table.iter().map(|&cost| self.add_variable(cost, false)).collect();
        for x in 0..self.choices[a].len() {
            let row: Expression = entries[x * columns..(x + 1) * columns].iter().flatten().copied().sum();
            self.zeros.push(row - self.choice(a, x));
        }
        for y in 0..columns {
            let column: Expression = entries.iter().skip(y).step_by(columns).flatten().copied().sum();
            self.zeros.push(column - self.choice(b, y));
        }
    }

    fn choice(&self, v: usize, x: usize) -> Expression {
        self.choices[v][x].map_or_else(Expression::default, Expression::from)
    }

    /// The chosen value of each variable.
    fn solve(self, budget: Option<u64>, cutoff_ns: Option<u64>) -> Option<Vec<usize>> {
        let mut model = self.variables.minimise(self.time.clone()).using(microlp);
        for zero in self.zeros {
            model.add_constraint(zero.eq(0));
        }
        if let Some(most) = budget {
            model.add_constraint(self.bytes.leq(most as f64 / self.units.1));
        }
        if let Some(cutoff) = cutoff_ns {
            model.add_constraint(self.time.leq((cutoff as f64 - 0.5) / self.units.0));
        }
        let solution = model.solve().ok()?;
        let chosen =
            |choices: &Vec<Option<Variable>>| choices.iter().position(|c| c.is_some_and(|v| solution.value(v) > 0.5));
        self.choices.iter().map(chosen).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::brute::brute;
    use super::super::samples::random_problem;
    use super::*;

    #[test]
    fn the_program_agrees_with_enumeration() {
        let mut solved = 0;
        for seed in 0..60 {
            let problem = random_problem(seed, 5, 3);
            let free = brute(&problem, None);
            assert_eq!(time(solve_ilp(&problem, None, None, 500)), time(free.clone()), "seed {seed}");
            let Some((cost, _)) = free else { continue };
            for budget in [cost.bytes, cost.bytes * 3 / 4, cost.bytes / 2] {
                let found = solve_ilp(&problem, Some(budget), None, 500);
                assert_eq!(time(found), time(brute(&problem, Some(budget))), "seed {seed}, budget {budget}");
                solved += 1;
            }
        }
        assert!(solved > 100);
    }

    fn time(found: Option<Scored>) -> Option<u64> {
        found.map(|(cost, _)| cost.time_ns)
    }

    #[test]
    fn the_cutoff_excludes_the_optimum() {
        let problem = random_problem(4, 5, 3);
        let (cost, _) = brute(&problem, None).expect("feasible");
        assert!(solve_ilp(&problem, None, Some(cost.time_ns), 500).is_none());
        assert!(solve_ilp(&problem, None, Some(cost.time_ns + 1), 500).is_some());
        assert!(solve_ilp(&problem, None, None, 1).is_none());
    }
}
