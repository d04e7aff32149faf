//! Dropout while training: what is dropped depends on the seed, the step, the dropout and the place of an element, and on nothing
//! of the plan.

#[path = "support/dropped.rs"]
mod dropped;
#[path = "support/fixture.rs"]
mod fixture;

use dropped::with_dropouts;
use fixture::{Fixture, N_STEPS};
use galvatron::config::cluster::parse_cluster;
use galvatron::config::strategy::parse_strategy;
use galvatron::config::train::parse_recipe;
use galvatron::driver::{Compilation, CompileFault, Compiled, compile, pins_of};
use galvatron::weights::{PlanWeights, RandomWeights};
use galvatron_backends::exec::{DataSource, Flow, RunOptions, Tensors, WeightSource};
use galvatron_ir::Module;
use galvatron_ir::op::Op;
use galvatron_ir::recipe::Recipe;
use galvatron_ir::types::DType;
use galvatron_passes::segment::layers;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const GPT2: &str =
    r#""model_type": "gpt2", "vocab_size": 32, "n_positions": 8, "n_embd": 16, "n_head": 4, "n_layer": 2"#;
const GPT2_RATES: &str = r#""resid_pdrop": 0.2, "embd_pdrop": 0.1, "attn_pdrop": 0.3"#;
const LLAMA: &str = r#""model_type": "llama", "vocab_size": 32, "hidden_size": 16, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24, "attention_dropout": 0.3"#;

/// Steps of a model that is made up.
const N_MADE_STEPS: u64 = 4;

/// Ranks and pins. All ways to cut a tensor and the model, to compute a tensor again and to take it by parts.
const PLANS: [(u32, &str); 16] = [
    (1, "micro_batches = 2"),
    (1, "micro_batches = 4\nrecompute = \"full\""),
    (1, "recompute = \"full\""),
    (1, "recompute = \"selective\""),
    (2, "dp = 2\nzero = 3"),
    (2, "tp = 2"),
    (2, "tp = 2\nsequence = \"megatron\""),
    (2, "tp = 2\nmicro_batches = 2\nrecompute = \"full\""),
    (2, "dp = 2\nzero = 2\nmicro_batches = 2"),
    (4, "dp = 2\ntp = 2\nsequence = \"megatron\"\nzero = 1"),
    (4, "dp = 2\ntp = 2\nzero = 3\nmicro_batches = 2\nrecompute = \"full\""),
    (4, "dp = 4\nzero = 3\nmicro_batches = 2"),
    (2, "pp = 2\nmicro_batches = 4"),
    (2, "pp = 2\nschedule = \"gpipe\"\nmicro_batches = 4\nrecompute = \"full\""),
    (4, "pp = 2\ntp = 2\nsequence = \"megatron\"\nmicro_batches = 4\nrecompute = \"selective\""),
    (4, "pp = 2\ndp = 2\nzero = 3\nmicro_batches = 2"),
];

#[test]
fn what_is_dropped_does_not_depend_on_the_plan() {
    let rates = format!("{GPT2}, {GPT2_RATES}");
    for config in [&rates[..], LLAMA] {
        let model = Model::configured(config, &["model.dropout=true"]);
        let expected = model.losses(1, "");
        let without = Model::configured(config, &[]).losses(1, "");
        assert!(distance(&expected, &without) > 1e-3, "dropout changes nothing: {expected:?}");
        for (ranks, strategy) in PLANS {
            let found = model.losses(ranks, strategy);
            let distance = distance(&found, &expected);
            assert!(distance < 2e-5, "{ranks} ranks, {strategy:?}: {found:?}, not {expected:?}");
        }
    }
}

#[test]
fn gradients_are_of_what_was_kept() {
    let model = Model::configured(&format!("{GPT2}, {GPT2_RATES}"), &["model.dropout=true"]);
    let gradients = |ranks, strategy| model.gradients(&model.compile(ranks, strategy).module);
    let expected = gradients(1, "");
    for (ranks, strategy) in
        [(1, "micro_batches = 2\nrecompute = \"full\""), (2, "tp = 2"), (4, "dp = 2\ntp = 2\nzero = 3")]
    {
        let found = gradients(ranks, strategy);
        for (name, expected) in &expected {
            let pairs = found[name].data.iter().zip(&expected.data);
            let off = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 1e-5, "{ranks} ranks, {strategy:?}: the gradient of `{name}` is off by {off:e}");
        }
    }
}

