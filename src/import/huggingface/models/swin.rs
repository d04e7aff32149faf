//! Swin (Liu et al. 2021): attention in windows that are shifted in every second layer, with a classifier.

use galvatron_ir::diagnostic::Diagnostic;
use galvatron_ir::id::ValueId;
use galvatron_ir::module::Normal;
use galvatron_ir::op::compute::{Concat, Constant, Einsum, Embedding, ReduceSum, Softmax, UnaryKind};
use galvatron_ir::types::{Scalar, TensorType};

use super::super::builder::{Builder, Built};
use super::super::config::Config;
use super::super::layers::activation;
use super::{Model, Sizes, Tokens, n_classes};

/// What is added to variances outside of the layers.
const EPS: f64 = 1e-5;

/// What is added to a score across regions that were not neighbours before the shift.
const APART: f64 = -100.0;

struct Swin {
    /// Channels, height and width of an image.
    image: [u64; 3],
    patch: [u64; 2],
    n_classes: u64,
    /// Width of the first stage; each further stage has twice the width.
    width: u64,
    depths: Vec<u64>,
    n_heads: Vec<u64>,
    window: u64,
    /// Width between the linear maps as a multiple of the stage's.
    inner: f64,
    activation: UnaryKind,
    eps: f64,
    std: f64,
    has_qkv_bias: bool,
    has_positions: bool,
    hidden_dropout: f64,
    attention_dropout: f64,
}

/// A stage: its number, height and width in patches, width of a vector, heads.
#[derive(Clone, Copy)]
struct Stage {
    index: usize,
    grid: [u64; 2],
    width: u64,
    n_heads: u64,
}

pub(super) fn read(config: &mut Config) -> Box<dyn Model> {
    config.ignore(&[
        "encoder_stride",
        "hidden_size",
        "num_layers",
        "out_features",
        "out_indices",
        "stage_names",
        "path_norm",
    ]);
    config.ignore(&["_out_features", "_out_indices"]);
    let rates = config.dropout([("hidden_dropout_prob", 0.0), ("attention_probs_dropout_prob", 0.0)]);
    let [hidden_dropout, attention_dropout] = rates;
    config.drops_no_branch("drop_path_rate", 0.1);
    let (sides, patch) = (config.sides("image_size", 224), config.sides("patch_size", 4));
    for i in 0..2 {
        config.divides(("patch_size", patch[i]), ("image_size", sides[i]));
    }
    let swin = Swin {
        image: [config.count("num_channels", 3), sides[0], sides[1]],
        patch,
        n_classes: n_classes(config),
        width: config.count("embed_dim", 96),
        depths: config.counts("depths", &[2, 2, 6, 2]),
        n_heads: config.counts("num_heads", &[3, 6, 12, 24]),
        window: config.count("window_size", 7),
        inner: config.number("mlp_ratio", 4.0),
        activation: activation(config, "hidden_act", "gelu"),
        eps: config.number("layer_norm_eps", 1e-5),
        std: config.number("initializer_range", 0.02),
        has_qkv_bias: config.flag("qkv_bias", true),
        has_positions: config.flag("use_absolute_embeddings", false),
        hidden_dropout,
        attention_dropout,
    };
    swin.check(config);
    Box::new(swin)
}

impl Swin {
    /// Every stage must be whole windows and, but for the last, of even height and width.
    fn check(&self, config: &mut Config) {
        if self.depths.len() != self.n_heads.len() {
            let message = format!("`depths` has {} stages, `num_heads` {}", self.depths.len(), self.n_heads.len());
            config.fault(Diagnostic::new("config-value", message));
            return;
        }
        for stage in self.stages() {
            let Stage { index, grid: [height, width], .. } = stage;
            let is_last = index + 1 == self.depths.len();
            let is_whole = |n: u64| n > 0 && n.is_multiple_of(self.window) && (is_last || n.is_multiple_of(2));
            if !is_whole(height) || !is_whole(width) {
                let message =
                    format!("stage {index} has {height} × {width} patches, no whole windows of {}", self.window);
                let help = "images must be such that windows need no padding: choose `image_size` or `window_size`";
                config.fault(Diagnostic::new("config-value", message).help(help));
                return;
            }
            config.divides(("num_heads", stage.n_heads), ("embed_dim", stage.width));
        }
    }

    fn stages(&self) -> impl Iterator<Item = Stage> + '_ {
        let side = |i: usize, index: usize| (self.image[1 + i] / self.patch[i]) >> index;
        let stage = move |(index, &n_heads): (usize, &u64)| {
            let grid = [side(0, index), side(1, index)];
            Stage { index, grid, width: self.width << index, n_heads }
        };
        self.n_heads.iter().enumerate().map(stage)
    }
}

impl Model for Swin {
    fn tokens(&self) -> Tokens {
        Tokens::None
    }

