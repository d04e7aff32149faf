//! A tensor whose values are known, stored without the dimensions along which it is constant.

use std::sync::Arc;

use super::super::weights::MAX_ELEMENTS;
use super::walk::{gather, steps, strides};

/// Most elements that a tensor may store: 2^27, which a mask of a sequence of 8192 needs half of.
pub const MAX_STORED: usize = 1 << 27;

/// Type of the elements of a static tensor. Narrower ONNX types are widened: integers to `I64`, floats to `F32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaticType {
    /// Integers of any width.
    I64,
    /// Truth values.
    Bool,
    /// Floats of single precision and narrower.
    F32,
    /// Floats of double precision.
    F64,
}

/// One element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar {
    /// An integer.
    I64(i64),
    /// A truth value.
    Bool(bool),
    /// A float of single precision.
    F32(f32),
    /// A float of double precision.
    F64(f64),
}

/// The elements that are stored, row-major over the stored extents; shared between tensors that differ in shape only.
#[derive(Clone, Debug)]
pub(super) enum Values {
    I64(Arc<Vec<i64>>),
    Bool(Arc<Vec<bool>>),
    F32(Arc<Vec<f32>>),
    F64(Arc<Vec<f64>>),
}

/// Applies a generic expression of type `Vec<T>` to the values of any type, and wraps the result again.
macro_rules! map_values {
    ($values:expr, $v:ident => $body:expr) => {
        match $values {
            Values::I64($v) => Values::I64(std::sync::Arc::new($body)),
            Values::Bool($v) => Values::Bool(std::sync::Arc::new($body)),
            Values::F32($v) => Values::F32(std::sync::Arc::new($body)),
            Values::F64($v) => Values::F64(std::sync::Arc::new($body)),
        }
    };
}

/// Applies an expression that does not depend on the type of the elements.
macro_rules! with_values {
    ($values:expr, $v:ident => $body:expr) => {
        match $values {
            Values::I64($v) => $body,
            Values::Bool($v) => $body,
            Values::F32($v) => $body,
            Values::F64($v) => $body,
        }
    };
}

pub(super) use {map_values, with_values};

/// A Rust type that elements are stored as.
pub(super) trait Element: Copy + 'static {
    /// Wraps stored elements.
    fn wrap(values: Vec<Self>) -> Values;
    /// The stored elements, if they are of this type.
    fn view(values: &Values) -> Option<&[Self]>;
    /// Whether two elements have the same bits.
    fn is_same(self, other: Self) -> bool;
}

macro_rules! element {
    ($type:ty, $variant:ident, $a:ident, $b:ident => $same:expr) => {
        impl Element for $type {
            fn wrap(values: Vec<Self>) -> Values {
                Values::$variant(Arc::new(values))
            }
            fn view(values: &Values) -> Option<&[Self]> {
                if let Values::$variant(values) = values { Some(values) } else { None }
            }
            fn is_same(self, other: Self) -> bool {
                let ($a, $b) = (self, other);
                $same
            }
        }
    };
}

element!(i64, I64, a, b => a == b);
element!(bool, Bool, a, b => a == b);
element!(f32, F32, a, b => a.to_bits() == b.to_bits());
element!(f64, F64, a, b => a.to_bits() == b.to_bits());

/// A tensor whose values are known.
///
/// Invariants: `stored[d]` is `shape[d]` or 1; a stored extent above 1 means that the tensor varies along `d`; a tensor
/// without elements stores extents 0 and 1; the number of values is the product of `stored`, at most [`MAX_STORED`].
#[derive(Clone, Debug)]
pub struct StaticTensor {
    shape: Vec<usize>,
    stored: Vec<usize>,
    values: Values,
}

impl StaticTensor {
    /// A tensor from values over the extents `stored`, which it compresses further.
    ///
    /// # Errors
    /// If the tensor has more elements than any tensor may have.
    pub(super) fn new(shape: Vec<usize>, stored: Vec<usize>, values: Values) -> Result<Self, String> {
        check_shape(&shape)?;
        if shape.contains(&0) {
            return Ok(Self::empty(shape, &values));
        }
        let mut tensor = StaticTensor { shape, stored, values };
        for dim in 0..tensor.shape.len() {
            tensor.drop_if_constant(dim);
        }
        Ok(tensor)
    }

    /// The same values under another shape, whose stored extents have the same product; none if the shape is empty.
    pub(super) fn with_shape(&self, shape: Vec<usize>, stored: Vec<usize>) -> Result<Self, String> {
        check_shape(&shape)?;
        if shape.contains(&0) {
            return Ok(Self::empty(shape, &self.values));
        }
        Ok(StaticTensor { shape, stored, values: self.values.clone() })
    }

