//! Spellings of one parameter: checkpoints differ in prefixes and in the words of older versions.

/// Words of a name and the words that newer versions of the same model have for them.
const RENAMED: [(&str, &str); 12] = [
    ("encoder.layer.", "layers."),
    (".attention.attention.query.", ".attention.q_proj."),
    (".attention.attention.key.", ".attention.k_proj."),
    (".attention.attention.value.", ".attention.v_proj."),
    (".attention.self.query.", ".attention.q_proj."),
    (".attention.self.key.", ".attention.k_proj."),
    (".attention.self.value.", ".attention.v_proj."),
    (".attention.self.relative_position_bias_table", ".attention.relative_position_bias.relative_position_bias_table"),
    (".attention.output.dense.", ".attention.o_proj."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
    ("embed_out.", "lm_head."),
];

/// Words of a norm in older versions.
const OLD_NORMS: [(&str, &str); 2] = [("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")];

/// Prefixes under which a model stands in another one, at most.
const MAX_PREFIXES: usize = 2;

/// The names under which a checkpoint may store a parameter, likeliest first: the name itself, its newer and older
/// spellings, and each of them without the leading words that name the model.
pub fn spellings(name: &str) -> Vec<String> {
    let newer = RENAMED.iter().fold(name.to_string(), |name, (old, new)| name.replace(old, new));
    let older = OLD_NORMS.iter().fold(name.to_string(), |name, (word, old)| name.replace(word, old));
    let mut all: Vec<String> = Vec::new();
    for n_prefixes in 0..=MAX_PREFIXES {
        for spelling in [name, &newer, &older] {
            let without = spelling.splitn(n_prefixes + 1, '.').nth(n_prefixes).unwrap_or_default();
            if without.contains('.') && !all.iter().any(|n| n == without) {
                all.push(without.to_string());
            }
        }
    }
    if all.is_empty() { vec![name.to_string()] } else { all }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_and_older_words_are_known() {
        let has = |name: &str, spelling: &str| {
            let all = spellings(name);
            assert!(all[0] == name && all.iter().any(|n| n == spelling), "{all:?}");
        };
        has("transformer.wte.weight", "wte.weight");
        has("bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.gamma");
        has("vit.encoder.layer.3.attention.attention.query.bias", "vit.layers.3.attention.q_proj.bias");
        has("vit.encoder.layer.3.attention.output.dense.bias", "vit.layers.3.attention.o_proj.bias");
        has("swin.encoder.layers.0.blocks.1.output.dense.weight", "swin.encoder.layers.0.blocks.1.mlp.fc2.weight");
        has("embed_out.weight", "lm_head.weight");
        assert_eq!(spellings("w"), ["w"]);
    }

    #[test]
    fn a_parameter_keeps_a_word_before_its_last() {
        assert!(!spellings("lm_head.weight").contains(&"weight".to_string()));
    }
}
