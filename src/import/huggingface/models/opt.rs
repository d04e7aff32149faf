//! OPT (Zhang et al. 2022).

use galvatron_ir::diagnostic::Diagnostic;
use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::UnaryKind;

use super::super::builder::{Builder, Built};
use super::super::config::Config;
use super::super::layers::{Heads, Scores, activation};
use super::{Model, Sizes, Tokens, language_head, tokens};

/// Rows of the table of positions before that of position 0.
const FIRST_POSITION: u64 = 2;

/// What is added to variances.
const EPS: f64 = 1e-5;

struct Opt {
    vocabulary: u64,
    n_positions: u64,
    width: u64,
    /// Width of the table of words.
    word_width: u64,
    inner: u64,
    n_layers: u64,
    n_heads: u64,
    activation: UnaryKind,
    std: f64,
    /// Whether norms stand before attention and feed-forward network, or after.
    is_norm_first: bool,
    has_final_norm: bool,
    has_gains: bool,
    has_bias: bool,
    is_tied: bool,
    dropout: f64,
    attention_dropout: f64,
}

pub(super) fn read(config: &mut Config) -> Box<dyn Model> {
    config.ignore(&["activation_dropout"]);
    let [dropout, attention_dropout] = config.dropout([("dropout", 0.1), ("attention_dropout", 0.0)]);
    config.drops_no_branch("layerdrop", 0.0);
    config.padding(Some(1));
    let width = config.count("hidden_size", 768);
    let n_heads = config.count("num_attention_heads", 12);
    config.divides(("num_attention_heads", n_heads), ("hidden_size", width));
    let is_norm_first = config.flag("do_layer_norm_before", true);
    Box::new(Opt {
        vocabulary: config.count("vocab_size", 50_272),
        n_positions: config.count("max_position_embeddings", 2048),
        width,
        word_width: config.count("word_embed_proj_dim", width),
        inner: config.count("ffn_dim", 3072),
        n_layers: config.count("num_hidden_layers", 12),
        n_heads,
        activation: activation(config, "activation_function", "relu"),
        std: config.number("init_std", 0.02),
        is_norm_first,
        has_final_norm: is_norm_first && !config.flag("_remove_final_layer_norm", false),
        has_gains: config.flag("layer_norm_elementwise_affine", true),
        has_bias: config.flag("enable_bias", true),
        is_tied: config.flag("tie_word_embeddings", true),
        dropout,
        attention_dropout,
    })
}

impl Model for Opt {
    fn tokens(&self) -> Tokens {
        Tokens::UpTo(self.n_positions)
    }

    fn build(&self, b: &mut Builder, sizes: Sizes) -> Result<(), Diagnostic> {
        let ids = tokens(b, "input_ids", sizes.batch, sizes.sequence);
        let table_of_words = [self.vocabulary, self.word_width];
        let (table, mut x) = b.embedding("model.decoder.embed_tokens", ids, table_of_words, self.std)?;
        let has_other_width = self.word_width != self.width;
        if has_other_width {
            x = b.linear("model.decoder.project_in", x, self.width, false, self.std)?;
        }
        let rows = [self.n_positions + FIRST_POSITION, self.width];
        let positions = b.positions("model.decoder.embed_positions", FIRST_POSITION, sizes.sequence, rows, self.std)?;
        x = b.add(x, positions)?;
        for layer in 0..self.n_layers {
            x = self.layer(b, x, layer)?;
        }
        if self.has_final_norm {
            x = self.norm(b, "model.decoder.final_layer_norm", x)?;
        }
        if has_other_width {
            x = b.linear("model.decoder.project_out", x, self.word_width, false, self.std)?;
        }
        let logits = language_head(b, x, self.is_tied.then_some(table), self.vocabulary, self.std)?;
        b.output("logits", logits);
        Ok(())
    }
}

impl Opt {
    fn norm(&self, b: &mut Builder, name: &str, x: ValueId) -> Built {
        if self.has_gains { b.layer_norm(name, x, EPS) } else { b.plain_layer_norm(name, x, EPS) }
    }

    fn layer(&self, b: &mut Builder, x: ValueId, layer: u64) -> Built {
        let name = format!("model.decoder.layers.{layer}");
        let x = self.residual(b, &format!("{name}.self_attn_layer_norm"), x, |b, h| self.attention(b, &name, h))?;
        self.residual(b, &format!("{name}.final_layer_norm"), x, |b, h| {
            let h = b.linear(&format!("{name}.fc1"), h, self.inner, self.has_bias, self.std)?;
            let h = b.function(self.activation, h)?;
            let h = b.linear(&format!("{name}.fc2"), h, self.width, self.has_bias, self.std)?;
            b.dropout(h, self.dropout)
        })
    }

    /// x + f(norm x), or norm(x + f x).
    fn residual(
        &self,
        b: &mut Builder,
        norm: &str,
        x: ValueId,
        f: impl FnOnce(&mut Builder, ValueId) -> Built,
    ) -> Built {
        let read = if self.is_norm_first { self.norm(b, norm, x)? } else { x };
        let h = f(b, read)?;
        let sum = b.add(x, h)?;
        if self.is_norm_first { Ok(sum) } else { self.norm(b, norm, sum) }
    }

    fn attention(&self, b: &mut Builder, layer: &str, x: ValueId) -> Built {
        let heads = Heads { n_heads: self.n_heads, n_groups: self.n_heads, width: self.width / self.n_heads };
        let qkv = b.projections(&format!("{layer}.self_attn"), x, heads, self.has_bias, self.std)?;
        let scale = (heads.width as f64).powf(-0.5);
        let scores = Scores { scale, causal: true, mask: None, dropout: self.attention_dropout };
        let mixed = b.attention(qkv, scores)?;
        let merged = b.merge_heads(mixed)?;
        let h = b.linear(&format!("{layer}.self_attn.out_proj"), merged, self.width, self.has_bias, self.std)?;
        b.dropout(h, self.dropout)
    }
}
