//! Depth-first branch and bound for problems whose elimination does not fit the limits.
//!
//! A cutset is a set of variables without which elimination fits. The search assigns them one after the other. While
//! some are open, every edge of an open variable is replaced by costs of its ends that never exceed it, so that
//! elimination fits and bounds the rest from below; once all are assigned, the rest is solved exactly.

use super::Limits;
use super::eliminate::{INFINITE, Inward, Weights};
use super::incumbent::{Scored, polish};
use super::lagrange::{Dual, Narrow, dual, time_bound};
use super::narrow::{Outcome, solve_narrow};
use super::order::{BucketTree, busiest, eliminations, joint_cells};
use super::problem::{Cost, Edge, Problem, Reduced, Var, restrict};

/// The largest joint table of the eliminations at the nodes: they are many, so each must be quick.
const MOST_TABLE_CELLS: u64 = 1 << 17;

/// What the exact solution of a leaf counts as, in eliminations.
const ELIMINATIONS_PER_LEAF: u64 = 100;

/// The variables to be assigned before elimination fits, in the order of the search.
fn cutset(problem: &Problem, limits: &Limits) -> Vec<usize> {
    let mut extents: Vec<usize> = problem.vars.iter().map(|v| v.domain.len()).collect();
    let mut pairs: Vec<(usize, usize)> = problem.edges.iter().map(|e| (e.a, e.b)).collect();
    let mut cut = Vec::new();
    let mut largest = limits.table_cells.min(MOST_TABLE_CELLS);
    loop {
        let order = eliminations(&extents, &pairs);
        let total = order.iter().fold(0u64, |sum, e| sum.saturating_add(joint_cells(&extents, e)));
        match busiest(&extents, &order, largest) {
            Some(v) => {
                cut.push(v);
                extents[v] = 1;
                pairs.retain(|&(a, b)| a != v && b != v);
            }
            None if total > limits.total_cells && largest > 1 => largest /= 2,
            None => return cut,
        }
    }
}

/// Searches a wide `problem` for the fastest assignment within `budget` bytes. When none is found, `least` is the
/// assignment with the least bytes that was.
pub(super) fn solve_wide(problem: &Problem, budget: Option<u64>, limits: &Limits) -> Outcome {
    let outcome = search(problem, budget, limits);
    if outcome.best.is_some() || budget.is_none() {
        return outcome;
    }
    let mirrored = search(&mirror(problem), None, limits);
    let smallest = mirrored.best.map(|(cost, a)| (Cost { time_ns: cost.bytes, bytes: cost.time_ns }, a));
    match smallest {
        Some((cost, a)) if budget.is_none_or(|most| cost.bytes <= most) => {
            let best = polish(problem, (cost, a), budget.unwrap_or(u64::MAX));
            Outcome { lower_bound_ns: outcome.lower_bound_ns.min(best.0.time_ns), best: Some(best), least: None }
        }
        least => Outcome { least: least.or(outcome.least), ..outcome },
    }
}

/// The problem with time and bytes exchanged.
fn mirror(problem: &Problem) -> Problem {
    let swap = |c: &Cost| Cost { time_ns: c.bytes, bytes: c.time_ns };
    let vars = problem.vars.iter().map(|v| Var { domain: v.domain.iter().map(swap).collect() }).collect();
    let edge = |e: &Edge| Edge { a: e.a, b: e.b, table: e.table.iter().map(swap).collect() };
    Problem { vars, edges: problem.edges.iter().map(edge).collect() }
}

fn search(problem: &Problem, budget: Option<u64>, limits: &Limits) -> Outcome {
    let cut = cutset(problem, limits);
    let keep: Vec<Vec<usize>> = problem.vars.iter().map(|v| (0..v.domain.len()).collect()).collect();
    let cells_left = limits.branch_cells;
    let mut search = Search { problem, budget, limits, cut, price: None, cells_left, best: None, open_ns: u64::MAX };
    let root = search.relaxed(&keep, 0);
    let left = budget.map(|most| most.saturating_sub(root.offset.bytes));
    if let Dual::Bound(bound) =
        dual(&Narrow { problem: &root.problem, tree: &BucketTree::new(&root.problem) }, left, limits)
    {
        search.price = Some(bound.weights);
    }
    search.descend(keep, 0, 0);
    let upper_ns = search.upper_ns();
    Outcome { lower_bound_ns: search.open_ns.min(upper_ns), best: search.best, least: None }
}

struct Search<'a> {
    problem: &'a Problem,
    budget: Option<u64>,
    limits: &'a Limits,
    cut: Vec<usize>,
    /// The weights of the relaxed dual, when the budget binds there.
    price: Option<Weights>,
    /// Cells of joint tables that may still be filled; the first dive is finished in any case.
    cells_left: u64,
    best: Option<Scored>,
    /// The least lower bound of what was left unexplored.
    open_ns: u64,
}

