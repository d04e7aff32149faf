//! The vision transformer (Dosovitskiy et al. 2021) with a classifier on its class token.

use galvatron_ir::diagnostic::Diagnostic;
use galvatron_ir::id::ValueId;
use galvatron_ir::module::Normal;
use galvatron_ir::op::compute::{Broadcast, Concat, UnaryKind};
use galvatron_ir::types::TensorType;

use super::super::builder::{Builder, Built};
use super::super::config::Config;
use super::super::layers::{Scores, activation};
use super::{Model, Sizes, Tokens, n_classes};

struct Vit {
    /// Channels, height and width of an image.
    image: [u64; 3],
    patch: [u64; 2],
    n_classes: u64,
    width: u64,
    inner: u64,
    n_layers: u64,
    n_heads: u64,
    activation: UnaryKind,
    eps: f64,
    std: f64,
    has_qkv_bias: bool,
    hidden_dropout: f64,
    attention_dropout: f64,
}

pub(super) fn read(config: &mut Config) -> Box<dyn Model> {
    config.ignore(&["encoder_stride", "pooler_output_size", "pooler_act"]);
    let rates = config.dropout([("hidden_dropout_prob", 0.0), ("attention_probs_dropout_prob", 0.0)]);
    let [hidden_dropout, attention_dropout] = rates;
    let width = config.count("hidden_size", 768);
    let n_heads = config.count("num_attention_heads", 12);
    config.divides(("num_attention_heads", n_heads), ("hidden_size", width));
    let (sides, patch) = (config.sides("image_size", 224), config.sides("patch_size", 16));
    for i in 0..2 {
        config.divides(("patch_size", patch[i]), ("image_size", sides[i]));
    }
    Box::new(Vit {
        image: [config.count("num_channels", 3), sides[0], sides[1]],
        patch,
        n_classes: n_classes(config),
        width,
        inner: config.count("intermediate_size", 3072),
        n_layers: config.count("num_hidden_layers", 12),
        n_heads,
        activation: activation(config, "hidden_act", "gelu"),
        eps: config.number("layer_norm_eps", 1e-12),
        std: config.number("initializer_range", 0.02),
        has_qkv_bias: config.flag("qkv_bias", true),
        hidden_dropout,
        attention_dropout,
    })
}

impl Model for Vit {
    fn tokens(&self) -> Tokens {
        Tokens::None
    }

    fn build(&self, b: &mut Builder, sizes: Sizes) -> Result<(), Diagnostic> {
        let [channels, height, width] = self.image;
        let images = b.input("pixel_values", TensorType::f32([sizes.batch, channels, height, width]));
        let mut x = self.embeddings(b, images)?;
        for layer in 0..self.n_layers {
            x = self.layer(b, x, layer)?;
        }
        x = b.layer_norm("vit.layernorm", x, self.eps)?;
        let class = b.slice(x, 1, 0, 1)?;
        let class = b.reshape(class, &[sizes.batch, self.width])?;
        let logits = b.linear("classifier", class, self.n_classes, true, self.std)?;
        b.output("logits", logits);
        Ok(())
    }
}

impl Vit {
    /// The class token before the patches, with positions: [b, 1 + patches, width].
    fn embeddings(&self, b: &mut Builder, images: ValueId) -> Built {
        let patches =
            b.patches("vit.embeddings.patch_embeddings.projection", images, self.patch, self.width, self.std)?;
        b.enter("vit.embeddings");
        let [batch, n_patches, width] = b.shape(patches)[..] else { return Ok(patches) };
        let start = Normal::new(0.0, self.std);
        let class = b.parameter("vit.embeddings.cls_token", &[1, 1, width], start);
        let class = b.emit(Broadcast { shape: vec![batch, 1, width], dims: vec![0, 1, 2] }, &[class])?;
        let x = b.emit(Concat { dim: 1 }, &[class, patches])?;
        let positions = b.parameter("vit.embeddings.position_embeddings", &[1, 1 + n_patches, width], start);
        let x = b.add(x, positions)?;
        b.dropout(x, self.hidden_dropout)
    }

    fn layer(&self, b: &mut Builder, x: ValueId, layer: u64) -> Built {
        let name = format!("vit.encoder.layer.{layer}");
        let h = b.layer_norm(&format!("{name}.layernorm_before"), x, self.eps)?;
        let h = self.attention(b, &format!("{name}.attention"), h)?;
        let x = b.add(h, x)?;
        let h = b.layer_norm(&format!("{name}.layernorm_after"), x, self.eps)?;
        let h = b.linear(&format!("{name}.intermediate.dense"), h, self.inner, true, self.std)?;
        let h = b.function(self.activation, h)?;
        let h = b.linear(&format!("{name}.output.dense"), h, self.width, true, self.std)?;
        let h = b.dropout(h, self.hidden_dropout)?;
        b.add(h, x)
    }

    fn attention(&self, b: &mut Builder, name: &str, x: ValueId) -> Built {
        let mut qkv = [x; 3];
        for (value, part) in qkv.iter_mut().zip(["query", "key", "value"]) {
            let y = b.linear(&format!("{name}.attention.{part}"), x, self.width, self.has_qkv_bias, self.std)?;
            *value = b.split_heads(y, self.n_heads)?;
        }
        let scale = ((self.width / self.n_heads) as f64).powf(-0.5);
        let scores = Scores { scale, causal: false, mask: None, dropout: self.attention_dropout };
        let mixed = b.attention(qkv, scores)?;
        let merged = b.merge_heads(mixed)?;
        let h = b.linear(&format!("{name}.output.dense"), merged, self.width, true, self.std)?;
        b.dropout(h, self.hidden_dropout)
    }
}
