//! Reductions, prefix sums and the index of the greatest element.

use super::evaluate::{Call, Results, axis_index};
use super::tensor::{Element, Scalar, StaticTensor, Values, check_stored};
use super::walk::{gather, steps, strides};

/// A tensor seen as one group of stored elements for each element of the result.
struct Groups<'a> {
    x: &'a StaticTensor,
    shape: Vec<usize>,
    stored: Vec<usize>,
    order: Vec<usize>,
    /// Stored elements in a group.
    n_group: usize,
    /// How often each of them occurs, for dimensions that are reduced but not stored.
    n_copies: usize,
}

impl<'a> Groups<'a> {
    /// Reads operands `axes` and attributes `axes`, `keepdims`, `noop_with_empty_axes`; none if nothing is to be done.
    fn of_call(call: &Call<'a>) -> Result<Option<Self>, String> {
        let x = call.input(0)?;
        let axes = call.ints_either(1, "axes")?.unwrap_or_default();
        if axes.is_empty() && call.attributes.int("noop_with_empty_axes", 0) == 1 {
            return Ok(None);
        }
        let mut reduced = vec![axes.is_empty(); x.rank()];
        for axis in axes {
            reduced[axis_index(axis, x.rank())?] = true;
        }
        Ok(Some(Self::new(x, &reduced, call.attributes.int("keepdims", 1) != 0)))
    }

    fn new(x: &'a StaticTensor, reduced: &[bool], keep_dims: bool) -> Self {
        let (inner, outer): (Vec<usize>, Vec<usize>) = (0..x.rank()).partition(|&d| reduced[d]);
        let result = |extents: &[usize]| {
            let kept = (0..x.rank()).filter(|&d| keep_dims || !reduced[d]);
            kept.map(|d| if reduced[d] { 1 } else { extents[d] }).collect::<Vec<_>>()
        };
        let product = |extents: &[usize]| inner.iter().map(|&d| extents[d]).product::<usize>();
        let n_group = product(x.stored());
        let n_copies = product(x.shape()).checked_div(n_group).unwrap_or(1);
        let (shape, stored) = (result(x.shape()), result(x.stored()));
        Groups { x, shape, stored, order: [outer, inner].concat(), n_group, n_copies }
    }

    /// The stored elements, group after group.
    fn arranged<T: Element>(&self, values: &[T]) -> Vec<T> {
        let strides = strides(self.x.stored());
        let tables: Vec<_> = self.order.iter().map(|&d| steps(self.x.stored()[d], strides[d])).collect();
        if values.is_empty() { Vec::new() } else { gather(values, &tables) }
    }

    fn reduce<T: Element>(self, values: &[T], f: impl Fn(&[T]) -> T) -> Result<StaticTensor, String> {
        let values = self.arranged(values);
        check_stored(&self.stored)?;
        let n_groups: usize = self.stored.iter().product();
        let group = |g: usize| &values[g * self.n_group..(g + 1) * self.n_group];
        let result = (0..n_groups).map(|g| f(group(g))).collect();
        StaticTensor::from_elements(self.shape, self.stored, result)
    }
}

/// Reduces integers and floats; single precision is accumulated in double precision.
fn reduce_numeric(
    call: &Call,
    int: impl Fn(&[i64], usize) -> i64,
    float: impl Fn(&mut dyn Iterator<Item = f64>, usize) -> f64,
) -> Results {
    let Some(groups) = Groups::of_call(call)? else { return Ok(vec![call.input(0)?.clone()]) };
    let n = groups.n_copies;
    Ok(vec![match groups.x.values() {
        Values::I64(v) => groups.reduce(v, |group| int(group, n))?,
        Values::F32(v) => groups.reduce(v, |group| float(&mut group.iter().map(|&x| f64::from(x)), n) as f32)?,
        Values::F64(v) => groups.reduce(v, |group| float(&mut group.iter().copied(), n))?,
        Values::Bool(_) => return Err("an operand of truth values".into()),
    }])
}

pub(super) fn sum(call: &Call) -> Results {
    let int = |group: &[i64], n: usize| group.iter().fold(0i64, |a, &b| a.wrapping_add(b)).wrapping_mul(n as i64);
    reduce_numeric(call, int, |group, n| group.fold(0.0, |a, b| a + b) * n as f64)
}

pub(super) fn mean(call: &Call) -> Results {
    let int = |group: &[i64], _| group.iter().fold(0i64, |a, &b| a.wrapping_add(b)) / group.len().max(1) as i64;
    reduce_numeric(call, int, |group, _| {
        let (sum, n) = group.fold((0.0, 0.0), |(sum, n), x| (sum + x, n + 1.0));
        sum / n
    })
}

pub(super) fn product(call: &Call) -> Results {
    let int = |group: &[i64], n: usize| {
        group.iter().fold(1i64, |a, &b| a.wrapping_mul(b)).wrapping_pow(u32::try_from(n).unwrap_or(u32::MAX))
    };
    reduce_numeric(call, int, |group, n| group.product::<f64>().powf(n as f64))
}

pub(super) fn maximum(call: &Call) -> Results {
    extreme(call, |group| group.iter().any(|&x| x), |a, b| a > b)
}

