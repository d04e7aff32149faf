//! How a model is trained, as plain data: what `train.toml` says, with the defaults filled in.

use crate::types::DType;
use serde::{Deserialize, Serialize};

/// The loss that the compiler attaches to the model.
#[derive(Clone, Debug, PartialEq)]
pub struct LossRecipe {
    /// Which loss.
    pub kind: LossKind,
    /// The model output that the loss reads; the only output if empty.
    pub output: String,
    /// Name of the labels' array in the data.
    pub labels: String,
    /// Whether the loader makes labels[t] = tokens[t + 1]; `None` means: only if the data has no labels.
    pub shift: Option<bool>,
    /// Label that counts for nothing.
    pub ignore_index: i64,
}

/// Kinds of loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossKind {
    /// Over the last axis, mean over the labels that are not `ignore_index`.
    CrossEntropy,
    /// Mean of squared differences over all elements.
    Mse,
    /// The model outputs its loss.
    Output,
}

/// Kinds of optimizer, as PyTorch defines them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerKind {
    /// Decoupled weight decay.
    Adamw,
    /// Weight decay added to the gradient, then momentum.
    Sgd,
}

/// The optimizer and its constants.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerRecipe {
    /// Which optimizer.
    pub kind: OptimizerKind,
    /// Base learning rate.
    pub lr: f64,
    /// AdamW's decay rates of the first and second moment.
    pub betas: [f64; 2],
    /// AdamW's epsilon.
    pub eps: f64,
    /// Weight decay, on every trainable parameter except `no_decay`.
    pub weight_decay: f64,
    /// Names or globs of the parameters without decay.
    pub no_decay: Vec<String>,
    /// SGD's momentum.
    pub momentum: f64,
    /// Largest global gradient norm; 0 switches clipping off.
    pub clip_norm: f64,
}

/// How the learning rate moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleKind {
    /// The base rate, after the warm-up.
    Constant,
    /// Straight down to `min_lr` at `total_steps`.
    Linear,
    /// Half a cosine down to `min_lr` at `total_steps`.
    Cosine,
    /// Warm-up, stable, decay: constant, then straight down over the last tenth.
    Wsd,
}

/// The learning-rate schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct LrSchedule {
    /// Shape of the curve.
    pub kind: ScheduleKind,
    /// Steps of linear warm-up from 0.
    pub warmup_steps: u64,
    /// Step at which `min_lr` is reached.
    pub total_steps: u64,
    /// Lowest learning rate.
    pub min_lr: f64,
}

/// Everything that `train.toml` says.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// Seed of everything random.
    pub seed: u64,
    /// Samples in one optimizer step; `None`: the static batch of the model.
    pub global_batch: Option<u64>,
    /// Length bound to every free symbol at axis 1 of the integer inputs.
    pub sequence: Option<u64>,
    /// Other symbolic dimensions by name, sorted by name.
    pub dims: Vec<(String, u64)>,
    /// The loss.
    pub loss: LossRecipe,
    /// The optimizer.
    pub optimizer: OptimizerRecipe,
    /// The learning-rate schedule.
    pub schedule: LrSchedule,
    /// Globs; if not empty, the whole truth about which initializers are parameters.
    pub trainable: Vec<String>,
    /// Globs of initializers that are not trained.
    pub frozen: Vec<String>,
    /// Element type of parameters, activations and messages: f32 or bf16.
    pub compute: DType,
    /// Whether the dropout of a configuration is on; an ONNX file says itself which of its dropouts are.
    pub dropout: bool,
    /// Whether the data is permuted each epoch.
    pub shuffle: bool,
}

impl Default for Recipe {
    fn default() -> Self {
        Recipe {
            seed: 0,
            global_batch: None,
            sequence: None,
            dims: Vec::new(),
            loss: LossRecipe {
                kind: LossKind::CrossEntropy,
                output: String::new(),
                labels: "labels".into(),
                shift: None,
                ignore_index: -100,
            },
            optimizer: OptimizerRecipe {
                kind: OptimizerKind::Adamw,
                lr: 3e-4,
                betas: [0.9, 0.95],
                eps: 1e-8,
                weight_decay: 0.1,
                no_decay: Vec::new(),
                momentum: 0.0,
                clip_norm: 0.0,
            },
            schedule: LrSchedule { kind: ScheduleKind::Constant, warmup_steps: 0, total_steps: 0, min_lr: 0.0 },
            trainable: Vec::new(),
            frozen: Vec::new(),
            compute: DType::F32,
            dropout: false,
            shuffle: false,
        }
    }
}

impl LrSchedule {
    /// Learning rate of a step (1-based) for a base rate.
    pub fn lr_at(&self, base: f64, step: u64) -> f64 {
        if step <= self.warmup_steps {
            return base * step as f64 / self.warmup_steps as f64;
        }
        let after = (step - self.warmup_steps) as f64;
        let span = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let done = (after / span).min(1.0);
        let down = |part: f64| self.min_lr + (base - self.min_lr) * (1.0 - part);
        match self.kind {
            ScheduleKind::Constant => base,
            ScheduleKind::Linear => down(done),
            ScheduleKind::Cosine => down(0.5 * (1.0 - (std::f64::consts::PI * done).cos())),
            ScheduleKind::Wsd => down(((done - 0.9) / 0.1).max(0.0)),
        }
    }
}

/// Whether a name fits one of the recipe's globs, whose `*` stands for any characters.
pub fn matches_glob(glob: &str, name: &str) -> bool {
    match glob.split_once('*') {
        None => glob == name,
        Some((head, rest)) => name
            .strip_prefix(head)
            .is_some_and(|tail| (0..=tail.len()).any(|i| tail.is_char_boundary(i) && matches_glob(rest, &tail[i..]))),
    }
}

#[cfg(test)]
mod tests {
    use super::matches_glob;

    #[test]
    fn a_star_stands_for_anything() {
        assert!(matches_glob("*.bias", "h.0.attn.bias"));
        assert!(matches_glob("h.*.ln_*.weight", "h.11.ln_1.weight"));
        assert!(!matches_glob("*.bias", "h.0.attn.weight"));
        assert!(!matches_glob("h", "h.0"));
    }
}
