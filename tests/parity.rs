//! The parity table: every plan trains like PyTorch, whatever the model, the exporter, the optimizer, the ranks and the pins.
//! A plan obeys its pins and uses as much memory as it says; pins that cannot be met are refused with a known code.
//!
//! `cargo test --test parity -- --nocapture` prints the table. With `GALVATRON_FIXTURES` it has more models and dialects.

#[path = "support/allocator.rs"]
mod allocator;
#[path = "support/cells.rs"]
mod cells;
#[path = "support/dialects.rs"]
mod dialects;
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

use cells::{check_cells, train};
use dialects::{dialects, follows};
use fixture::Fixture;
use galvatron_ir::types::DType;
use obedience::disobeyed;
use pins::{EVERYWHERE, EXPERTS, MIXED, WHOLE_LAYERS};
use plan::Order;
use safetensors::{Dtype, SafeTensors};
use table::name;

const OPTIMIZERS: [&str; 3] = ["sgd", "sgd_momentum", "adamw"];

#[test]
fn every_plan_trains_like_pytorch() {
    check_models(&models());
}

/// The architectures beyond, on a part of the table: see [`is_run`].
#[test]
fn other_architectures_train_like_pytorch() {
    if is_whole_set() {
        check_models(&ARCHITECTURES);
    }
}

fn check_models(models: &[&str]) {
    let fixtures: Vec<Fixture> = models.iter().map(|model| Fixture::open(model)).collect();
    let orders: Vec<Order<'_>> = fixtures.iter().flat_map(orders).collect();
    check_cells(&orders, models, &OPTIMIZERS, "refused-pins");
}

/// Mixtures of experts, also with pinned experts.
#[test]
fn mixtures_of_experts_train_like_pytorch() {
    check_models(&["mixtral"]);
}

/// A model without experts refuses to lay them anywhere.
#[test]
fn experts_are_pinned_where_there_are_any() {
    let fixture = Fixture::open("gpt2");
    let order = |strategy| {
        let (dialect, optimizer) = ("keep20", "adamw");
        Order { fixture: &fixture, dialect, optimizer, ranks: 2, strategy, compute: DType::F32 }
    };
    for strategy in ["ep = 2", "ep_kind = \"gather\"", "[head]\nep = 2", "[[layers]]\nrange = [0, 1]\nep = 2"] {
        let codes: Vec<_> = order(strategy).compile().err().unwrap_or_default().iter().map(|f| f.code).collect();
        assert_eq!(codes, ["no-experts"], "{strategy}");
    }
    assert!(order("ep = 1").compile().is_ok());
    let mixture = Fixture::open("mixtral");
    for strategy in ["[embedding]\nep = 2", "[head]\nep = 2"] {
        let faults = Order { fixture: &mixture, ..order(strategy) }.compile().err().unwrap_or_default();
        assert_eq!(faults.iter().map(|f| f.code).collect::<Vec<_>>(), ["no-experts"], "{strategy}");
    }
}

/// Whether the whole set of fixtures is there.
fn is_whole_set() -> bool {
    std::env::var_os("GALVATRON_FIXTURES").is_some()
}

/// Models of the whole set that are small: rotary positions and grouped queries, an encoder with masks, an encoder and decoder
/// with trained biases of positions, images, windows of images.
const ARCHITECTURES: [&str; 5] = ["llama", "bert", "t5", "vit", "swin"];

fn models() -> Vec<&'static str> {
    if is_whole_set() { vec!["mlp", "gpt2", "gpt2_deep", "llama_deep"] } else { vec!["mlp", "gpt2"] }
}

/// The dialects that can follow the reference; the first with every optimizer, the others with one.
fn orders(fixture: &Fixture) -> Vec<Order<'_>> {
    let mut orders = Vec::new();
    for dialect in dialects(fixture).filter(|d| follows(fixture, d)) {
        for optimizer in OPTIMIZERS {
            let of_experts = if fixture.model == "mixtral" { &EXPERTS[..] } else { &[] };
            for (strategy, worlds) in WHOLE_LAYERS.iter().chain(of_experts).copied() {
                let order = |&ranks| Order { fixture, dialect, optimizer, ranks, strategy, compute: DType::F32 };
                orders.extend(worlds.iter().map(order).filter(is_run));
            }
        }
    }
    orders
}

/// Of the whole set everything, but for [`ARCHITECTURES`], which have all pins in one dialect and the usual ones in each.
/// Without the whole set only a part of the table is run: of all dialects but one the plans without pins and a few others.
fn is_run(order: &Order<'_>) -> bool {
    let is_first = order.dialect == "keep20" && order.optimizer == "adamw";
    // How a sequence is cut does not depend on the exporter.
    if ["ulysses", "cp"].iter().any(|key| order.strategy.contains(key)) {
        return is_first;
    }
    if ARCHITECTURES.contains(&order.fixture.model.as_str()) {
        return is_first || (EVERYWHERE.contains(&order.strategy) && order.ranks <= 4);
    }
    let is_short = ["", MIXED].contains(&order.strategy) || order.strategy.contains("zero = 3");
    is_whole_set() || order.dialect == "keep20" || (order.optimizer == "adamw" && is_short)
}

