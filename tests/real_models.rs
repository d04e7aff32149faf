//! Models of real sizes, of 5 to 124 million parameters, train like PyTorch and in the memory that their plan says.
//!
//! The models come without weights; the tests compute them into a temporary folder. They run only where `GALVATRON_FIXTURES`
//! names the whole set of fixtures.

#[path = "support/allocator.rs"]
mod allocator;
#[path = "support/formula.rs"]
mod formula;
#[path = "support/formula_file.rs"]
mod formula_file;

use flate2::read::GzDecoder;
use galvatron::config::{cluster::parse_cluster, train::parse_recipe};
use galvatron::driver::{Compilation, CompileFault, compile};
use galvatron::runner::PlanData;
use galvatron::weights::PlanWeights;
use galvatron_backends::exec::{Flow, HostTensor, RunOptions, Tensors};
use galvatron_ir::Module;
use galvatron_passes::search::Pins;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

/// Relative error that a loss may have.
const TOLERANCE: f64 = 2e-5;

/// Relative error that a gradient may have: its norm, and its first elements beside its largest one.
const GRADIENT_TOLERANCE: f64 = 1e-5;

/// What a gradient may be off by beside the largest norm of all: those of key biases are zero, and rounding is what is found.
const NOISE: f64 = 1e-8;

/// What a process needs beyond the arenas: its code and libraries, the plan as text and as data, the packing buffers of the
/// matrix products, stacks, and what the allocator keeps of the largest tensors that were read.
const OWN_BYTES: u64 = 32 << 20;

#[test]
fn gpt2_small_trains_like_pytorch_in_the_memory_of_its_plan() {
    let Some(model) = RealModel::open("gpt2-small", "op18", &["batch.global=2", "batch.sequence=64"]) else { return };
    model.check_training(&[(1, "sgd"), (1, "adamw"), (2, "sgd")]);
    let plan = model.plan(2, "adamw");
    let (losses, peak) = model.train_in_process(&plan);
    model.check(2, "adamw", &losses);
    check_memory(&plan, peak);
}

#[test]
fn bert_mini_trains_like_pytorch() {
    check_dialects("bert-mini", &["batch.global=4", "batch.sequence=64"]);
}

#[test]
fn llama_60m_trains_like_pytorch() {
    check_dialects("llama-60m", &["batch.global=2", "batch.sequence=64"]);
}

#[test]
fn t5_small_trains_like_pytorch() {
    check_dialects("t5-small", &["batch.global=2", "batch.sequence=48", "dims.dec_seq=32"]);
}

#[test]
fn vit_tiny_trains_like_pytorch() {
    check_dialects("vit-tiny", &["batch.global=2"]);
}

/// What the exporter writes at opset 18, attention in pieces, and at opset 23, where it is an operator.
fn check_dialects(name: &str, keys: &[&str]) {
    let runs: [&[(u32, &str)]; 2] = [&[(1, "sgd"), (1, "adamw"), (2, "sgd")], &[(2, "adamw")]];
    for (dialect, runs) in ["op18", "op23"].into_iter().zip(runs) {
        if let Some(model) = RealModel::open(name, dialect, keys) {
            model.check_training(runs);
        }
    }
}

/// The most bytes of the process are those of the arenas, 5 % more or less, and its own.
fn check_memory(plan: &Module, peak: Option<u64>) {
    let Some(peak) = peak else {
        println!("memory: skipped, this system does not tell the most that a process had");
        return;
    };
    let planned: u64 = plan.peak_bytes_by_rank().iter().sum();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!("memory: {:.1} MiB planned, {:.1} MiB at most in the process", mib(planned), mib(peak));
    assert!(peak > planned / 100 * 95, "the process had {peak} bytes, the plan says {planned}");
    assert!(peak < planned / 100 * 105 + OWN_BYTES, "the process had {peak} bytes, the plan says {planned}");
}

/// A model of the folder `real`, unpacked and with weights.
struct RealModel {
    manifest: Value,
    folder: TempFolder,
    onnx: PathBuf,
    data: PathBuf,
    /// The recipe's sizes.
    keys: Vec<String>,
}

