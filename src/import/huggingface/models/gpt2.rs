//! GPT-2 (Radford et al. 2019), and GPT-3 of that form.

use galvatron_ir::diagnostic::Diagnostic;
use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::UnaryKind;

use super::super::builder::{Builder, Built};
use super::super::config::Config;
use super::super::layers::{Scores, activation};
use super::{Model, Sizes, Tokens, language_head, tokens};

struct Gpt2 {
    vocabulary: u64,
    n_positions: u64,
    width: u64,
    inner: u64,
    n_layers: u64,
    n_heads: u64,
    activation: UnaryKind,
    eps: f64,
    std: f64,
    is_scaled: bool,
    is_scaled_by_layer: bool,
    is_tied: bool,
    residual_dropout: f64,
    embedding_dropout: f64,
    attention_dropout: f64,
}

pub(super) fn read(config: &mut Config) -> Box<dyn Model> {
    config.rename(&[
        ("hidden_size", "n_embd"),
        ("max_position_embeddings", "n_positions"),
        ("num_attention_heads", "n_head"),
        ("num_hidden_layers", "n_layer"),
    ]);
    config.ignore(&["n_ctx", "reorder_and_upcast_attn", "summary_type", "summary_use_proj", "summary_activation"]);
    config.ignore(&["summary_proj_to_labels", "summary_first_dropout", "num_labels"]);
    let rates = config.dropout([("resid_pdrop", 0.1), ("embd_pdrop", 0.1), ("attn_pdrop", 0.1)]);
    let [residual_dropout, embedding_dropout, attention_dropout] = rates;
    config.never("add_cross_attention");
    let width = config.count("n_embd", 768);
    let n_heads = config.count("n_head", 12);
    config.divides(("n_head", n_heads), ("n_embd", width));
    Box::new(Gpt2 {
        vocabulary: config.count("vocab_size", 50_257),
        n_positions: config.count("n_positions", 1024),
        width,
        inner: config.count("n_inner", 4 * width),
        n_layers: config.count("n_layer", 12),
        n_heads,
        activation: activation(config, "activation_function", "gelu_new"),
        eps: config.number("layer_norm_epsilon", 1e-5),
        std: config.number("initializer_range", 0.02),
        is_scaled: config.flag("scale_attn_weights", true),
        is_scaled_by_layer: config.flag("scale_attn_by_inverse_layer_idx", false),
        is_tied: config.flag("tie_word_embeddings", true),
        residual_dropout,
        embedding_dropout,
        attention_dropout,
    })
}

impl Model for Gpt2 {
    fn tokens(&self) -> Tokens {
        Tokens::UpTo(self.n_positions)
    }

    fn build(&self, b: &mut Builder, sizes: Sizes) -> Result<(), Diagnostic> {
        let ids = tokens(b, "input_ids", sizes.batch, sizes.sequence);
        let (table, words) = b.embedding("transformer.wte", ids, [self.vocabulary, self.width], self.std)?;
        let table_of_positions = [self.n_positions, self.width];
        let positions = b.positions("transformer.wpe", 0, sizes.sequence, table_of_positions, self.std)?;
        let sum = b.add(words, positions)?;
        let mut x = b.dropout(sum, self.embedding_dropout)?;
        for layer in 0..self.n_layers {
            x = self.layer(b, x, layer)?;
        }
        x = b.layer_norm("transformer.ln_f", x, self.eps)?;
        let logits = language_head(b, x, self.is_tied.then_some(table), self.vocabulary, self.std)?;
        b.output("logits", logits);
        Ok(())
    }
}

impl Gpt2 {
    fn layer(&self, b: &mut Builder, x: ValueId, layer: u64) -> Built {
        let name = format!("transformer.h.{layer}");
        let h = b.layer_norm(&format!("{name}.ln_1"), x, self.eps)?;
        let h = self.attention(b, h, layer)?;
        let x = b.add(x, h)?;
        let h = b.layer_norm(&format!("{name}.ln_2"), x, self.eps)?;
        let h = b.linear_in_out(&format!("{name}.mlp.c_fc"), h, self.inner, self.std)?;
        let h = b.function(self.activation, h)?;
        let h = b.linear_in_out(&format!("{name}.mlp.c_proj"), h, self.width, self.residual_std())?;
        let h = b.dropout(h, self.residual_dropout)?;
        b.add(x, h)
    }

    fn attention(&self, b: &mut Builder, x: ValueId, layer: u64) -> Built {
        let name = format!("transformer.h.{layer}.attn");
        let fused = b.linear_in_out(&format!("{name}.c_attn"), x, 3 * self.width, self.std)?;
        let mut qkv = [fused; 3];
        for (part, i) in qkv.iter_mut().zip(0..) {
            let whole = b.slice(fused, 2, i * self.width, self.width)?;
            *part = b.split_heads(whole, self.n_heads)?;
        }
        b.enter(&name);
        let plain = if self.is_scaled { ((self.width / self.n_heads) as f64).powf(-0.5) } else { 1.0 };
        let scale = if self.is_scaled_by_layer { plain / (layer + 1) as f64 } else { plain };
        let mixed = b.attention(qkv, Scores { scale, causal: true, mask: None, dropout: self.attention_dropout })?;
        let merged = b.merge_heads(mixed)?;
        let h = b.linear_in_out(&format!("{name}.c_proj"), merged, self.width, self.residual_std())?;
        b.dropout(h, self.residual_dropout)
    }

    /// Deviation of fresh projections onto the residual stream, to which two are added in each layer.
    fn residual_std(&self) -> f64 {
        self.std / (2.0 * self.n_layers as f64).sqrt()
    }
}
