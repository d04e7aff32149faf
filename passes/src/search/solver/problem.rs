//! The finite-domain cost graph that the solver minimises, its evaluation, and its exact simplifications.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What one decision costs: time and memory, both additive over the whole problem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Cost {
    /// Nanoseconds.
    pub time_ns: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Cost {
    /// The cost of doing nothing.
    pub const ZERO: Self = Self { time_ns: 0, bytes: 0 };
    /// The cost of what must not be chosen; it absorbs every addition.
    pub const FORBIDDEN: Self = Self { time_ns: u64::MAX, bytes: u64::MAX };

    /// A cost of `time_ns` nanoseconds and `bytes` bytes.
    pub const fn new(time_ns: u64, bytes: u64) -> Self {
        Self { time_ns, bytes }
    }

    /// True when the entry must not be chosen; a component that saturated counts as such.
    pub const fn is_forbidden(self) -> bool {
        self.time_ns == u64::MAX || self.bytes == u64::MAX
    }

    /// The saturating sum, component by component; `FORBIDDEN` when either side is.
    pub const fn plus(self, other: Self) -> Self {
        let time_ns = self.time_ns.saturating_add(other.time_ns);
        let sum = Self { time_ns, bytes: self.bytes.saturating_add(other.bytes) };
        if sum.is_forbidden() { Self::FORBIDDEN } else { sum }
    }

    /// True when this cost is no worse than `other` in both components.
    pub const fn covers(self, other: Self) -> bool {
        self.time_ns <= other.time_ns && self.bytes <= other.bytes
    }
}

/// One decision variable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Var {
    /// The cost of each value by itself; the values are the positions in this list.
    pub domain: Vec<Cost>,
}

/// The cost that a pair of variables adds together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// The variable of the rows.
    pub a: usize,
    /// The variable of the columns; it may be `a` itself, then only the diagonal counts.
    pub b: usize,
    /// Row-major, `[|a|, |b|]`.
    pub table: Vec<Cost>,
}

/// A sum of unary and pairwise costs. Parallel edges add up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The variables; an edge names them by position.
    pub vars: Vec<Var>,
    /// The pairwise costs.
    pub edges: Vec<Edge>,
}

/// One value per variable.
pub type Assignment = Vec<usize>;

impl Problem {
    /// The total cost of a complete assignment (`assignment[v] < |v|`); `FORBIDDEN` if any part is.
    pub fn cost(&self, assignment: &[usize]) -> Cost {
        let unary = self.vars.iter().zip(assignment).map(|(var, &x)| var.domain[x]);
        let pairs = self.edges.iter().map(|e| e.table[assignment[e.a] * self.n_values(e.b) + assignment[e.b]]);
        unary.chain(pairs).fold(Cost::ZERO, Cost::plus)
    }

    /// The number of values of variable `v`.
    pub fn n_values(&self, v: usize) -> usize {
        self.vars[v].domain.len()
    }

    /// Checks that every edge names two variables and has a table of their size.
    pub fn is_well_formed(&self) -> bool {
        let n = self.vars.len();
        self.edges.iter().all(|e| e.a < n && e.b < n && e.table.len() == self.n_values(e.a) * self.n_values(e.b))
    }

    /// Upper bounds on the time and the bytes of any assignment that is not forbidden.
    pub(super) fn totals(&self) -> (u128, u128) {
        let tables = self.vars.iter().map(|v| &v.domain).chain(self.edges.iter().map(|e| &e.table));
        tables.fold((0, 0), |(time, bytes), table| {
            let finite = || table.iter().filter(|c| !c.is_forbidden());
            let most_time = finite().map(|c| c.time_ns).max().unwrap_or(0);
            let most_bytes = finite().map(|c| c.bytes).max().unwrap_or(0);
            (time + u128::from(most_time), bytes + u128::from(most_bytes))
        })
    }
}

/// A smaller problem together with the way back to the one it was made from.
#[derive(Clone, Debug, Default)]
pub(super) struct Reduced {
    /// The smaller problem: every variable has two values or more, edges are unique and not constant.
    pub problem: Problem,
    /// What the removed parts cost in every assignment.
    pub offset: Cost,
    /// A value of every original variable; right for those that were fixed.
    fixed: Assignment,
    /// For each variable of the smaller problem: the original variable and its original values.
    kept: Vec<(usize, Vec<usize>)>,
}

impl Reduced {
    /// The assignment of the original problem that an assignment of the smaller one stands for.
    pub fn lift(&self, assignment: &[usize]) -> Assignment {
        let mut full = self.fixed.clone();
        for ((var, values), &x) in self.kept.iter().zip(assignment) {
            full[*var] = values[x];
        }
        full
    }

