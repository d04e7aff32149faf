//! Plans for Galvatron's runtime beside those that Galvatron's own search returns on the same measurements: LLaMA-2 7B on 8 GPUs of 24 and
//! 36 GB, 64 samples a step, both priced by the formulas and the memory rule of each release.
//!
//! `cargo test --test galvatron_plans -- --nocapture` prints the table.

#[path = "support/allocator.rs"]
mod allocator;
#[path = "support/galvatron.rs"]
mod spelling;

use galvatron::config::cluster::parse_cluster;
use galvatron::config::profile::{Wanted, read_folder};
use galvatron::config::train::parse_recipe;
use galvatron::driver::{Compilation, CompileFault, Compiled, compile, galvatron_config, pins_for_galvatron};
use galvatron_ir::cluster::Cluster;
use galvatron_ir::profile::Profile;
use galvatron_ir::types::DType;
use galvatron_passes::hetu::{Costs, Plan, PlanPrice, Release, Strategy, usable_mb};
use galvatron_passes::search::{LayerPins, Mode, Pins};
use serde_json::Value;
use std::path::PathBuf;

/// Ranks of the machine.
const WORLD: u32 = 8;

/// Sums of times in another order differ by less.
const ROUNDING: f64 = 1e-12;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn fixtures() -> PathBuf {
    root().join("tests/fixtures/galvatron")
}

fn profile() -> Profile {
    let wanted = Wanted { nodes: 1, devices_per_node: WORLD, compute: DType::Bf16 };
    read_folder(&fixtures().join("llama2-7b_1x8"), wanted).expect("the profile is right")
}

fn costs(profile: &Profile, release: Release) -> Costs<'_> {
    Costs { release, profile, world: WORLD, n_layers: 32, sequence: 2048, hidden: 4096, global_batch: 64 }
}

/// Eight A100 with so much memory each.
fn cluster(memory_gib: f64) -> Cluster {
    let path = root().join("examples/clusters/a100-80gb-8.toml");
    let mut cluster = parse_cluster(&std::fs::read_to_string(path).expect("it is there")).expect("it is right");
    cluster.device.memory_bytes = (memory_gib * f64::from(1 << 30)) as u64;
    cluster
}

