//! Pareto fronts of (time, bytes) and exact elimination with a front in every cell.
//!
//! A point of a cell is dropped when some guide (a weighting with its inward and outward messages) shows that every
//! completion exceeds the guide's threshold, or when another point of the cell is no worse in both components.

use super::eliminate::{Inward, Outward};
use super::order::{Bucket, BucketTree, Source, walk};
use super::problem::{Assignment, Cost, Problem};

/// A partial cost and the decisions that led to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Point {
    pub cost: Cost,
    /// Index into the trail; `NO_TRAIL` before the first decision.
    pub trail: u32,
}

const NO_TRAIL: u32 = u32::MAX;

/// How a point came about.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The decisions of two independent parts together.
    Join(u32, u32),
    /// `var` takes `value`, on top of other decisions.
    Pick { var: u32, value: u32, rest: u32 },
}

/// Keeps the points that no other one covers, by ascending time and descending bytes; of equal ones the first stays.
pub(super) fn prune_covered<T>(points: &mut Vec<T>, cost: impl Fn(&T) -> Cost) {
    points.sort_by_key(|p| cost(p));
    let mut least_bytes = None;
    points.retain(|p| {
        let bytes = cost(p).bytes;
        let keep = least_bytes.is_none_or(|least| bytes < least);
        if keep {
            least_bytes = Some(bytes);
        }
        keep
    });
}

/// A valid bound: a completion whose weighted cost exceeds `threshold` is of no use.
pub(super) struct Guide {
    pub inward: Inward,
    pub outward: Outward,
    pub threshold: u128,
}

/// The work that a Pareto elimination may do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    /// The most points a cell keeps; the best by the first guide stay.
    pub points_per_cell: usize,
    /// The most points that are kept in all.
    pub total_points: usize,
    /// The most sums of points that are formed.
    pub sums: u64,
}

/// What a Pareto elimination found.
pub(super) struct Fronts {
    /// The front of the whole problem within the thresholds, by ascending time.
    pub front: Vec<(Cost, Assignment)>,
    /// The least bound, in the first guide's weights, of anything that was dropped for want of room.
    pub dropped: Option<u128>,
}

/// The elimination ran out of effort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OutOfEffort;

/// Eliminates all variables, keeping a front per cell. Without guides the result is the whole Pareto front, unless
/// something had to be dropped.
pub(super) fn eliminate_fronts(
    problem: &Problem,
    tree: &BucketTree,
    guides: &[Guide],
    effort: Effort,
) -> Result<Fronts, OutOfEffort> {
    let mut run = Run { problem, guides, effort, trail: Vec::new(), sums: 0, dropped: None };
    let mut messages: Vec<Vec<Vec<Point>>> = Vec::with_capacity(tree.buckets.len());
    for (i, bucket) in tree.buckets.iter().enumerate() {
        let message = run.bucket(i, bucket, &messages)?;
        for factor in &bucket.factors {
            if let Source::Child(child) = factor.source {
                messages[child] = Vec::new();
            }
        }
        messages.push(message);
    }
    let start = vec![vec![Point { cost: Cost::ZERO, trail: NO_TRAIL }]];
    let last = messages.pop().unwrap_or(start);
    let front = last[0].iter().map(|p| (p.cost, run.assignment(p.trail))).collect();
    Ok(Fronts { front, dropped: run.dropped })
}

struct Run<'a> {
    problem: &'a Problem,
    guides: &'a [Guide],
    effort: Effort,
    trail: Vec<Step>,
    sums: u64,
    dropped: Option<u128>,
}

/// A sum of two points, or a point under a value, before it is known to stay.
#[derive(Clone, Copy)]
struct Offer {
    cost: Cost,
    left: u32,
    right: u32,
}

/// What one bucket needs to know about a cell and a value.
struct Cell {
    /// The allowed cost of the value and its edges.
    local: Cost,
    /// For each child: its index and the cell of its message.
    children: Vec<(usize, usize)>,
    /// For each guide: the least weighted cost of all that is not yet in the front.
    rest: Vec<u128>,
}

