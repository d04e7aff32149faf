//! T5 (Raffel et al. 2020): encoder and decoder with relative positions.

use galvatron_ir::diagnostic::Diagnostic;
use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::{CausalMask, UnaryKind};
use galvatron_ir::types::Scalar;
use serde_json::Value;

use super::super::builder::{Builder, Built};
use super::super::config::Config;
use super::super::layers::{Buckets, Scores, activation_named};
use super::{Model, Sizes, Tokens, language_head, tokens};

struct T5 {
    vocabulary: u64,
    width: u64,
    head_width: u64,
    inner: u64,
    n_encoder_layers: u64,
    n_decoder_layers: u64,
    n_heads: u64,
    n_buckets: u64,
    farthest: u64,
    eps: f64,
    /// Factor on the deviations of fresh parameters.
    factor: f64,
    activation: UnaryKind,
    is_gated: bool,
    /// Whether the output of the decoder is scaled by the root of its width before the head.
    is_scaled: bool,
    is_tied: bool,
    dropout: f64,
}

/// Which of the two stacks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stack {
    Encoder,
    Decoder,
}

impl Stack {
    fn name(self) -> &'static str {
        match self {
            Stack::Encoder => "encoder",
            Stack::Decoder => "decoder",
        }
    }
}

pub(super) fn read(config: &mut Config) -> Box<dyn Model> {
    config.rename(&[
        ("hidden_size", "d_model"),
        ("num_attention_heads", "num_heads"),
        ("num_hidden_layers", "num_layers"),
        ("head_dim", "d_kv"),
    ]);
    config.ignore(&["classifier_dropout", "n_positions", "num_labels", "dense_act_fn", "is_gated_act"]);
    let [dropout] = config.dropout([("dropout_rate", 0.1)]);
    config.never("is_decoder");
    let n_layers = config.count("num_layers", 6);
    let (activation, is_gated) = feed_forward(config);
    // A configuration that says that weights are not tied means that nothing is scaled; the head has weights of its own
    // only where a checkpoint has them.
    let is_scaled = config.flag("tie_word_embeddings", true);
    let is_scaled = config.flag("scale_decoder_outputs", is_scaled);
    Box::new(T5 {
        vocabulary: config.count("vocab_size", 32_128),
        width: config.count("d_model", 512),
        head_width: config.count("d_kv", 64),
        inner: config.count("d_ff", 2048),
        n_encoder_layers: n_layers,
        n_decoder_layers: config.count("num_decoder_layers", n_layers),
        n_heads: config.count("num_heads", 8),
        n_buckets: config.count("relative_attention_num_buckets", 32),
        farthest: config.count("relative_attention_max_distance", 128),
        eps: config.number("layer_norm_epsilon", 1e-6),
        factor: config.number("initializer_factor", 1.0),
        activation,
        is_gated,
        is_scaled,
        is_tied: is_scaled || !config.is_stored("lm_head.weight"),
        dropout,
    })
}

/// `ACTIVATION` or `gated-ACTIVATION`; `gated-gelu` means the approximation by tanh.
fn feed_forward(config: &mut Config) -> (UnaryKind, bool) {
    let name = config.word("feed_forward_proj", "relu");
    let (function, is_gated) = match name.strip_prefix("gated-") {
        Some("gelu") => ("gelu_new", true),
        Some(function) => (function, true),
        None => (name.as_str(), false),
    };
    let activation = activation_named(function).unwrap_or_else(|| {
        let message = format!("`feed_forward_proj` is {}, which is not supported", Value::from(name.as_str()));
        config.fault(Diagnostic::new("config-key", message).help("it is relu, gelu, gated-gelu or gated-silu"));
        UnaryKind::Relu
    });
    (activation, is_gated)
}

impl Model for T5 {
    fn tokens(&self) -> Tokens {
        Tokens::Any
    }

    fn build(&self, b: &mut Builder, sizes: Sizes) -> Result<(), Diagnostic> {
        let source = tokens(b, "input_ids", sizes.batch, sizes.sequence);
        let target = tokens(b, "decoder_input_ids", sizes.batch, sizes.decoder_sequence);
        let (table, source) = b.embedding("shared", source, [self.vocabulary, self.width], self.factor)?;
        b.enter("decoder.embed_tokens");
        let target = b.emit(galvatron_ir::op::compute::Embedding, &[table, target])?;
        let memory = self.encoder(b, source)?;
        let mut x = self.decoder(b, target, memory)?;
        if self.is_scaled {
            x = b.scaled(x, (self.width as f64).powf(-0.5))?;
        }
        let logits = language_head(b, x, self.is_tied.then_some(table), self.vocabulary, self.factor)?;
        b.output("logits", logits);
        Ok(())
    }
}

