//! Phi-1, Phi-1.5 and Phi-2 (Gunasekar et al. 2023).

use galvatron_ir::diagnostic::Diagnostic;
use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::UnaryKind;

use super::super::builder::{Builder, Built};
use super::super::config::Config;
use super::super::layers::{Heads, Rope, Scores, activation};
use super::{Model, Sizes, Tokens, tokens};

struct Phi {
    vocabulary: u64,
    width: u64,
    inner: u64,
    n_layers: u64,
    heads: Heads,
    activation: UnaryKind,
    eps: f64,
    std: f64,
    rope: Rope,
    /// Whether queries and keys are normalised.
    has_qk_norm: bool,
    residual_dropout: f64,
    embedding_dropout: f64,
    attention_dropout: f64,
}

pub(super) fn read(config: &mut Config) -> Box<dyn Model> {
    let rates = config.dropout([("resid_pdrop", 0.0), ("embd_pdrop", 0.0), ("attention_dropout", 0.0)]);
    let [residual_dropout, embedding_dropout, attention_dropout] = rates;
    // The head has a bias, so it cannot be the table of the embedding.
    config.only("tie_word_embeddings", false);
    config.padding(None);
    let width = config.count("hidden_size", 2048);
    let n_heads = config.count("num_attention_heads", 32);
    config.divides(("num_attention_heads", n_heads), ("hidden_size", width));
    let n_groups = config.count("num_key_value_heads", n_heads);
    config.divides(("num_key_value_heads", n_groups), ("num_attention_heads", n_heads));
    Box::new(Phi {
        vocabulary: config.count("vocab_size", 51_200),
        width,
        inner: config.count("intermediate_size", 8192),
        n_layers: config.count("num_hidden_layers", 24),
        heads: Heads { n_heads, n_groups, width: width / n_heads.max(1) },
        activation: activation(config, "hidden_act", "gelu_new"),
        eps: config.number("layer_norm_eps", 1e-5),
        std: config.number("initializer_range", 0.02),
        rope: Rope::read(config, 0.5),
        has_qk_norm: config.flag("qk_layernorm", false),
        residual_dropout,
        embedding_dropout,
        attention_dropout,
    })
}

impl Model for Phi {
    fn tokens(&self) -> Tokens {
        Tokens::Any
    }

    fn build(&self, b: &mut Builder, sizes: Sizes) -> Result<(), Diagnostic> {
        let ids = tokens(b, "input_ids", sizes.batch, sizes.sequence);
        let (_, mut x) = b.embedding("model.embed_tokens", ids, [self.vocabulary, self.width], self.std)?;
        x = b.dropout(x, self.embedding_dropout)?;
        let tables = b.rotary_tables(&self.rope, sizes.sequence, self.rope.turned(self.heads.width))?;
        for layer in 0..self.n_layers {
            x = self.layer(b, x, tables, layer)?;
        }
        x = b.layer_norm("model.final_layernorm", x, self.eps)?;
        let logits = b.linear("lm_head", x, self.vocabulary, true, self.std)?;
        b.output("logits", logits);
        Ok(())
    }
}

impl Phi {
    /// Attention and feed-forward network read one norm and are added at once.
    fn layer(&self, b: &mut Builder, x: ValueId, tables: [ValueId; 2], layer: u64) -> Built {
        let name = format!("model.layers.{layer}");
        let h = b.layer_norm(&format!("{name}.input_layernorm"), x, self.eps)?;
        let attended = self.attention(b, &format!("{name}.self_attn"), h, tables)?;
        let attended = b.dropout(attended, self.residual_dropout)?;
        let inner = b.linear(&format!("{name}.mlp.fc1"), h, self.inner, true, self.std)?;
        let inner = b.function(self.activation, inner)?;
        let fed = b.linear(&format!("{name}.mlp.fc2"), inner, self.width, true, self.std)?;
        let fed = b.dropout(fed, self.residual_dropout)?;
        let sum = b.add(attended, fed)?;
        b.add(sum, x)
    }

    fn attention(&self, b: &mut Builder, name: &str, x: ValueId, tables: [ValueId; 2]) -> Built {
        let [mut q, mut k, v] = b.projections(name, x, self.heads, true, self.std)?;
        if self.has_qk_norm {
            q = b.layer_norm(&format!("{name}.q_layernorm"), q, self.eps)?;
            k = b.layer_norm(&format!("{name}.k_layernorm"), k, self.eps)?;
        }
        let (q, k) = (b.turn(q, tables)?, b.turn(k, tables)?);
        let scale = (self.heads.width as f64).powf(-0.5);
        let scores = Scores { scale, causal: true, mask: None, dropout: self.attention_dropout };
        let mixed = b.attention([q, k, v], scores)?;
        let merged = b.merge_heads(mixed)?;
        b.linear(&format!("{name}.dense"), merged, self.width, true, self.std)
    }
}
