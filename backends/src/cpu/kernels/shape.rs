//! Copies that change the layout: permutation, slices, concatenation, broadcasting, blocks. Any element type.

use super::super::threads::{Shared, Threads};
use super::GRAIN;

/// One loop of a strided copy: its size and the steps of source and destination, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Axis {
    size: usize,
    src: isize,
    dst: isize,
}

/// The row-major strides of a shape, in elements.
pub fn row_major(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i] as isize;
    }
    strides
}

fn len(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// Copies `shape` elements from `src` to `dst`, each a slice, the offset of its first element and its strides.
///
/// # Panics
/// When an element lies outside its slice, or two elements of the destination coincide.
pub fn copy_strided<T: Copy + Send + Sync>(
    shape: &[usize],
    (src, src_start, src_strides): (&[T], usize, &[isize]),
    (dst, dst_start, dst_strides): (&mut [T], usize, &[isize]),
    threads: Threads,
) {
    if len(shape) == 0 {
        return;
    }
    assert!(spans(shape, src_start, src_strides, src.len()), "invariant: the source elements are in the source");
    assert!(spans(shape, dst_start, dst_strides, dst.len()), "invariant: the target elements are in the target");
    let axes = collapse(shape, src_strides, dst_strides);
    assert!(is_injective(&axes), "invariant: the target elements are distinct");
    let (inner, outer) = split_inner(axes);
    let dst = Shared::new(dst);
    let inner_len: usize = inner.iter().map(|a| a.size).product();
    let n_outer: usize = outer.iter().map(|a| a.size).product();
    threads.for_each_range(n_outer, GRAIN.div_ceil(inner_len), |range| {
        for i in range {
            let (s, d) = offsets(&outer, i);
            // SAFETY: all elements lie inside their slices, and different steps of the outer loops write different ones.
            unsafe {
                let from = src.as_ptr().offset(src_start as isize + s);
                copy_inner(&inner, from, dst.as_mut_ptr().offset(dst_start as isize + d));
            }
        }
    });
}

/// Whether every element lies within `len` elements.
fn spans(shape: &[usize], start: usize, strides: &[isize], len: usize) -> bool {
    let (mut low, mut high) = (start as isize, start as isize);
    for (&n, &stride) in shape.iter().zip(strides) {
        let reach = (n as isize - 1) * stride;
        low += reach.min(0);
        high += reach.max(0);
    }
    low >= 0 && high < len as isize
}

/// Drops axes of size 1 and merges neighbours that both sides walk in one go.
fn collapse(shape: &[usize], src: &[isize], dst: &[isize]) -> Vec<Axis> {
    let mut axes: Vec<Axis> = Vec::with_capacity(shape.len());
    for ((&size, &src), &dst) in shape.iter().zip(src).zip(dst) {
        let n = size as isize;
        match axes.last_mut() {
            _ if size == 1 => {}
            Some(o) if o.src == src * n && o.dst == dst * n => *o = Axis { size: o.size * size, src, dst },
            _ => axes.push(Axis { size, src, dst }),
        }
    }
    axes
}

/// Whether the destination strides nest, each beyond the reach of all smaller ones.
fn is_injective(axes: &[Axis]) -> bool {
    let mut strides: Vec<(usize, usize)> = axes.iter().map(|a| (a.dst.unsigned_abs(), a.size)).collect();
    strides.sort_unstable();
    let mut reach = 0;
    strides.iter().all(|&(stride, size)| {
        let nests = stride > reach;
        reach += stride * (size - 1);
        nests
    })
}

/// Takes the loops that one call copies: the innermost of the destination, with the innermost of the source when that
/// is another one (a transposition).
fn split_inner(mut axes: Vec<Axis>) -> (Vec<Axis>, Vec<Axis>) {
    let nearest = |axes: &[Axis], stride: fn(&Axis) -> isize| {
        (0..axes.len()).rev().min_by_key(|&i| (stride(&axes[i]) == 0, stride(&axes[i]).unsigned_abs()))
    };
    let Some(d) = nearest(&axes, |a| a.dst) else { return (vec![], vec![]) };
    let inner = axes.remove(d);
    if inner.src.abs() <= 1 {
        return (vec![inner], axes);
    }
    match nearest(&axes, |a| a.src) {
        Some(s) if axes[s].src.abs() < inner.src.abs() && axes[s].src != 0 => {
            let rows = axes.remove(s);
            split_rows(rows, inner, axes)
        }
        _ => (vec![inner], axes),
    }
}

/// Side of the squares in which a transposition goes.
const TILE: usize = 16;

/// Leaves a multiple of the tile to the inner copy and the rest of the rows to the outer loops, so that tasks stay small.
fn split_rows(rows: Axis, inner: Axis, mut outer: Vec<Axis>) -> (Vec<Axis>, Vec<Axis>) {
    let part = 4 * TILE;
    if rows.size > part && rows.size.is_multiple_of(part) {
        outer.push(Axis { size: rows.size / part, src: rows.src * part as isize, dst: rows.dst * part as isize });
        return (vec![Axis { size: part, ..rows }, inner], outer);
    }
    (vec![rows, inner], outer)
}

fn offsets(axes: &[Axis], mut i: usize) -> (isize, isize) {
    let mut at = (0, 0);
    for axis in axes.iter().rev() {
        let step = (i % axis.size) as isize;
        i /= axis.size;
        at = (at.0 + step * axis.src, at.1 + step * axis.dst);
    }
    at
}

/// Copies along no, one or two axes.
///
/// # Safety
/// Every element the axes reach from `src` is readable and from `dst` writable; the two do not overlap.
unsafe fn copy_inner<T: Copy>(axes: &[Axis], src: *const T, dst: *mut T) {
    // SAFETY: as the caller promises.
    unsafe {
        match *axes {
            [] => *dst = *src,
            [row] => copy_row(row, src, dst),
            [rows, columns] => transpose(rows, columns, src, dst),
            _ => unreachable!("a copy has at most two inner axes"),
        }
    }
}

/// # Safety
/// As [`copy_inner`].
unsafe fn copy_row<T: Copy>(row: Axis, src: *const T, dst: *mut T) {
    // SAFETY: as the caller promises.
    unsafe {
        match (row.src, row.dst) {
            (1, 1) => std::ptr::copy_nonoverlapping(src, dst, row.size),
            (0, 1) => std::slice::from_raw_parts_mut(dst, row.size).fill(*src),
            _ => (0..row.size as isize).for_each(|i| *dst.offset(i * row.dst) = *src.offset(i * row.src)),
        }
    }
}

/// Copies in square tiles, so that the lines of both sides stay in the cache.
///
/// # Safety
/// As [`copy_inner`].
unsafe fn transpose<T: Copy>(rows: Axis, columns: Axis, src: *const T, dst: *mut T) {
    for r0 in (0..rows.size).step_by(TILE) {
        for c0 in (0..columns.size).step_by(TILE) {
            let (n_rows, n_columns) = (TILE.min(rows.size - r0), TILE.min(columns.size - c0));
            for r in r0..r0 + n_rows {
                for c in c0..c0 + n_columns {
                    let (r, c) = (r as isize, c as isize);
                    // SAFETY: as the caller promises.
                    unsafe {
                        *dst.offset(r * rows.dst + c * columns.dst) = *src.offset(r * rows.src + c * columns.src)
                    };
                }
            }
        }
    }
}

/// out[i_0, …] with axis `j` of the result being axis `perm[j]` of the operand.
pub fn transpose_axes<T: Copy + Send + Sync>(
    x: &[T],
    shape: &[usize],
    perm: &[usize],
    out: &mut [T],
    threads: Threads,
) {
    assert_eq!([x.len(), out.len()], [len(shape); 2], "invariant: operand and result have the length of the shape");
    let strides = row_major(shape);
    let out_shape: Vec<usize> = perm.iter().map(|&axis| shape[axis]).collect();
    let src: Vec<isize> = perm.iter().map(|&axis| strides[axis]).collect();
    copy_strided(&out_shape, (x, 0, &src), (out, 0, &row_major(&out_shape)), threads);
}

/// Part of an axis: `len` elements from `start` on, every `step`-th (backwards when negative).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AxisRange {
    /// The first element.
    pub start: usize,
    /// How many.
    pub len: usize,
    /// The distance between neighbours.
    pub step: isize,
}

