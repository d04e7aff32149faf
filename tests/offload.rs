//! Host memory: plans that put optimizer states and activations there train like PyTorch and use as much of both memories as they say; the
//! search uses it where the link makes it pay, and nowhere without it.

#[path = "support/allocator.rs"]
mod allocator;
#[path = "support/batches.rs"]
mod batches;
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
use galvatron::config::cluster::parse_cluster;
use galvatron::driver::{Compilation, CompileFault, compile};
use galvatron_ir::types::DType;
use galvatron_passes::search::{Found, Mode, Pins};
use pins::OFFLOADED;
use plan::Order;
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

#[test]
fn plans_with_host_memory_train_like_pytorch() {
    check_models(&["mlp", "gpt2"]);
}

#[test]
fn mixtures_with_host_memory_train_like_pytorch() {
    check_models(&["mixtral"]);
}

fn check_models(models: &[&str]) {
    let fixtures: Vec<Fixture> = models.iter().map(|model| Fixture::open(model)).collect();
    let orders: Vec<Order<'_>> = fixtures.iter().flat_map(orders).collect();
    check_cells(&orders, models, &["sgd_momentum", "adamw"], "refused-offload");
}

fn orders(fixture: &Fixture) -> impl Iterator<Item = Order<'_>> {
    let optimizers = ["sgd_momentum", "adamw"].into_iter();
    let optimizers = optimizers.filter(|optimizer| *optimizer == "adamw" || fixture.model == "gpt2");
    optimizers.flat_map(move |optimizer| {
        let order = move |&(strategy, ranks)| Order {
            fixture,
            dialect: "keep20",
            optimizer,
            ranks,
            strategy,
            compute: DType::F32,
        };
        OFFLOADED.iter().map(order)
    })
}

/// The pins are refused, with a code, a message that begins so, and a mend that names something.
fn check_refused(host: &str, strategy: &str, code: &str, message: &str, mend: &str) {
    let fault = searched(f64::from(1 << 20), host, strategy).expect_err("the pins cannot be met");
    let CompileFault::Input(faults) = fault else { panic!("not a fault of the input") };
    let found: Vec<_> = faults.iter().map(|f| (f.code, f.message.as_str())).collect();
    assert!(found.len() == 1 && found[0].0 == code && found[0].1.starts_with(message), "{found:?}");
    assert!(faults[0].help.as_ref().is_some_and(|help| help.contains(mend)), "{:?}", faults[0].help);
}

#[test]
fn host_memory_is_used_where_the_cluster_has_it() {
    let message = "offload optimizer is pinned for the model, but the cluster says nothing of host memory";
    check_refused("", "offload = \"optimizer\"", "no-host-memory", message, "[host]");
    let layer = "[[layers]]\nrange = [1, 2]\noffload = \"all\"";
    check_refused("", layer, "no-host-memory", "offload all is pinned for layer 1", "[host]");
    let both = "recompute = \"full\"\noffload = \"all\"";
    check_refused(FAST, both, "pin-conflict", "the model is to keep its activations in host memory", "recompute");
    let tiny = FAST.replace("memory_gib = 1.0", "memory_gib = 0.00001");
    let message = "what is pinned to host memory needs";
    check_refused(&tiny, "offload = \"optimizer\"", "no-host-memory", message, "host.memory_gib");
}

/// Links to the host, faster than memory and slower than any use.
const FAST: &str = "[host]\nmemory_gib = 1.0\nbandwidth_gbps = 200.0\nlatency_us = 0.0\n";
const SLOW: &str = "[host]\nmemory_gib = 1.0\nbandwidth_gbps = 0.0001\nlatency_us = 100.0\n";

/// Of the memory of the fastest plan, so much that layers recompute, but do not have to be in host memory.
const SCARCE: f64 = 0.92;

/// What is chosen for the model on one device of so many KiB.
fn searched(memory_kib: f64, host: &str, strategy: &str) -> Result<Found, CompileFault> {
    let fixture = Fixture::open("gpt2");
    let memory_gib = memory_kib / f64::from(1 << 20);
    let text = format!(
        "nodes = 1\ndevices_per_node = 1\n[device]\nkind = \"cpu\"\nmemory_gib = {memory_gib}\n\
         peak_tflops = {{ f32 = 0.1 }}\nmemory_bandwidth_gbps = 10.0\n{host}"
    );
    let order =
        Order { fixture: &fixture, dialect: "keep20", optimizer: "adamw", ranks: 1, strategy, compute: DType::F32 };
    let what = Compilation {
        model: &fixture.onnx("keep20"),
        cluster: &parse_cluster(&text).expect("the cluster is described well"),
        recipe: &fixture.recipe("keep20", "adamw"),
        pins: &order.pins().unwrap_or_else(|_| Pins::default()),
        profile: None,
        retie: true,
        stop_after: None,
        verify_each: true,
    };
    compile(&what, &mut |_, _| {}).map(|compiled| compiled.found.expect("the search ran"))
}