impl RealModel {
    /// `None`, said aloud, without the whole set of fixtures.
    fn open(name: &str, dialect: &str, keys: &[&str]) -> Option<RealModel> {
        let Some(fixtures) = std::env::var_os("GALVATRON_FIXTURES") else {
            println!("skipped: GALVATRON_FIXTURES does not name the whole set of fixtures");
            return None;
        };
        let fixtures = PathBuf::from(fixtures).join("real");
        let folder = TempFolder::new(&format!("{name}-{dialect}"));
        let manifest = std::fs::read(fixtures.join(format!("{name}.json"))).expect("the manifest is there");
        let manifest = serde_json::from_slice(&manifest).expect("the manifest is JSON");
        let onnx = folder.0.join(format!("{name}.onnx"));
        unpack(&fixtures.join(format!("{name}.{dialect}.onnx.gz")), &onnx);
        let batches =
            std::fs::read(fixtures.join(format!("{name}.batches.safetensors"))).expect("the batches are there");
        let data = folder.0.join("data.safetensors");
        join_batches(&batches, &data);
        let keys = keys.iter().map(ToString::to_string).collect();
        let model = RealModel { manifest, folder, onnx, data, keys };
        let module = model.plan(1, "sgd");
        let weights = model.folder.0.join("model.weights");
        formula_file::write_weights(&weights, &module, &model.manifest).expect("there is room for the weights");
        Some(model)
    }

    /// The losses of plans on these numbers of ranks with these optimizers, and the gradients of the first plan.
    fn check_training(&self, runs: &[(u32, &str)]) {
        for (i, &(ranks, optimizer)) in runs.iter().enumerate() {
            let (losses, gradients) = self.train(&self.plan(ranks, optimizer), i == 0);
            self.check(ranks, optimizer, &losses);
            if let Some(gradients) = gradients {
                self.check_gradients(&gradients);
            }
        }
    }

    fn plan(&self, ranks: u32, optimizer: &str) -> Module {
        let mut keys = self.keys.clone();
        keys.push(format!("optimizer.kind={optimizer}"));
        let constants = self.run(optimizer)["hyper"].as_object().expect("the manifest names the optimizer's constants");
        keys.extend(constants.iter().map(|(key, value)| format!("optimizer.{key}={value}")));
        let what = Compilation {
            model: &self.onnx,
            cluster: &parse_cluster(&cluster(ranks)).expect("the cluster is sound"),
            recipe: &parse_recipe("", &keys).expect("the manifest's constants are in range"),
            pins: &Pins::default(),
            profile: None,
            retie: true,
            stop_after: None,
            verify_each: true,
        };
        match compile(&what, &mut |_, _| {}) {
            Ok(compiled) => compiled.module,
            Err(CompileFault::Input(faults)) => panic!("{faults:?}"),
            Err(CompileFault::Bug(fault)) => panic!("{fault}"),
            Err(CompileFault::NoPlan { name, .. }) => panic!("no plan fits: {name}"),
        }
    }

    fn run(&self, optimizer: &str) -> &Value {
        &self.manifest["reference"]["trajectories"][optimizer]
    }

    fn steps(&self) -> u64 {
        self.run("sgd")["losses"].as_array().expect("the manifest lists losses").len() as u64
    }

    /// The losses of the steps, and the gradients of the first if asked for.
    fn train(&self, plan: &Module, dump_gradients: bool) -> (Vec<f64>, Option<Tensors>) {
        let data = PlanData::open(&self.data, plan).expect("the data fits the plan");
        let weights = PlanWeights::new(&self.onnx, None);
        let options = RunOptions { steps: self.steps(), dump_gradients, ..RunOptions::default() };
        let mut losses = Vec::new();
        let report = galvatron_backends::run(plan, &options, &data, &weights, &mut |step| {
            losses.push(step.loss);
            Flow::Continue
        })
        .expect("the run succeeds");
        assert!(report.peak_bytes == plan.peak_bytes_by_rank(), "used memory is planned memory");
        (losses, report.gradients)
    }

    /// The losses of the steps, and the most bytes that the process had, where the system says.
    fn train_in_process(&self, plan: &Module) -> (Vec<f64>, Option<u64>) {
        let file = |name: &str| self.folder.0.join(name);
        std::fs::write(file("plan.gir"), galvatron_ir::text::print(plan)).expect("the plan is written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_galvatron-exec"));
        command.arg(file("plan.gir")).arg("--data").arg(&self.data).arg("--metrics").arg(file("metrics.jsonl"));
        command.args(["--steps", &self.steps().to_string()]);
        let mut child = command.spawn().expect("the executor starts");
        let peak = watch(&mut child);
        assert!(child.wait().expect("the executor ends").success());
        let metrics = std::fs::read_to_string(file("metrics.jsonl")).expect("the executor writes metrics");
        let records = metrics.lines().map(|line| serde_json::from_str::<Value>(line).expect("metrics are JSON"));
        (records.filter_map(|record| record["loss"].as_f64()).collect(), peak)
    }

    fn check(&self, ranks: u32, optimizer: &str, losses: &[f64]) {
        let expected: Vec<f64> =
            self.run(optimizer)["losses"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
        assert_eq!(losses.len(), expected.len());
        let errors: Vec<f64> = losses.iter().zip(&expected).map(|(loss, e)| (loss - e).abs() / e).collect();
        println!("{ranks} ranks, {optimizer}: losses {losses:?}, relative errors {errors:?}");
        // A NaN is wrong, too.
        assert!(
            errors.iter().all(|error| *error <= TOLERANCE),
            "{ranks} ranks, {optimizer}: {losses:?}, not {expected:?}"
        );
    }

    /// The gradients of all parameters, each under one of its names: their norms and first elements.
    fn check_gradients(&self, gradients: &Tensors) {
        let expected = self.manifest["reference"]["parameters"].as_object().expect("the manifest lists parameters");
        assert_eq!(gradients.len(), expected.len(), "every parameter has a gradient");
        let noise = NOISE * expected.values().map(|p| number(&p["grad"]["l2"])).fold(0.0, f64::max);
        let mut worst = 0.0_f64;
        for (stored, gradient) in gradients {
            let name = formula_file::pytorch_name(stored, &self.manifest);
            let error = gradient_error(gradient, &expected[&name], noise);
            assert!(error <= 1.0, "the gradient of `{name}` is off by {error} times what it may");
            worst = worst.max(error);
        }
        println!("{} gradients, the largest error is {worst:.3} of what it may be", gradients.len());
    }
}

