//! Strided loops over tensors: dimensions that lie one after the other are joined, so that kernels divide seldom.

use super::command::Arg;

/// Dimensions that a kernel can walk.
pub(super) const MAX_RANK: usize = 8;

/// A loop over an index space with a step along each dimension for each of several tensors, in elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Walk {
    /// Extents, outermost first.
    pub(super) shape: Vec<u64>,
    /// For each tensor its step along each dimension; 0 where it repeats.
    pub(super) steps: Vec<Vec<u64>>,
}

/// Steps of a contiguous row-major tensor.
pub(super) fn row_major(shape: &[u64]) -> Vec<u64> {
    let mut steps = vec![1; shape.len()];
    for d in (1..shape.len()).rev() {
        steps[d - 1] = steps[d] * shape[d];
    }
    steps
}

/// Steps of an operand that is broadcast to `shape`, aligned from the right.
pub(super) fn broadcast(operand: &[u64], shape: &[u64]) -> Vec<u64> {
    let skip = shape.len() - operand.len();
    let own = row_major(operand);
    let step = |d: usize| if d < skip || operand[d - skip] == 1 { 0 } else { own[d - skip] };
    (0..shape.len()).map(step).collect()
}

impl Walk {
    /// A walk with its dimensions joined where every tensor allows it.
    pub(super) fn new(shape: &[u64], steps: &[Vec<u64>]) -> Walk {
        let mut walk = Walk { shape: Vec::new(), steps: vec![Vec::new(); steps.len()] };
        for d in 0..shape.len() {
            if shape[d] == 1 {
                continue;
            }
            let joins = |(own, all): (&Vec<u64>, &Vec<u64>)| own.last().is_some_and(|&last| last == all[d] * shape[d]);
            if walk.steps.iter().zip(steps).all(joins) && !walk.shape.is_empty() {
                *walk.shape.last_mut().expect("invariant: it is not empty") *= shape[d];
                walk.steps.iter_mut().zip(steps).for_each(|(own, all)| {
                    *own.last_mut().expect("invariant: as long as the shape") = all[d];
                });
            } else {
                walk.shape.push(shape[d]);
                walk.steps.iter_mut().zip(steps).for_each(|(own, all)| own.push(all[d]));
            }
        }
        walk
    }

    /// Number of steps of the loop.
    pub(super) fn len(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Whether all tensors are walked from front to back.
    pub(super) fn is_contiguous(&self) -> bool {
        self.shape.len() <= 1 && self.steps.iter().all(|steps| steps.first().is_none_or(|&s| s == 1))
    }

    /// As the kernels' struct: rank, extents, then the steps of each tensor, each padded to [`MAX_RANK`].
    ///
    /// # Errors
    /// When there are more dimensions than kernels walk.
    pub(super) fn arg(&self) -> Result<Arg, String> {
        if self.shape.len() > MAX_RANK {
            return Err(format!("kernels walk at most {MAX_RANK} dimensions, this takes {}", self.shape.len()));
        }
        let mut ints = vec![self.shape.len() as i64];
        for list in std::iter::once(&self.shape).chain(&self.steps) {
            ints.extend((0..MAX_RANK).map(|d| list.get(d).map_or(0, |&v| v as i64)));
        }
        Ok(Arg::Ints(ints))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contiguous_dimensions_are_joined() {
        let steps = row_major(&[2, 3, 4]);
        let walk = Walk::new(&[2, 3, 4], &[steps.clone(), steps]);
        assert_eq!((walk.shape.clone(), walk.is_contiguous()), (vec![24], true));
    }

    #[test]
    fn a_broadcast_row_keeps_two_dimensions() {
        let walk = Walk::new(&[2, 3, 4], &[row_major(&[2, 3, 4]), broadcast(&[4], &[2, 3, 4])]);
        assert_eq!(walk.shape, [6, 4]);
        assert_eq!(walk.steps, [vec![4, 1], vec![0, 1]]);
    }
}
