//! Normalisations over the last dimension.

use galvatron_ir::id::ValueId;
use galvatron_ir::module::Normal;
use galvatron_ir::op::compute::{Full, LayerNorm, RmsNorm};
use galvatron_ir::types::{Scalar, TensorType};

use super::super::builder::{Builder, Built};

impl Builder {
    /// (x - mean) / sqrt(variance + eps), times `NAME.weight`, plus `NAME.bias`.
    pub fn layer_norm(&mut self, name: &str, x: ValueId, eps: f64) -> Built {
        self.enter(name);
        let width = [self.shape(x).last().copied().unwrap_or(1)];
        let gain = self.parameter(&format!("{name}.weight"), &width, Normal::new(1.0, 0.0));
        let bias = self.parameter(&format!("{name}.bias"), &width, Normal::new(0.0, 0.0));
        self.emit(LayerNorm { eps: Scalar::new(eps) }, &[x, gain, bias])
    }

    /// As [`Builder::layer_norm`] without gain and bias.
    pub fn plain_layer_norm(&mut self, name: &str, x: ValueId, eps: f64) -> Built {
        self.enter(name);
        let ty = TensorType::f32([self.shape(x).last().copied().unwrap_or(1)]);
        let gain = self.emit(Full { ty: ty.clone(), value: Scalar::new(1.0) }, &[])?;
        let bias = self.emit(Full { ty, value: Scalar::new(0.0) }, &[])?;
        self.emit(LayerNorm { eps: Scalar::new(eps) }, &[x, gain, bias])
    }

    /// x / sqrt(mean of x² + eps), times `NAME.weight` (Zhang and Sennrich 2019); a fresh gain is `gain`.
    pub fn rms_norm(&mut self, name: &str, x: ValueId, eps: f64, gain: f64) -> Built {
        self.enter(name);
        let width = [self.shape(x).last().copied().unwrap_or(1)];
        let gain = self.parameter(&format!("{name}.weight"), &width, Normal::new(gain, 0.0));
        self.emit(RmsNorm { eps: Scalar::new(eps) }, &[x, gain])
    }
}