    fn build(&self, b: &mut Builder, sizes: Sizes) -> Result<(), Diagnostic> {
        let [channels, height, width] = self.image;
        let images = b.input("pixel_values", TensorType::f32([sizes.batch, channels, height, width]));
        let mut x =
            b.patches("swin.embeddings.patch_embeddings.projection", images, self.patch, self.width, self.std)?;
        x = b.layer_norm("swin.embeddings.norm", x, EPS)?;
        if self.has_positions {
            let shape = [1, b.shape(x)[1], self.width];
            let positions = b.parameter("swin.embeddings.position_embeddings", &shape, Normal::new(0.0, 0.0));
            x = b.add(x, positions)?;
        }
        x = b.dropout(x, self.hidden_dropout)?;
        for stage in self.stages() {
            for block in 0..self.depths[stage.index] {
                x = self.block(b, x, stage, block)?;
            }
            if stage.index + 1 < self.depths.len() {
                x = self.merge(b, x, stage)?;
            }
        }
        x = b.layer_norm("swin.layernorm", x, self.eps)?;
        b.enter("swin.pooler");
        let n_patches = b.shape(x)[1];
        let sum = b.emit(ReduceSum { dims: vec![1] }, &[x])?;
        let mean = b.scaled(sum, 1.0 / n_patches as f64)?;
        let logits = b.linear("classifier", mean, self.n_classes, true, self.std)?;
        b.output("logits", logits);
        Ok(())
    }
}

impl Swin {
    fn block(&self, b: &mut Builder, x: ValueId, stage: Stage, block: u64) -> Built {
        let name = format!("swin.encoder.layers.{}.blocks.{block}", stage.index);
        let is_shifted = block % 2 == 1 && stage.grid.iter().min() > Some(&self.window);
        let shift = if is_shifted { self.window / 2 } else { 0 };
        let h = b.layer_norm(&format!("{name}.layernorm_before"), x, self.eps)?;
        let windows = self.split_windows(b, h, stage, shift)?;
        let h = self.attention(b, &format!("{name}.attention"), windows, stage, shift)?;
        let h = self.join_windows(b, h, stage, shift)?;
        let x = b.add(x, h)?;
        let h = b.layer_norm(&format!("{name}.layernorm_after"), x, self.eps)?;
        let inner = (stage.width as f64 * self.inner) as u64;
        let h = b.linear(&format!("{name}.intermediate.dense"), h, inner, true, self.std)?;
        let h = b.function(self.activation, h)?;
        let h = b.linear(&format!("{name}.output.dense"), h, stage.width, true, self.std)?;
        let h = b.dropout(h, self.hidden_dropout)?;
        b.add(h, x)
    }

    /// [batch, patches, width], turned back by `shift` along both sides, as [batch, windows, window², width].
    fn split_windows(&self, b: &mut Builder, x: ValueId, stage: Stage, shift: u64) -> Built {
        let (w, [height, width]) = (self.window, stage.grid);
        let (batch, depth) = (b.shape(x)[0], stage.width);
        let mut x = b.reshape(x, &[batch, height, width, depth])?;
        for dim in [1, 2] {
            x = roll(b, x, dim, shift)?;
        }
        let split = b.reshape(x, &[batch, height / w, w, width / w, w, depth])?;
        let windows = b.transpose(split, &[0, 1, 3, 2, 4, 5])?;
        b.reshape(windows, &[batch, height * width / (w * w), w * w, depth])
    }

    /// Undoes [`Swin::split_windows`].
    fn join_windows(&self, b: &mut Builder, x: ValueId, stage: Stage, shift: u64) -> Built {
        let (w, [height, width]) = (self.window, stage.grid);
        let (batch, depth) = (b.shape(x)[0], stage.width);
        let split = b.reshape(x, &[batch, height / w, width / w, w, w, depth])?;
        let rows = b.transpose(split, &[0, 1, 3, 2, 4, 5])?;
        let mut x = b.reshape(rows, &[batch, height, width, depth])?;
        if shift > 0 {
            for (dim, side) in [(1, height), (2, width)] {
                x = roll(b, x, dim, side - shift)?;
            }
        }
        b.reshape(x, &[batch, height * width, depth])
    }

