//! What is trained and exported is what PyTorch has after as many steps, and trains on from there: through the two commands,
//! for every optimizer. Where Python has the package `onnx`, its checker reads the exported files.
//!
//! `cargo test --test export -- --nocapture` prints the errors in units of their tolerance. The committed GPT-2 has no weights
//! after training; with `GALVATRON_FIXTURES` it has, and LLaMA too.

#[path = "support/batches.rs"]
mod batches;
#[path = "support/dialects.rs"]
mod dialects;
#[path = "support/drift.rs"]
mod drift;
#[path = "support/fixture.rs"]
#[allow(dead_code)]
mod fixture;
#[path = "support/plan.rs"]
#[allow(dead_code)]
mod plan;

use dialects::{dialects, follows};
use drift::{Parameter, floats};
use fixture::{Fixture, N_STEPS};
use galvatron::import::onnx::reader::OnnxModel;
use galvatron_ir::types::DType;
use plan::Order;
use safetensors::SafeTensors;
use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

const OPTIMIZERS: [&str; 3] = ["sgd", "sgd_momentum", "adamw"];

/// Ranks share the batch, and each has half of the optimizer's state.
const STRATEGY: &str = "dp = 2\nzero = 1";

fn models() -> Vec<Fixture> {
    let is_whole_set = std::env::var_os("GALVATRON_FIXTURES").is_some();
    let names: &[&str] = if is_whole_set { &["mlp", "gpt2", "llama"] } else { &["mlp", "gpt2"] };
    names.iter().map(|name| Fixture::open(name)).collect()
}

/// A folder with everything that one training reads and writes.
struct Trained<'a> {
    fixture: &'a Fixture,
    dialect: &'a str,
    optimizer: &'a str,
    folder: PathBuf,
}

impl<'a> Trained<'a> {
    /// Trains a model for as many steps as the reference, and exports it.
    fn new(fixture: &'a Fixture, dialect: &'a str, optimizer: &'a str) -> Trained<'a> {
        let name = format!("export/{}.{dialect}.{optimizer}", fixture.model);
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&folder).unwrap();
        batches::write(fixture, &folder.join("data.safetensors"));
        let trained = Trained { fixture, dialect, optimizer, folder };
        let onnx = fixture.onnx(dialect);
        trained.plan("plan.gir", &onnx);
        trained.exec("plan.gir", &onnx, N_STEPS, &["--save", &trained.path("saved")]);
        let export = ["export", "--onnx", onnx.to_str().unwrap(), "--weights", &trained.path("saved"), "-o"];
        run(executor().args(export).arg(trained.onnx()));
        trained
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().into()
    }

    /// The exported model.
    fn onnx(&self) -> PathBuf {
        self.folder.join("trained.onnx")
    }

    /// Plans the training of a model.
    fn plan(&self, name: &str, onnx: &Path) {
        let Trained { fixture, dialect, optimizer, .. } = *self;
        let order = Order { fixture, dialect, optimizer, ranks: 2, strategy: STRATEGY, compute: DType::F32 };
        let module = order.compile_model(onnx, "cpu", None).unwrap().module;
        std::fs::write(self.path(name), galvatron_ir::text::print(&module)).unwrap();
    }

    /// Runs a plan.
    fn exec(&self, plan: &str, onnx: &Path, steps: u64, more: &[&str]) {
        let steps = steps.to_string();
        let flags = ["--data", &self.path("data.safetensors"), "--threads", "1", "--steps", &steps];
        run(executor().arg(self.path(plan)).args(flags).arg("--weights").arg(onnx).args(more));
    }

    /// The loss of the first step of a run.
    fn loss(&self, plan: &str, onnx: &Path, more: &[&str]) -> f64 {
        let metrics = self.path("metrics.jsonl");
        self.exec(plan, onnx, 1, &[&["--metrics", &metrics], more].concat());
        let text = std::fs::read_to_string(metrics).unwrap();
        let step: Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
        step["loss"].as_f64().unwrap()
    }
}