impl Search<'_> {
    fn upper_ns(&self) -> u64 {
        self.best.as_ref().map_or(u64::MAX, |(cost, _)| cost.time_ns)
    }

    fn is_spent(&self) -> bool {
        self.cells_left == 0 && self.best.is_some()
    }

    /// Explores the assignments in `keep`, where the first `depth` variables of the cutset have one value and which
    /// take at least `bound_ns`.
    fn descend(&mut self, keep: Vec<Vec<usize>>, depth: usize, bound_ns: u64) {
        let Some(&var) = self.cut.get(depth) else { return self.leaf(&keep) };
        let mut children = Vec::new();
        for &value in &keep[var] {
            if self.is_spent() {
                self.open_ns = self.open_ns.min(bound_ns);
                return;
            }
            let mut child = keep.clone();
            child[var] = vec![value];
            if let Some(child_ns) = self.bound(&child, depth + 1) {
                children.push((child_ns.max(bound_ns), value, child));
            }
        }
        children.sort_by_key(|c| (c.0, c.1));
        for (child_ns, _, child) in children {
            if child_ns >= self.upper_ns() {
                continue;
            }
            if self.is_spent() {
                self.open_ns = self.open_ns.min(child_ns);
                continue;
            }
            self.descend(child, depth + 1, child_ns);
        }
    }

    /// Counts so many eliminations along `tree`.
    fn spend(&mut self, tree: &BucketTree, n_eliminations: u64) {
        self.cells_left = self.cells_left.saturating_sub(tree.cells().saturating_mul(n_eliminations).max(1));
    }

    /// Solves the problem that is left when the whole cutset is assigned.
    fn leaf(&mut self, keep: &[Vec<usize>]) {
        let reduced = restrict(self.problem, keep);
        let Some(left) = self.left(&reduced) else { return };
        let Some(cutoff_ns) = self.upper_ns().checked_sub(reduced.offset.time_ns) else { return };
        let tree = BucketTree::new(&reduced.problem);
        self.spend(&tree, ELIMINATIONS_PER_LEAF);
        let found = solve_narrow(&reduced.problem, &tree, left, cutoff_ns, self.limits);
        let lower_bound_ns = found.lower_bound_ns.saturating_add(reduced.offset.time_ns);
        if let Some((cost, assignment)) = found.best {
            self.best = Some((cost.plus(reduced.offset), reduced.lift(&assignment)));
        }
        if lower_bound_ns < self.upper_ns() {
            self.open_ns = self.open_ns.min(lower_bound_ns);
        }
    }

    /// The budget that a reduction leaves: none at all, or none if the problem has none.
    fn left(&self, reduced: &Reduced) -> Option<Option<u64>> {
        if reduced.offset.is_forbidden() {
            return None;
        }
        match self.budget {
            Some(most) => most.checked_sub(reduced.offset.bytes).map(Some),
            None => Some(None),
        }
    }

    /// A lower bound on the time of any assignment in `keep`; `None` when there is none within the budget.
    fn bound(&mut self, keep: &[Vec<usize>], depth: usize) -> Option<u64> {
        let reduced = self.relaxed(keep, depth);
        let left = self.left(&reduced)?.unwrap_or(u64::MAX);
        let tree = BucketTree::new(&reduced.problem);
        self.spend(&tree, 3);
        let least = |weights| Inward::new(&reduced.problem, &tree, weights).least();
        let (time_ns, bytes) = (least(Weights { time: 1, bytes: 0 }), least(Weights { time: 0, bytes: 1 }));
        if time_ns >= INFINITE || bytes > u128::from(left) {
            return None;
        }
        let priced_ns = self.price.map_or(0, |weights| time_bound(weights, least(weights), left));
        let time_ns = u64::try_from(time_ns).unwrap_or(u64::MAX).max(priced_ns);
        Some(time_ns.saturating_add(reduced.offset.time_ns))
    }

    /// The problem with the values in `keep`, in which the edges of the cutset from `depth` on are decoupled.
    fn relaxed(&self, keep: &[Vec<usize>], depth: usize) -> Reduced {
        let mut problem = Problem { vars: self.problem.vars.clone(), edges: Vec::new() };
        let mut open = vec![false; problem.vars.len()];
        self.cut[depth..].iter().for_each(|&v| open[v] = true);
        for edge in &self.problem.edges {
            if open[edge.a] || open[edge.b] {
                decouple(&mut problem, edge, keep);
            } else {
                problem.edges.push(edge.clone());
            }
        }
        restrict(&problem, keep)
    }
}

/// Adds to the ends of an edge what its entries cost at least: first the least of each row, then of each column.
fn decouple(problem: &mut Problem, edge: &Edge, keep: &[Vec<usize>]) {
    let columns = problem.n_values(edge.b);
    let at = |x: usize, y: usize| edge.table[x * columns + y];
    let row = |x: usize| least(keep[edge.b].iter().map(|&y| at(x, y)));
    let rows: Vec<Cost> = (0..problem.n_values(edge.a)).map(row).collect();
    let rest = |x: usize, y: usize| match at(x, y) {
        cost if cost.is_forbidden() => cost,
        cost => Cost::new(cost.time_ns - rows[x].time_ns, cost.bytes - rows[x].bytes),
    };
    for y in 0..columns {
        let column =
            least(keep[edge.a].iter().map(|&x| if keep[edge.b].contains(&y) { rest(x, y) } else { Cost::ZERO }));
        let entry = &mut problem.vars[edge.b].domain[y];
        *entry = entry.plus(column);
    }
    for (entry, row) in problem.vars[edge.a].domain.iter_mut().zip(rows) {
        *entry = entry.plus(row);
    }
}

/// The least of each component; `FORBIDDEN` when every entry is.
fn least(costs: impl Iterator<Item = Cost>) -> Cost {
    costs.fold(Cost::FORBIDDEN, |m, c| Cost { time_ns: m.time_ns.min(c.time_ns), bytes: m.bytes.min(c.bytes) })
}
