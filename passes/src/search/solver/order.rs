//! The elimination order of a cost graph and the tree of buckets that it induces.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::problem::Problem;

/// Where one table of a bucket comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// An edge of the problem.
    Edge(usize),
    /// The message of an earlier bucket.
    Child(usize),
}

/// A table that a bucket adds up, with its stride along each dimension of the bucket's joint table.
#[derive(Clone, Debug)]
pub(super) struct Factor {
    pub source: Source,
    pub strides: Vec<usize>,
}

/// The elimination of one variable: its joint table is `[scope..., var]`, its message `[scope...]`, both row-major.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    pub var: usize,
    /// The variables the message depends on, ascending.
    pub scope: Vec<usize>,
    /// The extents of the joint table: the scope's, then the variable's.
    pub extents: Vec<usize>,
    pub factors: Vec<Factor>,
}

impl Bucket {
    /// The number of cells of the message.
    pub fn message_cells(&self) -> usize {
        self.extents[..self.scope.len()].iter().product()
    }

    /// The number of cells of the joint table, saturating.
    fn cells(&self) -> u64 {
        self.extents.iter().fold(1, |cells, &n| cells.saturating_mul(n as u64))
    }

    /// The number of values of the eliminated variable.
    pub fn n_values(&self) -> usize {
        self.extents[self.scope.len()]
    }
}

/// All buckets in elimination order; the message of each goes to a later one, that of the last is the result.
#[derive(Clone, Debug)]
pub(super) struct BucketTree {
    pub buckets: Vec<Bucket>,
    /// The largest scope.
    pub width: usize,
}

/// One eliminated variable and its neighbours at that time, ascending.
type Elimination = (usize, Vec<usize>);

/// The greedy elimination of a graph by least fill-in or by smallest joint table, whichever needs fewer cells in all.
pub(super) fn eliminations(extents: &[usize], pairs: &[(usize, usize)]) -> Vec<Elimination> {
    let mut neighbours = vec![Vec::new(); extents.len()];
    for &(a, b) in pairs.iter().filter(|(a, b)| a != b) {
        insert(&mut neighbours[a], b);
        insert(&mut neighbours[b], a);
    }
    let by_fill = greedy(extents, neighbours.clone(), |fill, cells| (fill, cells));
    let by_cells = greedy(extents, neighbours, |fill, cells| (cells, fill));
    let total = |order: &[Elimination]| order.iter().map(|e| u128::from(joint_cells(extents, e))).sum::<u128>();
    if total(&by_cells) < total(&by_fill) { by_cells } else { by_fill }
}

/// The elimination width of a graph of variables with these extents: the largest number of variables that a message depends on.
pub fn elimination_width(extents: &[usize], pairs: &[(usize, usize)]) -> usize {
    eliminations(extents, pairs).iter().map(|(_, scope)| scope.len()).max().unwrap_or(0)
}

/// The number of cells of the joint table of one elimination, saturating.
pub(super) fn joint_cells(extents: &[usize], (var, scope): &Elimination) -> u64 {
    scope.iter().fold(extents[*var] as u64, |cells, &u| cells.saturating_mul(extents[u] as u64))
}

/// Adds to an ascending list unless it is there; says whether it was not.
fn insert(list: &mut Vec<usize>, item: usize) -> bool {
    match list.binary_search(&item) {
        Ok(_) => false,
        Err(at) => {
            list.insert(at, item);
            true
        }
    }
}

/// Repeatedly eliminates the variable with the least key, the lowest index among equals. The neighbours of each are ascending.
fn greedy(
    extents: &[usize],
    mut neighbours: Vec<Vec<usize>>,
    key: impl Fn(u64, u64) -> (u64, u64),
) -> Vec<Elimination> {
    let score = |neighbours: &[Vec<usize>], v: usize| {
        let cells = neighbours[v].iter().fold(extents[v] as u64, |c, &u| c.saturating_mul(extents[u] as u64));
        key(fill_in(neighbours, v), cells)
    };
    let mut scores: Vec<_> = (0..extents.len()).map(|v| score(&neighbours, v)).collect();
    let mut queue: BTreeSet<_> = scores.iter().copied().zip(0..).collect();
    let mut order = Vec::with_capacity(extents.len());
    while let Some((_, v)) = queue.pop_first() {
        let scope = std::mem::take(&mut neighbours[v]);
        for u in remove(&mut neighbours, v, &scope) {
            let new = score(&neighbours, u);
            if new != scores[u] {
                queue.remove(&(scores[u], u));
                queue.insert((new, u));
                scores[u] = new;
            }
        }
        order.push((v, scope));
    }
    order
}

/// Removes `v` and joins its neighbours pairwise; returns the variables whose score may have changed.
fn remove(neighbours: &mut [Vec<usize>], v: usize, scope: &[usize]) -> Vec<usize> {
    let mut stale = scope.to_vec();
    for (i, &a) in scope.iter().enumerate() {
        neighbours[a].retain(|&u| u != v);
        for &b in &scope[i + 1..] {
            if insert(&mut neighbours[a], b) {
                insert(&mut neighbours[b], a);
                let both = neighbours[a].iter().filter(|u| neighbours[b].binary_search(u).is_ok());
                both.for_each(|&u| _ = insert(&mut stale, u));
            }
        }
    }
    stale
}

/// The number of edges that eliminating `v` would add; above 32 neighbours the number of pairs stands in for it.
fn fill_in(neighbours: &[Vec<usize>], v: usize) -> u64 {
    let scope = &neighbours[v];
    let pairs = (scope.len() * scope.len().saturating_sub(1) / 2) as u64;
    if scope.len() > 32 {
        return pairs;
    }
    let is_missing = |a: usize, b: &&usize| neighbours[a].binary_search(b).is_err();
    let missing = |(i, &a): (usize, &usize)| scope[i + 1..].iter().filter(|b| is_missing(a, b)).count();
    scope.iter().enumerate().map(missing).sum::<usize>() as u64
}

