//! Element-wise loops over broadcast operands of any element type, for the ops without a vectorised kernel.

/// The elements of `n` operands that make one element of a result, walked in row-major order of the result.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Walk {
    shape: Vec<usize>,
    /// For each operand its step along each dimension; 0 where it repeats.
    steps: Vec<Vec<usize>>,
}

impl Walk {
    /// Operand shapes broadcast to `shape`, aligned from the right.
    pub(super) fn new(shape: &[usize], operands: &[&[usize]]) -> Walk {
        Walk { shape: shape.to_vec(), steps: operands.iter().map(|operand| steps(shape, operand)).collect() }
    }

    /// Calls `f(i, places)` for element `i` of the result, with the place of each operand's element.
    pub(super) fn for_each<const N: usize>(&self, mut f: impl FnMut(usize, [usize; N])) {
        let Some((&last, outer)) = self.shape.split_last() else { return f(0, [0; N]) };
        let n_rows: usize = outer.iter().product();
        for row in 0..n_rows {
            let (mut at, mut rest) = ([0; N], row);
            for d in (0..outer.len()).rev() {
                for (place, steps) in at.iter_mut().zip(&self.steps) {
                    *place += rest % outer[d] * steps[d];
                }
                rest /= outer[d];
            }
            for i in 0..last {
                f(row * last + i, at);
                for (place, steps) in at.iter_mut().zip(&self.steps) {
                    *place += steps[outer.len()];
                }
            }
        }
    }
}

fn steps(shape: &[usize], operand: &[usize]) -> Vec<usize> {
    let skip = shape.len() - operand.len();
    let (mut steps, mut step) = (vec![0; shape.len()], 1);
    for (d, &extent) in operand.iter().enumerate().rev() {
        steps[skip + d] = if extent == 1 { 0 } else { step };
        step *= extent;
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_repeat_where_they_have_extent_one() {
        let mut seen = Vec::new();
        Walk::new(&[2, 3], &[&[2, 1], &[3]]).for_each::<2>(|i, at| seen.push((i, at)));
        assert_eq!(seen, [(0, [0, 0]), (1, [0, 1]), (2, [0, 2]), (3, [1, 0]), (4, [1, 1]), (5, [1, 2])]);
    }
}
