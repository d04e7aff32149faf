//! Products of bf16 with a matrix whose rows do not start at multiples of 16 bytes, such as logits of 50257 classes.
//!
//! Tensor cores are fed by loads of 16 bytes; with such rows libraries fall back to kernels that are several times slower. The
//! matrix is therefore taken a part at a time through scratch memory, where its rows have room at their ends. Parts lie along
//! the dimension that is not summed. Fast kernels want extents of whole units as well: what is left over of a row is a product of
//! its own, of a few columns of the result or a few terms of its sums. Those terms are summed first, and rounded once more.

use galvatron_ir::types::DType;

use super::command::{Command, Epilogue, Matmul, Matrix, Place, SCRATCH_BYTES};
use super::kernels::Lowered;
use super::kernels::layout::{Side, copy};

/// Elements of bf16 that 16 bytes hold.
const PACK: u64 = 8;

/// Rows or columns of a part are a multiple of this, so that tiles of the library are full.
const TILE: u64 = 128;

/// Multiplications below which a copy costs more than slow loads.
const MIN_MULTIPLICATIONS: u64 = 1 << 22;

/// Which operand is taken through scratch memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    A,
    B,
    C,
}

/// A step of a product that is made in parts.
#[derive(Debug)]
enum Step {
    /// Elements of an index space move from one side to the other.
    Copy {
        shape: [u64; 2],
        from: Side,
        to: Side,
    },
    Product(Matmul),
}

/// The commands of a product.
pub(super) fn product(matmul: Matmul) -> Lowered {
    let Some(steps) = in_parts(&matmul, SCRATCH_BYTES) else {
        return Ok(vec![Command::Matmul(matmul)]);
    };
    let commands = steps.into_iter().map(|step| match step {
        Step::Copy { shape, from, to } => copy(matmul.dtype.bytes(), &shape, from, to),
        Step::Product(product) => Ok(vec![Command::Matmul(product)]),
    });
    Ok(commands.collect::<Result<Vec<_>, _>>()?.concat())
}

/// The steps of a product with one matrix whose rows are badly aligned; `None` where it is best left whole.
fn in_parts(matmul: &Matmul, capacity: u64) -> Option<Vec<Step>> {
    let Matmul { dtype, m, n, k, batch, a, b, c, .. } = *matmul;
    let pays = m.checked_mul(n)?.checked_mul(k)? >= MIN_MULTIPLICATIONS && m.min(n).min(k) > PACK;
    if dtype != DType::Bf16 || batch != 1 || !pays {
        return None;
    }
    // Each operand as (what it is, itself, rows, columns).
    let sides = [(Which::A, a, m, k), (Which::B, b, k, n), (Which::C, c, m, n)];
    let is_packed = |matrix: &Matrix| matches!(matrix.at, Place::Scratch(_));
    let is_ragged = |matrix: &Matrix| !matrix.row.max(matrix.col).is_multiple_of(PACK);
    let mut ragged = sides.into_iter().filter(|(_, matrix, ..)| is_ragged(matrix));
    let (Some((which, ..)), None) = (ragged.next(), ragged.next()) else { return None };
    if sides.iter().any(|(_, matrix, ..)| is_packed(matrix)) {
        return None;
    }
    // The dimension that is cut: the rows of a, the columns of b, the outer dimension of c.
    let cuts_rows = which == Which::A || which == Which::C && c.col == 1;
    let extent = if cuts_rows { m } else { n };
    let part = part_size(extent, |size| room(&scratch_matrix(matmul, which, cuts_rows, size)), capacity)?;
    let starts = (0..extent).step_by(part as usize);
    let steps = starts.flat_map(|start| step(matmul, which, cuts_rows, start, part.min(extent - start)));
    Some(steps.flat_map(whole_units).collect())
}

/// The largest equal parts, in whole tiles, for which there is room; `None` if not even one tile fits.
fn part_size(extent: u64, bytes: impl Fn(u64) -> u64, capacity: u64) -> Option<u64> {
    let fits = |size: &u64| bytes(*size) <= capacity;
    let sizes = (1..=extent.div_ceil(TILE)).map(|n_parts| extent.div_ceil(n_parts).next_multiple_of(TILE));
    sizes.into_iter().find(fits)
}

/// The part of a matrix in scratch memory, with its rows and columns.
struct Scratch {
    matrix: Matrix,
    rows: u64,
    cols: u64,
}