fn executor() -> Command {
    Command::new(env!("CARGO_BIN_EXE_galvatron-exec"))
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn exported_weights_are_those_of_pytorch() {
    let mut faults = Vec::new();
    for fixture in &models() {
        for optimizer in OPTIMIZERS {
            let trained = Trained::new(fixture, "keep20", optimizer);
            goes_on(&trained);
            match worst(&trained) {
                Some((worst, name)) => {
                    println!("{} {optimizer}: {worst:.3} of the tolerance at `{name}`", fixture.model);
                    if worst.is_nan() || worst > 1.0 {
                        faults.push(format!("{} {optimizer}: `{name}` is off by {worst} times", fixture.model));
                    }
                }
                None => println!("SKIPPED: the committed {} has no weights after {optimizer}", fixture.model),
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_dialect_goes_on_from_what_was_exported() {
    for fixture in &models() {
        for dialect in dialects(fixture).filter(|d| *d != "keep20" && follows(fixture, d)) {
            goes_on(&Trained::new(fixture, dialect, "adamw"));
        }
    }
}

/// The exported model has, to the last bit, the loss that the training would have gone on with.
fn goes_on(trained: &Trained<'_>) {
    let (fixture, onnx) = (trained.fixture, trained.onnx());
    trained.plan("again.gir", &onnx);
    let resumed = trained.loss("plan.gir", &fixture.onnx(trained.dialect), &["--resume", &trained.path("saved")]);
    let exported = trained.loss("again.gir", &onnx, &[]);
    let name = format!("{} {} {}", fixture.model, trained.dialect, trained.optimizer);
    assert_eq!(exported.to_bits(), resumed.to_bits(), "{name}: {exported} and {resumed}");
    let first = fixture.manifest["reference"]["trajectories"][trained.optimizer]["losses"][0].as_f64().unwrap();
    assert!(exported < first, "{name}: nothing was learned");
    check_format(&onnx);
}

/// The largest error of a weight in units of its tolerance, and its name; nothing where there is no reference.
fn worst(trained: &Trained<'_>) -> Option<(f64, String)> {
    let Trained { fixture, dialect, optimizer, .. } = *trained;
    let model = OnnxModel::open(&trained.onnx()).unwrap();
    let states = std::fs::read(trained.path("saved/optimizer.safetensors")).unwrap();
    let states = SafeTensors::deserialize(&states).unwrap();
    let of_parameter = |(name, stored): (&String, &Value)| {
        assert_eq!(stored["transform"], "same", "`{name}` is stored as PyTorch has it");
        let onnx = stored["onnx"].as_str().unwrap();
        let record = model.initializers.iter().find(|record| record.name == onnx).unwrap();
        let squares = states.tensor(&format!("{onnx}.v")).ok().map(|tensor| floats(tensor.data()));
        assert_eq!(squares.is_some(), optimizer == "adamw", "`{onnx}`");
        let parameter = Parameter { name, found: floats(record.bytes().unwrap()), squares };
        let (units, index) = drift::worst(fixture, optimizer, &parameter)?;
        Some((units, format!("{name}[{index}]")))
    };
    let parameters = fixture.manifest["files"][dialect]["parameters"].as_object().unwrap();
    let all: Option<Vec<_>> = parameters.iter().map(of_parameter).collect();
    all?.into_iter().max_by(|a, b| a.0.total_cmp(&b.0))
}

/// The ONNX project's own checker, where there is one.
fn check_format(onnx: &Path) {
    static HAS_CHECKER: LazyLock<bool> =
        LazyLock::new(|| python("import onnx", "").is_ok_and(|output| output.status.success()));
    if !*HAS_CHECKER {
        println!("SKIPPED: `python3` has no package `onnx` to check `{}` with", onnx.display());
        return;
    }
    let checked = python("import onnx, sys; onnx.checker.check_model(sys.argv[1], full_check=True)", onnx).unwrap();
    assert!(checked.status.success(), "{}: {}", onnx.display(), String::from_utf8_lossy(&checked.stderr));
}

fn python(code: &str, argument: impl AsRef<OsStr>) -> std::io::Result<Output> {
    Command::new("python3").args(["-c", code]).arg(argument).output()
}

#[test]
fn faults_of_an_export_end_with_2_and_name_what_is_wrong() {
    let fixture = Fixture::open("mlp");
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("export/faults");
    std::fs::create_dir_all(&folder).unwrap();
    let (onnx, output) = (fixture.onnx("keep20"), folder.join("trained.onnx"));
    let check = |arguments: &[&Path], expected: &str| {
        let words = ["--onnx", "--weights", "-o"];
        let pairs = words.iter().zip(arguments).flat_map(|(word, path)| [Path::new(word), path]);
        let output = executor().arg("export").args(pairs).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(expected), "{said}");
    };
    let reference = folder.join("batches.safetensors");
    batches::write(&fixture, &reference);
    check(&[&onnx, &reference, &output], "error[weights]: the weights lack the parameter `");
    check(&[&onnx, &folder, &output], "has neither `model.safetensors` nor");
    check(&[&reference, &reference, &output], "error[onnx-format]");
    check(&[&folder.join("none.onnx"), &reference, &output], "error[onnx-file]: cannot read");
    check(&[&onnx, &reference], "--output <TRAINED.onnx>");
    assert!(!output.exists());
    let plan = executor().output().unwrap();
    assert!(plan.status.code() == Some(2) && String::from_utf8_lossy(&plan.stderr).contains("<PLAN>"));
}
