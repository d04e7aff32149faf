//! GPT-NeoX (Black et al. 2022), and Pythia of that form.

use galvatron_ir::diagnostic::Diagnostic;
use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::UnaryKind;

use super::super::builder::{Builder, Built};
use super::super::config::Config;
use super::super::layers::{Rope, Scores, activation};
use super::{Model, Sizes, Tokens, tokens};

struct GptNeox {
    vocabulary: u64,
    width: u64,
    inner: u64,
    n_layers: u64,
    n_heads: u64,
    activation: UnaryKind,
    eps: f64,
    std: f64,
    rope: Rope,
    /// Whether attention and feed-forward network read the same residual stream.
    is_parallel: bool,
    has_attention_bias: bool,
    is_tied: bool,
    attention_dropout: f64,
    hidden_dropout: f64,
}

pub(super) fn read(config: &mut Config) -> Box<dyn Model> {
    config.rename(&[("rotary_emb_base", "rope_theta"), ("rotary_pct", "partial_rotary_factor")]);
    config.ignore(&["classifier_dropout", "num_labels", "rope_fused_kernel"]);
    let rates = config.dropout([("attention_dropout", 0.0), ("hidden_dropout", 0.0)]);
    let [attention_dropout, hidden_dropout] = rates;
    config.never("is_decoder");
    let width = config.count("hidden_size", 6144);
    let n_heads = config.count("num_attention_heads", 64);
    config.divides(("num_attention_heads", n_heads), ("hidden_size", width));
    Box::new(GptNeox {
        vocabulary: config.count("vocab_size", 50_432),
        width,
        inner: config.count("intermediate_size", 24_576),
        n_layers: config.count("num_hidden_layers", 44),
        n_heads,
        activation: activation(config, "hidden_act", "gelu"),
        eps: config.number("layer_norm_eps", 1e-5),
        std: config.number("initializer_range", 0.02),
        rope: Rope::read(config, 0.25),
        is_parallel: config.flag("use_parallel_residual", true),
        has_attention_bias: config.flag("attention_bias", true),
        is_tied: config.flag("tie_word_embeddings", false),
        attention_dropout,
        hidden_dropout,
    })
}

impl Model for GptNeox {
    fn tokens(&self) -> Tokens {
        Tokens::Any
    }

    fn build(&self, b: &mut Builder, sizes: Sizes) -> Result<(), Diagnostic> {
        let ids = tokens(b, "input_ids", sizes.batch, sizes.sequence);
        let (table, mut x) = b.embedding("gpt_neox.embed_in", ids, [self.vocabulary, self.width], self.std)?;
        x = b.dropout(x, self.hidden_dropout)?;
        let turned = self.rope.turned(self.width / self.n_heads);
        let tables = b.rotary_tables(&self.rope, sizes.sequence, turned)?;
        for layer in 0..self.n_layers {
            x = self.layer(b, x, tables, layer)?;
        }
        x = b.layer_norm("gpt_neox.final_layer_norm", x, self.eps)?;
        b.enter("embed_out");
        let logits = match self.is_tied {
            true => b.project(x, table)?,
            false => b.linear("embed_out", x, self.vocabulary, false, self.std)?,
        };
        b.output("logits", logits);
        Ok(())
    }
}

impl GptNeox {
    fn layer(&self, b: &mut Builder, x: ValueId, tables: [ValueId; 2], layer: u64) -> Built {
        let name = format!("gpt_neox.layers.{layer}");
        let h = b.layer_norm(&format!("{name}.input_layernorm"), x, self.eps)?;
        let attended = self.attention(b, &format!("{name}.attention"), h, tables)?;
        let after = b.add(attended, x)?;
        let read = if self.is_parallel { x } else { after };
        let h = b.layer_norm(&format!("{name}.post_attention_layernorm"), read, self.eps)?;
        let h = b.linear(&format!("{name}.mlp.dense_h_to_4h"), h, self.inner, true, self.std)?;
        let h = b.function(self.activation, h)?;
        let h = b.linear(&format!("{name}.mlp.dense_4h_to_h"), h, self.width, true, self.std)?;
        let h = b.dropout(h, self.hidden_dropout)?;
        b.add(h, after)
    }

    /// The fused projection holds queries, keys and values head by head.
    fn attention(&self, b: &mut Builder, name: &str, x: ValueId, tables: [ValueId; 2]) -> Built {
        let width = self.width / self.n_heads;
        let fused =
            b.linear(&format!("{name}.query_key_value"), x, 3 * self.width, self.has_attention_bias, self.std)?;
        let fused = b.split_heads(fused, self.n_heads)?;
        let [q, k, v] =
            [b.slice(fused, 3, 0, width)?, b.slice(fused, 3, width, width)?, b.slice(fused, 3, 2 * width, width)?];
        let (q, k) = (b.turn(q, tables)?, b.turn(k, tables)?);
        let scale = (width as f64).powf(-0.5);
        let scores = Scores { scale, causal: true, mask: None, dropout: self.attention_dropout };
        let mixed = b.attention([q, k, v], scores)?;
        let merged = b.merge_heads(mixed)?;
        let h = b.linear(&format!("{name}.dense"), merged, self.width, self.has_attention_bias, self.std)?;
        b.dropout(h, self.hidden_dropout)
    }
}
