//! Profiles in the place of the data sheet, and Galvatron's formulas and files beside ours.

#[path = "support/galvatron.rs"]
mod spelling;

use galvatron::config::cluster::parse_cluster;
use galvatron::config::profile::{Wanted, parse_profile, read_folder};
use galvatron::config::strategy::parse_strategy;
use galvatron::config::train::parse_recipe;
use galvatron::driver::{Compilation, Compiled, compile, galvatron_config, is_galvatron_config, pins_of};
use galvatron::report::Report;
use galvatron_ir::plan::PhaseKind;
use galvatron_ir::profile::{
    Collective, CollectiveTimes, ForwardTime, LayerProfile, Layout, OutsideProfile, PointToPoint, Profile, TimePoint,
};
use galvatron_ir::text::print;
use galvatron_ir::types::DType;
use galvatron_passes::hetu::{Costs, Plan, Price, Release, Strategy, Vocabulary, usable_mb};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Times of the profile are whole nanoseconds, of at least a tenth of a millisecond.
const ROUNDING: f64 = 1e-5;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/galvatron")
}

fn llama_profile() -> Profile {
    let wanted = Wanted { nodes: 1, devices_per_node: 8, compute: DType::Bf16 };
    read_folder(&fixtures().join("llama2-7b_1x8"), wanted).expect("the samples are right")
}

fn reference() -> Value {
    let text = std::fs::read_to_string(fixtures().join("reference.json")).expect("the reference is there");
    serde_json::from_str(&text).expect("the reference is JSON")
}

fn llama(profile: &Profile, release: Release) -> Costs<'_> {
    Costs { release, profile, world: 8, n_layers: 32, sequence: 2048, hidden: 4096, global_batch: 64 }
}

const RELEASES: [(Release, &str); 2] = [(Release::V240, "v2.4.0"), (Release::Main, "main")];

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().map_or_else(|| vec![value.as_f64().unwrap()], |all| all.iter().flat_map(floats).collect())
}

fn assert_close(found: &[f64], expected: &Value, what: &str) {
    let expected = floats(expected);
    let is_close = |(a, b): (&f64, &f64)| (a - b).abs() <= ROUNDING * b.abs();
    let all = found.len() == expected.len() && found.iter().zip(&expected).all(is_close);
    assert!(all, "{what}: {found:?}, not {expected:?}");
}

/// Reads `pp-tp[*]-dp[f][*][-c][-sp]`; `*` behind tp are neighbours, behind dp none, and without one it is neighbours.
fn strategy(text: &str) -> Option<Strategy> {
    let mut parts = text.split('-');
    let pp = parts.next()?.parse().ok()?;
    let tp = parts.next()?.trim_end_matches('*').parse().ok()?;
    let data = parts.next()?;
    let rest: Vec<&str> = parts.collect();
    Some(Strategy {
        pp,
        tp,
        dp: data.trim_end_matches(['f', '*']).parse().ok()?,
        is_consecutive: !data.ends_with('*'),
        zero3: data.contains('f'),
        recompute: rest.contains(&"c"),
        ulysses: rest.contains(&"sp"),
    })
}

