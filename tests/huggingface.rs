//! Models that are built from a `config.json` train like those of transformers, whatever the family and the ranks.
//!
//! Weights are computed by the formula under the names of PyTorch, so names and layouts are tested too. With
//! `GALVATRON_FIXTURES` there are more models.

#[path = "support/fixture.rs"]
mod fixture;
#[path = "support/formula.rs"]
mod formula;
#[path = "support/walk.rs"]
mod walk;

use fixture::{Fixture, N_STEPS};
use galvatron::config::cluster::parse_cluster;
use galvatron::config::train::parse_recipe;
use galvatron::driver::{Compilation, CompileFault, compile};
use galvatron::runner::save_training;
use galvatron::weights::{PlanWeights, RandomWeights, spellings};
use galvatron_backends::RunFault;
use galvatron_backends::exec::{DataSource, Flow, RunOptions, RunReport, WeightSource};
use galvatron_ir::Module;
use galvatron_ir::module::Initializer;
use galvatron_ir::recipe::Recipe;
use galvatron_passes::search::Pins;
use serde_json::Value;
use std::path::{Path, PathBuf};
use walk::Walk;

/// Models of the fixtures: name, kind, and length of the input where that is not the labels'.
const FIXTURES: [(&str, &str, Option<u64>); 11] = [
    ("gpt2", "gpt2", None),
    ("gpt2_deep", "gpt2", None),
    ("llama", "llama", None),
    ("llama_deep", "llama", None),
    ("bert", "bert", None),
    ("bert_deep", "bert", None),
    ("t5", "t5", Some(12)),
    ("t5_deep", "t5", Some(12)),
    ("vit", "vit", None),
    ("swin", "swin", None),
    ("mixtral", "mixtral", None),
];

/// Fixtures whose exported graphs make tables, masks or windows in another way.
const SAME_BUT_FOR_CONSTANTS: [&str; 6] = ["llama", "llama_deep", "t5", "t5_deep", "swin", "mixtral"];

/// The fixtures that are there.
fn fixtures() -> impl Iterator<Item = (Fixture, &'static str, Option<u64>)> {
    let has_all = std::env::var_os("GALVATRON_FIXTURES").is_some();
    let there = FIXTURES.into_iter().filter(move |(name, ..)| has_all || ["gpt2", "mixtral"].contains(name));
    there.map(|(name, kind, length)| (Fixture::open(name), kind, length))
}

