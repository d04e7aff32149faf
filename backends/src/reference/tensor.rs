//! Tensors of `f64` and the indices into them.

use galvatron_ir::op::Fill;
use galvatron_ir::types::element_count;

/// A tensor in row-major order; integers and bools are held as floats.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Extents, outermost first.
    pub shape: Vec<u64>,
    /// The elements in row-major order, as many as the product of the extents.
    pub data: Vec<f64>,
}

impl Tensor {
    /// A tensor of the given elements.
    ///
    /// # Panics
    /// When there are not as many elements as the shape says.
    pub fn new(shape: impl Into<Vec<u64>>, data: Vec<f64>) -> Tensor {
        let shape = shape.into();
        assert_eq!(element_count(&shape), data.len() as u64, "elements of shape {shape:?}");
        Tensor { shape, data }
    }

    /// A tensor of rank 0.
    pub fn scalar(value: f64) -> Tensor {
        Tensor { shape: Vec::new(), data: vec![value] }
    }

    /// A tensor whose elements are all `value`.
    pub fn filled(shape: impl Into<Vec<u64>>, value: f64) -> Tensor {
        let shape = shape.into();
        let data = vec![value; element_count(&shape) as usize];
        Tensor { shape, data }
    }

    /// A tensor whose elements are a function of their indices.
    pub fn from_fn(shape: impl Into<Vec<u64>>, f: impl FnMut(Vec<u64>) -> f64) -> Tensor {
        let shape = shape.into();
        let data = indices(&shape).map(f).collect();
        Tensor { shape, data }
    }

    /// A tensor with the random contents that a sample asks for; the seed determines them.
    pub fn random(shape: impl Into<Vec<u64>>, fill: Fill, seed: u64) -> Tensor {
        let shape = shape.into();
        let element = |i: u64| {
            let x = noise(seed, i);
            match fill {
                Fill::Uniform => x,
                Fill::Positive => 1.0 + 0.5 * x,
                Fill::Index(n) => (0.5 * (x + 1.0) * n as f64).floor(),
                Fill::Bool => f64::from(x > 0.0),
            }
        };
        let data = (0..element_count(&shape)).map(element).collect();
        Tensor { shape, data }
    }

    /// Position of an index in `data`.
    pub fn position(&self, index: &[u64]) -> usize {
        index.iter().zip(&self.shape).fold(0, |at, (&i, &extent)| at * extent as usize + i as usize)
    }

    /// The element at an index.
    pub fn at(&self, index: &[u64]) -> f64 {
        self.data[self.position(index)]
    }

    /// The element that stands at an index of a result to which this tensor is broadcast, as NumPy aligns them.
    pub fn at_broadcast(&self, index: &[u64]) -> f64 {
        let own = &index[index.len() - self.shape.len()..];
        let own: Vec<u64> = own.iter().zip(&self.shape).map(|(&i, &extent)| if extent == 1 { 0 } else { i }).collect();
        self.at(&own)
    }

    /// The same shape with a function of each element.
    pub fn map(&self, f: impl Fn(f64) -> f64) -> Tensor {
        Tensor { shape: self.shape.clone(), data: self.data.iter().map(|&x| f(x)).collect() }
    }

    /// The elements along the last dimension, one slice for each index of the other dimensions.
    pub fn rows(&self) -> std::slice::ChunksExact<'_, f64> {
        self.data.chunks_exact(self.shape.last().map_or(1, |&n| n.max(1) as usize))
    }

    /// Largest |self - other| / max(1, |other|) over the elements; infinite where one alone is finite or the shapes differ.
    pub fn distance(&self, other: &Tensor) -> f64 {
        if self.shape != other.shape {
            return f64::INFINITY;
        }
        let far = |(&a, &b): (&f64, &f64)| {
            if a == b || (a.is_nan() && b.is_nan()) {
                return 0.0;
            }
            let d = (a - b).abs() / b.abs().max(1.0);
            if d.is_nan() { f64::INFINITY } else { d }
        };
        self.data.iter().zip(&other.data).map(far).fold(0.0, f64::max)
    }
}

/// All indices of a shape in row-major order.
pub fn indices(shape: &[u64]) -> impl Iterator<Item = Vec<u64>> + use<'_> {
    (0..element_count(shape)).map(move |position| {
        let mut index = vec![0; shape.len()];
        let mut rest = position;
        for (i, &extent) in index.iter_mut().zip(shape).rev() {
            *i = rest % extent;
            rest /= extent;
        }
        index
    })
}

/// A number in [-1, 1) that only depends on the seed and the position: SplitMix64 (Steele, Lea and Flood, 2014).
pub fn noise(seed: u64, position: u64) -> f64 {
    let mut z = seed.wrapping_mul(0xd134_2543_de82_ef95) ^ position.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for multiplier in [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb] {
        z = (z ^ (z >> 30)).wrapping_mul(multiplier);
    }
    z ^= z >> 31;
    (z >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_row_major_and_find_their_elements() {
        assert_eq!(indices(&[2, 2]).collect::<Vec<_>>(), [[0, 0], [0, 1], [1, 0], [1, 1]]);
        assert_eq!(indices(&[]).count(), 1);
        let t = Tensor::from_fn([2, 3], |i| (10 * i[0] + i[1]) as f64);
        assert_eq!((t.at(&[1, 2]), t.at_broadcast(&[7, 1, 2])), (12.0, 12.0));
        assert_eq!(Tensor::from_fn([3, 1], |i| i[0] as f64).at_broadcast(&[0, 2, 5]), 2.0);
    }

    #[test]
    fn random_contents_are_what_a_sample_asks_for() {
        let all = |fill| Tensor::random([1000], fill, 5).data;
        let mean = all(Fill::Uniform).iter().sum::<f64>() / 1000.0;
        assert!(mean.abs() < 0.1, "{mean}");
        assert!(all(Fill::Positive).iter().all(|x| (0.5..1.5).contains(x)));
        let ids = all(Fill::Index(3));
        assert!([0.0, 1.0, 2.0].iter().all(|i| ids.contains(i)) && ids.iter().all(|i| [0.0, 1.0, 2.0].contains(i)));
        assert!([0.0, 1.0].iter().all(|b| all(Fill::Bool).contains(b)));
    }

    #[test]
    fn noise_differs_from_seed_to_seed_and_place_to_place() {
        let all: std::collections::BTreeSet<u64> = (0..400).map(|i| noise(i / 20, i % 20).to_bits()).collect();
        assert_eq!(all.len(), 400);
    }
}