    /// The reduction that does this one and then `inner`, which was made from `self.problem`.
    pub fn then(self, inner: Self) -> Self {
        let fixed = self.lift(&inner.fixed);
        let original = |(var, values): (usize, Vec<usize>)| {
            let (outer, outer_values) = &self.kept[var];
            (*outer, values.into_iter().map(|x| outer_values[x]).collect())
        };
        let kept = inner.kept.into_iter().map(original).collect();
        Self { problem: inner.problem, offset: self.offset.plus(inner.offset), fixed, kept }
    }
}

/// Keeps only the listed values (ascending, none empty) of each variable. Variables with one value are folded into
/// their neighbours, parallel edges merged, edges that depend on one side only made unary.
pub(super) fn restrict(problem: &Problem, keep: &[Vec<usize>]) -> Reduced {
    let mut kept = Vec::new();
    let mut slot = vec![None; keep.len()];
    let mut reduced = Problem::default();
    let mut offset = Cost::ZERO;
    for (v, values) in keep.iter().enumerate() {
        if let [only] = values[..] {
            offset = offset.plus(problem.vars[v].domain[only]);
        } else {
            slot[v] = Some(kept.len());
            kept.push((v, values.clone()));
            reduced.vars.push(Var { domain: values.iter().map(|&x| problem.vars[v].domain[x]).collect() });
        }
    }
    let mut merged = BTreeMap::new();
    for edge in &problem.edges {
        offset = offset.plus(fold_edge(problem, keep, &slot, edge, &mut reduced, &mut merged));
    }
    for ((a, b), table) in merged {
        offset = offset.plus(add_edge(&mut reduced, Edge { a, b, table }));
    }
    Reduced { problem: reduced, offset, fixed: keep.iter().map(|values| values[0]).collect(), kept }
}

/// Adds the kept part of one edge to the unary costs or to the merged tables; returns what is constant in it.
fn fold_edge(
    problem: &Problem,
    keep: &[Vec<usize>],
    slot: &[Option<usize>],
    edge: &Edge,
    reduced: &mut Problem,
    merged: &mut BTreeMap<(usize, usize), Vec<Cost>>,
) -> Cost {
    let columns = problem.n_values(edge.b);
    let at = |x: usize, y: usize| edge.table[x * columns + y];
    let (rows, cols) = (&keep[edge.a], &keep[edge.b]);
    match (slot[edge.a], slot[edge.b]) {
        (Some(a), Some(b)) if a == b => add_unary(reduced, a, rows.iter().map(|&x| at(x, x))),
        (Some(a), Some(b)) if a < b => {
            add_table(merged, (a, b), rows.iter().flat_map(|&x| cols.iter().map(move |&y| at(x, y))))
        }
        (Some(a), Some(b)) => add_table(merged, (b, a), cols.iter().flat_map(|&y| rows.iter().map(move |&x| at(x, y)))),
        (Some(a), None) => add_unary(reduced, a, rows.iter().map(|&x| at(x, cols[0]))),
        (None, Some(b)) => add_unary(reduced, b, cols.iter().map(|&y| at(rows[0], y))),
        (None, None) => return at(rows[0], cols[0]),
    }
    Cost::ZERO
}

fn add_unary(problem: &mut Problem, var: usize, costs: impl Iterator<Item = Cost>) {
    for (entry, cost) in problem.vars[var].domain.iter_mut().zip(costs) {
        *entry = entry.plus(cost);
    }
}

fn add_table(
    merged: &mut BTreeMap<(usize, usize), Vec<Cost>>,
    pair: (usize, usize),
    costs: impl Iterator<Item = Cost>,
) {
    match merged.get_mut(&pair) {
        Some(table) => table.iter_mut().zip(costs).for_each(|(entry, cost)| *entry = entry.plus(cost)),
        None => _ = merged.insert(pair, costs.collect()),
    }
}

/// Adds an edge, or the unary costs or the constant that it amounts to; returns that constant.
fn add_edge(problem: &mut Problem, edge: Edge) -> Cost {
    let columns = problem.n_values(edge.b);
    let rows_constant = edge.table.chunks(columns).all(|row| row.iter().all(|c| *c == row[0]));
    let columns_constant = edge.table.chunks(columns).all(|row| *row == edge.table[..columns]);
    match (rows_constant, columns_constant) {
        (true, true) => return edge.table[0],
        (true, false) => add_unary(problem, edge.a, edge.table.chunks(columns).map(|row| row[0])),
        (false, true) => add_unary(problem, edge.b, edge.table[..columns].iter().copied()),
        (false, false) => problem.edges.push(edge),
    }
    Cost::ZERO
}

