//! Rows of a table by index, and the gradient of the table.

use super::{Tensor, indices};

/// out [ids.., width..] from the rows of table [v, width..] that start at `first_row` of the whole table; zeros for the
/// indices of other rows.
pub fn embedding(table: &Tensor, ids: &Tensor, shape: &[u64], first_row: u64) -> Tensor {
    let n_ids = ids.shape.len();
    Tensor::from_fn(shape, |index| match local_row(ids.at(&index[..n_ids]), first_row, table.shape[0]) {
        Some(row) => table.at(&row_index(row, &index[n_ids..])),
        None => 0.0,
    })
}

/// The sum of dy [ids.., width..] into the rows of a table [v, width..] that starts at `first_row` of the whole one; what
/// belongs to other rows is left out.
pub fn embedding_grad(ids: &Tensor, dy: &Tensor, shape: &[u64], first_row: u64) -> Tensor {
    let n_ids = ids.shape.len();
    let mut table = Tensor::filled(shape, 0.0);
    for index in indices(&dy.shape) {
        if let Some(row) = local_row(ids.at(&index[..n_ids]), first_row, shape[0]) {
            let position = table.position(&row_index(row, &index[n_ids..]));
            table.data[position] += dy.at(&index);
        }
    }
    table
}

fn local_row(id: f64, first_row: u64, n_rows: u64) -> Option<u64> {
    let row = id - first_row as f64;
    (row >= 0.0 && row < n_rows as f64).then_some(row as u64)
}

fn row_index(row: u64, width: &[u64]) -> Vec<u64> {
    [&[row], width].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_other_ranks_are_zero() {
        let (rows, ids) = (Tensor::new([2, 1], vec![5.0, 6.0]), Tensor::new([3], vec![1.0, 2.0, 3.0]));
        assert_eq!(embedding(&rows, &ids, &[3, 1], 2).data, [0.0, 5.0, 6.0]);
        assert_eq!(embedding(&rows, &ids, &[3, 1], 0).data, [6.0, 0.0, 0.0]);
    }

    #[test]
    fn gradients_of_one_index_add_up() {
        let (ids, dy) = (Tensor::new([3], vec![1.0, 3.0, 1.0]), Tensor::new([3, 1], vec![1.0, 2.0, 4.0]));
        assert_eq!(embedding_grad(&ids, &dy, &[4, 1], 0).data, [0.0, 5.0, 0.0, 2.0]);
        assert_eq!(embedding_grad(&ids, &dy, &[2, 1], 2).data, [0.0, 2.0]);
    }
}