/// With a learning rate of 0 and the same samples in each step, losses differ by what is dropped alone.
#[test]
fn each_step_and_each_seed_drops_others() {
    let losses = |config: &str, keys: &[&str]| {
        let keys: Vec<&str> = keys.iter().chain(&["optimizer.lr=0.0", "optimizer.weight_decay=0.0"]).copied().collect();
        Model::configured(config, &keys).losses(1, "")
    };
    let rates = format!("{GPT2}, {GPT2_RATES}");
    let still = losses(&rates, &[]);
    assert!(still.iter().all(|loss| *loss == still[0]), "{still:?}");
    let mut all: Vec<f64> = ["seed=0", "seed=1", "seed=4294967296"]
        .iter()
        .flat_map(|seed| losses(&rates, &["model.dropout=true", seed]))
        .collect();
    all.sort_by(f64::total_cmp);
    assert!(all.windows(2).all(|pair| pair[1] - pair[0] > 1e-6), "{all:?}");
}

/// Layers whose weights are equal drop different elements.
#[test]
fn each_dropout_of_a_model_has_a_number_of_its_own() {
    let model = Model::configured(&format!("{GPT2}, {GPT2_RATES}"), &["model.dropout=true"]);
    let numbers: Vec<u32> = dropouts(&model.compile(1, "").module).iter().map(|op| op.number).collect();
    let mut expected: Vec<u32> = (0..7).collect();
    expected.sort_unstable();
    let mut forward = numbers.clone();
    forward.sort_unstable();
    forward.dedup();
    assert_eq!(forward, expected);
    // Each is there once more in its gradient.
    assert_eq!(numbers.len(), 14);
}

#[test]
fn layers_are_found_though_their_dropouts_have_numbers() {
    for layer in [GPT2.replace("\"n_layer\": 2", "\"n_layer\": 5"), LLAMA.replace("layers\": 2", "layers\": 5")] {
        let model = Model::configured(&format!("{layer}, {GPT2_RATES}"), &["model.dropout=true"]);
        assert_eq!(layers(&model.compile(2, "").segments), [5]);
    }
}

