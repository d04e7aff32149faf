//! The best elements of each row, by insertion: k is small where this is used.

use super::super::threads::{Shared, Threads};
use super::GRAIN;

/// The k elements of each row that come before all others, in order, and their positions; of equal ones the first.
/// x: [rows, n]   values, indices: [rows, k]
///
/// `before(a, b)` says whether a is strictly better than b.
pub fn top_k<T: Copy + Send + Sync>(
    x: &[T],
    [n, k]: [usize; 2],
    values: &mut [T],
    indices: &mut [i64],
    before: impl Fn(T, T) -> bool + Send + Sync,
    threads: Threads,
) {
    let per_task = GRAIN.div_ceil(n.max(1));
    let indices = Shared::new(indices);
    threads.for_each_chunk_mut(values, per_task * k, |task, values| {
        for (i, values) in values.chunks_exact_mut(k).enumerate() {
            let row = task * per_task + i;
            // SAFETY: every row has its own indices.
            let indices = unsafe { indices.slice(row * k..(row + 1) * k) };
            best_of_row(&x[row * n..(row + 1) * n], values, indices, &before);
        }
    });
}

fn best_of_row<T: Copy>(row: &[T], values: &mut [T], indices: &mut [i64], before: impl Fn(T, T) -> bool) {
    let k = values.len();
    for (i, &value) in row.iter().enumerate() {
        let n_found = i.min(k);
        if n_found == k && !before(value, values[k - 1]) {
            continue;
        }
        let mut at = n_found.min(k - 1);
        while at > 0 && before(value, values[at - 1]) {
            (values[at], indices[at]) = (values[at - 1], indices[at - 1]);
            at -= 1;
        }
        (values[at], indices[at]) = (value, i as i64);
    }
}

/// Whether a is larger than b; NaN is larger than all others.
pub fn is_larger(a: f32, b: f32) -> bool {
    a > b || (a.is_nan() && !b.is_nan())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{in_pool, random};
    use super::*;

    #[test]
    fn rows_are_sorted_and_cut() {
        let (n, k) = (37, 5);
        let x = random(500 * n, 3);
        let run = |t: usize| {
            let (mut values, mut indices) = (vec![0.0; 500 * k], vec![0; 500 * k]);
            in_pool(t, || top_k(&x, [n, k], &mut values, &mut indices, is_larger, Threads::new(t)));
            (values, indices)
        };
        let (values, indices) = run(1);
        assert_eq!((&values, &indices), (&run(3).0, &run(3).1));
        for (row, x) in x.chunks(n).enumerate() {
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_by(|&a, &b| x[b].total_cmp(&x[a]));
            assert!((0..k).all(|i| indices[row * k + i] == order[i] as i64 && values[row * k + i] == x[order[i]]));
        }
    }

    #[test]
    fn the_first_of_equal_ones_is_chosen_and_nan_is_large() {
        let (mut values, mut indices) = ([0.0; 3], [0; 3]);
        top_k(&[1.0, 2.0, 2.0, f32::NAN], [4, 3], &mut values, &mut indices, is_larger, Threads::ONE);
        assert_eq!(indices, [3, 1, 2]);
        let smaller = |a, b| is_larger(b, a);
        top_k(&[f32::NAN, 2.0, 2.0, 1.0], [4, 3], &mut values, &mut indices, smaller, Threads::ONE);
        assert_eq!((values, indices), ([1.0, 2.0, 2.0], [3, 1, 2]));
    }
}