/// The error of a gradient's norm, or of one of its first elements, in units of what it may be.
fn gradient_error(found: &HostTensor, expected: &Value, noise: f64) -> f64 {
    let elements = found.data.iter().map(|&x| f64::from(x));
    let norm = elements.clone().map(|x| x * x).sum::<f64>().sqrt();
    let (l2, absmax) = (number(&expected["grad"]["l2"]), number(&expected["grad"]["absmax"]));
    let head = expected["grad_head"].as_array().expect("a gradient has first elements");
    let of_head = elements.zip(head).map(|(x, e)| (x - number(e)).abs() / (GRADIENT_TOLERANCE * absmax + noise));
    // A NaN is the largest of all.
    let larger = |a: f64, b: f64| if a.is_nan() || b <= a { a } else { b };
    of_head.fold((norm - l2).abs() / (GRADIENT_TOLERANCE * l2 + noise), larger)
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("the manifest has a number")
}

/// CPU ranks with room for the model.
fn cluster(ranks: u32) -> String {
    format!(
        "nodes = 1\ndevices_per_node = {ranks}\n\
         [device]\nkind = \"cpu\"\nmemory_gib = 6.0\npeak_tflops = {{ f32 = 0.1 }}\nmemory_bandwidth_gbps = 10.0\n\
         [links.intra_node]\nbandwidth_gbps = 4.0\nlatency_us = 10.0\n"
    )
}

fn unpack(from: &Path, to: &Path) {
    let packed = std::fs::File::open(from).expect("the model is there");
    let mut file = std::fs::File::create(to).expect("the folder takes files");
    std::io::copy(&mut GzDecoder::new(packed), &mut file).expect("the model unpacks");
}

/// Writes arrays `batch0.NAME`, `batch1.NAME`, … as one array `NAME`.
fn join_batches(bytes: &[u8], to: &Path) {
    let batches = SafeTensors::deserialize(bytes).expect("the batches are a safetensors file");
    let mut joined: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
    let mut names = batches.names();
    names.sort_unstable();
    for name in &names {
        let tensor = batches.tensor(name).expect("invariant: it is listed");
        let (_, array) = name.split_once('.').expect("arrays are called `batchN.NAME`");
        let (_, shape, data) = joined
            .entry(array.into())
            .or_insert_with(|| (tensor.dtype(), [&[0], &tensor.shape()[1..]].concat(), Vec::new()));
        shape[0] += tensor.shape()[0];
        data.extend(tensor.data());
    }
    let view = |(dtype, shape, data)| TensorView::new(dtype, shape, data).expect("invariant: rows were counted");
    let views: Vec<_> = joined
        .iter()
        .map(|(name, (dtype, shape, data))| (name, view((*dtype, shape.clone(), data.as_slice()))))
        .collect();
    safetensors::serialize_to_file(views, None, to).expect("the folder takes files");
}

/// Waits for a process to end; returns the most bytes that it had in memory, where the system says.
fn watch(child: &mut Child) -> Option<u64> {
    let mut peak = None;
    let status = format!("/proc/{}/status", child.id());
    while child.try_wait().expect("it is our child").is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        peak = text.lines().find_map(high_water_mark).or(peak);
        std::thread::sleep(Duration::from_millis(5));
    }
    peak
}

/// `VmHWM:   123 kB`
fn high_water_mark(line: &str) -> Option<u64> {
    let kib: u64 = line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// A folder of this process that goes away with the value.
struct TempFolder(PathBuf);

impl TempFolder {
    fn new(name: &str) -> TempFolder {
        let path = std::env::temp_dir().join(format!("galvatron-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("temporary folders can be made");
        TempFolder(path)
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