impl Run<'_> {
    /// The fronts of a bucket's message, one per cell of its scope.
    fn bucket(
        &mut self,
        i: usize,
        bucket: &Bucket,
        messages: &[Vec<Vec<Point>>],
    ) -> Result<Vec<Vec<Point>>, OutOfEffort> {
        let bases = bases(bucket);
        let mut joints = vec![Vec::new(); self.guides.len()];
        for (guide, joint) in self.guides.iter().zip(&mut joints) {
            guide.inward.joint(bucket, joint);
        }
        let mut fronts = Vec::with_capacity(bucket.message_cells());
        for (scope_cell, base) in bases.iter().enumerate() {
            let outward: Vec<u128> = self.guides.iter().map(|g| g.outward.messages[i][scope_cell]).collect();
            let mut offers = Vec::new();
            for value in 0..bucket.n_values() {
                let at = scope_cell * bucket.n_values() + value;
                let Some(cell) = self.cell(bucket, base, value, |k| joints[k][at] + outward[k]) else { continue };
                for point in self.sum_children(cell, messages)? {
                    offers.push(Offer { cost: point.cost, left: value as u32, right: point.trail });
                }
            }
            let kept = self.settle(offers, &outward);
            fronts.push(self.record(kept, |o| Step::Pick { var: bucket.var as u32, value: o.left, rest: o.right })?);
        }
        Ok(fronts)
    }

    /// The cell at `value`, unless it is forbidden or beyond some guide's threshold.
    fn cell(&self, bucket: &Bucket, base: &[usize], value: usize, full: impl Fn(usize) -> u128) -> Option<Cell> {
        if (0..self.guides.len()).any(|k| full(k) > self.guides[k].threshold) {
            return None;
        }
        let mut cell =
            Cell { local: self.problem.vars[bucket.var].domain[value], children: Vec::new(), rest: Vec::new() };
        for (factor, base) in bucket.factors.iter().zip(base) {
            let at = base + value * factor.strides[bucket.scope.len()];
            match factor.source {
                Source::Edge(e) => cell.local = cell.local.plus(self.problem.edges[e].table[at]),
                Source::Child(c) => cell.children.push((c, at)),
            }
        }
        cell.rest = self.guides.iter().enumerate().map(|(k, g)| full(k) - g.inward.weights.of(cell.local)).collect();
        (!cell.local.is_forbidden()).then_some(cell)
    }

    /// The front of the local cost plus one point of every child.
    fn sum_children(&mut self, cell: Cell, messages: &[Vec<Vec<Point>>]) -> Result<Vec<Point>, OutOfEffort> {
        let mut front = vec![Point { cost: cell.local, trail: NO_TRAIL }];
        let mut rest = cell.rest;
        for (child, at) in cell.children {
            for (rest, guide) in rest.iter_mut().zip(self.guides) {
                *rest -= guide.inward.messages[child][at];
            }
            let others = &messages[child][at];
            self.sums += (front.len() * others.len()) as u64;
            if self.sums > self.effort.sums {
                return Err(OutOfEffort);
            }
            let pairs = front.iter().flat_map(|p| others.iter().map(move |q| (p, q)));
            let sum = |(p, q): (&Point, &Point)| Offer { cost: p.cost.plus(q.cost), left: p.trail, right: q.trail };
            let offers = pairs.map(sum).filter(|o| self.admits(o.cost, &rest)).collect();
            let kept = self.settle(offers, &rest);
            front = self.record(kept, |o| Step::Join(o.left, o.right))?;
        }
        Ok(front)
    }

    fn admits(&self, cost: Cost, rest: &[u128]) -> bool {
        let within = |(guide, rest): (&Guide, &u128)| guide.inward.weights.of(cost) + rest <= guide.threshold;
        !cost.is_forbidden() && self.guides.iter().zip(rest).all(within)
    }

    /// Prunes a cell's offers to a front that fits; notes the least bound among those dropped for want of room.
    fn settle(&mut self, mut offers: Vec<Offer>, rest: &[u128]) -> Vec<Offer> {
        prune_covered(&mut offers, |o| o.cost);
        let room = self.effort.points_per_cell;
        if offers.len() <= room {
            return offers;
        }
        let score = |o: &Offer| self.guides.first().map_or(0, |g| g.inward.weights.of(o.cost) + rest[0]);
        let scores: Vec<u128> = offers.iter().map(score).collect();
        let costs: Vec<Cost> = offers.iter().map(|o| o.cost).collect();
        let kept = select(&costs, &scores, room);
        let least = (0..offers.len()).filter(|&i| !kept[i]).map(|i| scores[i]).min();
        self.dropped = self.dropped.into_iter().chain(least).min();
        let mut kept = kept.into_iter();
        offers.retain(|_| kept.next().unwrap_or(false));
        offers
    }

    /// Writes the kept offers into the trail; a join with nothing on one side needs no step.
    fn record(&mut self, kept: Vec<Offer>, step: impl Fn(&Offer) -> Step) -> Result<Vec<Point>, OutOfEffort> {
        let point = |offer: &Offer| {
            let trail = match step(offer) {
                Step::Join(NO_TRAIL, right) => right,
                Step::Join(left, NO_TRAIL) => left,
                step => {
                    self.trail.push(step);
                    (self.trail.len() - 1) as u32
                }
            };
            Point { cost: offer.cost, trail }
        };
        let points = kept.iter().map(point).collect();
        if self.trail.len() > self.effort.total_points { Err(OutOfEffort) } else { Ok(points) }
    }

    /// The values picked along a trail.
    fn assignment(&self, trail: u32) -> Assignment {
        let mut assignment = vec![0; self.problem.vars.len()];
        let mut open = vec![trail];
        while let Some(at) = open.pop() {
            if at == NO_TRAIL {
                continue;
            }
            match self.trail[at as usize] {
                Step::Join(left, right) => open.extend([left, right]),
                Step::Pick { var, value, rest } => {
                    assignment[var as usize] = value as usize;
                    open.push(rest);
                }
            }
        }
        assignment
    }
}