/// out = the elements of x in one range per axis.   out: the lengths of the ranges
pub fn slice<T: Copy + Send + Sync>(x: &[T], shape: &[usize], ranges: &[AxisRange], out: &mut [T], threads: Threads) {
    assert_eq!(x.len(), len(shape), "invariant: the operand has the length of its shape");
    let strides = row_major(shape);
    let (out_shape, start, src) = ranged(&strides, ranges);
    assert_eq!(out.len(), len(&out_shape), "invariant: the result has the lengths of the ranges");
    copy_strided(&out_shape, (x, start, &src), (out, 0, &row_major(&out_shape)), threads);
}

/// The gradient of [`slice`]: dx is zeros but for the ranges, which hold dy.
pub fn slice_grad<T: Copy + Default + Send + Sync>(
    dy: &[T],
    shape: &[usize],
    ranges: &[AxisRange],
    dx: &mut [T],
    threads: Threads,
) {
    assert_eq!(dx.len(), len(shape), "invariant: the result has the length of its shape");
    let (dy_shape, start, dst) = ranged(&row_major(shape), ranges);
    assert_eq!(dy.len(), len(&dy_shape), "invariant: the operand has the lengths of the ranges");
    threads.for_each_chunk_mut(dx, GRAIN, |_, chunk| chunk.fill(T::default()));
    copy_strided(&dy_shape, (dy, 0, &row_major(&dy_shape)), (dx, start, &dst), threads);
}

