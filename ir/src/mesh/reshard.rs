//! The reshard algebra: which collectives turn one placement into another.

use super::Sharding;
use crate::id::AxisId;

/// One collective (or local cut) of a reshard, in the order of execution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReshardStep {
    /// Resolves partial sums; every rank of the group ends with the full sum.
    AllReduce {
        /// Axes of the group.
        axes: Vec<AxisId>,
    },
    /// Resolves partial sums and shards a dimension by the same axes, as its minor ones.
    ReduceScatter {
        /// Axes of the group, major first.
        axes: Vec<AxisId>,
        /// The dimension.
        dim: usize,
    },
    /// Undoes the minor axes of a dimension.
    AllGather {
        /// Axes of the group, major first.
        axes: Vec<AxisId>,
        /// The dimension.
        dim: usize,
    },
    /// Moves the minor axes of one dimension to another.
    AllToAll {
        /// Axes of the group, major first.
        axes: Vec<AxisId>,
        /// The dimension that is gathered.
        from: usize,
        /// The dimension that is sharded.
        to: usize,
    },
    /// Keeps the rank's own part of a dimension; no communication.
    Shard {
        /// Axes, major first.
        axes: Vec<AxisId>,
        /// The dimension.
        dim: usize,
    },
}

impl ReshardStep {
    /// The axes that it works over, major first.
    pub fn axes(&self) -> &[AxisId] {
        match self {
            ReshardStep::AllReduce { axes }
            | ReshardStep::ReduceScatter { axes, .. }
            | ReshardStep::AllGather { axes, .. }
            | ReshardStep::AllToAll { axes, .. }
            | ReshardStep::Shard { axes, .. } => axes,
        }
    }

    /// Placement after the step.
    pub fn apply(&self, from: &Sharding) -> Sharding {
        let mut to = from.clone();
        match self {
            ReshardStep::AllReduce { axes } => to.partial.retain(|a| !axes.contains(a)),
            ReshardStep::ReduceScatter { axes, dim } => {
                to.partial.retain(|a| !axes.contains(a));
                to.dims[*dim].extend(axes);
            }
            ReshardStep::AllGather { axes, dim } => {
                let keep = to.dims[*dim].len() - axes.len();
                to.dims[*dim].truncate(keep);
            }
            ReshardStep::AllToAll { axes, from, to: target } => {
                let keep = to.dims[*from].len() - axes.len();
                to.dims[*from].truncate(keep);
                to.dims[*target].extend(axes);
            }
            ReshardStep::Shard { axes, dim } => to.dims[*dim].extend(axes),
        }
        to
    }

    /// Whether data moves between ranks.
    pub fn communicates(&self) -> bool {
        !matches!(self, ReshardStep::Shard { .. })
    }
}

/// The steps from one placement to another, or `None` where no collective makes it (a partial sum cannot be created).
///
/// Volume is kept low: sums are scattered where the target wants it, cuts come before gathers.
pub fn reshard_steps(from: &Sharding, to: &Sharding) -> Option<Vec<ReshardStep>> {
    if from.dims.len() != to.dims.len() || to.partial.iter().any(|a| !from.partial.contains(a)) {
        return None;
    }
    let mut at = from.clone();
    let mut steps = Vec::new();
    while at != *to {
        let step = next_step(&at, to)?;
        at = step.apply(&at);
        steps.push(step);
        if steps.len() > 64 {
            return None;
        }
    }
    Some(steps)
}

fn next_step(at: &Sharding, to: &Sharding) -> Option<ReshardStep> {
    reduce_scatter(at, to)
        .or_else(|| shard(at, to))
        .or_else(|| all_reduce(at, to))
        .or_else(|| all_to_all(at, to))
        .or_else(|| all_gather(at, to))
        .or_else(|| all_reduce_rest(at, to))
}

/// The axes that dimension `dim` still lacks, if what it has is a prefix of what it needs.
fn missing<'a>(at: &Sharding, to: &'a Sharding, dim: usize) -> &'a [AxisId] {
    let (have, want) = (&at.dims[dim], &to.dims[dim]);
    if want.starts_with(have) { &want[have.len()..] } else { &[] }
}

/// The minor axes of dimension `dim` that have to go.
fn surplus<'a>(at: &'a Sharding, to: &Sharding, dim: usize) -> &'a [AxisId] {
    let (have, want) = (&at.dims[dim], &to.dims[dim]);
    let common = have.iter().zip(want).take_while(|(a, b)| a == b).count();
    &have[common..]
}