#[test]
fn layers_cost_what_galvatron_says() {
    let (profile, reference) = (llama_profile(), reference());
    for (release, name) in RELEASES {
        let prices = &reference["prices"][name];
        let layers = prices["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 50);
        for layer in layers {
            let text = layer["strategy"].as_str().unwrap();
            let strategy = strategy(text).expect("a strategy is spelled right");
            let price =
                llama(&profile, release).layer(strategy, prices["chunks"].as_u64().unwrap() as u32).expect("measured");
            assert_close(&price.with_sync_s, &layer["time_s"], text);
            assert_close(&price.without_sync_s, &layer["time_s_no_sync"], text);
            assert_close(&price.states_mb[..1], &layer["states_mb"], text);
            assert_close(&price.activations_mb, &layer["activations_mb"], text);
        }
    }
}

#[test]
fn embedding_and_head_cost_what_galvatron_says() {
    let (profile, reference) = (llama_profile(), reference());
    for (release, name) in RELEASES {
        let prices = &reference["prices"][name];
        let all = prices["embedding"].as_array().unwrap();
        assert_eq!(all.len(), if release == Release::V240 { 40 } else { 25 });
        for one in all {
            let (pp, tp) = (one["pp"].as_u64().unwrap() as u32, one["vtp"].as_u64().unwrap() as u32);
            let (ulysses, zero3) = (one["vsp"].as_bool().unwrap(), one["embed_sdp"].as_bool().unwrap());
            let chunks = prices["chunks"].as_u64().unwrap() as u32;
            let Price { with_sync_s, without_sync_s, states_mb, activations_mb } =
                llama(&profile, release).outside(pp, Vocabulary { tp, ulysses, zero3 }, chunks).expect("measured");
            let what = format!("{name} {one}");
            assert_close(&with_sync_s, &one["time_s"], &what);
            assert_close(&without_sync_s, &one["time_s_no_sync"], &what);
            let memory: Vec<f64> = states_mb.iter().zip(&activations_mb).map(|(s, a)| s + a + 1024.0).collect();
            assert_close(&memory, &one["memory_mb"], &what);
        }
    }
}

#[test]
fn plans_cost_what_galvatron_says() {
    let (profile, reference) = (llama_profile(), reference());
    let plans = reference["plans"].as_array().unwrap();
    assert_eq!(plans.len(), 4);
    for plan in plans {
        let release = RELEASES.iter().find(|(_, name)| plan["release"] == *name).unwrap().0;
        let costs = llama(&profile, release);
        let price = costs
            .plan(&spelling::plan(&plan["config"], costs.world).expect("the configuration is right"))
            .expect("measured");
        assert_close(&[price.step_s], &plan["step_s"], "seconds of a step");
        assert_close(&[price.samples_per_s], &plan["samples_per_s"], "samples a second");
        let memory_mb = plan["memory_gb"].as_f64().unwrap() * 1024.0;
        let shown: Vec<f64> =
            price.memory_mb.iter().map(|mb| (mb + memory_mb - usable_mb(memory_mb)).floor()).collect();
        assert_eq!(shown, floats(&plan["memory_mb"]));
    }
}

/// GPT-2 of two layers for CPU ranks of one machine.
fn gpt2(ranks: u32, strategy: &str, profile: Option<&Profile>) -> Compiled {
    let device = "kind = \"cpu\"\nmemory_gib = 2.0\npeak_tflops = { f32 = 0.1 }\nmemory_bandwidth_gbps = 10.0\n";
    let links = "[links.intra_node]\nbandwidth_gbps = 4.0\nlatency_us = 10.0\n";
    let cluster = format!("nodes = 1\ndevices_per_node = {ranks}\n[device]\n{device}{links}");
    let what = Compilation {
        model: Path::new("tests/fixtures/gpt2/gpt2.keep20.onnx"),
        cluster: &parse_cluster(&cluster).expect("the cluster is right"),
        recipe: &parse_recipe("", &[]).expect("the recipe is right"),
        pins: &pins_of(&parse_strategy(strategy).expect("the strategy is right")).expect("it can be pinned"),
        profile,
        retie: true,
        stop_after: None,
        verify_each: false,
    };
    compile(&what, &mut |_, _| {}).unwrap_or_else(|_| panic!("`{strategy}` can be met"))
}

/// Layers of 3 ms and 1 ms outside for each sample at a batch of 2, and all-reduces of 5 µs.
fn measured(sequence_tokens: u64) -> Profile {
    let forward = |time_ns_per_sample| vec![ForwardTime { sequence_tokens, batch_samples: 2, time_ns_per_sample }];
    let times = vec![TimePoint { bytes: 1, time_ns: 5000 }, TimePoint { bytes: 1 << 30, time_ns: 5000 }];
    let (kind, layout) = (Collective::AllReduce, Layout::Consecutive);
    Profile {
        compute: Some("f32".into()),
        collectives: vec![CollectiveTimes { kind, ranks: 2, layout, times }],
        layers: vec![LayerProfile { forward: forward(3_000_000), ..LayerProfile::default() }],
        outside: OutsideProfile { forward: forward(1_000_000), ..OutsideProfile::default() },
        ..Profile::default()
    }
}

/// Samples of a step and tokens of each.
fn batch_of(compiled: &Compiled) -> (u64, u64) {
    let train = compiled.module.train.as_ref().expect("it is trained");
    (train.global_batch, train.sequence)
}

/// Nanoseconds of the forward pass of one micro-batch in the segments that are layers, or in the others.
fn forward_ns(compiled: &Compiled, is_layer: bool) -> u64 {
    let found = compiled.found.as_ref().expect("the search ran");
    let segments = (0u32..).zip(&compiled.segments).filter(|(_, s)| s.is_layer == is_layer);
    segments.map(|(i, _)| found.cost.layers[&Some(i)][&PhaseKind::Forward].compute_ns).sum()
}

#[test]
fn a_layer_takes_what_was_measured() {
    let (batch, sequence) = batch_of(&gpt2(1, "", None));
    // Two samples a micro-batch and rank, of one rank or of two that share the batch.
    for ranks in [1, 2] {
        let micro_batches = batch / 2 / u64::from(ranks);
        let strategy = format!("dp = {ranks}\nrecompute = \"none\"\nmicro_batches = {micro_batches}\n");
        let compiled = gpt2(ranks, &strategy, Some(&measured(sequence)));
        assert!(compiled.warnings.is_empty(), "{:?}", compiled.warnings);
        let n_layers = compiled.segments.iter().filter(|s| s.is_layer).count() as u64;
        assert_eq!(n_layers, 2);
        assert_rounded(&compiled, forward_ns(&compiled, true), n_layers * 6_000_000);
        // In a single micro-batch labels are counted beside the forward pass, of which that is no part.
        if micro_batches > 1 {
            assert_rounded(&compiled, forward_ns(&compiled, false), 2_000_000);
        }
    }
}

/// Each op is rounded to whole nanoseconds.
fn assert_rounded(compiled: &Compiled, found: u64, expected: u64) {
    let n_nodes: u64 = compiled.segments.iter().map(|s| s.nodes.len() as u64).sum();
    assert!(found.abs_diff(expected) <= n_nodes, "{found}, not {expected}");
}

/// What was measured outside of layers is shared by work, not half and half.
#[test]
fn the_head_takes_more_than_the_embedding() {
    let sequence = batch_of(&gpt2(1, "", None)).1;
    let strategy = "pp = 2\nstage_layers = [1, 1]\nmicro_batches = 4\n";
    let compiled = gpt2(2, strategy, Some(&measured(sequence)));
    let found = compiled.found.as_ref().expect("the search ran");
    let ns = |segment: usize| found.cost.layers[&Some(segment as u32)][&PhaseKind::Forward].compute_ns;
    let (embedding, head) = (ns(0), ns(compiled.segments.len() - 1));
    assert!(!compiled.segments[0].is_layer && 2 * head > 3 * embedding, "{embedding} and {head}");
}

#[test]
fn a_profile_that_does_not_fit_is_named_and_left_aside() {
    let sequence = batch_of(&gpt2(1, "", None)).1;
    let warnings = |profile: &Profile| gpt2(1, "", Some(profile)).warnings;
    let other_length = warnings(&measured(sequence + 1));
    assert_eq!(other_length.len(), 2, "{other_length:?}");
    assert!(other_length[0].contains("no time of layers of kind 0"), "{other_length:?}");
    let other_type = warnings(&Profile { compute: Some("bf16".into()), ..measured(sequence) });
    assert_eq!(other_type, ["the profile has times of layers in bf16; this model computes in f32"]);
    let mut two_kinds = measured(sequence);
    two_kinds.layers.push(two_kinds.layers[0].clone());
    assert_eq!(warnings(&two_kinds), ["the profile has times of 2 kinds of layers, the model has 1"]);
}

#[test]
fn the_report_says_which_prices_were_measured() {
    let sequence = batch_of(&gpt2(1, "", None)).1;
    let compiled = gpt2(4, "dp = 2\ntp = 2\nzero = 0\nsequence = \"none\"\n", Some(&measured(sequence)));
    let prices = compiled.prices().expect("there was a profile");
    assert!(prices.measured.contains(&"all_reduce over 2 consecutive".to_string()), "{prices:?}");
    assert!(prices.measured[0].starts_with("layers of kind 0 (analytic × "), "{prices:?}");
    // Of strided groups nothing was measured, but inside of a node all links are alike; of four ranks nothing is known.
    let is_strided = |name: &String| name == "all_reduce over 2 strided";
    assert!(!prices.analytic.iter().any(is_strided), "{prices:?}");
    assert!(prices.analytic.contains(&"overlap".to_string()), "{prices:?}");
    let cluster = parse_cluster(
        "nodes = 1\ndevices_per_node = 1\n[device]\nkind = \"cpu\"\nmemory_gib = 2\npeak_tflops.f32 = 0.1\n\
         memory_bandwidth_gbps = 10\n",
    );
    let found = compiled.found.as_ref().expect("the search ran");
    let report = Report::new(found, &compiled.segments, &cluster.unwrap(), &compiled.times).with_prices(&prices);
    assert!(report.text(false).contains("measured prices: layers of kind 0"), "{}", report.text(false));
    let json: Value = serde_json::from_str(&report.json()).unwrap();
    assert_eq!(json["prices"]["measured"].as_array().unwrap().len(), prices.measured.len());
}

#[test]
fn the_same_profile_gives_the_same_plan() {
    let sequence = batch_of(&gpt2(1, "", None)).1;
    let plan = |profile: Option<&Profile>| print(&gpt2(2, "", profile).module);
    let profile = measured(sequence);
    assert_eq!(plan(Some(&profile)), plan(Some(&profile)));
    // An empty profile changes no price.
    assert_eq!(plan(Some(&Profile::default())), plan(None));
}

fn config_of(ranks: u32, strategy: &str) -> Result<Value, Vec<String>> {
    let compiled = gpt2(ranks, strategy, None);
    let found = compiled.found.as_ref().expect("the search ran");
    match galvatron_config(&compiled.module, found, &compiled.segments) {
        Ok(text) => Ok(serde_json::from_str(&text).expect("it is JSON")),
        Err(faults) => Err(faults.into_iter().map(|f| f.message).collect()),
    }
}

#[test]
fn plans_are_written_as_galvatron_reads_them() {
    let all = "dp = 2\ntp = 2\nzero = 2\nsequence = \"megatron\"\nmicro_batches = 1\n";
    let outside = "[embedding]\ndp = 4\nzero = 3\n[head]\ndp = 4\nzero = 3\n";
    let layers = "[[layers]]\nrange = [1, 2]\nzero = 3\nrecompute = \"full\"\n";
    let first = "[[layers]]\nrange = [0, 1]\nrecompute = \"none\"\n";
    let config = config_of(4, &format!("{all}{outside}{layers}{first}")).unwrap();
    let plan = spelling::plan(&config, 4).expect("it has all keys");
    let layer =
        |zero3, recompute| Strategy { pp: 1, tp: 2, dp: 2, is_consecutive: true, zero3, recompute, ulysses: false };
    let vocabulary = Vocabulary { tp: 1, ulysses: false, zero3: true };
    let expected =
        Plan { chunks: 1, division: vec![2], layers: vec![layer(false, false), layer(true, true)], vocabulary };
    assert_eq!(plan, expected);
    assert_eq!((&config["default_dp_type"], &config["world_size"]), (&Value::from("zero2"), &Value::from(4)));
    // One runtime reads the one key, the next one the other.
    assert_eq!((&config["embed_sdp"], &config["vocab_sdp"]), (&Value::from(1), &Value::from(1)));
}

#[test]
fn stages_are_written_as_galvatron_reads_them() {
    let all = "pp = 2\ndp = 2\nzero = 0\nmicro_batches = 2\nrecompute = \"none\"\nstage_layers = [1, 1]\n";
    let outside = "[embedding]\ndp = 2\nzero = 0\n[head]\ndp = 2\nzero = 0\n";
    let gpipe = config_of(4, &format!("schedule = \"gpipe\"\n{all}{outside}")).unwrap();
    let plan = spelling::plan(&gpipe, 4).expect("it has all keys");
    assert_eq!((plan.division, plan.layers[0].pp, plan.layers[0].dp, plan.chunks), (vec![1, 1], 2, 2, 2));
    assert_eq!((&gpipe["pipeline_type"], &gpipe["default_dp_type"]), (&Value::from("gpipe"), &Value::from("ddp")));
    let flush = config_of(4, &format!("schedule = \"1f1b\"\n{all}{outside}")).unwrap();
    assert_eq!(flush["pipeline_type"], "pipedream_flush");
}

#[test]
fn ulysses_is_written_as_galvatron_reads_it() {
    let outside = "[embedding]\nulysses = 2\ntp = 1\nzero = 3\n[head]\nulysses = 2\ntp = 1\nzero = 3\n";
    let all = "pp = 1\nulysses = 2\ntp = 1\nzero = 2\nrecompute = \"none\"\nmicro_batches = 1\n";
    let config = config_of(4, &format!("{all}{outside}")).unwrap();
    let plan = spelling::plan(&config, 4).expect("it has all keys");
    let [first, second] = plan.layers[..] else { panic!("two layers") };
    assert_eq!((first, first.tp, first.dp, first.ulysses, first.zero3), (second, 2, 2, true, false));
    assert_eq!(plan.vocabulary, Vocabulary { tp: 2, ulysses: true, zero3: true });
}

#[test]
fn messages_between_stages_take_what_was_measured() {
    let sequence = batch_of(&gpt2(1, "", None)).1;
    let strategy = "pp = 2\ndp = 1\nmicro_batches = 2\n";
    let step_ns = |gbps: Option<f64>| {
        let link = |bandwidth_gbps| PointToPoint { stages: 2, bandwidth_gbps };
        let profile = Profile { point_to_point: gbps.map(link).into_iter().collect(), ..measured(sequence) };
        let compiled = gpt2(2, strategy, Some(&profile));
        let prices = compiled.prices().expect("there was a profile");
        let list = if gbps.is_some() { &prices.measured } else { &prices.analytic };
        assert!(list.contains(&"messages between 2 stages".to_string()), "{prices:?}");
        compiled.found.expect("the search ran").cost.step_ns
    };
    // 4 GB/s and 10 µs on the data sheet.
    let (slow, sheet, fast) = (step_ns(Some(0.004)), step_ns(None), step_ns(Some(4000.0)));
    assert!(fast < sheet && sheet < slow, "{fast}, {sheet}, {slow}");
}

#[test]
fn what_galvatron_cannot_say_is_named() {
    let outside = "[embedding]\ndp = 2\nzero = 0\n[head]\ndp = 2\nzero = 3\n";
    let layers = "[[layers]]\nrange = [1, 2]\nzero = 2\n";
    let faults = config_of(2, &format!("dp = 2\nzero = 1\nrecompute = \"selective\"\n{outside}{layers}")).unwrap_err();
    assert_eq!(
        faults,
        [
            "layer 0 and 1 more: selective recomputation; the format has full recomputation or none",
            "layer 0: ZeRO-1; the format has ddp, ZeRO-2 and ZeRO-3",
            "layer 1: ZeRO-2, and layer 0 ZeRO-1; the format has one kind besides ZeRO-3",
            "the head: a strategy that differs from the embedding; the format has one for both",
        ]
    );
}

/// The block of the README that starts like this.
fn readme_block(start: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = std::fs::read_to_string(path).expect("the README is there");
    let at = text.find(start).expect("the README has it");
    let block = text[at..].split_once('\n').expect("a block has lines").1;
    block.split("```").next().expect("a block ends").to_string()
}

#[test]
fn the_files_of_the_readme_are_read() {
    let profile = parse_profile(&readme_block("```json\n{\n  \"version\"")).expect("the profile is right");
    assert_eq!((profile.collectives.len(), profile.layers.len()), (1, 1));
    let device = readme_block("```toml\nname = ");
    let device = device.split("[device]").nth(1).and_then(|d| d.split("[links").next()).expect("it has a device");
    let levels = readme_block("```toml\n[[level]]");
    let cluster = parse_cluster(&format!("{levels}[device]{device}")).expect("the levels are right");
    assert_eq!(cluster.levels.iter().map(|l| l.size).collect::<Vec<_>>(), [16, 4, 8]);
}

#[test]
fn the_name_of_a_file_says_its_format() {
    let is = |name: &str| is_galvatron_config(Path::new(name));
    assert!(is("a/galvatron_config_llama_1nodes_8gpus_per_node.json"));
    assert!(!is("strategy.toml") && !is("galvatron_config.toml") && !is("galvatron_config.json/strategy.toml"));
}
