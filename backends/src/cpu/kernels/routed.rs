//! Tokens that travel to the ranks of their experts: which ones they are, their rows in messages, and what comes back for them.

use std::ops::Range;

/// Whether a token chose one of some experts.
fn goes_there(choices: &[i64], experts: &Range<u64>) -> bool {
    choices.iter().any(|&id| u64::try_from(id).is_ok_and(|id| experts.contains(&id)))
}

/// How many tokens chose one of some experts: i [rows, choices].
pub fn count(i: &[i64], choices: usize, experts: &Range<u64>) -> usize {
    i.chunks_exact(choices.max(1)).filter(|chosen| goes_there(chosen, experts)).count()
}

/// Writes the numbers of the tokens that chose one of some experts; returns how many they are.
///
/// # Panics
/// When there is not room for all of them.
pub fn list(i: &[i64], choices: usize, experts: &Range<u64>, rows: &mut [u32]) -> usize {
    let mut n = 0;
    for (row, chosen) in (0..).zip(i.chunks_exact(choices.max(1))) {
        if goes_there(chosen, experts) {
            rows[n] = row;
            n += 1;
        }
    }
    n
}

/// Copies the rows of some tokens, of so many bytes each, one after the other.
pub fn pack(tensor: &[u8], row_bytes: usize, rows: &[u32], out: &mut [u8]) {
    for (out, &row) in out.chunks_exact_mut(row_bytes.max(1)).zip(rows) {
        out.copy_from_slice(&tensor[row as usize * row_bytes..][..row_bytes]);
    }
}

/// Adds rows of a width to those of some tokens.
pub fn add<T: Copy>(from: &[T], width: usize, rows: &[u32], to: &mut [f32], widen: impl Fn(T) -> f32) {
    for (from, &row) in from.chunks_exact(width.max(1)).zip(rows) {
        let to = &mut to[row as usize * width..][..width];
        to.iter_mut().zip(from).for_each(|(to, &from)| *to += widen(from));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three tokens with two choices each: a token that chose twice there goes once.
    const CHOICES: [i64; 6] = [0, 3, 2, 3, 1, 0];

    #[test]
    fn every_token_goes_at_most_once_to_a_rank() {
        let of = |experts: Range<u64>| {
            let mut rows = [9; 3];
            let n = list(&CHOICES, 2, &experts, &mut rows);
            assert_eq!(n, count(&CHOICES, 2, &experts));
            rows[..n].to_vec()
        };
        assert_eq!((of(0..2), of(2..4), of(4..6), of(0..0)), (vec![0, 2], vec![0, 1], vec![], vec![]));
    }

    #[test]
    fn what_comes_back_is_added_where_it_came_from() {
        let (tensor, rows) = ([1u8, 2, 3, 4, 5, 6], [0, 2]);
        let mut packed = [0; 4];
        pack(&tensor, 2, &rows, &mut packed);
        assert_eq!(packed, [1, 2, 5, 6]);
        let mut sums = [10.0; 6];
        add(&packed, 2, &rows, &mut sums, f32::from);
        assert_eq!(sums, [11.0, 12.0, 10.0, 10.0, 15.0, 16.0]);
    }
}
