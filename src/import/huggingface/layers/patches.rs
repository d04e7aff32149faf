//! Patches of images: a convolution whose windows do not overlap.

use galvatron_ir::id::ValueId;
use galvatron_ir::module::Normal;
use galvatron_ir::op::compute::Einsum;

use super::super::builder::{Builder, Built};

impl Builder {
    /// [b, height/p · width/q, out] from images [b, in, height, width]: one vector for each patch of p times q, by
    /// `NAME.weight` [out, in, p, q] and `NAME.bias` [out].
    pub fn patches(&mut self, name: &str, images: ValueId, [p, q]: [u64; 2], n_out: u64, std: f64) -> Built {
        self.enter(name);
        let [batch, n_in, height, width] = self.shape(images)[..] else { return Ok(images) };
        let (rows, columns) = (height / p, width / q);
        let weight = self.parameter(&format!("{name}.weight"), &[n_out, n_in, p, q], Normal::new(0.0, std));
        let bias = self.parameter(&format!("{name}.bias"), &[n_out], Normal::new(0.0, 0.0));
        let split = self.reshape(images, &[batch, n_in, rows, p, columns, q])?;
        let einsum = Einsum { lhs: "bcxiyj".into(), rhs: "ocij".into(), out: "bxyo".into() };
        let vectors = self.emit(einsum, &[split, weight])?;
        let vectors = self.reshape(vectors, &[batch, rows * columns, n_out])?;
        self.add(vectors, bias)
    }
}
