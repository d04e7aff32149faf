//! Exact bucket elimination of a cost graph for one scalar weighting of time and bytes, inward and outward.
//!
//! Source of the method: R. Dechter, "Bucket elimination: a unifying framework for reasoning" (1999). The inward pass
//! leaves in every message the least cost of what was eliminated; the outward pass adds the least cost of the rest,
//! so that their sum is the least cost of any complete assignment through a cell (its min-marginal).

use super::Limits;
use super::order::{Bucket, BucketTree, Source, walk};
use super::problem::{Assignment, Cost, Problem, simplify};

/// The weighted cost of what is forbidden; every weighted cost of an allowed assignment is less.
pub(super) const INFINITE: u128 = 1 << 120;

/// After so many sums of weighted costs, what is forbidden is brought back to `INFINITE`; 2^127 is not reached.
const CLAMP_EVERY: usize = 64;

/// A scalarisation: `time · time_ns + bytes · bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Weights {
    pub time: u128,
    pub bytes: u128,
}

impl Weights {
    /// These weights, halved together until no total of a problem with these `totals` reaches `INFINITE`.
    pub fn fit(mut time: u128, mut bytes: u128, totals: (u128, u128)) -> Self {
        let bits = |x: u128| 128 - x.leading_zeros();
        let most = (bits(time) + bits(totals.0)).max(bits(bytes) + bits(totals.1)) + 1;
        let excess = most.saturating_sub(119);
        (time, bytes) = (time >> excess, bytes >> excess);
        Self { time, bytes }
    }

    /// Least time first, then least bytes.
    pub fn time_first(totals: (u128, u128)) -> Self {
        Self::fit(totals.1 + 1, 1, totals)
    }

    /// Least bytes first, then least time.
    pub fn bytes_first(totals: (u128, u128)) -> Self {
        Self::fit(1, totals.0 + 1, totals)
    }

    /// The weighted cost of one entry.
    pub fn of(self, cost: Cost) -> u128 {
        if cost.is_forbidden() {
            return INFINITE;
        }
        (self.time * u128::from(cost.time_ns) + self.bytes * u128::from(cost.bytes)).min(INFINITE)
    }
}

/// The elimination has larger tables than the limits allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooWide {
    /// The elimination width that was found.
    pub width: usize,
}

/// An optimum found by elimination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eliminated {
    /// One value per variable; none where no value of some variable can be chosen.
    pub assignment: Assignment,
    /// Its cost; `FORBIDDEN` when every assignment is.
    pub cost: Cost,
    /// The elimination width of what cannot be simplified: the largest number of variables a message depends on.
    pub width: usize,
}

/// The assignment with the least time, and the least bytes among those, without a budget.
///
/// # Errors
/// `TooWide` when elimination needs larger tables than `limits` allow.
pub fn eliminate(problem: &Problem, limits: &Limits) -> Result<Eliminated, TooWide> {
    let Some(reduced) = simplify(problem) else {
        return Ok(Eliminated { assignment: Assignment::new(), cost: Cost::FORBIDDEN, width: 0 });
    };
    let (problem, tree) = (&reduced.problem, BucketTree::new(&reduced.problem));
    if !tree.fits(limits.table_cells, limits.total_cells) {
        return Err(TooWide { width: tree.width });
    }
    let inward = Inward::new(problem, &tree, Weights::time_first(problem.totals()));
    let assignment = inward.assignment(&tree);
    let cost = problem.cost(&assignment).plus(reduced.offset);
    Ok(Eliminated { cost, assignment: reduced.lift(&assignment), width: tree.width })
}

/// The result of the inward pass.
pub(super) struct Inward {
    pub weights: Weights,
    unary: Vec<Vec<u128>>,
    edges: Vec<Vec<u128>>,
    /// For each bucket, over its scope: the least weighted cost of everything eliminated into it.
    pub messages: Vec<Vec<u128>>,
}

impl Inward {
    /// Eliminates all variables of `problem` in the order of `tree`.
    pub fn new(problem: &Problem, tree: &BucketTree, weights: Weights) -> Self {
        let weigh = |table: &Vec<Cost>| table.iter().map(|&c| weights.of(c)).collect::<Vec<u128>>();
        let unary = problem.vars.iter().map(|v| weigh(&v.domain)).collect();
        let edges = problem.edges.iter().map(|e| weigh(&e.table)).collect();
        let mut inward = Self { weights, unary, edges, messages: Vec::with_capacity(tree.buckets.len()) };
        let mut joint = Vec::new();
        for bucket in &tree.buckets {
            inward.joint(bucket, &mut joint);
            let least = |row: &[u128]| row.iter().copied().fold(INFINITE, u128::min);
            inward.messages.push(joint.chunks(bucket.n_values()).map(least).collect());
        }
        inward
    }

    /// The least weighted cost of any assignment.
    pub fn least(&self) -> u128 {
        self.messages.last().map_or(0, |message| message[0])
    }

    /// Fills `joint` with the sum of a bucket's tables, `[scope..., var]`; the messages into it must be there. What
    /// is forbidden may exceed `INFINITE`, but leaves room for another `INFINITE`.
    pub fn joint(&self, bucket: &Bucket, joint: &mut Vec<u128>) {
        let unary = &self.unary[bucket.var];
        joint.clear();
        (0..bucket.message_cells()).for_each(|_| joint.extend_from_slice(unary));
        for (k, factor) in bucket.factors.iter().enumerate() {
            if k % CLAMP_EVERY == CLAMP_EVERY - 1 {
                joint.iter_mut().for_each(|sum| *sum = INFINITE.min(*sum));
            }
            let table = self.table(factor.source);
            let (n_values, stride) = (bucket.n_values(), factor.strides[bucket.scope.len()]);
            walk(&bucket.extents, &factor.strides, |cell, base| {
                let row = &mut joint[cell * n_values..(cell + 1) * n_values];
                match stride {
                    1 => row.iter_mut().zip(&table[base..base + n_values]).for_each(|(sum, &c)| *sum += c),
                    0 => row.iter_mut().for_each(|sum| *sum += table[base]),
                    _ => row.iter_mut().zip(table[base..].iter().step_by(stride)).for_each(|(sum, &c)| *sum += c),
                }
            });
        }
    }

