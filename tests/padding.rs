//! What a tensor degree does not divide is padded, and trains like PyTorch all the same: heads, inner widths, classes. A plan uses as much memory
//! as it says, rank by rank; what is saved has no padding. What cannot be padded is refused by name.
//!
//! `cargo test --test padding -- --nocapture` prints the table. With `GALVATRON_FIXTURES` it has more models.

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
use fixture::{Fixture, N_STEPS};
use galvatron::config::cluster::parse_cluster;
use galvatron::config::strategy::{parse_strategy, to_toml};
use galvatron::config::train::parse_recipe;
use galvatron::driver::{Compilation, Compiled, compile, pins_of, strategy_file};
use galvatron_backends::exec::{Flow, RunOptions, Trained};
use galvatron_ir::types::DType;
use kinds::{check_bf16, check_written_down, order};
use pins::PADDED;
use plan::Order;
use std::path::Path;

#[test]
fn padded_plans_train_like_pytorch() {
    check_models(&["gpt2", "mixtral"]);
}

/// Models of the whole set: grouped queries, trained biases of positions, images, windows of images.
#[test]
fn padded_plans_of_other_models_train_like_pytorch() {
    if std::env::var_os("GALVATRON_FIXTURES").is_some() {
        check_models(&["llama", "bert", "t5", "vit", "swin"]);
    }
}

fn check_models(models: &[&str]) {
    let fixtures: Vec<Fixture> = models.iter().map(|model| Fixture::open(model)).collect();
    let orders: Vec<Order<'_>> = fixtures.iter().flat_map(orders).collect();
    check_cells(&orders, models, &["adamw"], "refused-padded");
}

fn orders<'a>(fixture: &'a Fixture) -> impl Iterator<Item = Order<'a>> {
    PADDED.iter().map(move |&(strategy, ranks)| order(fixture, strategy, ranks, DType::F32))
}

#[test]
fn padded_plans_of_bf16_train_like_one_rank() {
    check_bf16(&Fixture::open("gpt2"), 3, ["tp = 3", "tp = 3\nrecompute = \"full\""]);
}

#[test]
fn what_is_written_down_is_padded_again() {
    check_written_down(&Fixture::open("gpt2"), "tp = 3", 3, "tp = 3");
}

/// The plan of a LLaMA of fifteen heads on the eight GPUs of a node, for one sequence of odd length: only heads and widths can be cut.
fn fifteen_heads(pins: &str) -> (Compiled, Option<String>) {
    let config = r#"{"model_type": "llama", "hidden_size": 1920, "intermediate_size": 7680, "num_hidden_layers": 2,
        "num_attention_heads": 15, "num_key_value_heads": 15, "vocab_size": 1024, "max_position_embeddings": 8191}"#;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fifteen-heads");
    std::fs::create_dir_all(&folder).expect("the folder is made");
    let model = folder.join("config.json");
    std::fs::write(&model, config).expect("the configuration is written");
    let cluster = include_str!("../examples/clusters/a100-80gb-8.toml");
    let keys = ["batch.global=1", "batch.sequence=8191", "precision.compute=bf16"].map(String::from);
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
    let compiled = compile(&what, &mut |_, _| {}).unwrap_or_else(|_| panic!("`{pins}` is planned"));
    let note = compiled.notes.iter().find(|note| note.contains("padded")).cloned();
    (compiled, note)
}

fn written(compiled: &Compiled) -> String {
    to_toml(&strategy_file(compiled, compiled.found.as_ref().expect("the search ran")))
}

/// Heads that no degree divides are padded by the search if that is faster, which the strategy that it writes says.
#[test]
fn the_search_pads_heads_where_that_is_faster() {
    let step_ns = |compiled: &Compiled| compiled.found.as_ref().expect("the search ran").cost.step_ns;
    let (searched, note) = fifteen_heads("");
    let note = note.expect("heads are padded");
    assert!(note.starts_with("the extent h 15 of ") && note.ends_with(" is padded to 16"), "{note}");
    let (whole, none) = fifteen_heads("pad = 1");
    assert_eq!(none, None);
    assert_eq!(fifteen_heads(&written(&whole)).1, None);
    assert!(step_ns(&searched) < step_ns(&whole), "{} and {} ns", step_ns(&searched), step_ns(&whole));
    let written = written(&searched);
    assert!(written.contains("pad = 8"), "{written}");
    assert_eq!(step_ns(&fifteen_heads(&written).0), step_ns(&searched));
}

/// What a plan has trained, with its notes.
fn trained(fixture: &Fixture, strategy: &str, ranks: u32) -> (Trained, Vec<String>) {
    let order = Order { optimizer: "sgd_momentum", ..order(fixture, strategy, ranks, DType::F32) };
    let compiled = order.compile().expect("the pins fit");
    let options = RunOptions { steps: N_STEPS, threads: Some(1), collect: true, ..RunOptions::default() };
    let observer = &mut |_| Flow::Continue;
    let report = galvatron_backends::run(&compiled.module, &options, fixture.data(), &order.weights(), observer);
    (report.expect("the plan runs").trained.expect("it was asked for"), compiled.notes)
}

/// Parameters and optimizer states are those of a plan without padding, in the shapes in which they were stored.
#[test]
fn what_is_saved_has_no_padding() {
    let fixture = Fixture::open("gpt2");
    let (padded, notes) = trained(&fixture, "tp = 3", 3);
    let is_padded = "the extent h 4 of `transpose_3` and of another op is padded to 6";
    assert!(notes.iter().any(|note| note == is_padded), "{notes:?}");
    let (whole, notes) = trained(&fixture, "tp = 1", 1);
    assert!(!notes.iter().any(|note| note.contains("padded")), "{notes:?}");
    for (padded, whole) in [(padded.parameters, whole.parameters), (padded.states, whole.states)] {
        assert!(padded.keys().eq(whole.keys()));
        for (name, tensor) in &whole {
            assert_eq!(tensor.shape, padded[name].shape, "{name}");
            let far =
                tensor.data.iter().zip(&padded[name].data).find(|(a, b)| (**a - **b).abs() > 1e-5 * b.abs().max(1.0));
            assert_eq!(far, None, "{name}");
        }
    }
}
