//! No pinned plan is faster than the searched one: every pin of the other tests, by the replay that prices both. Where communication runs
//! beside computation, or memory is scarce, the search knows only roughly what is hidden and what is temporary, and a pin may lead it to a
//! faster plan, by so much at most as is said here.
//!
//! `cargo test --test searched -- --nocapture` prints how many plans were compared. With `GALVATRON_FIXTURES` there are more models.

#[path = "support/allocator.rs"]
mod allocator;
#[path = "support/fixture.rs"]
#[allow(dead_code, reason = "nothing is trained here")]
mod fixture;
#[path = "support/pins.rs"]
mod pins;

use fixture::Fixture;
use galvatron::config::{cluster::parse_cluster, strategy::parse_strategy};
use galvatron::driver::{Compilation, CompileFault, compile, pins_of};
use galvatron_ir::cluster::Cluster;
use galvatron_passes::search::Pins;
use pins::{EXPERTS, RINGS, STAGES, WHOLE_LAYERS};

/// Machines: the kind of the device, its TFLOP/s, its memory's GB/s, and the links' GB/s and µs.
const MACHINES: [(&str, f64, f64, f64, f64); 3] =
    [("cpu", 0.1, 10.0, 4.0, 10.0), ("cuda", 100.0, 2000.0, 300.0, 3.0), ("cuda", 0.05, 100.0, 0.5, 1.0)];

/// Memory in hundredths of what the fastest plan of all takes, and by how many thousandths a pinned plan may be faster then, on devices that
/// communicate in turn and on those that communicate beside computation.
const MEMORY: [(u64, u64, u64); 3] = [(1000, 0, 1), (85, 20, 20), (60, 20, 20)];

/// Where the search is known to lose more, because it does not come to the plan that fits: model, ranks, kind of device, hundredths of
/// memory, thousandths by which pinned plans are faster at most.
const KNOWN: [(&str, u32, &str, u64, u64); 2] = [("mixtral", 4, "cpu", 60, 95), ("vit", 4, "cpu", 60, 21)];

/// By how many thousandths a pinned plan may be faster.
fn allowed(model: &str, cluster: &Cluster, (hundredths, in_turn, aside): (u64, u64, u64)) -> u64 {
    let kind = cluster.device.kind.name();
    let known =
        KNOWN.iter().find(|(m, ranks, k, of, _)| (*m, *ranks, *k, *of) == (model, cluster.world(), kind, hundredths));
    known.map_or(if kind == "cuda" { aside } else { in_turn }, |known| known.4)
}

/// A machine of so many ranks.
fn machine(ranks: u32, (kind, tflops, memory, link, latency): (&str, f64, f64, f64, f64)) -> Cluster {
    let text = format!(
        "nodes = 1\ndevices_per_node = {ranks}\n\
         [device]\nkind = \"{kind}\"\nmemory_gib = 2.0\npeak_tflops = {{ f32 = {tflops:?} }}\n\
         memory_bandwidth_gbps = {memory:?}\n\
         [links.intra_node]\nbandwidth_gbps = {link:?}\nlatency_us = {latency:?}\n"
    );
    parse_cluster(&text).expect("the machine is described well")
}

/// Step time and peak bytes of the plan under pins; `None` where the pins or the memory leave none.
fn plan(fixture: &Fixture, cluster: &Cluster, pins: &Pins) -> Option<(u64, u64)> {
    let what = Compilation {
        model: &fixture.onnx("keep20"),
        cluster,
        recipe: &fixture.recipe("keep20", "adamw"),
        pins,
        profile: None,
        retie: true,
        stop_after: None,
        verify_each: false,
    };
    match compile(&what, &mut |_, _| {}) {
        Ok(compiled) => Some((compiled.module.predicted.step_time_ns, compiled.module.peak_bytes())),
        Err(CompileFault::Bug(fault)) => panic!("{fault}"),
        Err(CompileFault::Input(_) | CompileFault::NoPlan { .. }) => None,
    }
}

/// What was compared.
#[derive(Default)]
struct Tally {
    compared: usize,
    as_fast: usize,
    without: usize,
    faster: usize,
    /// Those that are faster by more than is allowed.
    faults: Vec<String>,
}

impl Tally {
    /// Compares every pin of so many ranks with what is searched without pins.
    fn add(&mut self, fixture: &Fixture, cluster: &Cluster, allowed: u64, strategies: &[&str]) {
        let searched = plan(fixture, cluster, &Pins::default());
        for strategy in strategies {
            let pins = parse_strategy(strategy).and_then(|file| pins_of(&file)).ok();
            let Some((pinned_ns, _)) = pins.and_then(|pins| plan(fixture, cluster, &pins)) else {
                self.without += 1;
                continue;
            };
            self.compared += 1;
            let searched_ns = searched.map_or(u64::MAX, |(ns, _)| ns);
            self.as_fast += usize::from(pinned_ns == searched_ns);
            self.faster += usize::from(pinned_ns < searched_ns);
            if pinned_ns.saturating_mul(1000 + allowed) < searched_ns.saturating_mul(1000) {
                let (memory, world) = (cluster.device.memory_bytes, cluster.world());
                let (model, kind, pins) = (&fixture.model, cluster.device.kind.name(), strategy.replace('\n', ", "));
                self.faults.push(format!(
                    "{model} on {world} × {kind} of {memory} bytes: {pinned_ns} ns with `{pins}`, {searched_ns} ns searched"
                ));
            }
        }
    }
}

/// The pins that are tried on so many ranks.
fn strategies(ranks: u32, has_experts: bool) -> Vec<&'static str> {
    let of_experts = if has_experts { &EXPERTS[..] } else { &[] };
    let whole = WHOLE_LAYERS.iter().chain(of_experts).filter(|(_, worlds)| worlds.contains(&ranks)).map(|(s, _)| *s);
    whole.chain(STAGES.iter().chain(&RINGS).filter(|(_, n)| *n == ranks).map(|(s, _)| *s)).collect()
}

fn check(models: &[&str], worlds: &[u32]) {
    let mut tally = Tally::default();
    for model in models {
        let fixture = Fixture::open(model);
        for &ranks in worlds {
            for figures in MACHINES {
                let mut cluster = machine(ranks, figures);
                let (_, peak) = plan(&fixture, &cluster, &Pins::default()).expect("two GiB are enough");
                for memory in MEMORY {
                    cluster.device.memory_bytes = peak * memory.0 / 100;
                    let allowed = allowed(model, &cluster, memory);
                    tally.add(&fixture, &cluster, allowed, &strategies(ranks, *model == "mixtral"));
                }
            }
        }
    }
    let Tally { compared, as_fast, without, faster, faults } = tally;
    println!(
        "{models:?}: {compared} pinned plans, {as_fast} as fast as the searched one, {faster} faster; {without} pins without a plan"
    );
    assert!(faults.is_empty(), "{} pinned plans are too fast:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn no_pinned_plan_is_faster() {
    check(&["gpt2"], &[2, 3, 4, 6, 8]);
}

#[test]
fn no_pinned_plan_of_experts_is_faster() {
    check(&["mixtral"], &[2, 4, 8]);
}

#[test]
fn no_pinned_plan_of_other_models_is_faster() {
    if std::env::var_os("GALVATRON_FIXTURES").is_some() {
        check(&["llama_deep", "vit"], &[4]);
    }
}
