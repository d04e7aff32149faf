//! LLaMA (Touvron et al. 2023) and its close relatives Mistral, Mixtral and Qwen2.

use galvatron_ir::diagnostic::Diagnostic;
use galvatron_ir::id::ValueId;
use galvatron_ir::op::compute::UnaryKind;

use super::super::builder::{Builder, Built};
use super::super::config::Config;
use super::super::layers::{Experts, Heads, Rope, Scores, activation};
use super::{Model, Sizes, Tokens, language_head, tokens};

struct Llama {
    vocabulary: u64,
    width: u64,
    inner: u64,
    n_layers: u64,
    heads: Heads,
    activation: UnaryKind,
    eps: f64,
    std: f64,
    rope: Rope,
    is_tied: bool,
    /// Whether the projections of queries, keys and values have biases.
    has_qkv_bias: bool,
    /// Whether the projection after attention has a bias.
    has_output_bias: bool,
    /// Whether the linear maps between the attentions have biases.
    has_mlp_bias: bool,
    /// Positions that a query sees, itself among them, and the first layer for which that holds.
    window: Option<(u64, u64)>,
    /// What stands between the attentions instead of linear maps.
    experts: Option<Experts>,
    attention_dropout: f64,
}

/// Sizes that a configuration leaves out.
struct Defaults {
    vocabulary: u64,
    inner: u64,
    /// Heads of keys and values; those of the queries if there is no number.
    n_groups: Option<u64>,
    n_positions: u64,
}

pub(super) fn read_llama(config: &mut Config) -> Box<dyn Model> {
    let defaults = Defaults { vocabulary: 32_000, inner: 11_008, n_groups: None, n_positions: 2048 };
    config.ignore(&["pretraining_tp"]);
    let has_bias = config.flag("attention_bias", false);
    let has_mlp_bias = config.flag("mlp_bias", false);
    let model = read(config, defaults);
    Box::new(Llama { has_qkv_bias: has_bias, has_output_bias: has_bias, has_mlp_bias, ..model })
}

pub(super) fn read_mistral(config: &mut Config) -> Box<dyn Model> {
    let defaults = Defaults { vocabulary: 32_000, inner: 14_336, n_groups: Some(8), n_positions: 131_072 };
    config.never("layer_types");
    let window = (!config.is_null("sliding_window")).then(|| config.count("sliding_window", 4096));
    let model = read(config, defaults);
    Box::new(Llama { window: window.map(|n| (n, 0)), ..model })
}

pub(super) fn read_mixtral(config: &mut Config) -> Box<dyn Model> {
    let defaults = Defaults { vocabulary: 32_000, inner: 14_336, n_groups: Some(8), n_positions: 131_072 };
    config.assume("rope_theta", 1e6);
    config.assume("rms_norm_eps", 1e-5);
    config.only("router_jitter_noise", 0.0);
    config.only("output_router_logits", false);
    config.ignore(&["router_aux_loss_coef"]);
    let window = config.optional_count("sliding_window");
    let (n, n_chosen) = (config.count("num_local_experts", 8), config.count("num_experts_per_tok", 2));
    if n_chosen > n {
        let message = format!("`num_experts_per_tok` is {n_chosen}, more than the {n} of `num_local_experts`");
        config.fault(Diagnostic::new("config-value", message));
    }
    let model = read(config, defaults);
    let experts = Experts { n, n_chosen, inner: model.inner, activation: model.activation };
    Box::new(Llama { window: window.map(|n| (n, 0)), experts: Some(experts), ..model })
}

pub(super) fn read_qwen2(config: &mut Config) -> Box<dyn Model> {
    let defaults = Defaults { vocabulary: 151_936, inner: 22_016, n_groups: Some(32), n_positions: 32_768 };
    let first = config.get("max_window_layers").and_then(|n| n.as_u64()).unwrap_or(28);
    let window = config.count("sliding_window", 4096);
    let window = config.flag("use_sliding_window", false).then_some((window, first));
    let model = read(config, defaults);
    let layers = (0..model.n_layers).map(|layer| if window.is_some_and(|w| layer >= w.1) { "sliding" } else { "full" });
    let expected: Vec<String> = layers.map(|kind| format!("{kind}_attention")).collect();
    config.only("layer_types", expected);
    Box::new(Llama { window, has_qkv_bias: true, ..model })
}

