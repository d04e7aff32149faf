//! Configurations become models, or are refused by name.

use super::*;
use galvatron_ir::op::Op;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Imports a configuration from a folder of its own; the shown faults where there are some.
fn import_text(text: &str, keys: &[&str], files: &[(&str, Vec<u8>)]) -> Result<Imported, String> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("galvatron-config-{}-{n}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(CONFIG), text).unwrap();
    files.iter().for_each(|(name, bytes)| std::fs::write(folder.join(name), bytes).unwrap());
    let keys: Vec<String> = keys.iter().map(|key| key.to_string()).collect();
    let recipe = crate::config::train::parse_recipe("", &keys).expect("the test's keys are right");
    let imported = super::super::import(&folder, &ImportOptions { recipe: &recipe, retie: true });
    std::fs::remove_dir_all(&folder).unwrap();
    imported.map_err(|faults| faults.iter().map(|f| format!("{f}\n")).collect())
}

/// A small model of a family, with more keys.
fn small(model_type: &str, more: &str) -> Result<Imported, String> {
    let sizes = match model_type {
        "gpt2" => r#""vocab_size": 16, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2"#,
        "t5" => r#""vocab_size": 16, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 2, "num_heads": 2"#,
        "swin" => {
            r#""image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": 4"#
        }
        _ => {
            r#""vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
               "intermediate_size": 8, "num_key_value_heads": 1"#
        }
    };
    let more = if more.is_empty() { String::new() } else { format!(", {more}") };
    let text = format!(r#"{{"model_type": "{model_type}", {sizes}{more}}}"#);
    import_text(&text, &["batch.global=2", "batch.sequence=4"], &[])
}

fn fault(model_type: &str, more: &str) -> String {
    small(model_type, more).err().unwrap_or_else(|| panic!("`{more}` is taken"))
}

fn note(model_type: &str, more: &str) -> String {
    small(model_type, more).unwrap().notes.join("\n")
}

#[test]
fn unknown_types_are_refused_with_the_known_ones() {
    let unknown = import_text(r#"{"model_type": "mamba"}"#, &[], &[]).unwrap_err();
    assert!(unknown.starts_with("error[config-type]: models of type `mamba` are not built"), "{unknown}");
    assert!(unknown.contains("gpt2, llama, mistral, mixtral, qwen2"), "{unknown}");
    assert!(import_text(r#"{"vocab_size": 3}"#, &[], &[]).unwrap_err().contains("has no `model_type`"));
    assert!(import_text("{", &[], &[]).unwrap_err().starts_with("error[config-file]"));
}

#[test]
fn keys_that_are_not_supported_are_refused_by_name() {
    for (model_type, more, expected) in [
        ("gpt2", r#""add_cross_attention": true"#, "error[config-key]: `add_cross_attention` is true"),
        ("gpt2", r#""activation_function": "mish""#, "error[config-key]: `activation_function` is \"mish\""),
        ("gpt2", r#""quantization_config": {"bits": 4}"#, "`quantization_config`"),
        ("gpt2", r#""n_head": 3"#, "error[config-value]: `n_embd` is 8, which `n_head`, 3, does not divide"),
        ("gpt2", r#""architectures": ["GPT2ForSequenceClassification"]"#, "error[config-architecture]"),
        ("llama", r#""rope_scaling": {"rope_type": "dynamic", "factor": 2.0}"#, "type `dynamic`"),
        ("llama", r#""partial_rotary_factor": 0.5"#, "`partial_rotary_factor` is 0.5"),
        ("llama", r#""num_key_value_heads": 3"#, "`num_attention_heads` is 2, which `num_key_value_heads`, 3"),
        ("llama", r#""hidden_size": "wide""#, "`hidden_size` is \"wide\", not a positive integer"),
        ("llama", r#""hidden_size": 9, "num_attention_heads": 3, "num_key_value_heads": 3"#, "3 elements of each head"),
        ("mistral", r#""layer_types": ["full_attention"]"#, "`layer_types`"),
        (
            "mixtral",
            r#""num_local_experts": 2, "num_experts_per_tok": 3"#,
            "`num_experts_per_tok` is 3, more than the 2",
        ),
        ("mixtral", r#""output_router_logits": true"#, "`output_router_logits` is true"),
        ("mixtral", r#""router_jitter_noise": 0.1"#, "`router_jitter_noise` is 0.1"),
        ("bert", r#""is_decoder": true"#, "`is_decoder` is true"),
        ("bert", r#""position_embedding_type": "relative_key""#, "`position_embedding_type` is \"relative_key\""),
        ("phi", r#""tie_word_embeddings": true"#, "`tie_word_embeddings` is true"),
        ("t5", r#""feed_forward_proj": "gated-mish""#, "`feed_forward_proj` is \"gated-mish\""),
        ("swin", r#""window_size": 3"#, "no whole windows of 3"),
    ] {
        let found = fault(model_type, more);
        assert!(found.contains(expected), "{more}: {found}");
    }
}

#[test]
fn what_is_left_out_or_not_known_is_noted() {
    assert!(note("gpt2", "").contains("dropout is off; the configuration has `resid_pdrop` = 0.1"));
    assert!(note("gpt2", r#""colour": 3"#).contains("say nothing here: `colour`"));
    assert!(note("llama", r#""pad_token_id": 3"#).contains("the embedding of token 3, `pad_token_id`"));
    assert!(note("bert", "").contains("token 0") && !note("bert", r#""pad_token_id": null"#).contains("token 0"));
    assert!(
        !note("llama", "").contains("pad_token_id") && !note("t5", r#""pad_token_id": 0"#).contains("pad_token_id")
    );
    assert!(note("llama", r#""architectures": ["LlamaModel"]"#).contains("built is a `LlamaForCausalLM`"));
}

#[test]
fn batch_and_sequence_come_from_the_recipe() {
    let text = r#"{"model_type": "gpt2", "n_positions": 8}"#;
    let missing = import_text(text, &[], &[]).unwrap_err();
    assert!(missing.contains("batch.global=N") && missing.contains("batch.sequence=N"), "{missing}");
    let long = import_text(text, &["batch.global=1", "batch.sequence=9"], &[]).unwrap_err();
    assert!(long.contains("`batch.sequence` is 9, but the model has 8 positions"), "{long}");
    let vit = import_text(r#"{"model_type": "vit", "num_hidden_layers": 1}"#, &["batch.global=3"], &[]).unwrap();
    assert_eq!((vit.global_batch, vit.sequence), (3, 0));
}

#[test]
fn parameters_start_as_the_configuration_says() {
    let module = small("gpt2", r#""initializer_range": 0.5"#).unwrap().module;
    let start = |name: &str| {
        let found = module.initializers.iter().find(|i| i.name == name);
        let start = found.and_then(|i| i.start).unwrap_or_else(|| panic!("`{name}` is there"));
        (start.mean.get(), start.std.get())
    };
    assert_eq!(start("transformer.wte.weight"), (0.0, 0.5));
    assert_eq!(start("transformer.h.1.attn.c_proj.weight"), (0.0, 0.25));
    assert_eq!(start("transformer.h.1.attn.c_proj.bias"), (0.0, 0.0));
    assert_eq!(start("transformer.ln_f.weight"), (1.0, 0.0));
}

#[test]
fn windows_that_hold_the_sequence_need_no_mask() {
    let has_mask = |window: &str| {
        let program = small("mistral", &format!(r#""sliding_window": {window}"#)).unwrap().module.program;
        program.body.iter().any(|&n| matches!(program.graph.node(n).op, Op::CausalMask(_)))
    };
    assert!(has_mask("3") && !has_mask("4") && !has_mask("null"));
}

#[test]
fn globs_decide_what_is_trained() {
    let text = r#"{"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1}"#;
    let keys = ["batch.global=1", "batch.sequence=4", "parameters.frozen=[\"*.wpe.*\"]"];
    let module = import_text(text, &keys, &[]).unwrap().module;
    let frozen = module.program.weights.iter().filter(|w| !w.trainable);
    let names: Vec<&str> = frozen.map(|w| module.initializers[w.initializer].name.as_str()).collect();
    assert_eq!(names, ["transformer.wpe.weight"]);
    let keys = ["batch.global=1", "batch.sequence=4", "parameters.frozen=[\"x\"]"];
    assert!(import_text(text, &keys, &[]).unwrap_err().contains("`x`, which matches no parameter"));
}

/// A checkpoint with one tensor.
fn checkpoint(name: &str, shape: &[usize]) -> Vec<u8> {
    let bytes = vec![0; 2 * shape.iter().product::<usize>()];
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F16, shape.to_vec(), &bytes).unwrap();
    safetensors::serialize([(name, view)], None).unwrap()
}

#[test]
fn a_checkpoint_beside_the_configuration_is_used() {
    let text = r#"{"model_type": "gpt2", "vocab_size": 16, "n_embd": 8, "n_head": 2, "n_layer": 1}"#;
    let keys = ["batch.global=1", "batch.sequence=4"];
    let import = |shape: &[usize]| import_text(text, &keys, &[("model.safetensors", checkpoint("wte.weight", shape))]);
    let imported = import(&[16, 8]).unwrap();
    let table = &imported.module.initializers[0];
    assert!(table.file.ends_with("model.safetensors") && table.offset > 8, "{table:?}");
    assert!(imported.module.initializers[1].file.is_empty());
    assert!(
        imported.notes.iter().any(|n| n.contains("15 parameters are not in the checkpoint")),
        "{:?}",
        imported.notes
    );
    let fault = import(&[8, 16]).unwrap_err();
    assert!(fault.contains("error[config-weights]: `transformer.wte.weight` has shape [8, 16]"), "{fault}");
}

#[test]
fn t5_has_a_head_of_its_own_only_where_a_checkpoint_has_one() {
    let text = r#"{"model_type": "t5", "vocab_size": 16, "d_model": 8, "num_layers": 1, "tie_word_embeddings": false}"#;
    let keys = ["batch.global=1", "batch.sequence=4", "dims.decoder_sequence=3"];
    let has_head = |files: &[(&str, Vec<u8>)]| {
        let module = import_text(text, &keys, files).unwrap().module;
        module.initializers.iter().any(|i| i.name == "lm_head.weight")
    };
    assert!(!has_head(&[]) && has_head(&[("model.safetensors", checkpoint("lm_head.weight", &[16, 8]))]));
}