#[test]
fn every_family_trains_like_pytorch() {
    let mut faults = Vec::new();
    for (fixture, kind, length) in fixtures() {
        for (ranks, optimizer) in [(1, "sgd"), (1, "adamw"), (2, "sgd"), (2, "adamw")] {
            let module = module(&fixture, kind, length, optimizer, ranks);
            let losses =
                losses(&module, fixture.data(), &Formula(&fixture.manifest["reference"]["parameters"]), N_STEPS);
            let run = &fixture.manifest["reference"]["trajectories"][optimizer];
            let worst = worst(&losses, run);
            println!("{:<10} {optimizer:<6} {ranks} ranks: {worst:.3} of the tolerance", fixture.model);
            if worst.is_nan() || worst > 1.0 {
                faults.push(format!("{} {optimizer} {ranks} ranks: {worst} times the tolerance", fixture.model));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn families_without_fixture_train_like_pytorch() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/configs");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("the folder is there").map(|e| e.expect("an entry").path()).collect();
    files.sort();
    files.retain(|file| file.extension().is_some_and(|e| e == "json"));
    assert!(files.len() >= 5, "{files:?}");
    let mut faults = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("it can be read");
        let reference: Value = serde_json::from_str(&text).expect("it is JSON");
        let walk = Walk::of(&reference);
        for (ranks, optimizer) in [(1, "sgd"), (2, "adamw")] {
            let keys = walk.keys().into_iter().chain(hyper(&reference["runs"][optimizer], optimizer));
            let recipe = parse_recipe("", &keys.collect::<Vec<_>>()).expect("the constants are in range");
            let module = plan(&reference["config"], &recipe, ranks);
            let losses = losses(&module, &walk, &Formula(&reference["parameters"]), walk.n_steps);
            let worst = worst(&losses, &reference["runs"][optimizer]);
            let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            println!("{name:<16} {optimizer:<6} {ranks} ranks: {worst:.3} of the tolerance");
            if worst.is_nan() || worst > 1.0 {
                faults.push(format!("{name} {optimizer} {ranks} ranks: {worst} times the tolerance"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn first_gradients_are_those_of_pytorch() {
    let mut faults = Vec::new();
    for (fixture, kind, length) in fixtures() {
        let module = module(&fixture, kind, length, "sgd", 1);
        let report =
            run(&module, fixture.data(), &Formula(&fixture.manifest["reference"]["parameters"]), 1, &mut |_| {});
        let gradients = report.gradients.expect("they were asked for");
        for (name, parameter) in fixture.manifest["reference"]["parameters"].as_object().expect("a list") {
            let found = gradients.iter().find(|(stored, _)| spellings(stored).contains(name));
            let Some((_, found)) = found else {
                faults.push(format!("{}: `{name}` has no gradient", fixture.model));
                continue;
            };
            let expected = number(&parameter["grad"]["l2"]);
            let l2 = found.data.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            let tolerance = 1e-5 * expected + 1e-6;
            if (l2 - expected).abs() > tolerance {
                faults.push(format!("{}: the gradient of `{name}` has norm {l2:e}, not {expected:e}", fixture.model));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn keys_change_the_losses() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/configs");
    for (name, key, value) in [
        ("mistral", "sliding_window", Value::from(6)),
        ("qwen2", "max_window_layers", Value::from(2)),
        ("llama3", "rope_scaling", Value::Null),
        ("gpt_neox", "rotary_pct", Value::from(0.25)),
        ("gpt2_scaled", "scale_attn_by_inverse_layer_idx", Value::from(false)),
        ("mixtral", "num_experts_per_tok", Value::from(2)),
        ("mixtral", "rms_norm_eps", Value::from(1e-3)),
        ("mixtral", "rope_theta", Value::from(50.0)),
        ("t5_relu", "relative_attention_max_distance", Value::from(7)),
    ] {
        let text = std::fs::read_to_string(folder.join(format!("{name}.json"))).expect("the reference is there");
        let mut reference: Value = serde_json::from_str(&text).expect("it is JSON");
        reference["config"][key] = value;
        let walk = Walk::of(&reference);
        let keys = walk.keys().into_iter().chain(hyper(&reference["runs"]["sgd"], "sgd"));
        let recipe = parse_recipe("", &keys.collect::<Vec<_>>()).expect("the constants are in range");
        let module = plan(&reference["config"], &recipe, 1);
        let losses = losses(&module, &walk, &Formula(&reference["parameters"]), walk.n_steps);
        let worst = worst(&losses, &reference["runs"]["sgd"]);
        assert!(worst > 1.0, "{name} trains the same with another `{key}`: {worst}");
    }
}

#[test]
fn what_is_saved_is_a_checkpoint_of_the_configuration() {
    let fixture = Fixture::open("gpt2");
    let (config, recipe) = configured(&fixture, "gpt2", None, "adamw");
    let fresh = RandomWeights { seed: 3 };
    let options = RunOptions { steps: 2, threads: Some(1), collect: true, ..RunOptions::default() };
    let run = |module: &Module, weights: &dyn WeightSource, options: &RunOptions| {
        let mut losses = Vec::new();
        let report = galvatron_backends::run(module, options, fixture.data(), weights, &mut |step| {
            losses.push(step.loss);
            Flow::Continue
        });
        (losses, report.expect("the plan runs").trained)
    };
    let (_, trained) = run(&plan(&config, &recipe, 2), &fresh, &options);
    let folder = TempFolder::new();
    save_training(&folder.0, &trained.expect("it was asked for"), 2).expect("the folder takes files");
    std::fs::write(folder.0.join("config.json"), config.to_string()).expect("the folder takes files");
    let saved = compiled(&folder.0, &recipe, 1, None);
    assert!(saved.initializers.iter().all(|i| i.file.ends_with("model.safetensors")));
    // The third step reads the third batch; so does the first one of a run that goes on.
    let third = RunOptions { first_step: 3, steps: 1, threads: Some(1), ..RunOptions::default() };
    let (found, _) = run(&saved, &PlanWeights::new(Path::new(""), None), &third);
    let all = RunOptions { steps: 3, threads: Some(1), ..RunOptions::default() };
    let (expected, _) = run(&plan(&config, &recipe, 2), &fresh, &all);
    assert!((found[0] - expected[2]).abs() < 1e-5, "{found:?} {expected:?}");
}

#[test]
fn a_configuration_gives_the_graph_of_the_exported_model() {
    for (fixture, kind, length) in fixtures().filter(|(f, ..)| !SAME_BUT_FOR_CONSTANTS.contains(&f.model.as_str())) {
        let (config, recipe) = configured(&fixture, kind, length, "sgd");
        let folder = TempFolder::new();
        std::fs::write(folder.0.join("config.json"), config.to_string()).expect("the folder takes files");
        let ops = |model: &Path, recipe: &Recipe| {
            let module = compiled(model, recipe, 1, Some("rewrite"));
            let mut ops: Vec<&str> =
                module.program.body.iter().map(|&n| module.program.graph.node(n).op.mnemonic()).collect();
            ops.sort_unstable();
            ops.join(" ")
        };
        let exported = ops(&fixture.onnx("keep20"), &fixture.recipe("keep20", "sgd"));
        assert_eq!(ops(&folder.0, &recipe), exported, "{}", fixture.model);
    }
}

/// The plan of a fixture's model, from its configuration.
fn module(fixture: &Fixture, kind: &str, length: Option<u64>, optimizer: &str, ranks: u32) -> Module {
    let (config, recipe) = configured(fixture, kind, length, optimizer);
    plan(&config, &recipe, ranks)
}

/// The configuration of a fixture's model and the recipe of a reference run.
fn configured(fixture: &Fixture, kind: &str, length: Option<u64>, optimizer: &str) -> (Value, Recipe) {
    let mut config = fixture.manifest["config"].clone();
    let keys = config.as_object_mut().expect("the manifest has the configuration");
    let class = keys.remove("cls").expect("the class of the model");
    keys.remove("cfg");
    keys.insert("architectures".into(), Value::Array(vec![class]));
    keys.insert("model_type".into(), kind.into());
    let mut recipe = fixture.recipe("keep20", optimizer);
    if let Some(length) = length {
        recipe.dims = vec![("decoder_sequence".into(), recipe.sequence.expect("labels have a length"))];
        recipe.sequence = Some(length);
    }
    (config, recipe)
}

fn plan(config: &Value, recipe: &Recipe, ranks: u32) -> Module {
    let folder = TempFolder::new();
    std::fs::write(folder.0.join("config.json"), config.to_string()).expect("the folder takes files");
    compiled(&folder.0, recipe, ranks, None)
}

fn compiled(model: &Path, recipe: &Recipe, ranks: u32, stop_after: Option<&str>) -> Module {
    let what = Compilation {
        model,
        cluster: &parse_cluster(&cluster(ranks)).expect("the cluster is sound"),
        recipe,
        pins: &Pins::default(),
        profile: None,
        retie: true,
        stop_after,
        verify_each: true,
    };
    match compile(&what, &mut |_, _| {}) {
        Ok(compiled) => compiled.module,
        Err(CompileFault::Input(faults)) => panic!("{faults:?}"),
        Err(CompileFault::Bug(fault)) => panic!("{fault}"),
        Err(CompileFault::NoPlan { name, .. }) => panic!("no plan fits: {name}"),
    }
}

/// The losses of a run.
fn losses(module: &Module, data: &dyn DataSource, weights: &dyn WeightSource, steps: u64) -> Vec<f64> {
    let mut losses = Vec::new();
    run(module, data, weights, steps, &mut |loss| losses.push(loss));
    losses
}

fn run(
    module: &Module,
    data: &dyn DataSource,
    weights: &dyn WeightSource,
    steps: u64,
    each: &mut dyn FnMut(f64),
) -> RunReport {
    let options = RunOptions { steps, threads: Some(1), dump_gradients: steps == 1, ..RunOptions::default() };
    galvatron_backends::run(module, &options, data, weights, &mut |step| {
        each(step.loss);
        Flow::Continue
    })
    .expect("the plan runs")
}

/// The largest error of a loss in units of its tolerance.
fn worst(losses: &[f64], run: &Value) -> f64 {
    let expected = run["losses"].as_array().expect("the reference has losses");
    assert_eq!(losses.len(), expected.len());
    let noise = number(&run["max_abs_diff_f32_f64"]);
    let error = |(found, expected): (&f64, &Value)| {
        let expected = number(expected);
        (found - expected).abs() / (1e-5 * expected.abs().max(1.0) + 10.0 * noise)
    };
    losses.iter().zip(expected).map(error).fold(0.0, |a, b| if b.is_nan() { f64::NAN } else { a.max(b) })
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("the reference has a number")
}

/// The optimizer's constants as keys of the recipe.
fn hyper(run: &Value, optimizer: &str) -> Vec<String> {
    let constants = run["hyper"].as_object().expect("the reference names the optimizer's constants");
    let keys = constants.iter().map(|(key, value)| format!("optimizer.{key}={value}"));
    std::iter::once(format!("optimizer.kind={optimizer}")).chain(keys).collect()
}

/// Weights by the formula of their PyTorch name.
struct Formula<'a>(&'a Value);

impl WeightSource for Formula<'_> {
    fn read(&self, initializer: &Initializer) -> Result<Vec<f32>, RunFault> {
        let names = spellings(&initializer.name);
        let found = names.iter().find_map(|name| Some((name, self.0.get(name)?)));
        let (name, parameter) = found.unwrap_or_else(|| panic!("`{}` is no parameter of PyTorch", initializer.name));
        let shape: Vec<u64> = serde_json::from_value(parameter["shape"].clone()).expect("a shape");
        assert_eq!(initializer.ty.shape, shape, "`{name}`");
        let formula = &parameter["formula"];
        Ok(formula::elements(name, initializer.ty.elements(), number(&formula[0]), number(&formula[1])).collect())
    }
}

/// CPU ranks of one machine.
fn cluster(ranks: u32) -> String {
    format!(
        "nodes = 1\ndevices_per_node = {ranks}\n\
         [device]\nkind = \"cpu\"\nmemory_gib = 2.0\npeak_tflops = {{ f32 = 0.1 }}\nmemory_bandwidth_gbps = 10.0\n\
         [links.intra_node]\nbandwidth_gbps = 4.0\nlatency_us = 10.0\n"
    )
}

/// A folder of its own that goes away with the value.
struct TempFolder(PathBuf);

impl TempFolder {
    fn new() -> TempFolder {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("galvatron-huggingface-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).expect("temporary folders can be made");
        TempFolder(path)
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