/// The keys that all have.
fn read(config: &mut Config, defaults: Defaults) -> Llama {
    let [attention_dropout] = config.dropout([("attention_dropout", 0.0)]);
    config.padding(None);
    let width = config.count("hidden_size", 4096);
    let n_heads = config.count("num_attention_heads", 32);
    config.divides(("num_attention_heads", n_heads), ("hidden_size", width));
    let n_groups = defaults.n_groups.filter(|_| !config.is_null("num_key_value_heads")).unwrap_or(n_heads);
    let n_groups = config.count("num_key_value_heads", n_groups);
    config.divides(("num_key_value_heads", n_groups), ("num_attention_heads", n_heads));
    let heads = Heads { n_heads, n_groups, width: config.count("head_dim", width / n_heads.max(1)) };
    config.count("max_position_embeddings", defaults.n_positions);
    let rope = Rope::read_whole(config);
    Llama {
        vocabulary: config.count("vocab_size", defaults.vocabulary),
        width,
        inner: config.count("intermediate_size", defaults.inner),
        n_layers: config.count("num_hidden_layers", 32),
        heads,
        activation: activation(config, "hidden_act", "silu"),
        eps: config.number("rms_norm_eps", 1e-6),
        std: config.number("initializer_range", 0.02),
        rope,
        is_tied: config.flag("tie_word_embeddings", false),
        has_qkv_bias: false,
        has_output_bias: false,
        has_mlp_bias: false,
        window: None,
        experts: None,
        attention_dropout,
    }
}

/// What the layers share.
struct Shared {
    tables: [ValueId; 2],
    /// Hides the keys that are too far back, where the sequence is longer than the window.
    window: Option<ValueId>,
}

impl Model for Llama {
    fn tokens(&self) -> Tokens {
        Tokens::Any
    }

    fn build(&self, b: &mut Builder, sizes: Sizes) -> Result<(), Diagnostic> {
        let ids = tokens(b, "input_ids", sizes.batch, sizes.sequence);
        let (table, mut x) = b.embedding("model.embed_tokens", ids, [self.vocabulary, self.width], self.std)?;
        let tables = b.rotary_tables(&self.rope, sizes.sequence, self.rope.turned(self.heads.width))?;
        let window = self.window.filter(|&(n, first)| n < sizes.sequence && first < self.n_layers);
        let window = window.map(|(n, _)| b.window_mask(sizes.sequence, n)).transpose()?;
        let shared = Shared { tables, window };
        for layer in 0..self.n_layers {
            x = self.layer(b, x, &shared, layer)?;
        }
        x = b.rms_norm("model.norm", x, self.eps, 1.0)?;
        let logits = language_head(b, x, self.is_tied.then_some(table), self.vocabulary, self.std)?;
        b.output("logits", logits);
        Ok(())
    }
}

impl Llama {
    fn layer(&self, b: &mut Builder, x: ValueId, shared: &Shared, layer: u64) -> Built {
        let name = format!("model.layers.{layer}");
        let h = b.rms_norm(&format!("{name}.input_layernorm"), x, self.eps, 1.0)?;
        let h = self.attention(b, &format!("{name}.self_attn"), h, shared, layer)?;
        let x = b.add(x, h)?;
        let h = b.rms_norm(&format!("{name}.post_attention_layernorm"), x, self.eps, 1.0)?;
        let name = format!("{name}.mlp");
        let h = match self.experts {
            Some(experts) => b.experts(&name, h, experts, self.std)?,
            None => self.mlp(b, &name, h)?,
        };
        b.add(x, h)
    }

    fn attention(&self, b: &mut Builder, name: &str, x: ValueId, shared: &Shared, layer: u64) -> Built {
        let [q, k, v] = b.projections(name, x, self.heads, self.has_qkv_bias, self.std)?;
        let (q, k) = (b.turn(q, shared.tables)?, b.turn(k, shared.tables)?);
        let mask = shared.window.filter(|_| self.window.is_some_and(|(_, first)| layer >= first));
        let scale = (self.heads.width as f64).powf(-0.5);
        let scores = Scores { scale, causal: true, mask, dropout: self.attention_dropout };
        let mixed = b.attention([q, k, v], scores)?;
        let merged = b.merge_heads(mixed)?;
        b.linear(&format!("{name}.o_proj"), merged, self.width, self.has_output_bias, self.std)
    }

    /// down(activation(gate x) · up x)
    fn mlp(&self, b: &mut Builder, name: &str, x: ValueId) -> Built {
        let mut linear =
            |part: &str, x, n_out| b.linear(&format!("{name}.{part}"), x, n_out, self.has_mlp_bias, self.std);
        let (gate, up) = (linear("gate_proj", x, self.inner)?, linear("up_proj", x, self.inner)?);
        let gate = b.function(self.activation, gate)?;
        let gated = b.multiply(gate, up)?;
        b.linear(&format!("{name}.down_proj"), gated, self.width, self.has_mlp_bias, self.std)
    }
}
