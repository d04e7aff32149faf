//! From contractions to strided-batched matrix products.
//!
//! The labels of an einsum fall into four groups: batch (in all three tensors), m, n and k. Where the labels of a group lie one
//! after the other in both tensors that have them, the group is one dimension with one stride and the tensor is used as it
//! lies; otherwise it is packed in scratch memory first, or the result unpacked from there.

use galvatron_ir::op::compute::Einsum;
use galvatron_ir::types::DType;

use super::command::{Command, Epilogue, Matmul, Matrix, Place};
use super::kernels::layout::{Side, copy};
use super::kernels::{Cx, Lowered, scratch};
use super::pitched;
use super::walk::row_major;
use crate::device::BufferSpec;

/// The labels of a contraction by what they do, each group in the order in which it is walked.
struct Groups {
    batch: Vec<u8>,
    m: Vec<u8>,
    n: Vec<u8>,
    k: Vec<u8>,
}

impl Groups {
    fn new(op: &Einsum) -> Groups {
        let (lhs, rhs, out) = (op.lhs.as_bytes(), op.rhs.as_bytes(), op.out.as_bytes());
        let of = |all: &[u8], keep: &dyn Fn(u8) -> bool| all.iter().copied().filter(|&l| keep(l)).collect();
        Groups {
            batch: of(out, &|l| lhs.contains(&l) && rhs.contains(&l)),
            m: of(out, &|l| lhs.contains(&l) && !rhs.contains(&l)),
            n: of(out, &|l| rhs.contains(&l) && !lhs.contains(&l)),
            k: of(lhs, &|l| rhs.contains(&l) && !out.contains(&l)),
        }
    }
}

/// A tensor with its labels and the groups that are its batch, its rows and its columns.
struct Tensor<'a> {
    buffer: &'a BufferSpec,
    labels: &'a [u8],
    groups: [&'a [u8]; 3],
}

impl Tensor<'_> {
    fn extent(&self, label: u8) -> u64 {
        self.labels.iter().position(|&l| l == label).map_or(1, |d| self.buffer.ty.shape[d])
    }

    fn step(&self, label: u8) -> u64 {
        let steps = row_major(&self.buffer.ty.shape);
        self.labels.iter().position(|&l| l == label).map_or(0, |d| steps[d])
    }

    fn count(&self, group: usize) -> u64 {
        self.groups[group].iter().map(|&l| self.extent(l)).product()
    }

    /// The one step of a group, 0 for a single element; `None` if its labels do not lie one after the other.
    fn joined(&self, group: usize) -> Option<u64> {
        let mut inner: Option<(u64, u64)> = None;
        for &label in self.groups[group].iter().rev().filter(|&&l| self.extent(l) > 1) {
            let (step, extent) = (self.step(label), self.extent(label));
            inner = match inner {
                None => Some((step, extent)),
                Some((first, covered)) if step == first * covered => Some((first, covered * extent)),
                Some(_) => return None,
            };
        }
        Some(inner.map_or(0, |(step, _)| step))
    }

    /// The tensor as a batch of matrices where it lies; `None` if it cannot be seen as one.
    fn matrix(&self) -> Option<Matrix> {
        let [batch, row, col] = [self.joined(0)?, self.joined(1)?, self.joined(2)?];
        let is_unit = |step, extent| step == 1 || extent == 1;
        let fits = is_unit(row, self.count(1)) || is_unit(col, self.count(2));
        fits.then_some(Matrix { at: Place::Arena(self.buffer.offset), row, col, batch })
    }

    /// The tensor as packed matrices.
    fn packed(&self, at: Place) -> Matrix {
        Matrix { at, row: self.count(2), col: 1, batch: self.count(1) * self.count(2) }
    }

    /// The copy from (or to) where the tensor lies to (or from) packed matrices.
    fn pack(&self, at: Place, is_result: bool) -> Lowered {
        let labels = self.groups.concat();
        let shape: Vec<u64> = labels.iter().map(|&l| self.extent(l)).collect();
        let steps = labels.iter().map(|&l| self.step(l)).collect();
        let own = Side { place: Place::Arena(self.buffer.offset), steps };
        let packed = Side { place: at, steps: row_major(&shape) };
        let (from, to) = if is_result { (packed, own) } else { (own, packed) };
        copy(self.buffer.ty.dtype.bytes(), &shape, from, to)
    }
}

/// Scratch memory that is given away from front to back.
struct Packing {
    end: u64,
}