/// What the layers recompute, and whether the states of any segment lie in host memory.
fn ways(found: &Found) -> (Vec<Mode>, bool) {
    let segments = &found.decision.segments;
    (segments.iter().map(|s| s.mode).collect(), segments.iter().any(|s| s.host_states))
}

#[test]
fn the_search_uses_host_memory_where_the_link_makes_it_pay() {
    let one = "micro_batches = 1";
    let Ok(roomy) = searched(f64::from(1 << 20), "", one) else { panic!("there is a plan") };
    assert_eq!(roomy.plan.host_bytes_by_rank(), [0]);
    let scarce_kib = roomy.plan.peak_bytes() as f64 / 1024.0 * SCARCE;
    let search = |host: &str| searched(scarce_kib, host, one).unwrap_or_else(|_| panic!("there is a plan"));
    let (without, slow, fast) = (search(""), search(SLOW), search(FAST));
    let recomputes = |found: &Found| ways(found).0.iter().any(|mode| matches!(mode, Mode::Selective | Mode::Full));
    let hosts = |found: &Found| ways(found).1 || ways(found).0.contains(&Mode::Offload);
    assert!(recomputes(&without) && !hosts(&without), "{}", without.decision.name());
    assert!(recomputes(&slow) && !hosts(&slow), "{}", slow.decision.name());
    assert!(hosts(&fast) && fast.plan.host_bytes_by_rank()[0] > 0, "{}", fast.decision.name());
    assert!(fast.cost.step_ns < without.cost.step_ns, "{} against {}", fast.cost.step_ns, without.cost.step_ns);
    assert_eq!((slow.strategy, slow.cost), (without.strategy, without.cost), "a slow link changes nothing");
}

/// Where host memory is short the search puts less there, and never more than there is.
#[test]
fn no_plan_exceeds_the_host_memory() {
    let scarce_kib = SCARCE * roomy_kib();
    for host_kib in [1.0, 100.0, 1000.0] {
        let host = FAST.replace("memory_gib = 1.0", &format!("memory_gib = {}", host_kib / f64::from(1 << 20)));
        let found = searched(scarce_kib, &host, "").unwrap_or_else(|_| panic!("there is a plan"));
        assert!(found.plan.host_bytes_by_rank()[0] <= (host_kib * 1024.0) as u64, "{}", found.decision.name());
    }
}

fn roomy_kib() -> f64 {
    let Ok(roomy) = searched(f64::from(1 << 20), "", "micro_batches = 1") else { panic!("there is a plan") };
    roomy.plan.peak_bytes() as f64 / 1024.0
}

/// A folder with a plan of two ranks that has everything in host memory, and with the reference's data.
struct Saved {
    fixture: Fixture,
    folder: PathBuf,
    host_bytes: Vec<u64>,
}

impl Saved {
    fn new() -> Saved {
        let (fixture, folder) = (Fixture::open("gpt2"), PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("offload"));
        std::fs::create_dir_all(&folder).expect("the folder can be made");
        let strategy = "dp = 2\nzero = 3\nmicro_batches = 2\noffload = \"all\"";
        let order =
            Order { fixture: &fixture, dialect: "keep20", optimizer: "adamw", ranks: 2, strategy, compute: DType::F32 };
        let module = order.compile().expect("the pins can be met").module;
        std::fs::write(folder.join("plan.gir"), galvatron_ir::text::print(&module)).expect("it can be written");
        batches::write(&fixture, &folder.join("data.safetensors"));
        let host_bytes = module.host_bytes_by_rank();
        Saved { fixture, folder, host_bytes }
    }

    /// The losses of a run; every step has used as much host memory as the plan says.
    fn losses(&self, steps: &str, more: &[&str]) -> Vec<f64> {
        let file = |name: &str| self.folder.join(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_galvatron-exec"));
        command.arg(file("plan.gir")).arg("--data").arg(file("data.safetensors")).args(["--steps", steps]);
        command.arg("--metrics").arg(file("metrics.jsonl")).args(["--threads", "1", "--timeout", "60"]).args(more);
        let output = command.output().expect("it can be started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = std::fs::read_to_string(file("metrics.jsonl")).expect("it was written");
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
        assert_eq!(lines[0]["predicted_host_bytes"], serde_json::json!(self.host_bytes));
        assert!(lines[1..].iter().all(|line| line["host_bytes"] == serde_json::json!(self.host_bytes)), "{text}");
        lines[1..].iter().filter_map(|line| line["loss"].as_f64()).collect()
    }
}

#[test]
fn processes_and_resumed_runs_train_like_threads() {
    let saved = Saved::new();
    let weights = saved.fixture.onnx("keep20");
    let fresh = ["--weights", weights.to_str().expect("the path is UTF-8")];
    let states = saved.folder.join("saved");
    let states = states.to_str().expect("the path is UTF-8");
    let whole = saved.losses("20", &fresh);
    assert_eq!(saved.losses("20", &[&fresh[..], &["--nproc", "2"]].concat()), whole);
    let first = saved.losses("8", &[&fresh[..], &["--nproc", "2", "--save", states]].concat());
    let second = saved.losses("12", &["--resume", states]);
    assert_eq!([first, second].concat(), whole);
}
