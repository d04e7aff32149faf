//! Blocks of row-major tensors as runs of contiguous elements.

/// Calls `f(at in the block, at in the tensor, elements)` for the contiguous runs of a block, in order.
///
/// The block has `extents` and starts at index `first` of a tensor of `shape`; a scalar is one run of one element.
pub(super) fn for_each_run(shape: &[u64], first: &[u64], extents: &[u64], mut f: impl FnMut(usize, usize, usize)) {
    let n_whole = (0..shape.len()).rev().take_while(|&d| extents[d] == shape[d]).count();
    let split = shape.len().saturating_sub(n_whole + 1);
    let run: u64 = extents[split..].iter().product();
    let n_runs: u64 = extents[..split].iter().product();
    for index in 0..n_runs {
        let (mut rest, mut at, mut stride) = (index, 0, 1);
        for d in (0..shape.len()).rev() {
            let i = if d >= split { 0 } else { rest % extents[d] };
            if d < split {
                rest /= extents[d];
            }
            at += (first[d] + i) * stride;
            stride *= shape[d];
        }
        f((index * run) as usize, at as usize, run as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(shape: &[u64], first: &[u64], extents: &[u64]) -> Vec<(usize, usize, usize)> {
        let mut runs = Vec::new();
        for_each_run(shape, first, extents, |a, b, n| runs.push((a, b, n)));
        runs
    }

    #[test]
    fn whole_trailing_dimensions_join_a_run() {
        assert_eq!(runs(&[4, 6], &[2, 0], &[2, 6]), [(0, 12, 12)]);
        assert_eq!(runs(&[4, 6], &[0, 3], &[2, 3]), [(0, 3, 3), (3, 9, 3)]);
        assert_eq!(runs(&[2, 4, 3], &[0, 2, 0], &[2, 2, 3]), [(0, 6, 6), (6, 18, 6)]);
        assert_eq!(runs(&[], &[], &[]), [(0, 0, 1)]);
    }
}
