//! NumPy broadcasting of two operands, reduced to rows with fixed steps.

/// How two operands spread over the result: nested loops over rows, and the step of each operand inside a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broadcast {
    /// (size, step of a, step of b) of the loops outside a row, outermost first.
    outer: Vec<(usize, usize, usize)>,
    /// Elements of a row, contiguous in the result.
    pub row_len: usize,
    /// Step of a inside a row; 0 when it has one element for the row.
    pub a_step: usize,
    /// Step of b inside a row.
    pub b_step: usize,
}

impl Broadcast {
    /// The loops for `out` = a op b; `None` when a shape does not broadcast to `out`.
    pub fn new(out: &[usize], a: &[usize], b: &[usize]) -> Option<Broadcast> {
        let (a_steps, b_steps) = (steps(out, a)?, steps(out, b)?);
        let mut axes: Vec<(usize, usize, usize)> = Vec::with_capacity(out.len());
        for ((&n, a_step), b_step) in out.iter().zip(a_steps).zip(b_steps) {
            if n == 1 {
                continue;
            }
            match axes.last_mut() {
                Some(last) if last.1 == a_step * n && last.2 == b_step * n => *last = (last.0 * n, a_step, b_step),
                _ => axes.push((n, a_step, b_step)),
            }
        }
        let (row_len, a_step, b_step) = axes.pop().unwrap_or((1, 0, 0));
        Some(Broadcast { outer: axes, row_len, a_step, b_step })
    }

    /// The number of rows.
    pub fn n_rows(&self) -> usize {
        self.outer.iter().map(|axis| axis.0).product()
    }

    /// Where row `i` of the result starts in a and in b.
    pub fn row_start(&self, mut i: usize) -> (usize, usize) {
        let mut at = (0, 0);
        for &(n, a_step, b_step) in self.outer.iter().rev() {
            at = (at.0 + i % n * a_step, at.1 + i % n * b_step);
            i /= n;
        }
        at
    }
}

/// The step of an operand along each axis of `out`: 0 where it is spread.
fn steps(out: &[usize], shape: &[usize]) -> Option<Vec<usize>> {
    let missing = out.len().checked_sub(shape.len())?;
    let mut steps = vec![0; out.len()];
    let mut step = 1;
    for (i, &n) in shape.iter().enumerate().rev() {
        match n {
            _ if n == out[missing + i] => steps[missing + i] = if n == 1 { 0 } else { step },
            1 => {}
            _ => return None,
        }
        step *= n;
    }
    Some(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_that_move_together_merge() {
        let same = Broadcast::new(&[2, 3, 4], &[2, 3, 4], &[2, 3, 4]).unwrap();
        assert_eq!((same.n_rows(), same.row_len, same.a_step, same.b_step), (1, 24, 1, 1));
        let bias = Broadcast::new(&[2, 3, 4], &[2, 3, 4], &[4]).unwrap();
        assert_eq!((bias.n_rows(), bias.row_len, bias.row_start(5)), (6, 4, (20, 0)));
        let column = Broadcast::new(&[2, 3, 4], &[2, 1, 1], &[2, 3, 1]).unwrap();
        assert_eq!((column.n_rows(), column.a_step, column.row_start(4)), (6, 0, (1, 4)));
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        assert_eq!(Broadcast::new(&[2, 3], &[2], &[3]), None);
        assert_eq!(Broadcast::new(&[3], &[2, 3], &[3]), None);
    }
}
