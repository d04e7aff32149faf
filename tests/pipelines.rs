//! Pipelines train like PyTorch: every schedule, with every ZeRO level, tensor and sequence parallelism, recomputation, uneven stages and
//! worlds that are no power of two. A plan uses as much memory as it says, rank by rank; what cannot be cut is refused by name.
//!
//! `cargo test --test pipelines -- --nocapture` prints the table. With `GALVATRON_FIXTURES` it has more models, four layers deep.

#[path = "support/cells.rs"]
mod cells;
#[path = "support/fixture.rs"]
mod fixture;
#[path = "support/obedience.rs"]
mod obedience;
#[path = "support/plan.rs"]
mod plan;
#[path = "support/snapshot.rs"]
mod snapshot;
#[path = "support/table.rs"]
mod table;

use cells::check_cells;
use fixture::Fixture;
use galvatron_ir::types::DType;
use plan::Order;

/// Texts of `strategy.toml` with the number of ranks on which they are tried.
const PINS: [(&str, u32); 44] = [
    ("pp = 2\nmicro_batches = 1", 2),
    ("pp = 2\nmicro_batches = 2", 2),
    ("pp = 2\nmicro_batches = 4", 2),
    ("pp = 2\nschedule = \"gpipe\"\nmicro_batches = 4", 2),
    ("pp = 2\nschedule = \"interleaved\"\nvirtual_stages = 2\nmicro_batches = 2", 2),
    ("pp = 2\nschedule = \"interleaved\"\nvirtual_stages = 2\nmicro_batches = 4", 2),
    ("pp = 2\nschedule = \"interleaved\"\nvirtual_stages = 2\nmicro_batches = 1", 2),
    ("pp = 2\nschedule = \"zero-bubble\"\nmicro_batches = 4", 2),
    ("pp = 2\nschedule = \"zero-bubble-2p\"\nmicro_batches = 4", 2),
    ("pp = 4\nschedule = \"zero-bubble\"\nmicro_batches = 4", 4),
    ("pp = 4\nschedule = \"zero-bubble-2p\"\nmicro_batches = 4", 4),
    ("pp = 2\ndp = 2\nzero = 2\nschedule = \"zero-bubble\"\nrecompute = \"full\"\nmicro_batches = 2", 4),
    ("pp = 2\ntp = 2\nschedule = \"zero-bubble-2p\"\nmicro_batches = 2", 4),
    ("pp = 2\nrecompute = \"full\"\nmicro_batches = 2", 2),
    ("pp = 2\nrecompute = \"selective\"\nmicro_batches = 2", 2),
    ("pp = 2\nstage_layers = [1, 3]\nmicro_batches = 2", 2),
    ("pp = 2\nstage_layers = [1, 1]\nmicro_batches = 2", 2),
    ("pp = 2\nstage_layers = [0, 2]\nmicro_batches = 2", 2),
    ("pp = 2\nstage_layers = [1, 1, 1, 1]\nmicro_batches = 2", 2),
    ("pp = 3\nmicro_batches = 2", 3),
    ("pp = 3\nstage_layers = [1, 2, 1]\nmicro_batches = 4", 3),
    ("pp = 4\nmicro_batches = 4", 4),
    ("pp = 4\nmicro_batches = 8", 4),
    ("pp = 4\nschedule = \"gpipe\"\nmicro_batches = 4", 4),
    ("pp = 2\ndp = 2\nzero = 0\nmicro_batches = 2", 4),
    ("pp = 2\ndp = 2\nzero = 1\nmicro_batches = 2", 4),
    ("pp = 2\ndp = 2\nzero = 2\nmicro_batches = 2", 4),
    ("pp = 2\ndp = 2\nzero = 3\nmicro_batches = 2", 4),
    ("pp = 2\ndp = 2\nzero = 3\nrecompute = \"full\"\nmicro_batches = 2", 4),
    ("pp = 2\ndp = 2\nschedule = \"interleaved\"\nzero = 2\nmicro_batches = 2", 4),
    ("pp = 2\ntp = 2\nmicro_batches = 2", 4),
    ("pp = 2\ntp = 2\nsequence = \"megatron\"\nmicro_batches = 2", 4),
    ("pp = 2\ntp = 2\nschedule = \"gpipe\"\nrecompute = \"selective\"\nmicro_batches = 2", 4),
    ("pp = 2\nmicro_batches = 2", 4),
    ("pp = 3\ndp = 2\nzero = 1\nmicro_batches = 2", 6),
    ("pp = 2\ndp = 2\ntp = 2\nzero = 1\nmicro_batches = 2", 8),
    ("pp = 2\ntp = 4\nmicro_batches = 2", 8),
    ("pp = 4\ndp = 2\nzero = 3\nmicro_batches = 4", 8),
    ("pp = 8\nmicro_batches = 4", 8),
    ("pp = 2\nulysses = 2\nmicro_batches = 2", 4),
    ("pp = 2\ncp = 2\nmicro_batches = 2", 4),
    ("pp = 2\ndp = 2\nulysses = 2\nzero = 3\nmicro_batches = 2", 8),
    ("pp = 3\nmicro_batches = 2", 4),
    ("pp = 2\n[[layers]]\nrange = [0, 1]\ntp = 2\n[[layers]]\nrange = [1, 2]\ndp = 2\nzero = 3", 4),
];

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
    PINS.iter().map(move |&(strategy, ranks)| Order { fixture, dialect, optimizer, ranks, strategy, compute })
}