/// The shape, first element and strides of a selection.
fn ranged(strides: &[isize], ranges: &[AxisRange]) -> (Vec<usize>, usize, Vec<isize>) {
    let shape: Vec<usize> = ranges.iter().map(|r| r.len).collect();
    let start = ranges.iter().zip(strides).map(|(r, &s)| r.start * s as usize).sum();
    (shape, start, ranges.iter().zip(strides).map(|(r, &s)| r.step * s).collect())
}

/// Joins tensors along `axis`. Each part is a slice and its shape; the shapes agree but for that axis.
pub fn concat<T: Copy + Send + Sync>(parts: &[(&[T], &[usize])], axis: usize, out: &mut [T], threads: Threads) {
    let Some(&(_, first)) = parts.first() else { return };
    let mut shape = first.to_vec();
    shape[axis] = parts.iter().map(|(_, shape)| shape[axis]).sum();
    let mut start = vec![0; shape.len()];
    for (part, part_shape) in parts {
        let whole = vec![0; part_shape.len()];
        copy_block((part, part_shape, &whole), (out, &shape, &start), part_shape, threads);
        start[axis] += part_shape[axis];
    }
}

/// Copies a block of `block` elements per axis from one tensor into another. Each is a slice, its shape, and the first
/// index of the block.
pub fn copy_block<T: Copy + Send + Sync>(
    (src, src_shape, src_first): (&[T], &[usize], &[usize]),
    (dst, dst_shape, dst_first): (&mut [T], &[usize], &[usize]),
    block: &[usize],
    threads: Threads,
) {
    assert_eq!(
        [src.len(), dst.len()],
        [len(src_shape), len(dst_shape)],
        "invariant: slices have their shapes' lengths"
    );
    let fits = |shape: &[usize], first: &[usize]| (0..block.len()).all(|i| first[i] + block[i] <= shape[i]);
    assert!(fits(src_shape, src_first) && fits(dst_shape, dst_first), "invariant: the block lies in both tensors");
    let (src_strides, dst_strides) = (row_major(src_shape), row_major(dst_shape));
    let start = |strides: &[isize], first: &[usize]| first.iter().zip(strides).map(|(&f, &s)| f * s as usize).sum();
    let (src_start, dst_start) = (start(&src_strides, src_first), start(&dst_strides, dst_first));
    copy_strided(block, (src, src_start, &src_strides), (dst, dst_start, &dst_strides), threads);
}

/// Spreads `x` over `out_shape` by NumPy's rules.
///
/// # Panics
/// When the shapes do not broadcast.
pub fn broadcast_to<T: Copy + Send + Sync>(
    x: &[T],
    shape: &[usize],
    (out, out_shape): (&mut [T], &[usize]),
    threads: Threads,
) {
    assert_eq!([x.len(), out.len()], [len(shape), len(out_shape)], "invariant: slices have their shapes' lengths");
    let missing = out_shape.len().checked_sub(shape.len()).expect("invariant: the result has no fewer axes");
    let own = row_major(shape);
    let mut strides = vec![0; out_shape.len()];
    for (i, (&n, &stride)) in shape.iter().zip(&own).enumerate() {
        assert!(n == 1 || n == out_shape[missing + i], "invariant: the shape broadcasts");
        strides[missing + i] = if n == 1 { 0 } else { stride };
    }
    copy_strided(out_shape, (x, 0, &strides), (out, 0, &row_major(out_shape)), threads);
}