impl BucketTree {
    /// Plans the elimination of `problem`.
    pub fn new(problem: &Problem) -> Self {
        let extents: Vec<usize> = problem.vars.iter().map(|v| v.domain.len()).collect();
        let pairs: Vec<_> = problem.edges.iter().map(|e| (e.a, e.b)).collect();
        let order = eliminations(&extents, &pairs);
        let mut position = vec![0; extents.len()];
        order.iter().enumerate().for_each(|(i, (v, _))| position[*v] = i);
        let width = order.iter().map(|(_, scope)| scope.len()).max().unwrap_or(0);
        let mut buckets: Vec<Bucket> = order.into_iter().map(|(v, scope)| bucket(&extents, v, scope)).collect();
        for (e, &(a, b)) in pairs.iter().enumerate() {
            let home = &mut buckets[position[a].min(position[b])];
            let strides = strides(home, &[a, b], &[extents[a], extents[b]]);
            home.factors.push(Factor { source: Source::Edge(e), strides });
        }
        for child in 0..buckets.len().saturating_sub(1) {
            let scope = buckets[child].scope.clone();
            let parent = scope.iter().map(|&u| position[u]).min().unwrap_or(buckets.len() - 1);
            let shape: Vec<usize> = scope.iter().map(|&u| extents[u]).collect();
            let strides = strides(&buckets[parent], &scope, &shape);
            buckets[parent].factors.push(Factor { source: Source::Child(child), strides });
        }
        Self { buckets, width }
    }

    /// True when no joint table has more than `largest` cells and all together have at most `total`.
    pub fn fits(&self, largest: u64, total: u64) -> bool {
        self.buckets.iter().all(|b| b.cells() <= largest) && self.cells() <= total
    }

    /// The cells of all joint tables together, saturating.
    pub fn cells(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, b| sum.saturating_add(b.cells()))
    }
}

fn bucket(extents: &[usize], var: usize, scope: Vec<usize>) -> Bucket {
    let extents = scope.iter().chain([&var]).map(|&u| extents[u]).collect();
    Bucket { var, scope, extents, factors: Vec::new() }
}

/// The strides of a row-major table over `vars` along the dimensions of the bucket's joint table.
fn strides(bucket: &Bucket, vars: &[usize], shape: &[usize]) -> Vec<usize> {
    let stride = |i: usize| shape[i + 1..].iter().product::<usize>();
    let along = |u: &usize| (0..vars.len()).filter(|&i| vars[i] == *u).map(stride).sum();
    bucket.scope.iter().chain([&bucket.var]).map(along).collect()
}

/// Calls `visit(cell, base)` for every cell of the scope of a joint table with these `extents`, in row-major order,
/// where `base` is the offset of that cell in a table with these `strides` at the variable's value 0.
pub(super) fn walk(extents: &[usize], strides: &[usize], mut visit: impl FnMut(usize, usize)) {
    let Some(n_outer) = extents.len().checked_sub(2) else { return visit(0, 0) };
    let (n_inner, stride) = (extents[n_outer], strides[n_outer]);
    let n_rows: usize = extents[..n_outer].iter().product();
    let mut index = vec![0; n_outer];
    let mut base = 0;
    for row in 0..n_rows {
        (0..n_inner).for_each(|i| visit(row * n_inner + i, base + i * stride));
        for d in (0..n_outer).rev() {
            index[d] += 1;
            base += strides[d];
            if index[d] < extents[d] {
                break;
            }
            base -= strides[d] * extents[d];
            index[d] = 0;
        }
    }
}

/// The eliminated variable that occurs in most of the eliminations with more than `largest` cells, if there are any.
pub(super) fn busiest(extents: &[usize], order: &[Elimination], largest: u64) -> Option<usize> {
    let mut count = vec![0u32; extents.len()];
    for (var, scope) in order.iter().filter(|e| joint_cells(extents, e) > largest) {
        scope.iter().chain([var]).filter(|&&u| extents[u] > 1).for_each(|&u| count[u] += 1);
    }
    (0..extents.len()).filter(|&v| count[v] > 0).max_by_key(|&v| (count[v], Reverse(v)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_has_width_one_and_a_grid_its_side() {
        let width = |n: usize, pairs: &[(usize, usize)]| {
            eliminations(&vec![3; n], pairs).iter().map(|(_, s)| s.len()).max().unwrap_or(0)
        };
        assert_eq!(width(5, &[(0, 1), (1, 2), (2, 3), (3, 4)]), 1);
        let right = (0..9).filter(|v| v % 3 < 2).map(|v| (v, v + 1));
        let grid: Vec<_> = right.chain((0..6).map(|v| (v, v + 3))).collect();
        assert_eq!(width(9, &grid), 3);
    }

    #[test]
    fn walking_visits_the_cells_of_a_transposed_table() {
        let mut seen = Vec::new();
        walk(&[2, 3, 4], &[1, 2, 0], |cell, base| seen.push((cell, base)));
        assert_eq!(seen, [(0, 0), (1, 2), (2, 4), (3, 1), (4, 3), (5, 5)]);
    }

    #[test]
    fn a_hub_is_eliminated_last() {
        let pairs: Vec<_> = (1..200).map(|v| (0, v)).collect();
        let order = eliminations(&vec![4; 200], &pairs);
        assert_eq!(order.iter().map(|(_, s)| s.len()).max(), Some(1));
    }
}
