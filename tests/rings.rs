//! Context parallelism around a ring trains like PyTorch, alone and together with data parallelism, ZeRO, recomputation, stages and
//! micro-batches, and so does the kind that gathers. A plan uses as much memory as it says, rank by rank; what has no ring is refused by name.
//!
//! `cargo test --test rings -- --nocapture` prints the table. With `GALVATRON_FIXTURES` it has more models.

#[path = "support/allocator.rs"]
mod allocator;
#[path = "support/cells.rs"]
mod cells;
#[path = "support/fixture.rs"]
mod fixture;
#[path = "support/kinds.rs"]
mod kinds;
#[path = "support/obedience.rs"]
mod obedience;
#[path = "support/pins.rs"]
mod pins;
#[path = "support/plan.rs"]
mod plan;
#[path = "support/snapshot.rs"]
mod snapshot;
#[path = "support/table.rs"]
mod table;

use cells::check_cells;
use fixture::Fixture;
use galvatron::config::cluster::parse_cluster;
use galvatron::config::strategy::parse_strategy;
use galvatron::config::train::parse_recipe;
use galvatron::driver::{Compilation, compile, pins_of};
use galvatron_ir::op::Op;
use galvatron_ir::types::DType;
use galvatron_passes::search::ContextKind;
use kinds::{check_bf16, check_written_down, order};
use pins::RINGS;
use plan::Order;
use std::path::Path;

#[test]
fn rings_train_like_pytorch() {
    check_models(&["gpt2"]);
}

/// Models of the whole set: grouped queries, masks, two kinds of attention, windows, experts.
#[test]
fn rings_of_other_models_train_like_pytorch() {
    if std::env::var_os("GALVATRON_FIXTURES").is_some() {
        check_models(&["gpt2_deep", "llama_deep", "bert_deep", "t5_deep", "vit", "swin", "mixtral"]);
    }
}

fn check_models(models: &[&str]) {
    let fixtures: Vec<Fixture> = models.iter().map(|model| Fixture::open(model)).collect();
    let orders: Vec<Order<'_>> = fixtures.iter().flat_map(orders).collect();
    check_cells(&orders, models, &["adamw"], "refused-rings");
}

fn orders<'a>(fixture: &'a Fixture) -> impl Iterator<Item = Order<'a>> {
    RINGS.iter().map(move |&(strategy, ranks)| order(fixture, strategy, ranks, DType::F32))
}

#[test]
fn the_kind_of_a_ring_is_written_down() {
    let fixture = Fixture::open("gpt2");
    let kinds = ["gather", "ring", "zigzag"].into_iter();
    for (kind, (ranks, tp)) in kinds.flat_map(|kind| [(2, ""), (4, "tp = 2\n")].map(|beside| (kind, beside))) {
        let pin = format!("cp_kind = \"{kind}\"");
        check_written_down(&fixture, &format!("cp = 2\n{tp}{pin}"), ranks, &pin);
    }
}

#[test]
fn rings_of_bf16_train_like_one_rank() {
    check_bf16(&Fixture::open("gpt2"), 2, ["cp = 2\ncp_kind = \"ring\"", "cp = 2\ncp_kind = \"zigzag\""]);
}

/// A LLaMA of two layers whose sequence lies over eight GPUs of a node: what the search chooses for a length.
fn kind_for(sequence: u32) -> ContextKind {
    let config = r#"{"model_type": "llama", "hidden_size": 2048, "intermediate_size": 4096, "num_hidden_layers": 2,
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 1024, "max_position_embeddings": 1048576}"#;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("rings-{sequence}"));
    std::fs::create_dir_all(&folder).expect("the folder is made");
    let model = folder.join("config.json");
    std::fs::write(&model, config).expect("the configuration is written");
    let cluster = include_str!("../examples/clusters/a100-80gb-8.toml");
    let keys = ["batch.global=1".into(), "precision.compute=bf16".into(), format!("batch.sequence={sequence}")];
    let pins = "dp = 1\ncp = 8\nmicro_batches = 1\nrecompute = \"selective\"";
    let what = Compilation {
        model: &model,
        cluster: &parse_cluster(cluster).expect("the cluster is described well"),
        recipe: &parse_recipe("", &keys).expect("the recipe is right"),
        pins: &pins_of(&parse_strategy(pins).expect("the pins are well formed")).expect("the pins are known"),
        profile: None,
        retie: true,
        stop_after: None,
        verify_each: true,
    };
    let compiled = compile(&what, &mut |_, _| {}).unwrap_or_else(|_| panic!("{sequence} positions are planned"));
    let found = compiled.found.expect("the search ran");
    let layers: Vec<_> = found.decision.segments.iter().filter(|s| s.cp > 1).map(|s| s.cp_kind).collect();
    assert!(layers.len() >= 2 && layers.iter().all(|kind| *kind == layers[0]), "{layers:?}");
    layers[0]
}

/// Short blocks are computed sooner than their messages are sent one by one; long ones hide them, and then what a causal rule leaves
/// undone outweighs the exchange of chunks.
#[test]
fn the_search_chooses_the_kind_by_its_cost() {
    assert_eq!([1024, 131_072].map(kind_for), [ContextKind::Gather, ContextKind::Zigzag]);
}

/// No rank holds all keys: the plan has rings where the other kind has gathers.
#[test]
fn a_ring_gathers_no_keys() {
    let fixture = Fixture::open("gpt2");
    let kinds = |strategy| {
        let module = order(&fixture, strategy, 2, DType::F32).compile().expect("the pins fit").module;
        let nodes: Vec<&Op> = module.chunks[0].nodes().map(|(_, node)| &module.chunks[0].graph.node(node).op).collect();
        let of = |wanted: fn(&Op) -> bool| nodes.iter().filter(|op| wanted(op)).count();
        let rings = of(|op| matches!(op, Op::RingAttention(_) | Op::RingAttentionGrad(_)));
        let dense = of(|op| matches!(op, Op::Attention(_) | Op::AttentionGrad(_)));
        (rings, dense)
    };
    assert_eq!(kinds("cp = 2\ncp_kind = \"ring\"\nrecompute = \"none\""), (4, 0));
    assert_eq!(kinds("cp = 2\ncp_kind = \"gather\"\nrecompute = \"none\""), (0, 4));
}