/// Removes values that cannot be chosen and values that another one covers in every context. At least one optimum,
/// for every budget, survives. `None` when some variable has no value left.
pub(super) fn simplify(problem: &Problem) -> Option<Reduced> {
    let all: Vec<Vec<usize>> = problem.vars.iter().map(|v| (0..v.domain.len()).collect()).collect();
    if all.iter().any(Vec::is_empty) {
        return None;
    }
    let mut reduced = restrict(problem, &all);
    loop {
        if reduced.offset.is_forbidden() {
            return None;
        }
        let keep = useful_values(&reduced.problem);
        if keep.iter().any(Vec::is_empty) {
            return None;
        }
        if keep.iter().zip(&reduced.problem.vars).all(|(k, v)| k.len() == v.domain.len()) {
            return Some(reduced);
        }
        let inner = restrict(&reduced.problem, &keep);
        reduced = reduced.then(inner);
    }
}

/// An edge as one of its variables sees it.
struct Incident<'a> {
    table: &'a [Cost],
    /// Steps in the table from one value of the variable to the next, and from one of its neighbour's.
    own: usize,
    other: usize,
    n_others: usize,
}

impl Incident<'_> {
    /// What the edge costs at a value of the variable, by the value of its neighbour.
    fn row(&self, x: usize) -> impl Iterator<Item = Cost> + '_ {
        (0..self.n_others).map(move |y| self.table[x * self.own + y * self.other])
    }
}

/// For each variable the values that some neighbour can live with and that no other value covers.
fn useful_values(problem: &Problem) -> Vec<Vec<usize>> {
    let mut incident: Vec<Vec<Incident<'_>>> = problem.vars.iter().map(|_| Vec::new()).collect();
    for Edge { a, b, table } in &problem.edges {
        let (rows, columns) = (problem.n_values(*a), problem.n_values(*b));
        incident[*a].push(Incident { table, own: columns, other: 1, n_others: columns });
        incident[*b].push(Incident { table, own: 1, other: columns, n_others: rows });
    }
    problem.vars.iter().zip(&incident).map(|(var, incident)| undominated(var, incident)).collect()
}

/// The values that can be chosen and that no other one covers in every context; of equal values the first stays.
fn undominated(Var { domain }: &Var, incident: &[Incident<'_>]) -> Vec<usize> {
    let is_live = |x: &usize| {
        let is_allowed = |edge: &Incident<'_>| edge.row(*x).any(|c| !c.is_forbidden());
        !domain[*x].is_forbidden() && incident.iter().all(is_allowed)
    };
    let covers = |x: usize, y: usize| {
        let everywhere = |edge: &Incident<'_>| edge.row(x).zip(edge.row(y)).all(|(a, b)| a.covers(b));
        domain[x].covers(domain[y]) && incident.iter().all(everywhere)
    };
    let live: Vec<usize> = (0..domain.len()).filter(is_live).collect();
    let beaten = |y: usize| live.iter().any(|&x| x != y && covers(x, y) && (x < y || !covers(y, x)));
    live.iter().copied().filter(|&y| !beaten(y)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn var(times: &[u64]) -> Var {
        Var { domain: times.iter().map(|&t| Cost::new(t, 0)).collect() }
    }

    #[test]
    fn forbidden_absorbs_additions() {
        assert_eq!(Cost::FORBIDDEN.plus(Cost::new(1, 2)), Cost::FORBIDDEN);
        assert_eq!(Cost::new(u64::MAX - 1, 0).plus(Cost::new(5, 0)), Cost::FORBIDDEN);
    }

    #[test]
    fn lifting_a_restriction_keeps_the_cost() {
        let table = |k: u64| (0..6).map(|i| Cost::new(i * k % 7, i)).collect();
        let edges = vec![Edge { a: 0, b: 1, table: table(3) }, Edge { a: 1, b: 0, table: table(5) }];
        let problem = Problem { vars: vec![var(&[1, 2]), var(&[3, 1, 4]), var(&[9])], edges };
        let reduced = restrict(&problem, &[vec![0, 1], vec![0, 2], vec![0]]);
        assert_eq!((reduced.problem.vars.len(), reduced.problem.edges.len()), (2, 1));
        for x in [[0, 0], [0, 1], [1, 0], [1, 1]] {
            assert_eq!(reduced.problem.cost(&x).plus(reduced.offset), problem.cost(&reduced.lift(&x)));
        }
    }

    #[test]
    fn covered_and_impossible_values_are_removed() {
        let f = Cost::FORBIDDEN;
        let edge = Edge { a: 0, b: 1, table: vec![Cost::ZERO, Cost::new(1, 1), f, f, Cost::new(1, 0), Cost::ZERO] };
        let problem = Problem { vars: vec![var(&[1, 0, 2]), var(&[0, 0])], edges: vec![edge] };
        let reduced = simplify(&problem).expect("a value is left");
        assert_eq!(reduced.kept, vec![(0, vec![0, 2]), (1, vec![0, 1])]);
    }

    #[test]
    fn a_variable_without_a_value_left_is_reported() {
        let problem = Problem { vars: vec![Var { domain: vec![Cost::FORBIDDEN; 3] }], edges: vec![] };
        assert!(simplify(&problem).is_none());
    }
}