    /// A tensor without elements, of the type of the values.
    fn empty(shape: Vec<usize>, like: &Values) -> Self {
        let values = map_values!(like, v => v[..0].to_vec());
        StaticTensor { stored: empty_extents(&shape), shape, values }
    }

    pub(super) fn from_elements<T: Element>(shape: Vec<usize>, stored: Vec<usize>, v: Vec<T>) -> Result<Self, String> {
        Self::new(shape, stored, T::wrap(v))
    }

    /// A tensor with one element everywhere.
    ///
    /// # Errors
    /// If the shape has more elements than any tensor may have.
    pub fn splat(shape: Vec<usize>, value: Scalar) -> Result<Self, String> {
        let values = match value {
            Scalar::I64(v) => Values::I64(Arc::new(vec![v])),
            Scalar::Bool(v) => Values::Bool(Arc::new(vec![v])),
            Scalar::F32(v) => Values::F32(Arc::new(vec![v])),
            Scalar::F64(v) => Values::F64(Arc::new(vec![v])),
        };
        let stored = vec![1; shape.len()];
        Self::new(shape, stored, values)
    }

    /// A vector of integers, for example a shape.
    pub fn from_ints(values: &[i64]) -> Self {
        let shape = vec![values.len()];
        Self::from_elements(shape.clone(), shape, values.to_vec())
            .expect("invariant: a vector in memory is not too large")
    }

    /// Type of the elements.
    pub fn dtype(&self) -> StaticType {
        match self.values {
            Values::I64(_) => StaticType::I64,
            Values::Bool(_) => StaticType::Bool,
            Values::F32(_) => StaticType::F32,
            Values::F64(_) => StaticType::F64,
        }
    }

    /// The extents of the tensor.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The extents that are stored: 1 where the tensor is constant along the dimension.
    pub fn stored(&self) -> &[usize] {
        &self.stored
    }

    /// Number of elements that are stored.
    pub fn n_stored(&self) -> usize {
        with_values!(&self.values, v => v.len())
    }

    /// Where the stored elements lie, which tensors that differ in shape only share, and how many bytes they take.
    pub fn storage(&self) -> (usize, usize) {
        with_values!(&self.values, v => (v.as_ptr() as usize, size_of_val(v.as_slice())))
    }

    /// The stored elements, row-major over [`StaticTensor::stored`], if they are integers.
    pub fn stored_ints(&self) -> Option<&[i64]> {
        i64::view(&self.values)
    }

    /// The stored elements, if they are truth values.
    pub fn stored_bools(&self) -> Option<&[bool]> {
        bool::view(&self.values)
    }

    /// The stored elements, if they are single-precision numbers.
    pub fn stored_floats(&self) -> Option<&[f32]> {
        f32::view(&self.values)
    }

    /// The stored elements, if they are double-precision numbers.
    pub fn stored_doubles(&self) -> Option<&[f64]> {
        f64::view(&self.values)
    }

    /// All elements of an integer tensor, row-major over the shape: the argument of a reshape, for example.
    pub fn ints(&self) -> Option<Vec<i64>> {
        let full = self.materialize(&vec![true; self.shape.len()]).ok()?;
        full.stored_ints().map(<[i64]>::to_vec)
    }

    /// All elements as little-endian bytes of the element type (one byte for a truth value), row-major over the shape.
    ///
    /// # Errors
    /// If the tensor has more than [`MAX_STORED`] elements.
    pub fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let full = self.materialize(&vec![true; self.shape.len()])?;
        Ok(match &full.values {
            Values::I64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Values::Bool(v) => v.iter().map(|&x| u8::from(x)).collect(),
            Values::F32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Values::F64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        })
    }

    pub(super) fn values(&self) -> &Values {
        &self.values
    }

    pub(super) fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The element at index 0 of every dimension; none if the tensor is empty.
    pub(super) fn first(&self) -> Option<Scalar> {
        match &self.values {
            Values::I64(v) => v.first().map(|&x| Scalar::I64(x)),
            Values::Bool(v) => v.first().map(|&x| Scalar::Bool(x)),
            Values::F32(v) => v.first().map(|&x| Scalar::F32(x)),
            Values::F64(v) => v.first().map(|&x| Scalar::F64(x)),
        }
    }

    /// The tensor with the marked dimensions stored in full. The result is for computing on and is not compressed.
    pub(super) fn materialize(&self, full: &[bool]) -> Result<Self, String> {
        let extent = |d: usize| if full[d] { self.shape[d] } else { self.stored[d] };
        let stored: Vec<usize> = (0..self.rank()).map(extent).collect();
        if stored == self.stored || self.shape.contains(&0) {
            return Ok(self.clone());
        }
        check_stored(&stored)?;
        let strides = strides(&self.stored);
        let tables: Vec<_> =
            (0..self.rank()).map(|d| steps(stored[d], if self.stored[d] > 1 { strides[d] } else { 0 })).collect();
        let values = map_values!(&self.values, v => gather(v, &tables));
        Ok(StaticTensor { shape: self.shape.clone(), stored, values })
    }

    /// Stores the dimension with extent 1 if all its slices are the same.
    fn drop_if_constant(&mut self, dim: usize) {
        if self.stored[dim] <= 1 {
            return;
        }
        let n_inner: usize = self.stored[dim + 1..].iter().product();
        let n_slices = self.stored[dim];
        if with_values!(&self.values, v => is_constant(v, n_slices, n_inner)) {
            self.values = map_values!(&self.values, v => first_slices(v, n_slices, n_inner));
            self.stored[dim] = 1;
        }
    }
}