pub(super) fn minimum(call: &Call) -> Results {
    extreme(call, |group| group.iter().all(|&x| x), |a, b| a < b)
}

fn extreme(call: &Call, bools: fn(&[bool]) -> bool, wins: fn(f64, f64) -> bool) -> Results {
    let x = call.input(0)?;
    if x.shape().contains(&0) {
        return Err(format!("an empty operand of shape {:?}", x.shape()));
    }
    if let Some(values) = x.stored_bools() {
        let groups = Groups::of_call(call)?;
        return Ok(vec![groups.map_or_else(|| Ok(x.clone()), |g| g.reduce(values, bools))?]);
    }
    // Signs tell which of two integers wins without rounding them.
    let int = |a: i64, b: i64| if wins(a.cmp(&b) as i8 as f64, 0.0) { a } else { b };
    let float = |a: f64, b: f64| if wins(a, b) || a.is_nan() { a } else { b };
    let first_int = |group: &[i64], _| group.iter().copied().reduce(int).unwrap_or(0);
    reduce_numeric(call, first_int, |group, _| group.reduce(float).unwrap_or(f64::NAN))
}

/// Calls `f` with the elements of each line along `axis`, which must be stored, and its offset and stride.
fn for_each_line(x: &StaticTensor, axis: usize, mut f: impl FnMut(usize, usize)) {
    let n_inner: usize = x.stored()[axis + 1..].iter().product();
    let n_outer: usize = x.stored()[..axis].iter().product();
    for outer in 0..n_outer {
        (0..n_inner).for_each(|inner| f(outer * x.stored()[axis] * n_inner + inner, n_inner));
    }
}

fn stored_along(x: &StaticTensor, axis: usize) -> Result<StaticTensor, String> {
    x.materialize(&(0..x.rank()).map(|d| d == axis).collect::<Vec<_>>())
}

/// Prefix sums along an axis; `exclusive` leaves each element out of its own sum, `reverse` starts at the end.
pub(super) fn cum_sum(call: &Call) -> Results {
    let x = call.input(0)?;
    let &[axis] = &call.ints(1)?[..] else { return Err("an axis that is not one integer".into()) };
    let axis = axis_index(axis, x.rank())?;
    if matches!(x.as_splat(), Some(Scalar::I64(0))) || x.shape().contains(&0) {
        return Ok(vec![x.clone()]);
    }
    let x = stored_along(x, axis)?;
    let values = match x.values() {
        Values::I64(v) => i64::wrap(prefix_sums(call, &x, axis, v, 0, i64::wrapping_add)),
        Values::F32(v) => f32::wrap(prefix_sums(call, &x, axis, v, 0.0, |a, b| a + b)),
        Values::F64(v) => f64::wrap(prefix_sums(call, &x, axis, v, 0.0, |a, b| a + b)),
        Values::Bool(_) => return Err("an operand of truth values".into()),
    };
    Ok(vec![StaticTensor::new(x.shape().to_vec(), x.stored().to_vec(), values)?])
}

fn prefix_sums<T: Element>(
    call: &Call,
    x: &StaticTensor,
    axis: usize,
    values: &[T],
    zero: T,
    add: impl Fn(T, T) -> T,
) -> Vec<T> {
    let (exclusive, reverse) = (call.attributes.int("exclusive", 0) == 1, call.attributes.int("reverse", 0) == 1);
    let n = x.shape()[axis];
    let mut result = values.to_vec();
    for_each_line(x, axis, |offset, stride| {
        let mut sum = zero;
        for k in 0..n {
            let at = offset + stride * if reverse { n - 1 - k } else { k };
            let before = sum;
            sum = add(sum, values[at]);
            result[at] = if exclusive { before } else { sum };
        }
    });
    result
}

/// The first index (or, with `select_last_index=1`, the last) of the greatest element along an axis.
pub(super) fn arg_max(call: &Call) -> Results {
    let x = call.input(0)?;
    let axis = call.axis(0, x.rank())?;
    if x.shape().contains(&0) {
        return Err(format!("an empty operand of shape {:?}", x.shape()));
    }
    let x = stored_along(x, axis)?;
    let last = call.attributes.int("select_last_index", 0) == 1;
    let indices = match x.values() {
        Values::I64(v) => greatest(&x, axis, v, last),
        Values::F32(v) => greatest(&x, axis, v, last),
        Values::F64(v) => greatest(&x, axis, v, last),
        Values::Bool(_) => return Err("an operand of truth values".into()),
    };
    let reduced: Vec<bool> = (0..x.rank()).map(|d| d == axis).collect();
    let Groups { shape, stored, .. } = Groups::new(&x, &reduced, call.attributes.int("keepdims", 1) != 0);
    Ok(vec![StaticTensor::from_elements(shape, stored, indices)?])
}

fn greatest<T: Element + PartialOrd>(x: &StaticTensor, axis: usize, values: &[T], last: bool) -> Vec<i64> {
    let mut indices = Vec::new();
    for_each_line(x, axis, |offset, stride| {
        let at = |k: usize| values[offset + k * stride];
        let wins = |k: usize, best: usize| if last { at(k) >= at(best) } else { at(k) > at(best) };
        let best = (1..x.shape()[axis]).fold(0, |best, k| if wins(k, best) { k } else { best });
        indices.push(best as i64);
    });
    indices
}
