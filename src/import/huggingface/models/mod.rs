//! The families of models: one file each, which reads its keys and builds its graph.

mod bert;
mod gpt2;
mod gpt_neox;
mod llama;
mod opt;
mod phi;
mod swin;
mod t5;
mod vit;

use galvatron_ir::diagnostic::Diagnostic;
use galvatron_ir::id::ValueId;
use galvatron_ir::types::TensorType;

use super::builder::{Builder, Built};
use super::config::Config;

/// How much one optimizer step reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Samples.
    pub batch: u64,
    /// Tokens of a sample; 1 where the model reads none.
    pub sequence: u64,
    /// Tokens of the decoder, where there is one besides an encoder.
    pub decoder_sequence: u64,
}

/// A model whose configuration has been read.
pub(super) trait Model {
    /// Whether it reads sequences of tokens, and how long they may be at most.
    fn tokens(&self) -> Tokens;

    /// Builds the forward graph with the output `logits`.
    ///
    /// # Errors
    /// Code `config-shape` where sizes do not fit.
    fn build(&self, b: &mut Builder, sizes: Sizes) -> Result<(), Diagnostic>;
}

/// What a model can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tokens {
    /// No tokens: images.
    None,
    /// Tokens, at most as many as there are learned positions.
    UpTo(u64),
    /// Any number of tokens.
    Any,
}

/// A family of models.
pub(super) struct Family {
    /// Its `model_type`.
    pub model_type: &'static str,
    /// The `architectures` that are built, the first if there is none.
    pub architectures: &'static [&'static str],
    /// Reads the keys.
    pub read: fn(&mut Config) -> Box<dyn Model>,
}

/// The families, in the order of the documents.
pub(super) const FAMILIES: [Family; 12] = [
    Family { model_type: "gpt2", architectures: &["GPT2LMHeadModel", "GPT2Model"], read: gpt2::read },
    Family {
        model_type: "llama",
        architectures: &["LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel"],
        read: llama::read_llama,
    },
    Family { model_type: "mistral", architectures: &["MistralForCausalLM", "MistralModel"], read: llama::read_mistral },
    Family { model_type: "mixtral", architectures: &["MixtralForCausalLM", "MixtralModel"], read: llama::read_mixtral },
    Family { model_type: "qwen2", architectures: &["Qwen2ForCausalLM", "Qwen2Model"], read: llama::read_qwen2 },
    Family { model_type: "gpt_neox", architectures: &["GPTNeoXForCausalLM", "GPTNeoXModel"], read: gpt_neox::read },
    Family { model_type: "opt", architectures: &["OPTForCausalLM", "OPTModel"], read: opt::read },
    Family { model_type: "phi", architectures: &["PhiForCausalLM", "PhiModel"], read: phi::read },
    Family {
        model_type: "bert",
        architectures: &["BertForMaskedLM", "BertModel", "BertForPreTraining"],
        read: bert::read,
    },
    Family { model_type: "vit", architectures: &["ViTForImageClassification", "ViTModel"], read: vit::read },
    Family { model_type: "t5", architectures: &["T5ForConditionalGeneration", "T5WithLMHeadModel"], read: t5::read },
    Family { model_type: "swin", architectures: &["SwinForImageClassification", "SwinModel"], read: swin::read },
];

/// Token numbers [batch, length] under the name of their array.
fn tokens(b: &mut Builder, name: &str, batch: u64, length: u64) -> ValueId {
    b.input(name, TensorType::i64([batch, length]))
}

/// Scores of the vocabulary: by the table of the embedding if the weights are tied, otherwise by `lm_head`.
fn language_head(b: &mut Builder, x: ValueId, table: Option<ValueId>, vocabulary: u64, std: f64) -> Built {
    b.enter("lm_head");
    match table {
        Some(table) => b.project(x, table),
        None => b.linear("lm_head", x, vocabulary, false, std),
    }
}

/// Number of classes: `num_labels`, or as many as `id2label` names.
fn n_classes(config: &mut Config) -> u64 {
    let named = config.get("id2label").and_then(|names| names.as_object().map(|o| o.len() as u64));
    config.count("num_labels", named.filter(|&n| n > 0).unwrap_or(2))
}