/// Where a part of `size` rows or columns of the operand lies: its inner dimension stays the inner one.
fn scratch_matrix(matmul: &Matmul, which: Which, cuts_rows: bool, size: u64) -> Scratch {
    let Matmul { m, n, k, a, b, c, .. } = *matmul;
    let (of, rows, cols) = match which {
        Which::A => (a, m, k),
        Which::B => (b, k, n),
        Which::C => (c, m, n),
    };
    let (rows, cols) = if cuts_rows { (size, cols) } else { (rows, size) };
    let is_row_major = of.col == 1;
    let pitch = if is_row_major { cols } else { rows }.next_multiple_of(PACK);
    let (row, col) = if is_row_major { (pitch, 1) } else { (1, pitch) };
    Scratch { matrix: Matrix { at: Place::Scratch(0), row, col, batch: 0 }, rows, cols }
}

/// Bytes of a part in scratch memory.
fn room(part: &Scratch) -> u64 {
    let outer = if part.matrix.col == 1 { part.rows } else { part.cols };
    2 * outer * part.matrix.row.max(part.matrix.col)
}

/// A place so many elements after another.
fn after(place: Place, elements: u64) -> Place {
    match place {
        Place::Arena(offset) => Place::Arena(offset + 2 * elements),
        Place::Scratch(offset) => Place::Scratch(offset + 2 * elements),
        Place::Fault => Place::Fault,
    }
}

/// The rows or columns of the product from `start` on: the copy of the operand's part, and the product with it.
fn step(matmul: &Matmul, which: Which, cuts_rows: bool, start: u64, size: u64) -> [Step; 2] {
    let from_row = |matrix: Matrix| Matrix { at: after(matrix.at, start * matrix.row), ..matrix };
    let from_col = |matrix: Matrix| Matrix { at: after(matrix.at, start * matrix.col), ..matrix };
    let mut part = match cuts_rows {
        true => Matmul { m: size, a: from_row(matmul.a), c: from_row(matmul.c), ..*matmul },
        false => Matmul { n: size, b: from_col(matmul.b), c: from_col(matmul.c), ..*matmul },
    };
    let scratch = scratch_matrix(matmul, which, cuts_rows, size);
    let operand = match which {
        Which::A => &mut part.a,
        Which::B => &mut part.b,
        Which::C => &mut part.c,
    };
    let own = std::mem::replace(operand, scratch.matrix);
    // The inner dimension last, as rows lie in memory.
    let is_row_major = own.col == 1;
    let side = |matrix: &Matrix| {
        let steps = if is_row_major { vec![matrix.row, matrix.col] } else { vec![matrix.col, matrix.row] };
        Side { place: matrix.at, steps }
    };
    let shape = if is_row_major { [scratch.rows, scratch.cols] } else { [scratch.cols, scratch.rows] };
    let (from, to) = if which == Which::C { (&scratch.matrix, &own) } else { (&own, &scratch.matrix) };
    let copied = Step::Copy { shape, from: side(from), to: side(to) };
    if which == Which::C { [Step::Product(part), copied] } else { [copied, Step::Product(part)] }
}

/// A product as those of whole units along its ragged extent and of the rest.
fn whole_units(step: Step) -> Vec<Step> {
    let Step::Product(all) = step else { return vec![step] };
    let Matmul { m, n, k, a, b, c, .. } = all;
    let skip =
        |matrix: Matrix, rows, cols| Matrix { at: after(matrix.at, rows * matrix.row + cols * matrix.col), ..matrix };
    let whole = |extent: u64| extent / PACK * PACK;
    // The extents along rows that lie in scratch memory: of the result's columns or rows, or of the sums.
    let is_ragged = |extent: u64, inner: &[&Matrix]| {
        !extent.is_multiple_of(PACK) && inner.iter().any(|matrix| matches!(matrix.at, Place::Scratch(_)))
    };
    let [inner_m, inner_n, inner_k] =
        [[(&a, a.row), (&c, c.row)], [(&b, b.col), (&c, c.col)], [(&a, a.col), (&b, b.row)]].map(|sides| {
            sides.into_iter().filter(|(_, step)| *step == 1).map(|(matrix, _)| matrix).collect::<Vec<_>>()
        });
    let products = if is_ragged(k, &inner_k) {
        let first = Matmul { k: k - whole(k), a: skip(a, 0, whole(k)), b: skip(b, whole(k), 0), ..all };
        vec![first, Matmul { k: whole(k), epilogue: Epilogue::Accumulate, ..all }]
    } else if is_ragged(n, &inner_n) {
        let rest = Matmul { n: n - whole(n), b: skip(b, 0, whole(n)), c: skip(c, 0, whole(n)), ..all };
        vec![Matmul { n: whole(n), ..all }, rest]
    } else if is_ragged(m, &inner_m) {
        let rest = Matmul { m: m - whole(m), a: skip(a, whole(m), 0), c: skip(c, whole(m), 0), ..all };
        vec![Matmul { m: whole(m), ..all }, rest]
    } else {
        vec![all]
    };
    products.into_iter().map(Step::Product).collect()
}

#[cfg(test)]
mod tests;
