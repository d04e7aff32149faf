//! Imports damaged files: there are diagnostics or a module that verifies, and never a panic.

use crate::mutate::{Mutator, put_bytes, put_number};
use crate::node_tests;
use galvatron::import::ImportOptions;
use galvatron::import::onnx::reader::OnnxModel;
use galvatron::import::onnx::{import_fixed, import_model};
use galvatron_ir::recipe::Recipe;
use galvatron_ir::{Diagnostic, Module};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// How damaged files were taken.
#[derive(Default)]
pub struct Outcomes {
    /// Files that were imported in spite of it.
    pub n_imported: usize,
    /// Files that were refused, by the code of their first diagnostic.
    pub refused: BTreeMap<&'static str, usize>,
    /// Files that made the importer panic, or of which it made a module that does not verify.
    pub crashes: Vec<Vec<u8>>,
}

/// The folder of the committed models, or the one that `GALVATRON_FIXTURES` names.
pub fn fixtures() -> PathBuf {
    let committed = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    std::env::var_os("GALVATRON_FIXTURES").map_or_else(committed, PathBuf::from)
}

/// The ONNX files in a folder and the folders in it.
pub fn models(folder: &Path) -> Vec<Vec<u8>> {
    let inside = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> = inside(folder).flat_map(|path| inside(&path).chain([path])).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "onnx"));
    paths.sort();
    paths.iter().filter_map(|path| std::fs::read(path).ok()).collect()
}

/// The models of the node tests, each twice: what is evaluated when compiling are its integers, or all of its inputs.
pub fn node_models() -> Vec<Vec<u8>> {
    let files = node_tests::files();
    let of_test = |(name, model): (&String, &Vec<u8>)| {
        let test = name.strip_suffix("/model.onnx")?;
        let data = SafeTensors::deserialize(files.get(&format!("{test}/data.safetensors"))?).ok()?;
        let is_index = |dtype| matches!(dtype, Dtype::I64 | Dtype::I32 | Dtype::BOOL);
        Some([with_initializers(model, &data, is_index), with_initializers(model, &data, |_| true)])
    };
    files.iter().filter_map(of_test).flatten().collect()
}

/// The model with the data of inputs of some types as initializers: protobuf joins the graphs of a file.
fn with_initializers(model: &[u8], data: &SafeTensors<'_>, is_known: impl Fn(Dtype) -> bool) -> Vec<u8> {
    let mut graph = Vec::new();
    for (name, view) in data.iter().filter(|(_, view)| is_known(view.dtype())) {
        if let (Some(input), Some(number)) = (name.strip_prefix("in."), number(view.dtype())) {
            put_bytes(INITIALIZER, &tensor(input, number, &view), &mut graph);
        }
    }
    let mut file = model.to_vec();
    put_bytes(GRAPH, &graph, &mut file);
    file
}

/// Fields of `onnx.proto`: the graph of a model, an initializer of a graph, and dimensions, type, name and data of a tensor.
const GRAPH: u64 = 7;
const INITIALIZER: u64 = 5;
const DIMS: u64 = 1;
const DATA_TYPE: u64 = 2;
const NAME: u64 = 8;
const RAW_DATA: u64 = 9;

fn tensor(name: &str, data_type: u64, view: &TensorView<'_>) -> Vec<u8> {
    let mut tensor = Vec::new();
    view.shape().iter().for_each(|&dim| put_number(DIMS, dim as u64, &mut tensor));
    put_number(DATA_TYPE, data_type, &mut tensor);
    put_bytes(NAME, name.as_bytes(), &mut tensor);
    put_bytes(RAW_DATA, view.data(), &mut tensor);
    tensor
}

/// The number that ONNX gives an element type.
fn number(dtype: Dtype) -> Option<u64> {
    Some(match dtype {
        Dtype::F32 => 1,
        Dtype::I32 => 6,
        Dtype::I64 => 7,
        Dtype::BOOL => 9,
        Dtype::F64 => 11,
        _ => return None,
    })
}

impl Outcomes {
    /// Imports a damaged file.
    pub fn take(&mut self, damaged: Vec<u8>) {
        match catch_unwind(AssertUnwindSafe(|| import(damaged.clone()))) {
            Ok(Ok(())) => self.n_imported += 1,
            Ok(Err(code)) => *self.refused.entry(code).or_default() += 1,
            Err(_) => self.crashes.push(damaged),
        }
    }
}

/// A file of the corpus with damage.
pub fn damaged(mutator: &mut Mutator, corpus: &[Vec<u8>]) -> Vec<u8> {
    let (file, other) = (mutator.below(corpus.len()), mutator.below(corpus.len()));
    mutator.mutate(&corpus[file], &corpus[other])
}

/// Imports a file as a model to be trained and as one to be evaluated, or gives the code of the first diagnostic.
///
/// # Panics
/// When the importer does, or makes a module that does not verify.
fn import(file: Vec<u8>) -> Result<(), &'static str> {
    let recipe = Recipe { global_batch: Some(2), sequence: Some(6), ..Recipe::default() };
    let first = |faults: Vec<Diagnostic>| faults.first().map_or("none", |fault| fault.code);
    let model = OnnxModel::from_bytes(file.into(), "damaged.onnx".into()).map_err(first)?;
    let trained = import_model(&model, &ImportOptions { recipe: &recipe, retie: true });
    let evaluated = import_fixed(&model);
    for module in trained.iter().map(|imported| &imported.module).chain(&evaluated) {
        verified(module);
    }
    trained.map(|_| ()).or(evaluated.map(|_| ())).map_err(first)
}

fn verified(module: &Module) {
    let faults = galvatron_ir::verify::check(module, None);
    assert!(faults.is_empty(), "an imported module does not verify: {}", faults[0]);
}
