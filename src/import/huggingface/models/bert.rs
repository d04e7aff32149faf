//! BERT (Devlin et al. 2019) with the head that predicts masked words.

use galvatron_ir::diagnostic::Diagnostic;
use galvatron_ir::id::ValueId;
use galvatron_ir::module::Normal;
use galvatron_ir::op::compute::UnaryKind;

use super::super::builder::{Builder, Built};
use super::super::config::Config;
use super::super::layers::{Scores, activation};
use super::{Model, Sizes, Tokens, tokens};

struct Bert {
    vocabulary: u64,
    n_positions: u64,
    n_types: u64,
    width: u64,
    inner: u64,
    n_layers: u64,
    n_heads: u64,
    activation: UnaryKind,
    eps: f64,
    std: f64,
    is_tied: bool,
    hidden_dropout: f64,
    attention_dropout: f64,
}

pub(super) fn read(config: &mut Config) -> Box<dyn Model> {
    config.ignore(&["classifier_dropout", "num_labels", "directionality", "layer_norm_type"]);
    config.ignore(&[
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
    ]);
    let rates = config.dropout([("hidden_dropout_prob", 0.1), ("attention_probs_dropout_prob", 0.1)]);
    let [hidden_dropout, attention_dropout] = rates;
    config.padding(Some(0));
    config.never("is_decoder");
    config.never("add_cross_attention");
    config.never("pruned_heads");
    config.only("position_embedding_type", "absolute");
    let width = config.count("hidden_size", 768);
    let n_heads = config.count("num_attention_heads", 12);
    config.divides(("num_attention_heads", n_heads), ("hidden_size", width));
    Box::new(Bert {
        vocabulary: config.count("vocab_size", 30_522),
        n_positions: config.count("max_position_embeddings", 512),
        n_types: config.count("type_vocab_size", 2),
        width,
        inner: config.count("intermediate_size", 3072),
        n_layers: config.count("num_hidden_layers", 12),
        n_heads,
        activation: activation(config, "hidden_act", "gelu"),
        eps: config.number("layer_norm_eps", 1e-12),
        std: config.number("initializer_range", 0.02),
        is_tied: config.flag("tie_word_embeddings", true),
        hidden_dropout,
        attention_dropout,
    })
}

impl Model for Bert {
    fn tokens(&self) -> Tokens {
        Tokens::UpTo(self.n_positions)
    }

    fn build(&self, b: &mut Builder, sizes: Sizes) -> Result<(), Diagnostic> {
        let [ids, mask, types] =
            ["input_ids", "attention_mask", "token_type_ids"].map(|name| tokens(b, name, sizes.batch, sizes.sequence));
        let (table, mut x) = self.embeddings(b, ids, types, sizes.sequence)?;
        b.enter("bert");
        let mask = b.padding_mask(mask)?;
        for layer in 0..self.n_layers {
            x = self.layer(b, x, mask, layer)?;
        }
        let logits = self.head(b, x, table)?;
        b.output("logits", logits);
        Ok(())
    }
}

impl Bert {
    /// The table of words, and the sum of words, types and positions, normalised.
    fn embeddings(
        &self,
        b: &mut Builder,
        ids: ValueId,
        types: ValueId,
        length: u64,
    ) -> Result<(ValueId, ValueId), Diagnostic> {
        let name = |part: &str| format!("bert.embeddings.{part}");
        let (table, words) = b.embedding(&name("word_embeddings"), ids, [self.vocabulary, self.width], self.std)?;
        let (_, types) = b.embedding(&name("token_type_embeddings"), types, [self.n_types, self.width], self.std)?;
        let rows = [self.n_positions, self.width];
        let positions = b.positions(&name("position_embeddings"), 0, length, rows, self.std)?;
        let sum = b.add(words, types)?;
        let sum = b.add(sum, positions)?;
        let x = b.layer_norm(&name("LayerNorm"), sum, self.eps)?;
        Ok((table, b.dropout(x, self.hidden_dropout)?))
    }

    /// Norms stand after the sums.
    fn layer(&self, b: &mut Builder, x: ValueId, mask: ValueId, layer: u64) -> Built {
        let name = format!("bert.encoder.layer.{layer}");
        let h = self.attention(b, &format!("{name}.attention"), x, mask)?;
        let sum = b.add(h, x)?;
        let x = b.layer_norm(&format!("{name}.attention.output.LayerNorm"), sum, self.eps)?;
        let h = b.linear(&format!("{name}.intermediate.dense"), x, self.inner, true, self.std)?;
        let h = b.function(self.activation, h)?;
        let h = b.linear(&format!("{name}.output.dense"), h, self.width, true, self.std)?;
        let h = b.dropout(h, self.hidden_dropout)?;
        let sum = b.add(h, x)?;
        b.layer_norm(&format!("{name}.output.LayerNorm"), sum, self.eps)
    }

    fn attention(&self, b: &mut Builder, name: &str, x: ValueId, mask: ValueId) -> Built {
        let mut qkv = [x; 3];
        for (value, part) in qkv.iter_mut().zip(["query", "key", "value"]) {
            let y = b.linear(&format!("{name}.self.{part}"), x, self.width, true, self.std)?;
            *value = b.split_heads(y, self.n_heads)?;
        }
        let scale = ((self.width / self.n_heads) as f64).powf(-0.5);
        let scores = Scores { scale, causal: false, mask: Some(mask), dropout: self.attention_dropout };
        let mixed = b.attention(qkv, scores)?;
        let merged = b.merge_heads(mixed)?;
        let h = b.linear(&format!("{name}.output.dense"), merged, self.width, true, self.std)?;
        b.dropout(h, self.hidden_dropout)
    }

    fn head(&self, b: &mut Builder, x: ValueId, table: ValueId) -> Built {
        let h = b.linear("cls.predictions.transform.dense", x, self.width, true, self.std)?;
        let h = b.function(self.activation, h)?;
        let h = b.layer_norm("cls.predictions.transform.LayerNorm", h, self.eps)?;
        b.enter("cls.predictions.decoder");
        let scores = match self.is_tied {
            true => b.project(h, table)?,
            false => b.linear("cls.predictions.decoder", h, self.vocabulary, false, self.std)?,
        };
        let bias = b.parameter("cls.predictions.bias", &[self.vocabulary], Normal::new(0.0, 0.0));
        b.add(scores, bias)
    }
}
