//! Index arithmetic over row-major values: strides, offset tables, broadcasting.

use super::tensor::{StaticTensor, check_stored, empty_extents};

/// Row-major strides of the extents.
pub(super) fn strides(extents: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; extents.len()];
    for d in (1..extents.len()).rev() {
        strides[d - 1] = strides[d] * extents[d].max(1);
    }
    strides
}

/// The offsets `0, stride, 2 * stride, …`.
pub(super) fn steps(n: usize, stride: usize) -> Vec<usize> {
    (0..n).map(|i| i * stride).collect()
}

/// Element `[i, j, …]` of the result is `values[tables[0][i] + tables[1][j] + …]`.
pub(super) fn gather<T: Copy>(values: &[T], tables: &[Vec<usize>]) -> Vec<T> {
    let n: usize = tables.iter().map(Vec::len).product();
    let mut result = Vec::with_capacity(n);
    if n == 0 {
        return result;
    }
    let start: usize = tables.iter().filter(|table| table.len() == 1).map(|table| table[0]).sum();
    let tables: Vec<&Vec<usize>> = tables.iter().filter(|table| table.len() > 1).collect();
    let Some((last, outer)) = tables.split_last() else { return vec![values[start]] };
    let extents: Vec<usize> = outer.iter().map(|table| table.len()).collect();
    let mut index = vec![0; outer.len()];
    loop {
        let base = index.iter().zip(outer).map(|(&i, table)| table[i]).sum::<usize>() + start;
        result.extend(last.iter().map(|&offset| values[base + offset]));
        if !advance(&mut index, &extents) {
            return result;
        }
    }
}

/// Moves a row-major index on by one; false once all indices were seen.
pub(super) fn advance(index: &mut [usize], extents: &[usize]) -> bool {
    for d in (0..index.len()).rev() {
        index[d] += 1;
        if index[d] < extents[d] {
            return true;
        }
        index[d] = 0;
    }
    false
}

/// Several tensors broadcast to one shape by the rules of ONNX (those of numpy).
pub(super) struct Broadcast<const N: usize> {
    /// Extents of the result.
    pub shape: Vec<usize>,
    /// Stored extents of the result: 1 where no operand varies.
    pub stored: Vec<usize>,
    /// Stored extents above 1.
    extents: Vec<usize>,
    /// For each operand its strides over `extents`, 0 where it does not vary.
    strides: [Vec<usize>; N],
}

impl<const N: usize> Broadcast<N> {
    /// Aligns the operands at their last dimensions.
    pub(super) fn new(operands: [&StaticTensor; N]) -> Result<Self, String> {
        let rank = operands.iter().map(|t| t.rank()).max().unwrap_or(0);
        let mut shape = vec![1; rank];
        let mut stored = vec![1; rank];
        for tensor in operands {
            let skipped = rank - tensor.rank();
            for (d, &extent) in tensor.shape().iter().enumerate() {
                shape[skipped + d] = broadcast_extent(shape[skipped + d], extent)?;
                stored[skipped + d] = stored[skipped + d].max(tensor.stored()[d]);
            }
        }
        if shape.contains(&0) {
            stored = empty_extents(&shape);
        }
        check_stored(&stored)?;
        let varying: Vec<usize> = (0..rank).filter(|&d| stored[d] != 1).collect();
        let strides = operands.map(|tensor| varying.iter().map(|&d| stride_at(tensor, d, rank)).collect());
        Ok(Broadcast { shape, extents: varying.iter().map(|&d| stored[d]).collect(), stored, strides })
    }

    /// Calls `row(offsets, n, steps)` for each innermost row of the result: the first offset of each operand, the length
    /// of the row and the step of each operand along it.
    pub(super) fn for_each_row(&self, mut row: impl FnMut([usize; N], usize, [usize; N])) {
        if self.extents.contains(&0) {
            return;
        }
        let Some((&n, outer)) = self.extents.split_last() else { return row([0; N], 1, [0; N]) };
        let steps = std::array::from_fn(|k| self.strides[k][outer.len()]);
        let mut index = vec![0; outer.len()];
        loop {
            let offset = |k: usize| index.iter().zip(&self.strides[k]).map(|(i, s)| i * s).sum();
            row(std::array::from_fn(offset), n, steps);
            if !advance(&mut index, outer) {
                return;
            }
        }
    }
}

fn broadcast_extent(a: usize, b: usize) -> Result<usize, String> {
    match (a, b) {
        (1, n) | (n, 1) => Ok(n),
        _ if a == b => Ok(a),
        _ => Err(format!("extents {a} and {b} cannot be broadcast together")),
    }
}

/// Stride of the tensor along dimension `d` of a result of rank `rank`, 0 where the tensor does not vary.
fn stride_at(tensor: &StaticTensor, d: usize, rank: usize) -> usize {
    match d.checked_sub(rank - tensor.rank()) {
        Some(own) if tensor.stored()[own] > 1 => strides(tensor.stored())[own],
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gather_reads_through_tables() {
        let transposed = gather(&[1, 2, 3, 4, 5, 6], &[steps(3, 1), steps(2, 3)]);
        assert_eq!(transposed, [1, 4, 2, 5, 3, 6]);
        assert_eq!(gather(&[7], &[]), [7]);
    }

    #[test]
    fn extents_broadcast_as_in_numpy() {
        assert_eq!(broadcast_extent(1, 0), Ok(0));
        assert!(broadcast_extent(2, 3).is_err() && broadcast_extent(0, 2).is_err());
    }
}
