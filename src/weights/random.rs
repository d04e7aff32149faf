//! Weights from a seed.

use galvatron_backends::exec::WeightSource;
use galvatron_backends::fault::RunFault;
use galvatron_ir::module::{Initializer, Normal};

/// Weights from a seed and their names: from the distribution that the plan gives them, or, where it gives none, matrices
/// normal-like with deviation 0.02, gains one, biases zero, as GPT-2 starts.
pub struct RandomWeights {
    /// The seed.
    pub seed: u64,
}

impl WeightSource for RandomWeights {
    fn read(&self, initializer: &Initializer) -> Result<Vec<f32>, RunFault> {
        let n = initializer.ty.elements();
        let start = initializer.start.unwrap_or_else(|| usual(initializer));
        let (mean, std) = (start.mean.get(), start.std.get());
        if std == 0.0 {
            return Ok(vec![mean as f32; n as usize]);
        }
        let key = initializer
            .name
            .bytes()
            .fold(self.seed ^ 0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01B3));
        Ok((0..n).map(|i| (normal(key, i) * std + mean) as f32).collect())
    }
}

/// What a tensor is drawn from of which nothing is known but its name and its shape.
fn usual(initializer: &Initializer) -> Normal {
    match initializer.ty.rank() {
        0 | 1 if initializer.name.ends_with("weight") => Normal::new(1.0, 0.0),
        0 | 1 => Normal::new(0.0, 0.0),
        _ => Normal::new(0.0, 0.02),
    }
}

/// The i-th of a stream of nearly normal numbers: the sum of four uniform ones, scaled to deviation 1.
fn normal(key: u64, i: u64) -> f64 {
    let uniform = |j: u64| {
        let mut z = key.wrapping_add((4 * i + j + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    };
    (0..4).map(uniform).sum::<f64>() * 3f64.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use galvatron_ir::types::TensorType;

    #[test]
    fn tensors_follow_the_distribution_of_the_plan() {
        let read = |start| {
            let ty = TensorType::f32([64, 64]);
            let initializer = Initializer { name: "w".into(), file: String::new(), offset: 0, ty, start };
            RandomWeights { seed: 1 }.read(&initializer).unwrap()
        };
        assert!(read(Some(Normal::new(1.0, 0.0))).iter().all(|&v| v == 1.0));
        let (narrow, wide) = (read(None), read(Some(Normal::new(0.0, 0.04))));
        assert!(narrow.iter().zip(&wide).all(|(n, w)| (2.0 * n - w).abs() < 1e-8));
        let variance = wide.iter().map(|v| v * v).sum::<f32>() / 4096.0;
        assert!((variance.sqrt() - 0.04).abs() < 0.002, "{variance}");
    }
}