impl T5 {
    fn encoder(&self, b: &mut Builder, x: ValueId) -> Built {
        let mut x = b.dropout(x, self.dropout)?;
        let bias = self.bias(b, Stack::Encoder, b.shape(x)[1])?;
        for layer in 0..self.n_encoder_layers {
            let name = format!("encoder.block.{layer}.layer");
            x = self.self_attention(b, &format!("{name}.0"), x, bias)?;
            x = self.feed_forward(b, &format!("{name}.1"), x)?;
        }
        x = b.rms_norm("encoder.final_layer_norm", x, self.eps, self.factor)?;
        b.dropout(x, self.dropout)
    }

    fn decoder(&self, b: &mut Builder, x: ValueId, memory: ValueId) -> Built {
        let mut x = b.dropout(x, self.dropout)?;
        let length = b.shape(x)[1];
        let bias = self.bias(b, Stack::Decoder, length)?;
        let mask = CausalMask { shape: vec![1, 1, length, length], offset: 0, fill: Scalar::new(f64::NEG_INFINITY) };
        let mask = b.emit(mask, &[])?;
        let bias = b.add(bias, mask)?;
        for layer in 0..self.n_decoder_layers {
            let name = format!("decoder.block.{layer}.layer");
            x = self.self_attention(b, &format!("{name}.0"), x, bias)?;
            x = self.cross_attention(b, &format!("{name}.1"), x, memory)?;
            x = self.feed_forward(b, &format!("{name}.2"), x)?;
        }
        x = b.rms_norm("decoder.final_layer_norm", x, self.eps, self.factor)?;
        b.dropout(x, self.dropout)
    }

    /// The bias of distances, which all layers of a stack share.
    fn bias(&self, b: &mut Builder, stack: Stack, length: u64) -> Built {
        let name = format!("{}.block.0.layer.0.SelfAttention.relative_attention_bias", stack.name());
        let is_bidirectional = stack == Stack::Encoder;
        let buckets = Buckets { n: self.n_buckets, farthest: self.farthest, is_bidirectional };
        b.relative_bias(&name, buckets, self.n_heads, [length, length], self.std_by(self.width))
    }

    fn self_attention(&self, b: &mut Builder, layer: &str, x: ValueId, bias: ValueId) -> Built {
        let h = b.rms_norm(&format!("{layer}.layer_norm"), x, self.eps, self.factor)?;
        let name = format!("{layer}.SelfAttention");
        let qkv = self.projections(b, &name, h, h)?;
        let mixed = b.biased_attention(qkv, 1.0, bias, self.dropout)?;
        let h = self.back(b, &name, mixed)?;
        b.add(x, h)
    }

    fn cross_attention(&self, b: &mut Builder, layer: &str, x: ValueId, memory: ValueId) -> Built {
        let h = b.rms_norm(&format!("{layer}.layer_norm"), x, self.eps, self.factor)?;
        let name = format!("{layer}.EncDecAttention");
        let qkv = self.projections(b, &name, h, memory)?;
        let mixed = b.attention(qkv, Scores { scale: 1.0, causal: false, mask: None, dropout: self.dropout })?;
        let h = self.back(b, &name, mixed)?;
        b.add(x, h)
    }

    fn projections(
        &self,
        b: &mut Builder,
        name: &str,
        x: ValueId,
        memory: ValueId,
    ) -> Result<[ValueId; 3], Diagnostic> {
        let std = self.std_by(self.width);
        let mut project = |part: &str, from, std| {
            let y = b.linear(&format!("{name}.{part}"), from, self.n_heads * self.head_width, false, std)?;
            b.split_heads(y, self.n_heads)
        };
        Ok([
            project("q", x, self.std_by(self.width * self.head_width))?,
            project("k", memory, std)?,
            project("v", memory, std)?,
        ])
    }

    fn back(&self, b: &mut Builder, name: &str, mixed: ValueId) -> Built {
        let merged = b.merge_heads(mixed)?;
        let std = self.std_by(self.n_heads * self.head_width);
        let h = b.linear(&format!("{name}.o"), merged, self.width, false, std)?;
        b.dropout(h, self.dropout)
    }

    fn feed_forward(&self, b: &mut Builder, layer: &str, x: ValueId) -> Built {
        let h = b.rms_norm(&format!("{layer}.layer_norm"), x, self.eps, self.factor)?;
        let name = format!("{layer}.DenseReluDense");
        let mut inner = |part: &str| b.linear(&format!("{name}.{part}"), h, self.inner, false, self.std_by(self.width));
        let (first, second) = match self.is_gated {
            true => (inner("wi_0")?, Some(inner("wi_1")?)),
            false => (inner("wi")?, None),
        };
        let mut h = b.function(self.activation, first)?;
        if let Some(second) = second {
            h = b.multiply(h, second)?;
        }
        let h = b.dropout(h, self.dropout)?;
        let h = b.linear(&format!("{name}.wo"), h, self.width, false, self.std_by(self.inner))?;
        let h = b.dropout(h, self.dropout)?;
        b.add(x, h)
    }

    fn std_by(&self, n: u64) -> f64 {
        self.factor * (n as f64).powf(-0.5)
    }
}