impl Packing {
    fn place(&mut self, tensor: &Tensor<'_>) -> Result<Place, String> {
        let place = scratch(self.end, tensor.buffer.ty.bytes())?;
        self.end = (self.end + tensor.buffer.ty.bytes()).next_multiple_of(256);
        Ok(place)
    }
}

/// The matrix product of a contraction, with copies around it where they are needed.
pub(super) fn einsum(op: &Einsum, cx: &Cx<'_>) -> Lowered {
    let (float, dtype) = (cx.float(0)?, cx.arg(0).ty.dtype);
    for pointer in [float.arg(1), float.out(0)] {
        pointer?;
    }
    let groups = Groups::new(op);
    let tensor = |buffer, labels, groups| Tensor { buffer, labels, groups };
    let lhs = tensor(cx.arg(0), op.lhs.as_bytes(), [&groups.batch, &groups.m, &groups.k]);
    let rhs = tensor(cx.arg(1), op.rhs.as_bytes(), [&groups.batch, &groups.k, &groups.n]);
    let out = tensor(cx.result(0), op.out.as_bytes(), [&groups.batch, &groups.m, &groups.n]);
    let (m, n, k, batch) = (lhs.count(1), rhs.count(2), lhs.count(2), out.count(0));
    if m * n * batch == 0 {
        return Ok(Vec::new());
    }
    if k == 0 {
        return Ok(vec![Command::Zero { at: Place::Arena(out.buffer.offset), bytes: out.buffer.ty.bytes() }]);
    }
    let (mut packing, mut commands, mut after) = (Packing { end: 0 }, Vec::new(), Vec::new());
    let mut operand = |tensor: &Tensor<'_>| -> Result<Matrix, String> {
        if let Some(matrix) = tensor.matrix() {
            return Ok(matrix);
        }
        let at = packing.place(tensor)?;
        commands.extend(tensor.pack(at, false)?);
        Ok(tensor.packed(at))
    };
    let (a, b) = (operand(&lhs)?, operand(&rhs)?);
    let c = match out.matrix() {
        Some(matrix) => matrix,
        None => {
            let at = packing.place(&out)?;
            after = out.pack(at, true)?;
            out.packed(at)
        }
    };
    commands.extend(pitched::product(Matmul { dtype, m, n, k, batch, a, b, c, epilogue: Epilogue::None })?);
    commands.extend(after);
    Ok(commands)
}

/// An operand as a column-major library takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// First element.
    pub at: Place,
    /// Whether its transpose is what is stored column by column.
    pub is_transposed: bool,
    /// Step from column to column of what is stored, in elements.
    pub leading: u64,
    /// Step from product to product.
    pub batch: u64,
}

/// Products of column-major matrices: c [m, n] = a [m, k] b [k, n], `a` and `b` perhaps stored as their transposes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColumnMajor {
    /// Element type of all three.
    pub dtype: DType,
    /// Rows of the result.
    pub m: u64,
    /// Columns of the result.
    pub n: u64,
    /// The summed extent.
    pub k: u64,
    /// Number of products.
    pub batch: u64,
    /// Left operand.
    pub a: Stored,
    /// Right operand.
    pub b: Stored,
    /// Result, never transposed.
    pub c: Stored,
    /// What is added; element i of a bias goes to row i.
    pub epilogue: Epilogue,
}

/// How a matrix with these extents and steps is stored.
fn stored(matrix: &Matrix, (rows, row): (u64, u64), (cols, col): (u64, u64)) -> Stored {
    let is_transposed = row != 1 && rows != 1;
    let leading = if is_transposed { row.max(cols) } else { col.max(rows) };
    Stored { at: matrix.at, is_transposed, leading, batch: matrix.batch }
}

impl Matmul {
    /// The same products for a column-major library; where rows of the result are contiguous, the transposed ones.
    pub fn column_major(&self) -> ColumnMajor {
        let Matmul { dtype, m, n, k, batch, a, b, c, epilogue } = *self;
        if c.row == 1 || m == 1 && c.col != 1 {
            let (a, b) = (stored(&a, (m, a.row), (k, a.col)), stored(&b, (k, b.row), (n, b.col)));
            let c = stored(&c, (m, c.row), (n, c.col));
            return ColumnMajor { dtype, m, n, k, batch, a, b, c, epilogue };
        }
        let (first, second) = (stored(&b, (n, b.col), (k, b.row)), stored(&a, (k, a.col), (m, a.row)));
        let c = stored(&c, (n, c.col), (m, c.row));
        ColumnMajor { dtype, m: n, n: m, k, batch, a: first, b: second, c, epilogue }
    }
}