/// Whether, seen as `[outer, n_slices, n_inner]`, the values do not depend on the middle index.
fn is_constant<T: Element>(values: &[T], n_slices: usize, n_inner: usize) -> bool {
    values.chunks_exact(n_slices * n_inner).all(|block| {
        let (first, rest) = block.split_at(n_inner);
        rest.chunks_exact(n_inner).all(|slice| slice.iter().zip(first).all(|(a, b)| a.is_same(*b)))
    })
}

fn first_slices<T: Element>(values: &[T], n_slices: usize, n_inner: usize) -> Vec<T> {
    values.chunks_exact(n_slices * n_inner).flat_map(|block| &block[..n_inner]).copied().collect()
}

/// Stored extents of a tensor without elements.
pub(super) fn empty_extents(shape: &[usize]) -> Vec<usize> {
    shape.iter().map(|&extent| extent.min(1)).collect()
}

/// Refuses shapes with more elements than any tensor may have.
pub(super) fn check_shape(shape: &[usize]) -> Result<(), String> {
    let product = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d.max(1) as u64));
    match product {
        Some(product) if product <= MAX_ELEMENTS => Ok(()),
        _ => Err(format!("a tensor of shape {shape:?} is too large")),
    }
}

/// Refuses to store more than [`MAX_STORED`] elements.
pub(super) fn check_stored(stored: &[usize]) -> Result<(), String> {
    let product = stored.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    match product {
        Some(product) if product <= MAX_STORED => Ok(()),
        None if stored.contains(&0) => Ok(()),
        _ => Err(format!("a constant that varies over {stored:?} is too large to evaluate")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], values: &[i64]) -> StaticTensor {
        StaticTensor::from_elements(shape.to_vec(), shape.to_vec(), values.to_vec()).unwrap()
    }

    #[test]
    fn constant_dimensions_are_stored_once() {
        let rows = tensor(&[2, 3], &[1, 2, 3, 1, 2, 3]);
        assert_eq!((rows.stored(), rows.stored_ints().unwrap()), (&[1, 3][..], &[1, 2, 3][..]));
        let columns = tensor(&[2, 3], &[1, 1, 1, 2, 2, 2]);
        assert_eq!((columns.stored(), columns.stored_ints().unwrap()), (&[2, 1][..], &[1, 2][..]));
        assert_eq!(columns.ints().unwrap(), [1, 1, 1, 2, 2, 2]);
    }

    #[test]
    fn empty_tensors_store_nothing() {
        let empty = StaticTensor::splat(vec![3, 0], Scalar::F32(1.0)).unwrap();
        assert_eq!((empty.stored(), empty.n_stored()), (&[1, 0][..], 0));
    }

    #[test]
    fn negative_zero_and_nan_are_values_of_their_own() {
        let signs = StaticTensor::from_elements(vec![2], vec![2], vec![0.0f32, -0.0]).unwrap();
        assert_eq!(signs.stored(), [2]);
        let nans = StaticTensor::from_elements(vec![2], vec![2], vec![f32::NAN; 2]).unwrap();
        assert_eq!(nans.stored(), [1]);
    }

    #[test]
    fn absurd_sizes_are_refused() {
        assert!(StaticTensor::splat(vec![1 << 40, 1 << 40], Scalar::Bool(true)).is_err());
        let large = StaticTensor::splat(vec![1 << 30], Scalar::Bool(true)).unwrap();
        assert!(large.ints().is_none() && large.to_bytes().is_err());
    }
}