    fn table(&self, source: Source) -> &[u128] {
        match source {
            Source::Edge(e) => &self.edges[e],
            Source::Child(c) => &self.messages[c],
        }
    }

    /// An assignment with the least weighted cost: back-substitution, the lowest value among equals.
    pub fn assignment(&self, tree: &BucketTree) -> Assignment {
        let mut assignment = vec![0; tree.buckets.len()];
        for bucket in tree.buckets.iter().rev() {
            let mut row = self.unary[bucket.var].clone();
            for factor in &bucket.factors {
                let base: usize = bucket.scope.iter().zip(&factor.strides).map(|(&u, s)| assignment[u] * s).sum();
                let (table, stride) = (self.table(factor.source), factor.strides[bucket.scope.len()]);
                row.iter_mut().enumerate().for_each(|(x, sum)| add(sum, table[base + x * stride]));
            }
            assignment[bucket.var] = (0..row.len()).min_by_key(|&x| row[x]).unwrap_or(0);
        }
        assignment
    }
}

fn add(sum: &mut u128, cost: u128) {
    *sum = (*sum + cost).min(INFINITE);
}

/// The result of the outward pass.
pub(super) struct Outward {
    /// For each bucket, over its scope: the least weighted cost of everything not eliminated into it.
    pub messages: Vec<Vec<u128>>,
    /// For each variable and value: the least weighted cost of any assignment that chooses it.
    pub marginals: Vec<Vec<u128>>,
}

impl Outward {
    /// Sends messages back from the last bucket to the first.
    pub fn new(tree: &BucketTree, inward: &Inward) -> Self {
        let messages = tree.buckets.iter().map(|b| vec![INFINITE; b.message_cells()]).collect();
        let mut outward = Self { messages, marginals: vec![Vec::new(); tree.buckets.len()] };
        if let Some(last) = outward.messages.last_mut() {
            last[0] = 0;
        }
        let mut joint = Vec::new();
        for (i, bucket) in tree.buckets.iter().enumerate().rev() {
            inward.joint(bucket, &mut joint);
            let mut marginal = vec![INFINITE; bucket.n_values()];
            for (row, &rest) in joint.chunks_mut(bucket.n_values()).zip(&outward.messages[i]) {
                row.iter_mut().for_each(|sum| add(sum, rest));
                marginal.iter_mut().zip(&*row).for_each(|(least, &sum)| *least = sum.min(*least));
            }
            outward.marginals[bucket.var] = marginal;
            outward.send(bucket, inward, &joint);
        }
        outward
    }

    /// Projects a bucket's min-marginals onto each message into it and takes that message off.
    fn send(&mut self, bucket: &Bucket, inward: &Inward, joint: &[u128]) {
        for factor in &bucket.factors {
            let Source::Child(child) = factor.source else { continue };
            let (n_values, stride) = (bucket.n_values(), factor.strides[bucket.scope.len()]);
            let target = &mut self.messages[child];
            walk(&bucket.extents, &factor.strides, |cell, base| {
                for (x, &sum) in joint[cell * n_values..(cell + 1) * n_values].iter().enumerate() {
                    let entry = &mut target[base + x * stride];
                    *entry = sum.min(*entry);
                }
            });
            for (entry, &message) in target.iter_mut().zip(&inward.messages[child]) {
                *entry = if *entry >= INFINITE { INFINITE } else { *entry - message };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::brute::{brute, each_assignment};
    use super::super::samples::random_problem;
    use super::*;

    #[test]
    fn elimination_agrees_with_enumeration() {
        for seed in 0..200 {
            let problem = random_problem(seed, 6, 4);
            let found = eliminate(&problem, &Limits::default()).expect("small tables");
            let best = brute(&problem, None).map_or(Cost::FORBIDDEN, |(cost, _)| cost);
            assert_eq!(found.cost, best, "seed {seed}");
        }
    }

    #[test]
    fn min_marginals_are_the_best_completion_of_each_value() {
        for seed in 0..60 {
            let problem = random_problem(seed, 5, 3);
            let tree = BucketTree::new(&problem);
            let weights = Weights::fit(3, 5, problem.totals());
            let inward = Inward::new(&problem, &tree, weights);
            let outward = Outward::new(&tree, &inward);
            for (v, marginals) in outward.marginals.iter().enumerate() {
                for (x, &marginal) in marginals.iter().enumerate() {
                    assert_eq!(marginal, best_with(&problem, weights, v, x), "seed {seed}, variable {v}, value {x}");
                }
            }
        }
    }

    fn best_with(problem: &Problem, weights: Weights, v: usize, x: usize) -> u128 {
        let extents: Vec<usize> = problem.vars.iter().map(|v| v.domain.len()).collect();
        let mut best = INFINITE;
        each_assignment(&extents, |a| {
            if a[v] == x {
                best = best.min(weights.of(problem.cost(a)));
            }
        });
        best
    }

    #[test]
    fn tables_above_the_cap_are_refused() {
        let limits = Limits { table_cells: 4, ..Limits::default() };
        let problem = random_problem(3, 8, 4);
        assert!(eliminate(&problem, &limits).is_err());
    }
}