    /// Attention inside each window, with a trained bias by relative position: x and result [batch, windows, window², width].
    fn attention(&self, b: &mut Builder, name: &str, x: ValueId, stage: Stage, shift: u64) -> Built {
        let mut qkv = [x; 3];
        for (value, part) in qkv.iter_mut().zip(["query", "key", "value"]) {
            let y = b.linear(&format!("{name}.self.{part}"), x, stage.width, self.has_qkv_bias, self.std)?;
            *value = b.split_heads(y, stage.n_heads)?;
        }
        b.enter(&format!("{name}.self"));
        let contraction =
            |lhs: &str, rhs: &str, out: &str| Einsum { lhs: lhs.into(), rhs: rhs.into(), out: out.into() };
        let scores = b.emit(contraction("bwqhd", "bwkhd", "bwhqk"), &[qkv[0], qkv[1]])?;
        let scores = b.scaled(scores, ((stage.width / stage.n_heads) as f64).powf(-0.5))?;
        let mut bias = self.relative_bias(b, name, stage.n_heads)?;
        if shift > 0 {
            let mask = self.mask(b, stage.grid, shift)?;
            bias = b.add(bias, mask)?;
        }
        let biased = b.add(scores, bias)?;
        let weights = b.emit(Softmax, &[biased])?;
        let weights = b.dropout(weights, self.attention_dropout)?;
        let mixed = b.emit(contraction("bwhqk", "bwkhd", "bwqhd"), &[weights, qkv[2]])?;
        let merged = b.merge_heads(mixed)?;
        let h = b.linear(&format!("{name}.output.dense"), merged, stage.width, true, self.std)?;
        b.dropout(h, self.attention_dropout)
    }

    /// [1, heads, window², window²] by the differences of rows and columns.
    fn relative_bias(&self, b: &mut Builder, name: &str, n_heads: u64) -> Built {
        let (w, n) = (self.window as i64, self.window * self.window);
        let n_rows = ((2 * w - 1) * (2 * w - 1)) as u64;
        let name = format!("{name}.self.relative_position_bias_table");
        let table = b.parameter(&name, &[n_rows, n_heads], Normal::new(0.0, 0.0));
        let row = |q: i64, k: i64| (q / w - k / w + w - 1) * (2 * w - 1) + (q % w - k % w + w - 1);
        let values = (0..w * w).flat_map(|q| (0..w * w).map(move |k| Scalar::new(row(q, k) as f64))).collect();
        let ids = b.emit(Constant { ty: TensorType::i64([n * n]), values }, &[])?;
        let vectors = b.emit(Embedding, &[table, ids])?;
        let by_head = b.transpose(vectors, &[1, 0])?;
        b.reshape(by_head, &[1, n_heads, n, n])
    }

    /// [windows, 1, window², window²]: 0 inside a region, otherwise [`APART`].
    ///
    /// The shift brings the first rows and columns behind the last ones: up to three regions along each side. For
    /// numbers of regions, max(1 - difference², 0) is 1 where they are equal and 0 elsewhere.
    fn mask(&self, b: &mut Builder, [height, width]: [u64; 2], shift: u64) -> Built {
        let w = self.window;
        let region = |at: u64, side: u64| u64::from(at >= side - w) + u64::from(at >= side - shift);
        let mut values = Vec::new();
        for (top, left) in (0..height / w).flat_map(|i| (0..width / w).map(move |j| (i * w, j * w))) {
            for (row, column) in (0..w).flat_map(|i| (0..w).map(move |j| (top + i, left + j))) {
                values.push(Scalar::new((3 * region(row, height) + region(column, width)) as f64));
            }
        }
        let (n_windows, n) = (height * width / (w * w), w * w);
        let regions = b.emit(Constant { ty: TensorType::f32([n_windows, n]), values: values.into() }, &[])?;
        let of_query = b.reshape(regions, &[n_windows, 1, n, 1])?;
        let of_key = b.reshape(regions, &[n_windows, 1, 1, n])?;
        let difference = b.subtract(of_query, of_key)?;
        let square = b.multiply(difference, difference)?;
        let one = b.scalar(1.0)?;
        let rest = b.subtract(one, square)?;
        let same = b.function(UnaryKind::Relu, rest)?;
        let apart = b.subtract(one, same)?;
        b.scaled(apart, APART)
    }

    /// Four neighbouring patches become one of twice the width: [batch, patches / 4, 2 · width].
    fn merge(&self, b: &mut Builder, x: ValueId, stage: Stage) -> Built {
        let name = format!("swin.encoder.layers.{}.downsample", stage.index);
        b.enter(&name);
        let (batch, [height, width], depth) = (b.shape(x)[0], stage.grid, stage.width);
        let split = b.reshape(x, &[batch, height / 2, 2, width / 2, 2, depth])?;
        let joined = b.transpose(split, &[0, 1, 3, 4, 2, 5])?;
        let x = b.reshape(joined, &[batch, height * width / 4, 4 * depth])?;
        let x = b.layer_norm(&format!("{name}.norm"), x, EPS)?;
        b.linear(&format!("{name}.reduction"), x, 2 * depth, false, self.std)
    }
}

/// Element i of the result is element i + shift of a dimension, which is closed to a ring.
fn roll(b: &mut Builder, x: ValueId, dim: usize, shift: u64) -> Built {
    if shift == 0 {
        return Ok(x);
    }
    let n = b.shape(x)[dim];
    let parts = [b.slice(x, dim, shift, n - shift)?, b.slice(x, dim, 0, shift)?];
    b.emit(Concat { dim }, &parts)
}