#[test]
fn rates_of_0_are_no_dropout() {
    let zero = format!(r#"{GPT2}, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0"#);
    let plan = |keys: &[&str]| galvatron_ir::text::print(&Model::configured(&zero, keys).compile(2, "").module);
    assert_eq!(plan(&["model.dropout=true"]), plan(&[]));
}

/// Families with a rate that drops nothing: attention is written out, and trains as it does in one op.
#[test]
fn families_with_a_tiny_rate_train_as_without() {
    let tokens = r#""vocab_size": 32, "hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 24,
        "max_position_embeddings": 16"#;
    let hidden = r#""hidden_dropout_prob": 1e-12, "attention_probs_dropout_prob": 1e-12"#;
    let attention = r#""attention_dropout": 1e-12"#;
    let grouped = format!(r#"{tokens}, "num_key_value_heads": 2, {attention}"#);
    let images = r#""image_size": 16, "patch_size": 4, "num_labels": 4"#;
    for (config, n_dropouts) in [
        (format!(r#"{GPT2}, "resid_pdrop": 1e-12, "embd_pdrop": 1e-12, "attn_pdrop": 1e-12"#), 1 + 2 * 3),
        (format!(r#""model_type": "llama", {grouped}"#), 2),
        (format!(r#""model_type": "mistral", "sliding_window": 3, {grouped}"#), 2),
        (format!(r#""model_type": "mixtral", {grouped}"#), 2),
        (format!(r#""model_type": "qwen2", {grouped}"#), 2),
        (format!(r#""model_type": "gpt_neox", {tokens}, {attention}, "hidden_dropout": 1e-12, "rotary_pct": 0.5"#), 1 + 2 * 3),
        (format!(r#""model_type": "opt", {tokens}, "ffn_dim": 24, "dropout": 1e-12, {attention}"#), 2 * 3),
        (format!(r#""model_type": "phi", {tokens}, "resid_pdrop": 1e-12, "embd_pdrop": 1e-12, {attention}"#), 1 + 2 * 3),
        (format!(r#""model_type": "bert", {tokens}, {hidden}"#), 1 + 2 * 3),
        (format!(r#""model_type": "vit", {tokens}, {images}, {hidden}"#), 1 + 2 * 3),
        (
            r#""model_type": "t5", "vocab_size": 32, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_heads": 4, "num_layers": 2,
                "dropout_rate": 1e-12"#
                .into(),
            2 * 2 + 2 * 4 + 2 * 6,
        ),
        (
            format!(
                r#""model_type": "swin", {images}, "embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": 2,
                "drop_path_rate": 0.0, {hidden}"#
            ),
            1 + 2 * 3,
        ),
    ] {
        let model = Model::configured(&config, &["model.dropout=true"]);
        let module = model.compile(1, "").module;
        let n_found = galvatron_ir::verify::check(&module, None).len();
        assert_eq!(n_found, 0, "{config}");
        let forward: std::collections::BTreeSet<u32> = dropouts(&module).iter().map(|op| op.number).collect();
        assert_eq!(forward.len(), n_dropouts, "{config}");
        let (found, expected) = (model.run(&module), Model::configured(&config, &[]).losses(1, ""));
        assert!(distance(&found, &expected) < 2e-5, "{config}: {found:?}, not {expected:?}");
    }
}

#[test]
fn a_run_that_is_resumed_drops_what_it_would_have_dropped() {
    let model = Model::configured(&format!("{GPT2}, {GPT2_RATES}"), &["model.dropout=true"]);
    let folder = Folder::new();
    let module = model.compile(2, "dp = 2\nmicro_batches = 2").module;
    std::fs::write(folder.path("plan.gir"), galvatron_ir::text::print(&module)).unwrap();
    let tokens: Vec<u8> = (0..4000u32).flat_map(|i| ((i * i * 7 + i / 3) % 32).to_le_bytes()[..2].to_vec()).collect();
    std::fs::write(folder.path("tokens.bin"), tokens).unwrap();
    let losses = |steps: &str, more: &[&str]| -> Vec<f64> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_galvatron-exec"));
        command.arg(folder.path("plan.gir")).arg("--data").arg(folder.path("tokens.bin")).args(["--steps", steps]);
        command.arg("--metrics").arg(folder.path("metrics.jsonl")).args(["--threads", "1"]).args(more);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = std::fs::read_to_string(folder.path("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter_map(|line| line["loss"].as_f64()).collect()
    };
    let saved = folder.path("saved").to_string_lossy().into_owned();
    let whole = losses("4", &["--init", "random"]);
    let first = losses("2", &["--init", "random", "--save", &saved]);
    let second = losses("2", &["--resume", &saved]);
    assert_eq!([first, second].concat(), whole);
}

/// Probabilities of an exported attention are dropped: it stays as it is, and its heads may be cut all the same. So are vectors of
/// positions, which have no batch: sums over micro-batches pass through their dropout.
#[test]
fn dropouts_of_an_exported_model_train() {
    let fixture = Fixture::open("gpt2");
    let model = |ratio| Model::exported(&fixture, &["Softmax", "LayerNormalization", "Gather", "Gemm"], ratio);
    let dropped = model(0.25);
    let expected = dropped.losses(1, "");
    // The batch has four samples, which data ranks and micro-batches share.
    for (ranks, strategy) in PLANS.into_iter().filter(|(_, strategy)| !strategy.starts_with("dp = 4")) {
        let found = dropped.losses(ranks, strategy);
        assert!(distance(&found, &expected) < 2e-5, "{ranks} ranks, {strategy:?}: {found:?}, not {expected:?}");
    }
    let trajectory = fixture.manifest["reference"]["trajectories"]["sgd"]["losses"].as_array().expect("losses").iter();
    let trajectory: Vec<f64> = trajectory.map(|loss| loss.as_f64().expect("a number")).collect();
    assert!(distance(&expected, &trajectory) > 1e-3);
    assert!(distance(&model(1e-12).losses(1, ""), &trajectory) < 1e-4);
}

#[test]
fn a_plan_that_drops_others_than_its_program_is_found() {
    let model = Model::configured(&format!("{GPT2}, {GPT2_RATES}"), &["model.dropout=true"]);
    let text = galvatron_ir::text::print(&model.compile(1, "").module);
    let (program, chunk) = text.split_at(text.find("chunk").expect("a plan has a chunk"));
    for (from, to) in [("number=3", "number=4"), ("seed=0, number=3", "seed=1, number=3"), ("p=0.2", "p=0.1")] {
        let plan = format!("{program}{}", chunk.replacen(from, to, 1));
        assert_ne!(plan, text);
        let codes: Vec<&str> = match galvatron_ir::text::parse(&plan) {
            Ok(module) => galvatron_ir::verify::check(&module, None).iter().map(|fault| fault.code).collect(),
            Err(faults) => panic!("{faults:?}"),
        };
        assert_eq!(codes, ["G0207"], "{from} {to}");
    }
}

#[test]
fn plans_in_bf16_drop_what_plans_in_f32_drop() {
    let model = |compute: &str| {
        let keys = ["model.dropout=true", compute, "optimizer.kind=sgd", "optimizer.lr=0.01"];
        Model::configured(&format!("{GPT2}, {GPT2_RATES}"), &keys)
    };
    let (wide, narrow) = (model("precision.compute=f32"), model("precision.compute=bf16"));
    let expected = wide.losses(1, "");
    for (ranks, strategy) in [(1, ""), (2, "tp = 2\nmicro_batches = 2")] {
        let found = narrow.losses(ranks, strategy);
        assert!(distance(&found, &expected) < 0.02, "{found:?}, not {expected:?}");
    }
}

/// A model, how it is trained, and what it reads.
struct Model<'a> {
    folder: Folder,
    /// Name of its file.
    file: &'static str,
    recipe: Recipe,
    n_steps: u64,
    fixture: Option<&'a Fixture>,
}

impl<'a> Model<'a> {
    /// The model of a configuration, for a batch of 8 and a sequence of 8.
    fn configured(config: &str, keys: &[&str]) -> Model<'static> {
        let folder = Folder::new();
        std::fs::write(folder.path("config.json"), format!("{{{config}}}")).unwrap();
        let keys = keys.iter().chain(&["batch.global=8", "batch.sequence=8", "optimizer.lr=0.01"]).rev();
        let recipe =
            parse_recipe("", &keys.map(|key| key.to_string()).collect::<Vec<_>>()).expect("the keys are right");
        Model { folder, file: "config.json", recipe, n_steps: N_MADE_STEPS, fixture: None }
    }

    /// An exported model with dropouts behind some operators.
    fn exported(fixture: &'a Fixture, operators: &[&str], ratio: f32) -> Model<'a> {
        let folder = Folder::new();
        let model = std::fs::read(fixture.onnx("keep18")).unwrap();
        std::fs::write(folder.path("model.onnx"), with_dropouts(&model, operators, ratio)).unwrap();
        let recipe = fixture.recipe("keep18", "sgd");
        Model { folder, file: "model.onnx", recipe, n_steps: N_STEPS, fixture: Some(fixture) }
    }

    fn compile(&self, ranks: u32, strategy: &str) -> Compiled {
        let what = Compilation {
            model: &self.folder.path(self.file),
            cluster: &parse_cluster(&cluster(ranks)).expect("the cluster is sound"),
            recipe: &self.recipe,
            pins: &parse_strategy(strategy).and_then(|s| pins_of(&s)).expect("the pins are right"),
            retie: true,
            stop_after: None,
            verify_each: true,
            profile: None,
        };
        match compile(&what, &mut |_, _| {}) {
            Ok(compiled) => compiled,
            Err(CompileFault::Input(faults)) => panic!("{strategy:?}: {faults:?}"),
            Err(CompileFault::Bug(fault)) => panic!("{strategy:?}: {fault}"),
            Err(CompileFault::NoPlan { name, .. }) => panic!("no plan fits: {name}"),
        }
    }

    fn losses(&self, ranks: u32, strategy: &str) -> Vec<f64> {
        self.run(&self.compile(ranks, strategy).module)
    }

    fn run(&self, module: &Module) -> Vec<f64> {
        let options = RunOptions { steps: self.n_steps, threads: Some(1), ..RunOptions::default() };
        self.launch(module, &options).0
    }

    fn gradients(&self, module: &Module) -> Tensors {
        let options = RunOptions { dump_gradients: true, threads: Some(1), ..RunOptions::default() };
        self.launch(module, &options).1.expect("they were asked for")
    }

    fn launch(&self, module: &Module, options: &RunOptions) -> (Vec<f64>, Option<Tensors>) {
        let made = Made::new(module);
        let (data, weights): (&dyn DataSource, Box<dyn WeightSource>) = match self.fixture {
            Some(fixture) => {
                (fixture.data(), Box::new(PlanWeights::new(Path::new(""), Some(&self.folder.path(self.file)))))
            }
            None => (&made, Box::new(RandomWeights { seed: 3 })),
        };
        let mut losses = Vec::new();
        let report = galvatron_backends::run(module, options, data, &*weights, &mut |step| {
            losses.push(step.loss);
            Flow::Continue
        });
        (losses, report.expect("the plan runs").gradients)
    }
}

/// The dropouts of a program, backward ones too.
fn dropouts(module: &Module) -> Vec<galvatron_ir::op::compute::Dropout> {
    let ops = module.program.body.iter().map(|&node| &module.program.graph.node(node).op);
    ops.filter_map(|op| if let Op::Dropout(op) = op { Some(*op) } else { None }).collect()
}

/// Samples that are made up: each array by its type. Every step reads the same eight.
struct Made(BTreeMap<String, (DType, u64)>);

impl Made {
    fn new(module: &Module) -> Made {
        let ty = |value| &module.program.graph.value(value).ty;
        let entry = |input: &galvatron_ir::module::Input| {
            let ty = ty(input.value);
            (input.name.clone(), (ty.dtype, ty.elements() / ty.shape[0]))
        };
        Made(module.program.inputs.iter().map(entry).collect())
    }
}

impl DataSource for Made {
    fn sample_bytes(&self, input: &str) -> Option<u64> {
        self.0.get(input).map(|(dtype, n)| dtype.bytes() * n)
    }

    fn fill(&self, input: &str, sample: u64, out: &mut [u8]) -> Result<(), String> {
        let (dtype, n) = self.0[input];
        let number = |i: u64| (sample % 8 * 13 + i * i * 7 + i / 2 + input.len() as u64) % 31;
        let limit = match input {
            "attention_mask" | "token_type_ids" => 2,
            "labels" if n == 1 => 4,
            _ => 31,
        };
        for (i, out) in out.chunks_exact_mut(dtype.bytes() as usize).enumerate() {
            let number = number(i as u64);
            match dtype {
                DType::F32 => out.copy_from_slice(&(number as f32 / 15.0 - 1.0).to_ne_bytes()),
                _ if input == "attention_mask" => out.copy_from_slice(&i64::from(i < 6).to_ne_bytes()),
                _ => out.copy_from_slice(&((number % limit) as i64).to_ne_bytes()),
            }
        }
        Ok(())
    }
}

/// The largest difference of two losses, relative to those above 1.
fn distance(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let pairs = found.iter().zip(expected);
    pairs.map(|(a, b)| (a - b).abs() / b.abs().max(1.0)).fold(0.0, |a, b| if b.is_nan() { f64::NAN } else { a.max(b) })
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
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("galvatron-dropout-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).expect("temporary folders can be made");
        Folder(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
