//! Pipelines train like PyTorch: every schedule, with every ZeRO level, tensor and sequence parallelism, recomputation, uneven stages and
//! worlds that are no power of two. A plan uses as much memory as it says, rank by rank; what cannot be cut is refused by name.
//!
//! `cargo test --test pipelines -- --nocapture` prints the table. With `GALVATRON_FIXTURES` it has more models, four layers deep.

#[path = "support/allocator.rs"]
mod allocator;
#[path = "support/cells.rs"]
mod cells;
#[path = "support/fixture.rs"]
mod fixture;
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
use galvatron_ir::types::DType;
use pins::STAGES;
use plan::Order;

#[test]
fn pipelines_train_like_pytorch() {
    check_models(&["gpt2"]);
}

/// Models of the whole set: four layers, eight heads and eight samples a step, or several kinds of layers.
#[test]
fn deep_pipelines_train_like_pytorch() {
    if std::env::var_os("GALVATRON_FIXTURES").is_some() {
        check_models(&["gpt2_deep", "llama_deep", "bert_deep", "t5_deep", "vit", "swin"]);
    }
}

/// Mixtures of experts in stages.
#[test]
fn pipelines_of_experts_train_like_pytorch() {
    check_models(&["mixtral"]);
}

fn check_models(models: &[&str]) {
    let fixtures: Vec<Fixture> = models.iter().map(|model| Fixture::open(model)).collect();
    let orders: Vec<Order<'_>> = fixtures.iter().flat_map(orders).collect();
    check_cells(&orders, models, &["adamw"], "refused-stages");
}

fn orders<'a>(fixture: &'a Fixture) -> impl Iterator<Item = Order<'a>> {
    let (dialect, optimizer, compute) = ("keep20", "adamw", DType::F32);
    STAGES.iter().map(move |&(strategy, ranks)| Order { fixture, dialect, optimizer, ranks, strategy, compute })
}
