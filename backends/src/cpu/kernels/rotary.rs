//! Rotary embedding: pairs of the last axis turned by angles from tables (Su et al. 2021).

use super::super::math::simd;
use super::super::threads::Threads;
use super::layer_norm::rows_per_task;

/// The angles of the rows of a tensor.
#[derive(Clone, Copy, Debug)]
pub struct Angles<'a> {
    /// Cosines. [table rows, pairs]
    pub cos: &'a [f32],
    /// Sines. [table rows, pairs]
    pub sin: &'a [f32],
    /// Pairs of a row that are turned.
    pub pairs: usize,
    /// For each leading axis of the tensor its extent and its step in rows of the tables, 0 where they repeat.
    pub walk: &'a [(usize, usize)],
}

/// Which elements are pairs, and which way they turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Elements 2i and 2i + 1, otherwise i and i + pairs.
    pub interleaved: bool,
    /// By the negative angles.
    pub inverse: bool,
}

impl Angles<'_> {
    /// The row of the tables for a row of the tensor.
    fn table_row(&self, row: usize) -> usize {
        let step =
            |(rest, at): (usize, usize), &(extent, step): &(usize, usize)| (rest / extent, at + rest % extent * step);
        self.walk.iter().rev().fold((row, 0), step).1
    }
}

/// y = x with its pairs turned. x, y: [rows, d]
pub fn rotary(x: &[f32], d: usize, angles: Angles<'_>, turn: Turn, y: &mut [f32], threads: Threads) {
    assert_eq!(x.len(), y.len(), "invariant: operand and result have one length");
    let per_task = rows_per_task(d);
    threads.for_each_chunk_mut(y, per_task * d, |task, y| {
        let first = task * per_task;
        y.copy_from_slice(&x[first * d..first * d + y.len()]);
        turn_rows(y, d, first, angles, turn);
    });
}

/// As [`rotary`], with the result in place of the operand.
pub fn rotary_inplace(x: &mut [f32], d: usize, angles: Angles<'_>, turn: Turn, threads: Threads) {
    let per_task = rows_per_task(d);
    threads.for_each_chunk_mut(x, per_task * d, |task, x| turn_rows(x, d, task * per_task, angles, turn));
}

/// Turns consecutive rows, of which the first has the index `first`.
fn turn_rows(x: &mut [f32], d: usize, first: usize, angles: Angles<'_>, turn: Turn) {
    let (p, sign) = (angles.pairs, if turn.inverse { -1.0 } else { 1.0 });
    simd!({
        for (i, row) in x.chunks_exact_mut(d).enumerate() {
            let at = angles.table_row(first + i) * p;
            let (cos, sin) = (&angles.cos[at..at + p], &angles.sin[at..at + p]);
            if turn.interleaved {
                turn_neighbours(&mut row[..2 * p], cos, sin, sign);
            } else {
                turn_halves(&mut row[..2 * p], cos, sin, sign);
            }
        }
    });
}

#[inline(always)]
fn turn_halves(row: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    let (low, high) = row.split_at_mut(cos.len());
    for (((a, b), &cos), &sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * (sign * sin), *a * (sign * sin) + *b * cos);
    }
}

#[inline(always)]
fn turn_neighbours(row: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    for ((pair, &cos), &sin) in row.chunks_exact_mut(2).zip(cos).zip(sin) {
        let (a, b) = (pair[0], pair[1]);
        (pair[0], pair[1]) = (a * cos - b * (sign * sin), a * (sign * sin) + b * cos);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, in_pool, random};
    use super::*;

    /// x [batch, length, heads, d], tables [length, pairs].
    fn check([batch, length, heads, d]: [usize; 4], pairs: usize, turn: Turn) {
        let x = random(batch * length * heads * d, 1);
        let (cos, sin) = (random(length * pairs, 2), random(length * pairs, 3));
        let walk = [(batch, 0), (length, 1), (heads, 0)];
        let angles = Angles { cos: &cos, sin: &sin, pairs, walk: &walk };
        let run = |threads| {
            let mut y = vec![9.0; x.len()];
            rotary(&x, d, angles, turn, &mut y, threads);
            y
        };
        let y = run(Threads::ONE);
        assert_eq!(y, in_pool(3, || run(Threads::new(3))));
        let mut own = x.clone();
        rotary_inplace(&mut own, d, angles, turn, Threads::ONE);
        assert_eq!(y, own);
        let mut expected: Vec<f64> = x.iter().map(|&v| v as f64).collect();
        for (row, y) in expected.chunks_exact_mut(d).enumerate() {
            for i in 0..pairs {
                let at = row / heads % length * pairs + i;
                let (c, s) = (cos[at] as f64, if turn.inverse { -sin[at] as f64 } else { sin[at] as f64 });
                let (i, j) = if turn.interleaved { (2 * i, 2 * i + 1) } else { (i, i + pairs) };
                (y[i], y[j]) = (y[i] * c - y[j] * s, y[i] * s + y[j] * c);
            }
        }
        assert_close(&y, &expected, 1e-6);
    }

    #[test]
    fn pairs_are_turned_by_the_angles_of_their_position() {
        for (interleaved, inverse) in [(false, false), (true, false), (false, true), (true, true)] {
            let turn = Turn { interleaved, inverse };
            check([2, 5, 3, 8], 4, turn);
            check([3, 70, 4, 34], 16, turn);
            check([1, 300, 2, 64], 32, turn);
        }
    }
}