/// Marks `room` costs of a front (descending bytes): half of the room goes to the best scores, the rest to the best
/// score of every stretch of bytes, so that the front still reaches every budget where many points tie.
pub(super) fn select(front: &[Cost], scores: &[u128], room: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..front.len()).collect();
    order.sort_by_key(|&i| (scores[i], i));
    let mut kept = vec![false; front.len()];
    order[..room / 2].iter().for_each(|&i| kept[i] = true);
    let (most, least) = (front[0].bytes, front[front.len() - 1].bytes);
    let n_stretches = room - room / 2;
    let mut taken = vec![false; n_stretches];
    for &i in &order[room / 2..] {
        let along = u128::from(most - front[i].bytes) * n_stretches as u128;
        let stretch = (along / (u128::from(most - least) + 1)) as usize;
        kept[i] = !std::mem::replace(&mut taken[stretch], true);
    }
    kept
}

/// For each cell of the scope, the offset of each factor's row.
fn bases(bucket: &Bucket) -> Vec<Vec<usize>> {
    let mut bases = vec![Vec::with_capacity(bucket.factors.len()); bucket.message_cells()];
    for factor in &bucket.factors {
        walk(&bucket.extents, &factor.strides, |cell, base| bases[cell].push(base));
    }
    bases
}

#[cfg(test)]
mod tests {
    use super::super::brute::each_assignment;
    use super::super::samples::random_problem;
    use super::*;

    #[test]
    fn covered_points_are_pruned_and_the_first_of_equals_stays() {
        let mut points: Vec<(u64, u64, char)> = vec![(3, 3, 'a'), (1, 5, 'b'), (1, 5, 'c'), (2, 5, 'd'), (4, 1, 'e')];
        prune_covered(&mut points, |p| Cost::new(p.0, p.1));
        assert_eq!(points.iter().map(|p| p.2).collect::<String>(), "bae");
    }

    #[test]
    fn the_front_without_guides_is_complete() {
        let effort = Effort { points_per_cell: usize::MAX, total_points: 1 << 20, sums: 1 << 30 };
        for seed in 0..200 {
            let problem = random_problem(seed, 6, 4);
            let tree = BucketTree::new(&problem);
            let found = eliminate_fronts(&problem, &tree, &[], effort).expect("small");
            found.front.iter().for_each(|(cost, a)| assert_eq!(problem.cost(a), *cost, "seed {seed}"));
            let costs: Vec<Cost> = found.front.iter().map(|f| f.0).collect();
            assert_eq!(costs, enumerated_front(&problem), "seed {seed}");
        }
    }

    fn enumerated_front(problem: &Problem) -> Vec<Cost> {
        let extents: Vec<usize> = problem.vars.iter().map(|v| v.domain.len()).collect();
        let mut costs = Vec::new();
        each_assignment(&extents, |a| costs.push(problem.cost(a)));
        costs.retain(|c| !c.is_forbidden());
        prune_covered(&mut costs, |c| *c);
        costs
    }
}
