//! Rows of a table by index (embedding), whole or a shard of the vocabulary, and the gradient of the table.

use super::super::threads::{Shared, Threads};
use super::GRAIN;

/// An index outside the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("index {id} at position {position} is not one of the {n_rows} rows")]
pub struct IdError {
    /// The first such position.
    pub position: usize,
    /// The index there.
    pub id: i64,
    /// The number of rows of the table.
    pub n_rows: usize,
}

/// Which rows of the vocabulary a table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableRows {
    /// All of them; an index outside is an error.
    All,
    /// Those from this one on; an index outside gives zeros and receives no gradient.
    From(i64),
}

/// The row of the table for each index, where there is one.
fn local_row(id: i64, n_rows: usize, rows: TableRows) -> Option<usize> {
    let first = match rows {
        TableRows::All => 0,
        TableRows::From(first) => first,
    };
    usize::try_from(id.wrapping_sub(first)).ok().filter(|&row| row < n_rows)
}

fn check_ids(ids: &[i64], n_rows: usize, rows: TableRows) -> Result<(), IdError> {
    let missing = |id: i64| rows == TableRows::All && local_row(id, n_rows, rows).is_none();
    match ids.iter().position(|&id| missing(id)) {
        Some(position) => Err(IdError { position, id: ids[position], n_rows }),
        None => Ok(()),
    }
}

/// out[i] = table[ids[i]].   table: [v, row_len]   ids: [n]   out: [n, row_len]
///
/// # Errors
/// An index outside a whole table; then `out` is untouched.
pub fn embedding<T: Copy + Default + Send + Sync>(
    table: &[T],
    row_len: usize,
    rows: TableRows,
    ids: &[i64],
    out: &mut [T],
    threads: Threads,
) -> Result<(), IdError> {
    let n_rows = table.len() / row_len.max(1);
    check_ids(ids, n_rows, rows)?;
    let per_task = GRAIN.div_ceil(row_len.max(1));
    threads.for_each_chunk_mut(out, per_task * row_len, |task, out| {
        for (out, &id) in out.chunks_exact_mut(row_len).zip(&ids[task * per_task..]) {
            match local_row(id, n_rows, rows) {
                Some(row) => out.copy_from_slice(&table[row * row_len..(row + 1) * row_len]),
                None => out.fill(T::default()),
            }
        }
    });
    Ok(())
}

/// Columns one task of the gradient sums; tasks share nothing, so each row is summed in the order of the indices.
const STRIP: usize = 128;

/// dtable[r] = the sum of dy[i] over the i with ids[i] = r, in order of i.   dy: [n, row_len]   dtable: [v, row_len]
///
/// # Errors
/// An index outside a whole table; then `dtable` is untouched.
pub fn embedding_grad(
    ids: &[i64],
    dy: &[f32],
    row_len: usize,
    rows: TableRows,
    dtable: &mut [f32],
    threads: Threads,
) -> Result<(), IdError> {
    let n_rows = dtable.len() / row_len.max(1);
    check_ids(ids, n_rows, rows)?;
    threads.for_each_chunk_mut(dtable, GRAIN, |_, chunk| chunk.fill(0.0));
    let dtable = Shared::new(dtable);
    threads.for_each_range(row_len, STRIP, |columns| {
        for (i, &id) in ids.iter().enumerate() {
            let Some(row) = local_row(id, n_rows, rows) else { continue };
            // SAFETY: tasks have disjoint columns.
            let sum = unsafe { dtable.slice(row * row_len + columns.start..row * row_len + columns.end) };
            let dy = &dy[i * row_len + columns.start..i * row_len + columns.end];
            {
                for (s, &d) in sum.iter_mut().zip(dy) {
                    *s += d;
                }
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{in_pool, random};
    use super::*;

    fn rows_of(table: &[f32], rows: TableRows, ids: &[i64]) -> Result<Vec<f32>, IdError> {
        let mut out = vec![9.0; ids.len() * 2];
        embedding(table, 2, rows, ids, &mut out, Threads::ONE).map(|()| out)
    }

    #[test]
    fn rows_are_taken_by_index() {
        let table = [0.0, 1.0, 10.0, 11.0, 20.0, 21.0];
        assert_eq!(rows_of(&table, TableRows::All, &[2, 0]), Ok(vec![20.0, 21.0, 0.0, 1.0]));
        assert_eq!(rows_of(&table, TableRows::From(5), &[6, 0, 8]), Ok(vec![10.0, 11.0, 0.0, 0.0, 0.0, 0.0]));
        assert_eq!(rows_of(&table, TableRows::All, &[1, 3]), Err(IdError { position: 1, id: 3, n_rows: 3 }));
        assert_eq!(rows_of(&table, TableRows::All, &[-1]), Err(IdError { position: 0, id: -1, n_rows: 3 }));
    }

    #[test]
    fn gradients_of_repeated_indices_add_up_in_order() {
        let (n, v, h) = (500, 13, 300);
        let (dy, ids) = (random(n * h, 1), (0..n).map(|i| (i * i % 17) as i64).collect::<Vec<_>>());
        let mut want = vec![0.0; v * h];
        for (i, &id) in ids.iter().enumerate().filter(|(_, id)| (2..15).contains(*id)) {
            (0..h).for_each(|j| want[(id as usize - 2) * h + j] += dy[i * h + j]);
        }
        for t in [1, 3] {
            let mut dtable = vec![7.0; v * h];
            in_pool(t, || embedding_grad(&ids, &dy, h, TableRows::From(2), &mut dtable, Threads::new(t))).unwrap();
            assert_eq!(dtable, want);
        }
        assert!(embedding_grad(&ids, &dy, h, TableRows::All, &mut vec![0.0; v * h], Threads::ONE).is_err());
    }
}