#[test]
fn disobedience_is_seen() {
    let fixture = Fixture::open("gpt2");
    let order = |strategy| Order {
        fixture: &fixture,
        dialect: "keep20",
        optimizer: "sgd_momentum",
        ranks: 4,
        strategy,
        compute: DType::F32,
    };
    for (made, pinned) in [
        ("dp = 4", "dp = 2"),
        ("dp = 4", "tp = 4"),
        ("tp = 4", "dp = 4"),
        ("dp = 2\ntp = 2", "tp = 4"),
        ("dp = 4\nzero = 0", "dp = 4\nzero = 1"),
        ("dp = 4\nzero = 1", "dp = 4\nzero = 0"),
        ("dp = 2\ntp = 2\nzero = 1\nmicro_batches = 2", "dp = 2\ntp = 2\nzero = 2"),
        ("dp = 4\nzero = 2", "dp = 4\nzero = 3"),
        ("tp = 4\nsequence = \"none\"", "sequence = \"megatron\""),
        ("recompute = \"none\"", "recompute = \"selective\""),
        ("recompute = \"selective\"", "recompute = \"full\""),
        ("recompute = \"selective\"", "recompute = \"none\""),
        ("micro_batches = 1", "micro_batches = 2"),
        (MIXED, "tp = 4"),
        (MIXED, "dp = 4"),
    ] {
        let compiled = order(made).compile().expect("the pins can be met");
        let pins = order(pinned).pins().expect("the strategy can be read");
        assert!(!disobeyed(&compiled, &pins).is_empty(), "{made:?} passes for {pinned:?}");
    }
}

#[test]
fn gradients_are_those_of_pytorch() {
    let mut faults = Vec::new();
    let beyond = ARCHITECTURES.into_iter().filter(|_| is_whole_set());
    for model in models().into_iter().chain(["mixtral"]).chain(beyond) {
        let fixture = Fixture::open(model);
        for (ranks, strategy) in [
            (1, ""),
            (4, ""),
            (4, "dp = 2\ntp = 2"),
            (4, "dp = 4\nzero = 3"),
            (2, "micro_batches = 2"),
            (4, "dp = 4\nep = 2"),
            (4, "dp = 4\nep = 2\nep_kind = \"all_to_all\""),
            (4, "dp = 2\ntp = 2\nep = 4\nep_kind = \"all_to_all\""),
            (2, "tp = 2\nep = 2"),
        ] {
            if (model == "mlp" && strategy.contains("tp")) || (model != "mixtral" && strategy.contains("ep")) {
                continue;
            }
            let order = Order {
                fixture: &fixture,
                dialect: "keep20",
                optimizer: "adamw",
                ranks,
                strategy,
                compute: DType::F32,
            };
            faults.extend(wrong_gradients(&order).into_iter().map(|fault| format!("{}: {fault}", name(&order))));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Compares the gradients of the first step with the reference, parameter by parameter.
fn wrong_gradients(order: &Order<'_>) -> Vec<String> {
    let module = order.compile().expect("the pins can be met").module;
    let report = train(order, &module, 1, &mut |_| {}).expect("the plan runs");
    let gradients = report.gradients.expect("they were asked for");
    let manifest = &order.fixture.manifest;
    let parameters = manifest["files"][order.dialect]["parameters"].as_object().expect("the manifest lists them");
    let mut faults = Vec::new();
    for (name, stored) in parameters {
        assert_eq!(stored["transform"], "same", "`{name}` is stored as PyTorch has it");
        let bound = &manifest["reference"]["parameters"][name]["grad_abs_err_f32"];
        let tolerance = 10.0 * bound.as_f64().expect("the manifest has a number") + 1e-6;
        let expected = gradient(order.fixture, name);
        let Some(found) = stored["onnx"].as_str().and_then(|onnx| gradients.get(onnx)) else {
            faults.push(format!("`{name}` has no gradient"));
            continue;
        };
        let error = found.data.iter().zip(&expected).map(|(a, b)| f64::from(a - b).abs()).fold(0.0, nan_max);
        if found.data.len() != expected.len() || error > tolerance {
            faults.push(format!("the gradient of `{name}` is off by {error:e}, more than {tolerance:e}"));
        }
    }
    faults
}

/// PyTorch's gradient of a parameter.
fn gradient(fixture: &Fixture, name: &str) -> Vec<f32> {
    let tensors = SafeTensors::deserialize(&fixture.reference).expect("the reference is a safetensors file");
    let tensor = tensors.tensor(&format!("grad.{name}")).expect("the reference has all gradients");
    assert_eq!(tensor.dtype(), Dtype::F32, "`{name}`");
    tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// The larger one; infinity for what is no number.
fn nan_max(a: f64, b: f64) -> f64 {
    if b.is_nan() { f64::INFINITY } else { a.max(b) }
}