#[cfg(test)]
mod tests {
    use super::super::testing::in_pool;
    use super::*;

    fn iota(n: usize) -> Vec<u32> {
        (0..n as u32).collect()
    }

    /// The index of element `i` of a tensor.
    fn index(shape: &[usize], mut i: usize) -> Vec<usize> {
        let mut index = vec![0; shape.len()];
        for (slot, &n) in index.iter_mut().zip(shape).rev() {
            *slot = i % n;
            i /= n;
        }
        index
    }

    fn at(shape: &[usize], index: &[usize]) -> usize {
        row_major(shape).iter().zip(index).map(|(&s, &i)| s as usize * i).sum()
    }

    fn check_transpose(shape: &[usize], perm: &[usize]) {
        let x = iota(len(shape));
        let mut out = vec![0; x.len()];
        in_pool(2, || transpose_axes(&x, shape, perm, &mut out, Threads::new(2)));
        let out_shape: Vec<usize> = perm.iter().map(|&p| shape[p]).collect();
        for (i, &v) in out.iter().enumerate() {
            let mut source = vec![0; shape.len()];
            index(&out_shape, i).iter().zip(perm).for_each(|(&k, &p)| source[p] = k);
            assert_eq!(v, x[at(shape, &source)], "{shape:?} {perm:?}");
        }
    }

    #[test]
    fn axes_are_permuted() {
        check_transpose(&[3, 4], &[1, 0]);
        check_transpose(&[67, 129], &[1, 0]);
        check_transpose(&[256, 65], &[1, 0]);
        check_transpose(&[2, 33, 5, 17], &[0, 2, 1, 3]);
        check_transpose(&[2, 33, 5, 17], &[0, 2, 3, 1]);
        check_transpose(&[2, 3, 1, 17, 4], &[4, 2, 0, 3, 1]);
        check_transpose(&[6], &[0]);
        check_transpose(&[], &[]);
        check_transpose(&[0, 3], &[1, 0]);
    }

    #[test]
    fn slices_take_ranges_and_their_gradient_puts_them_back() {
        let shape = [4, 5, 6];
        let ranges = [
            AxisRange { start: 1, len: 2, step: 2 },
            AxisRange { start: 4, len: 5, step: -1 },
            AxisRange { start: 2, len: 3, step: 1 },
        ];
        let x = iota(120);
        let (mut out, mut back) = (vec![0; 30], vec![9; 120]);
        slice(&x, &shape, &ranges, &mut out, Threads::ONE);
        slice_grad(&out, &shape, &ranges, &mut back, Threads::ONE);
        let mut selected = 0;
        for (i, &v) in out.iter().enumerate() {
            let k = index(&[2, 5, 3], i);
            let source: Vec<usize> =
                (0..3).map(|a| (ranges[a].start as isize + ranges[a].step * k[a] as isize) as usize).collect();
            assert_eq!(v, x[at(&shape, &source)]);
            assert_eq!(back[at(&shape, &source)], v);
            selected += u64::from(v);
        }
        assert_eq!(back.iter().map(|&v| u64::from(v)).sum::<u64>(), selected);
    }

    #[test]
    fn parts_join_along_an_axis() {
        let (a, b) = ([1, 2, 3, 4], [5, 6]);
        let mut out = [0; 6];
        concat(&[(&a[..], &[2, 2]), (&b[..], &[2, 1])], 1, &mut out, Threads::ONE);
        assert_eq!(out, [1, 2, 5, 3, 4, 6]);
        concat(&[(&a[..], &[2, 2]), (&b[..], &[1, 2])], 0, &mut out, Threads::ONE);
        assert_eq!(out, [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn values_spread_over_missing_axes() {
        let mut out = [0; 12];
        broadcast_to(&[1, 2], &[2, 1], (&mut out, &[2, 2, 3]), Threads::ONE);
        assert_eq!(out, [1, 1, 1, 2, 2, 2, 1, 1, 1, 2, 2, 2]);
        broadcast_to(&[7], &[], (&mut out, &[3, 4]), Threads::ONE);
        assert_eq!(out, [7; 12]);
    }

    #[test]
    fn blocks_move_between_tensors() {
        let x = iota(12);
        let mut out = vec![0; 20];
        copy_block((&x, &[3, 4], &[1, 2]), (&mut out, &[4, 5], &[2, 0]), &[2, 2], Threads::ONE);
        assert_eq!(out[10..17], [6, 7, 0, 0, 0, 10, 11]);
    }
}