fn reduce_scatter(at: &Sharding, to: &Sharding) -> Option<ReshardStep> {
    (0..at.dims.len()).find_map(|dim| {
        let scatter = |a: &&AxisId| at.partial.contains(a) && !to.partial.contains(a);
        let axes: Vec<AxisId> = missing(at, to, dim).iter().take_while(scatter).copied().collect();
        (!axes.is_empty()).then_some(ReshardStep::ReduceScatter { axes, dim })
    })
}

fn shard(at: &Sharding, to: &Sharding) -> Option<ReshardStep> {
    (0..at.dims.len()).find_map(|dim| {
        let free = |a: &&AxisId| !at.axes().any(|b| b == **a);
        let axes: Vec<AxisId> = missing(at, to, dim).iter().take_while(free).copied().collect();
        (!axes.is_empty()).then_some(ReshardStep::Shard { axes, dim })
    })
}

fn all_reduce(at: &Sharding, to: &Sharding) -> Option<ReshardStep> {
    let wanted = |a: &AxisId| to.dims.iter().flatten().any(|b| b == a);
    let axes: Vec<AxisId> = at.partial.iter().copied().filter(|a| !to.partial.contains(a) && !wanted(a)).collect();
    (!axes.is_empty()).then_some(ReshardStep::AllReduce { axes })
}

fn all_reduce_rest(at: &Sharding, to: &Sharding) -> Option<ReshardStep> {
    let axes: Vec<AxisId> = at.partial.iter().copied().filter(|a| !to.partial.contains(a)).collect();
    (!axes.is_empty()).then_some(ReshardStep::AllReduce { axes })
}

fn all_to_all(at: &Sharding, to: &Sharding) -> Option<ReshardStep> {
    (0..at.dims.len()).find_map(|from| {
        let surplus = surplus(at, to, from);
        (0..at.dims.len()).filter(|&d| d != from).find_map(|target| {
            let want = missing(at, to, target);
            let len = (1..=surplus.len().min(want.len())).rev().find(|&n| surplus[surplus.len() - n..] == want[..n])?;
            Some(ReshardStep::AllToAll { axes: want[..len].to_vec(), from, to: target })
        })
    })
}

fn all_gather(at: &Sharding, to: &Sharding) -> Option<ReshardStep> {
    (0..at.dims.len()).find_map(|dim| {
        let axes = surplus(at, to, dim).to_vec();
        (!axes.is_empty()).then_some(ReshardStep::AllGather { axes, dim })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(dims: &[&[u32]], partial: &[u32]) -> Sharding {
        let ids = |a: &[u32]| a.iter().map(|&i| AxisId(i)).collect::<Vec<_>>();
        Sharding { dims: dims.iter().map(|d| ids(d)).collect(), partial: ids(partial) }
    }

    #[test]
    fn a_partial_sum_is_scattered_where_the_target_wants_it() {
        let steps = reshard_steps(&s(&[&[1], &[]], &[2]), &s(&[&[1], &[2]], &[])).unwrap();
        assert_eq!(steps, vec![ReshardStep::ReduceScatter { axes: vec![AxisId(2)], dim: 1 }]);
    }

    #[test]
    fn a_sharded_dimension_moves_by_all_to_all() {
        let steps = reshard_steps(&s(&[&[1, 2], &[]], &[]), &s(&[&[1], &[2]], &[])).unwrap();
        assert_eq!(steps, vec![ReshardStep::AllToAll { axes: vec![AxisId(2)], from: 0, to: 1 }]);
    }

    #[test]
    fn a_partial_sum_is_never_created() {
        assert_eq!(reshard_steps(&s(&[&[]], &[]), &s(&[&[]], &[1])), None);
    }

    /// Every placement of three axes on two dimensions (or partial) reaches every other, and the steps compose.
    #[test]
    fn all_pairs_of_placements_are_connected() {
        let mut all = vec![s(&[&[], &[]], &[])];
        for axis in 1..=3 {
            let mut next = all.clone();
            for p in &all {
                for dim in 0..2 {
                    let mut q = p.clone();
                    q.dims[dim].push(AxisId(axis));
                    next.push(q.clone());
                    q.dims[dim].rotate_right(1);
                    next.push(q);
                }
                let mut q = p.clone();
                q.partial.push(AxisId(axis));
                next.push(q);
            }
            all = next;
        }
        for from in &all {
            for to in all.iter().filter(|t| t.partial.is_empty()) {
                let steps = reshard_steps(from, to).unwrap();
                let end = steps.iter().fold(from.clone(), |at, step| step.apply(&at));
                assert_eq!(end, *to);
            }
        }
    }
}
