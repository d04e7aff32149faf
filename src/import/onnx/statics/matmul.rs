//! Matrix products of small constants, such as positions times rotary frequencies.

use super::evaluate::{Call, Results};
use super::tensor::{Element, Scalar, StaticTensor, Values, check_stored, empty_extents};
use super::walk::{Broadcast, strides};

/// Most multiplications that an evaluated product may take.
const MAX_PRODUCTS: usize = 1 << 32;

/// `MatMul` with the broadcasting of numpy; single precision is accumulated in double precision.
pub(super) fn matmul(call: &Call) -> Results {
    let (a, b) = (call.input(0)?, call.input(1)?);
    if a.rank() == 0 || b.rank() == 0 {
        return Err("an operand of rank 0".into());
    }
    let (a_matrix, b_matrix) = (with_rows(a)?, with_columns(b)?);
    let result = product(&a_matrix, &b_matrix)?;
    let rank = result.rank();
    let keep = |d: usize| !(d + 2 == rank && a.rank() == 1 || d + 1 == rank && b.rank() == 1);
    let kept = |extents: &[usize]| (0..rank).filter(|&d| keep(d)).map(|d| extents[d]).collect();
    Ok(vec![result.with_shape(kept(result.shape()), kept(result.stored()))?])
}

fn with_rows(a: &StaticTensor) -> Result<StaticTensor, String> {
    if a.rank() > 1 { Ok(a.clone()) } else { a.with_shape([&[1], a.shape()].concat(), [&[1], a.stored()].concat()) }
}

fn with_columns(b: &StaticTensor) -> Result<StaticTensor, String> {
    if b.rank() > 1 { Ok(b.clone()) } else { b.with_shape([b.shape(), &[1]].concat(), [b.stored(), &[1]].concat()) }
}

/// The product of two stacks of matrices.
fn product(a: &StaticTensor, b: &StaticTensor) -> Result<StaticTensor, String> {
    let (a_rank, b_rank) = (a.rank(), b.rank());
    let n_inner = a.shape()[a_rank - 1];
    if n_inner != b.shape()[b_rank - 2] {
        return Err(format!("shapes {:?} and {:?} do not fit", a.shape(), b.shape()));
    }
    let batch = Broadcast::new([&batch_of(a)?, &batch_of(b)?])?;
    let shape = [&batch.shape[..], &[a.shape()[a_rank - 2], b.shape()[b_rank - 1]]].concat();
    let (rows, columns) = (a.stored()[a_rank - 2], b.stored()[b_rank - 1]);
    let mut stored = [&batch.stored[..], &[rows, columns]].concat();
    if shape.contains(&0) {
        stored = empty_extents(&shape);
    }
    check_stored(&stored)?;
    let n_products = stored.iter().product::<usize>().checked_mul(n_inner);
    if n_products.is_none_or(|n| n > MAX_PRODUCTS) {
        return Err("the product of two constants is too large to evaluate".into());
    }
    let job = Job { a, b, batch, extents: [rows, n_inner, columns] };
    let values = match (a.values(), b.values()) {
        _ if shape.contains(&0) => return StaticTensor::splat(shape, a.first().unwrap_or(Scalar::F32(0.0))),
        (Values::F32(x), Values::F32(y)) => {
            f32::wrap(job.run(x, y, 0.0, |s, x, y| s + f64::from(x) * f64::from(y), |s| s as f32))
        }
        (Values::F64(x), Values::F64(y)) => f64::wrap(job.run(x, y, 0.0, |s, x, y| s + x * y, |s| s)),
        (Values::I64(x), Values::I64(y)) => {
            i64::wrap(job.run(x, y, 0i64, |s, x, y| s.wrapping_add(x.wrapping_mul(y)), |s| s))
        }
        _ => return Err(format!("operands of types {:?} and {:?}", a.dtype(), b.dtype())),
    };
    StaticTensor::new(shape, stored, values)
}

/// The numbers of the stored matrices, over the batch dimensions.
fn batch_of(x: &StaticTensor) -> Result<StaticTensor, String> {
    let n = x.rank() - 2;
    let stored = x.stored()[..n].to_vec();
    let numbers = (0..stored.iter().product::<usize>() as i64).collect();
    StaticTensor::from_elements(x.shape()[..n].to_vec(), stored, numbers)
}

struct Job<'a> {
    a: &'a StaticTensor,
    b: &'a StaticTensor,
    batch: Broadcast<2>,
    /// Stored rows of `a`, all inner elements, stored columns of `b`.
    extents: [usize; 3],
}

impl Job<'_> {
    fn run<T: Element, S: Copy>(
        &self,
        x: &[T],
        y: &[T],
        zero: S,
        add: impl Fn(S, T, T) -> S,
        end: impl Fn(S) -> T,
    ) -> Vec<T> {
        let [rows, n_inner, columns] = self.extents;
        let (a_steps, b_steps) = (matrix_strides(self.a), matrix_strides(self.b));
        let (a_size, b_size) = (matrix_size(self.a), matrix_size(self.b));
        let mut result = Vec::new();
        self.batch.for_each_row(|[i, j], n, [di, dj]| {
            for k in 0..n {
                let (x, y) = (&x[(i + k * di) * a_size..], &y[(j + k * dj) * b_size..]);
                for r in 0..rows {
                    for c in 0..columns {
                        let term =
                            |s, m| add(s, x[r * a_steps[0] + m * a_steps[1]], y[m * b_steps[0] + c * b_steps[1]]);
                        result.push(end((0..n_inner).fold(zero, term)));
                    }
                }
            }
        });
        result
    }
}

fn matrix_size(x: &StaticTensor) -> usize {
    x.stored()[x.rank() - 2..].iter().product()
}

/// Strides of rows and columns, 0 where the matrix does not vary.
fn matrix_strides(x: &StaticTensor) -> [usize; 2] {
    let strides = strides(x.stored());
    [2, 1].map(|back| if x.stored()[x.rank() - back] > 1 { strides[x.rank() - back] } else { 0 })
}