/// LLaMA-2 7B with some pins on devices of some memory.
fn with<T>(memory_gib: f64, pins: &Pins, use_it: impl FnOnce(&Compilation<'_>) -> T) -> T {
    let settings = ["batch.global=64", "batch.sequence=2048", "precision.compute=bf16"].map(String::from);
    use_it(&Compilation {
        model: &fixtures().join("llama2-7b.json"),
        cluster: &cluster(memory_gib),
        recipe: &parse_recipe("", &settings).expect("the recipe is right"),
        pins,
        profile: Some(&profile()),
        retie: true,
        stop_after: None,
        verify_each: false,
    })
}

/// The plan for our own runtime, or for that of a release of Galvatron.
fn planned(memory_gib: f64, runtime: Option<Release>, pins: &Pins) -> Result<Compiled, CompileFault> {
    with(memory_gib, pins, |what| {
        let pins = match runtime {
            Some(release) => pins_for_galvatron(what, release)?.0,
            None => pins.clone(),
        };
        compile(&Compilation { pins: &pins, ..*what }, &mut |_, _| {})
    })
}

/// The plan in Galvatron's words, as its runtime would read it.
fn written(compiled: &Compiled) -> Plan {
    let found = compiled.found.as_ref().expect("the search ran");
    let text = galvatron_config(&compiled.module, found, &compiled.segments);
    let text = text.unwrap_or_else(|faults| panic!("{}", faults[0].message));
    spelling::plan(&serde_json::from_str(&text).expect("it is JSON"), WORLD).expect("it has all keys")
}

/// A strategy as Galvatron spells it.
fn spell(s: &Strategy) -> String {
    let flag = |is: bool, text: &'static str| if is { text } else { "" };
    let tp = format!("{}{}", s.tp, flag(s.tp > 1 && s.dp > 1 && s.is_consecutive && !s.ulysses, "*"));
    let rest = [flag(s.zero3, "f"), flag(s.recompute, "-c"), flag(s.ulysses, "-sp")].concat();
    format!("{}-{tp}-{}{rest}", s.pp, s.dp)
}

/// Runs of equal layers in Galvatron's spelling.
fn words(plan: &Plan) -> String {
    let runs = plan.layers.chunk_by(|a, b| a == b);
    let layers: Vec<String> = runs.map(|run| format!("{} × {}", run.len(), spell(&run[0]))).collect();
    let v = plan.vocabulary;
    let outside = format!("vtp {}{}{}", v.tp, if v.ulysses { "-sp" } else { "" }, if v.zero3 { "f" } else { "" });
    format!("{} chunks, {outside}: {}", plan.chunks, layers.join(", "))
}

/// What one release says of both plans in some memory.
fn compare(reference: &Value) -> (PlanPrice, PlanPrice) {
    let (release, name) = match reference["release"].as_str() {
        Some("v2.4.0") => (Release::V240, "v2.4.0"),
        _ => (Release::Main, "main"),
    };
    let memory_gib = reference["memory_gb"].as_f64().expect("a number");
    let profile = profile();
    let price = |plan: &Plan| costs(&profile, release).plan(plan).expect("all of it was measured");
    let their_plan = spelling::plan(&reference["config"], WORLD).expect("the configuration is right");
    let Ok(compiled) = planned(memory_gib, Some(release), &Pins::default()) else { panic!("there is a plan") };
    let our_plan = written(&compiled);
    let (theirs, ours) = (price(&their_plan), price(&our_plan));
    for (who, plan, price) in [("Galvatron", &their_plan, &theirs), ("galvatronc", &our_plan, &ours)] {
        let most = price.memory_mb.iter().copied().fold(0.0, f64::max);
        println!("{name} {memory_gib} GB {who}: {:.4}/s, {most} MB, {}", price.samples_per_s, words(plan));
    }
    println!("    {:+.3} %", (ours.samples_per_s / theirs.samples_per_s - 1.0) * 100.0);
    let usable = usable_mb(memory_gib * 1024.0);
    assert!(ours.memory_mb.iter().all(|&mb| mb <= usable), "{name}, {memory_gib} GB: {:?}", ours.memory_mb);
    (theirs, ours)
}

fn reference() -> Vec<Value> {
    let text = std::fs::read_to_string(fixtures().join("reference.json")).expect("the reference is there");
    let reference: Value = serde_json::from_str(&text).expect("it is JSON");
    reference["plans"].as_array().expect("a list").clone()
}

#[test]
fn plans_are_no_worse_than_galvatrons_own() {
    let plans = reference();
    assert_eq!(plans.len(), 4);
    let mut n_better = 0;
    for plan in &plans {
        let (theirs, ours) = compare(plan);
        assert!(ours.step_s <= theirs.step_s * (1.0 + ROUNDING), "{} s, not {}", ours.step_s, theirs.step_s);
        n_better += usize::from(ours.step_s < theirs.step_s * (1.0 - ROUNDING));
    }
    assert!(n_better > 0);
}

/// The same measurements, and in the same memory, but with the prices of our own runtime, whose memory is exact, and with all that it can do.
#[test]
fn plans_for_our_own_runtime_are_faster() {
    for theirs in reference() {
        let memory_gib = theirs["memory_gb"].as_f64().expect("a number");
        let plan = spelling::plan(&theirs["config"], WORLD).expect("the configuration is right");
        let (usable_gib, pins) = (usable_mb(memory_gib * 1024.0) / 1024.0, plan.pins(&Pins::default()));
        let price = |memory_gib, pins| {
            let Ok(compiled) = planned(memory_gib, None, pins) else { panic!("there is a plan") };
            let found = compiled.found.expect("the search ran");
            let gib = found.plan.peak_bytes() as f64 / f64::from(1 << 30);
            println!("{:.3}/s, {gib:.2} GiB, {}", 64e9 / found.cost.step_ns as f64, found.decision.name());
            (found.cost.step_ns, gib)
        };
        println!(
            "{} {memory_gib} GB by our prices: Galvatron's plan, ours, ours without what its allocator keeps",
            theirs["release"]
        );
        let free = Pins::default();
        let (theirs_ns, theirs_gib) = price(memory_gib, &pins);
        let (ours_ns, _) = price(usable_gib.max(theirs_gib), &free);
        let (all_ns, _) = price(memory_gib, &free);
        assert!(all_ns <= ours_ns && ours_ns < theirs_ns, "{all_ns}, {ours_ns} and {theirs_ns} ns");
    }
}

#[test]
fn pins_hold_for_galvatrons_runtime_too() {
    let pins = Pins {
        pp: Some(2),
        all: LayerPins { recompute: Some(Mode::Full), tp: Some(2), ulysses: Some(1), ..LayerPins::default() },
        ..Pins::default()
    };
    let Ok(compiled) = planned(36.0, Some(Release::Main), &pins) else { panic!("there is a plan") };
    let plan = written(&compiled);
    assert!(plan.division.len() == 2 && plan.layers.iter().all(|l| l.tp == 2 && !l.ulysses && l.recompute), "{plan:?}");
}

#[test]
fn what_galvatrons_runtime_cannot_do_is_refused() {
    let selective = LayerPins { recompute: Some(Mode::Selective), ..LayerPins::default() };
    let fault = planned(36.0, Some(Release::Main), &Pins { all: selective, ..Pins::default() }).err();
    let Some(CompileFault::Input(faults)) = fault else { panic!("it is refused") };
    assert_eq!(faults[0].message, "Galvatron's formulas price no plan that the pins allow");
    let least = |gib| with(gib, &Pins::default(), |what| pins_for_galvatron(what, Release::Main)).err();
    let Some(CompileFault::NoPlan { stages, .. }) = least(8.0) else { panic!("nothing fits") };
    let enough_gib = stages[0].peak_bytes as f64 / f64::from(1 << 30) + 0.01;
    assert!(enough_gib > 8.0 && least(enough_gib).is_none() && least(enough_gib - 0.02).is_some(), "{enough_gib}");
}
