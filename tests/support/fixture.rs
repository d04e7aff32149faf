//! Models with PyTorch's training results: the committed ones, or those in the folder `GALVATRON_FIXTURES`.

use galvatron::config::train::parse_recipe;
use galvatron_backends::exec::DataSource;
use galvatron_ir::recipe::Recipe;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Steps that a reference run has.
pub const N_STEPS: u64 = 20;

/// Batches that a reference run cycles through.
const N_BATCHES: usize = 4;

/// A model with its reference.
pub struct Fixture {
    /// Its name.
    pub model: String,
    /// What PyTorch found.
    pub manifest: Value,
    /// Its tensors, as a safetensors file.
    pub reference: Vec<u8>,
    folder: PathBuf,
    arrays: Arrays,
}

/// Samples of the reference run by the name of their array.
struct Arrays(BTreeMap<String, Array>);

/// The samples of all batches, one after the other.
#[derive(Default)]
struct Array {
    bytes: Vec<u8>,
    n_samples: usize,
}

impl Fixture {
    /// Reads a model's fixture.
    pub fn open(model: &str) -> Fixture {
        let committed = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures"));
        let folder = std::env::var_os("GALVATRON_FIXTURES").map_or_else(committed, PathBuf::from).join(model);
        let manifest = std::fs::read(folder.join("manifest.json")).expect("the manifest is there");
        let reference = std::fs::read(folder.join("reference.safetensors")).expect("the reference is there");
        let arrays = Arrays::new(&SafeTensors::deserialize(&reference).expect("the reference is a safetensors file"));
        let manifest = serde_json::from_slice(&manifest).expect("the manifest is JSON");
        Fixture { model: model.into(), manifest, folder, reference, arrays }
    }

    /// The ONNX file of a dialect.
    pub fn onnx(&self, dialect: &str) -> PathBuf {
        self.folder.join(format!("{}.{dialect}.onnx", self.model))
    }

    /// Where batches come from; step k of training reads batch k mod 4.
    pub fn data(&self) -> &dyn DataSource {
        &self.arrays
    }

    /// The recipe of a reference run.
    pub fn recipe(&self, dialect: &str, optimizer: &str) -> Recipe {
        let labels = self.shape("batch0.labels");
        let mut keys = vec![format!("batch.global={}", labels[0])];
        keys.extend(labels.get(1).map(|sequence| format!("batch.sequence={sequence}")));
        keys.extend(self.other_extents(dialect, labels.get(1)));
        if dialect.starts_with("loss") {
            keys.push("loss.kind=output".into());
        }
        let kind = if optimizer == "adamw" { "adamw" } else { "sgd" };
        keys.push(format!("optimizer.kind={kind}"));
        let constants = &self.manifest["reference"]["trajectories"][optimizer]["hyper"];
        for (key, value) in constants.as_object().expect("the manifest names the optimizer's constants") {
            keys.push(format!("optimizer.{key}={value}"));
        }
        parse_recipe("", &keys).expect("the manifest's constants are in range")
    }

    /// The open extents of inputs that are not the sequence of the labels, such as that of an encoder.
    fn other_extents(&self, dialect: &str, sequence: Option<&usize>) -> Vec<String> {
        let mut keys = Vec::new();
        for (input, dims) in self.manifest["files"][dialect]["inputs"].as_object().into_iter().flatten() {
            let shape = self.shape(&format!("batch0.{input}"));
            let symbols = dims.as_array().into_iter().flatten().map(Value::as_str);
            for (symbol, extent) in symbols.zip(&shape).skip(1) {
                keys.extend(symbol.filter(|_| Some(extent) != sequence).map(|name| format!("dims.{name}={extent}")));
            }
        }
        keys
    }

    fn shape(&self, name: &str) -> Vec<usize> {
        let tensors = SafeTensors::deserialize(&self.reference).expect("invariant: it was read before");
        tensors.tensor(name).expect("the reference has all batches").shape().to_vec()
    }
}

impl Arrays {
    fn new(reference: &SafeTensors<'_>) -> Arrays {
        let mut arrays: BTreeMap<String, Array> = BTreeMap::new();
        for batch in 0..N_BATCHES {
            let prefix = format!("batch{batch}.");
            for (name, tensor) in reference.iter() {
                if let Some(array) = name.strip_prefix(&prefix) {
                    arrays.entry(array.to_string()).or_default().extend(&tensor);
                }
            }
        }
        Arrays(arrays)
    }
}

impl Array {
    fn extend(&mut self, batch: &TensorView<'_>) {
        assert!(matches!(batch.dtype(), Dtype::F32 | Dtype::I64), "inputs are f32 or i64");
        self.bytes.extend(batch.data());
        self.n_samples += batch.shape()[0];
    }

    fn sample_bytes(&self) -> usize {
        self.bytes.len() / self.n_samples
    }
}

impl DataSource for Arrays {
    fn sample_bytes(&self, input: &str) -> Option<u64> {
        self.0.get(input).map(|array| array.sample_bytes() as u64)
    }

    fn fill(&self, input: &str, sample: u64, out: &mut [u8]) -> Result<(), String> {
        let array = self.0.get(input).ok_or("there is no such array")?;
        let start = sample as usize % array.n_samples * array.sample_bytes();
        out.copy_from_slice(&array.bytes[start..start + out.len()]);
        Ok(())
    }
}
