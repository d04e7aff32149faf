//! What is exported is the model with other elements, and nothing else changes. The models here are written on the wire, with
//! fields that no version of ONNX has.

use super::draft::MAX_MODEL_BYTES;
use super::wire::{put_bytes, put_number, put_varint};
use super::*;
use crate::import::onnx::parameter_names;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::sync::atomic::{AtomicUsize, Ordering};

const FLOAT: u64 = 1;
const INT64: u64 = 7;
const FLOAT16: u64 = 10;
const DOUBLE: u64 = 11;
const BFLOAT16: u64 = 16;

/// A tensor of a checkpoint: its name, its shape, its elements.
type Weight<'a> = (&'a str, &'a [usize], &'a [f32]);

/// A message under construction.
#[derive(Clone, Default)]
struct Wire(Vec<u8>);

impl Wire {
    fn number(mut self, tag: u64, value: u64) -> Wire {
        put_number(tag, value, &mut self.0);
        self
    }

    fn bytes(mut self, tag: u64, value: &[u8]) -> Wire {
        put_bytes(tag, value, &mut self.0);
        self
    }

    fn text(self, tag: u64, value: &str) -> Wire {
        self.bytes(tag, value.as_bytes())
    }

    fn nest(self, tag: u64, message: &Wire) -> Wire {
        self.bytes(tag, &message.0)
    }

    /// A text, a group and a fixed number that nobody knows.
    fn unknown(mut self) -> Wire {
        self = self.text(99_999, "unknown");
        put_varint(90 << 3 | 3, &mut self.0);
        self = self.number(1, 300);
        put_varint(90 << 3 | 4, &mut self.0);
        put_varint(91 << 3 | 5, &mut self.0);
        self.0.extend([1, 2, 3, 4]);
        self
    }
}

fn value(name: &str, dims: &[u64]) -> Wire {
    let shape = dims.iter().fold(Wire::default(), |shape, &dim| shape.nest(1, &Wire::default().number(1, dim)));
    let tensor = Wire::default().number(1, FLOAT).nest(2, &shape);
    Wire::default().text(1, name).nest(2, &Wire::default().nest(1, &tensor))
}

fn node(op_type: &str, inputs: &[&str], output: &str) -> Wire {
    let node = inputs.iter().fold(Wire::default(), |node, input| node.text(1, input));
    node.text(2, output).text(4, op_type)
}

/// A tensor with its data fields between others.
fn tensor(name: &str, data_type: u64, dims: &[u64], data: &Wire) -> Wire {
    let mut tensor = dims.iter().fold(Wire::default(), |tensor, &dim| tensor.number(1, dim)).number(2, data_type);
    tensor = tensor.text(8, name);
    tensor.0.extend(&data.0);
    tensor.text(12, "documented").unknown()
}

fn raw(bytes: &[u8]) -> Wire {
    Wire::default().bytes(9, bytes)
}

fn external(location: &str, offset: u64, n_bytes: u64) -> Wire {
    let entry = |key: &str, value: &str| Wire::default().text(1, key).text(2, value);
    let data = Wire::default().nest(13, &entry("location", location)).nest(13, &entry("offset", &offset.to_string()));
    data.nest(13, &entry("length", &n_bytes.to_string())).number(14, 1)
}

/// A model of these nodes and initializers, from `x` [2, 4] to `y`.
fn model(nodes: &[Wire], initializers: &[Wire]) -> Vec<u8> {
    let mut graph = Wire::default().unknown();
    graph = nodes.iter().fold(graph, |graph, node| graph.nest(1, &node.clone().unknown()));
    graph = graph.text(2, "graph").nest(11, &value("x", &[2, 4]));
    graph = initializers.iter().fold(graph, |graph, tensor| graph.nest(5, tensor));
    graph = graph.nest(12, &value("y", &[2, 3])).unknown();
    let opset = Wire::default().text(1, "").number(2, 20);
    Wire::default().number(1, 10).unknown().nest(7, &graph).nest(8, &opset).unknown().0
}

/// `y = x w`.
fn product(w: &Wire) -> Vec<u8> {
    model(&[node("MatMul", &["x", "w"], "y")], &[tensor("shape", INT64, &[1], &raw(&[7; 8])), w.clone()])
}

fn singles(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Elements that are all different.
fn counted(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32 + 0.5).collect()
}

/// An empty folder.
fn folder() -> PathBuf {
    static N: AtomicUsize = AtomicUsize::new(0);
    let name = format!("galvatron-export-{}-{}", std::process::id(), N.fetch_add(1, Ordering::Relaxed));
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Writes weights as `--save` does.
fn save(folder: &Path, weights: &[Weight<'_>]) {
    let bytes: Vec<Vec<u8>> = weights.iter().map(|(.., values)| singles(values)).collect();
    let views = weights.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap();
        (name.to_string(), view)
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

/// The exported model and what lies beside it, or the diagnostics; nothing else may be left in the folder.
fn exported(
    original: &[u8],
    beside: Option<&[u8]>,
    weights: &[Weight<'_>],
    max_bytes: u64,
) -> Result<(Vec<u8>, Option<Vec<u8>>), String> {
    let folder = folder();
    let (onnx, output) = (folder.join("m.onnx"), folder.join("t.onnx"));
    std::fs::write(&onnx, original).unwrap();
    if let Some(bytes) = beside {
        std::fs::write(folder.join("m.weights"), bytes).unwrap();
    }
    save(&folder, weights);
    let result = export_within(&Export { onnx: &onnx, weights: &folder, output: &output }, max_bytes);
    let data = result.as_ref().ok().and_then(|e| e.data.clone()).map(|path| std::fs::read(path).unwrap());
    let n_expected = 2 + usize::from(beside.is_some()) + usize::from(result.is_ok()) + usize::from(data.is_some());
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), n_expected, "files are left behind");
    assert_eq!(std::fs::read(&onnx).unwrap(), original, "the original is untouched");
    let result = result.map(|_| (std::fs::read(&output).unwrap(), data));
    std::fs::remove_dir_all(&folder).unwrap();
    result.map_err(|faults| faults.iter().map(|fault| format!("{fault}\n")).collect())
}

/// The new elements of `w`.
const NEW: [f32; 12] = [1.0, -2.0, 0.5, 0.25, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 1024.0];

/// Exports `w` into `y = x w` and compares with the model that has it from the beginning.
fn check(data_type: u64, old: &Wire, new: &Wire) {
    let dims = [4, 3];
    let found = exported(&product(&tensor("w", data_type, &dims, old)), None, &[("w", &[4, 3], &NEW)], MAX_MODEL_BYTES);
    assert!(found.unwrap() == (product(&tensor("w", data_type, &dims, new)), None), "another file was expected");
}

#[test]
fn only_the_elements_change() {
    check(FLOAT, &raw(&singles(&counted(12))), &raw(&singles(&NEW)));
    let inside = |bytes: &[u8]| Wire::default().number(14, 0).bytes(9, bytes);
    check(FLOAT, &inside(&singles(&counted(12))), &inside(&singles(&NEW)));
}

#[test]
fn typed_fields_become_bytes() {
    check(FLOAT, &Wire::default().bytes(4, &singles(&counted(12))), &raw(&singles(&NEW)));
    let mut unpacked = Wire::default();
    for value in counted(12) {
        put_varint(4 << 3 | 5, &mut unpacked.0);
        unpacked.0.extend(value.to_le_bytes());
    }
    check(FLOAT, &unpacked, &raw(&singles(&NEW)));
}

#[test]
fn elements_keep_their_type() {
    let halves = |halves: [u16; 12]| raw(&halves.iter().flat_map(|h| h.to_le_bytes()).collect::<Vec<_>>());
    let f16 = [0x3C00, 0xC000, 0x3800, 0x3400, 0x4200, 0x4400, 0x4500, 0x4600, 0x4700, 0x4800, 0x4880, 0x6400];
    let old = (0..12).fold(Wire::default(), |wire, i| wire.number(5, 0x3C00 + i));
    check(FLOAT16, &old, &halves(f16));
    check(FLOAT16, &halves([0x3C00; 12]), &halves(f16));
    check(BFLOAT16, &halves([0x3F80; 12]), &halves(NEW.map(|v| (v.to_bits() >> 16) as u16)));
    let doubles = |values: [f64; 12]| raw(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
    check(DOUBLE, &doubles([1.0; 12]), &doubles(NEW.map(f64::from)));
}

#[test]
fn constants_are_trained_by_the_name_of_their_result() {
    let build = |data: &Wire| {
        let value = Wire::default().text(1, "value").nest(5, &tensor("", FLOAT, &[4, 3], data)).number(20, 4);
        let constant = node("Constant", &[], "w").nest(5, &value);
        model(&[constant, node("MatMul", &["x", "w"], "y")], &[])
    };
    let old = build(&Wire::default().bytes(4, &singles(&counted(12))));
    let found = exported(&old, None, &[("w", &[4, 3], &NEW)], MAX_MODEL_BYTES).unwrap();
    assert!(found == (build(&raw(&singles(&NEW))), None));
}

#[test]
fn what_lies_beside_the_model_lies_beside_the_new_one() {
    let constant = |location, offset| tensor("shape", FLOAT, &[3], &external(location, offset, 12));
    let build = |w: Wire, shape: Wire| model(&[node("MatMul", &["x", "w"], "y")], &[w, shape]);
    let old = build(tensor("w", FLOAT, &[4, 3], &external("m.weights", 4, 48)), constant("m.weights", 52));
    let bytes = singles(&counted(16));
    let weights: [Weight<'_>; 1] = [("w", &[4, 3], &NEW)];
    let (file, data) = exported(&old, Some(&bytes), &weights, MAX_MODEL_BYTES).unwrap();
    assert!(file == build(tensor("w", FLOAT, &[4, 3], &external("t.onnx.data", 0, 48)), constant("t.onnx.data", 64)));
    assert_eq!(data.unwrap(), [singles(&NEW), vec![0; 16], bytes[52..64].to_vec()].concat());
    let fault = exported(&old, Some(&bytes[..56]), &weights, MAX_MODEL_BYTES).unwrap_err();
    assert!(fault.starts_with("error[onnx-external-data]: cannot read") && fault.contains("too early"), "{fault}");
    assert!(exported(&old, None, &weights, MAX_MODEL_BYTES).unwrap_err().contains("put it beside the model"));
}

#[test]
fn a_model_that_is_too_large_keeps_its_weights_beside_it() {
    let values = counted(4 * 128);
    let table = |location| tensor("table", FLOAT, &[512], &location);
    let build = |w: Wire, b: Wire, table: Wire| {
        model(&[node("MatMul", &["x", "w"], "p"), node("Add", &["p", "b"], "y")], &[w, b, table])
    };
    let b = tensor("b", FLOAT, &[1], &raw(&singles(&[2.0])));
    let inside = raw(&singles(&values));
    let old = build(tensor("w", FLOAT, &[4, 128], &inside), b.clone(), table(inside));
    let weights: [Weight<'_>; 2] = [("w", &[4, 128], &values), ("b", &[1], &[2.0])];
    let (file, data) = exported(&old, None, &weights, old.len() as u64 - 1).unwrap();
    let beside = |offset| external("t.onnx.data", offset, 2048);
    assert!(file == build(tensor("w", FLOAT, &[4, 128], &beside(0)), b, table(beside(2048))));
    assert_eq!(data.unwrap(), singles(&[values.clone(), values.clone()].concat()));
    assert!(exported(&old, None, &weights, 100).unwrap_err().starts_with("error[onnx-size]"));
}

#[test]
fn a_weight_that_is_stored_twice_is_written_twice() {
    let table = counted(16 * 4);
    let turned = |values: &[f32]| elements::transpose(values, 16, 4);
    let build = |first: &[f32], second: &[f32]| {
        let head = tensor("val_7", FLOAT, &[4, 16], &raw(&singles(second)));
        let lookup = [node("MatMul", &["x", "val_7"], "p"), node("MatMul", &["p", "wte.weight"], "y")];
        model(&lookup, &[head, tensor("wte.weight", FLOAT, &[16, 4], &raw(&singles(first)))])
    };
    let new: Vec<f32> = table.iter().map(|v| -v).collect();
    let old = build(&table, &turned(&table));
    let found = exported(&old, None, &[("wte.weight", &[16, 4], &new)], MAX_MODEL_BYTES).unwrap();
    assert!(found == (build(&new, &turned(&new)), None));
    let both: [Weight<'_>; 2] = [("wte.weight", &[16, 4], &new), ("val_7", &[4, 16], &table)];
    assert!(exported(&old, None, &both, MAX_MODEL_BYTES).unwrap() == (build(&new, &table), None), "kept apart");
}

#[test]
fn weights_of_another_model_are_refused_by_name() {
    let w = tensor("fc.w", FLOAT, &[4, 3], &raw(&singles(&counted(12))));
    let b = tensor("fc.b", FLOAT, &[3], &raw(&singles(&counted(3))));
    let nodes = [node("MatMul", &["x", "fc.w"], "p"), node("Add", &["p", "fc.b"], "y")];
    let model = model(&nodes, &[w, b, tensor("ids", INT64, &[1], &raw(&[0; 8]))]);
    let fault = |weights: &[Weight<'_>]| exported(&model, None, weights, MAX_MODEL_BYTES).unwrap_err();
    let (w, b): (Weight<'_>, Weight<'_>) = (("fc.w", &[4, 3], &NEW), ("fc.b", &[3], &NEW[..3]));
    assert!(fault(&[w]).starts_with("error[weights]: the weights lack the parameter `fc.b` of the model\n"));
    assert!(fault(&[w, b, ("c", &[1], &[0.0])]).contains("the model lacks the tensor `c` of the weights\n"));
    let shape = fault(&[w, ("fc.b", &[1, 3], &NEW[..3])]);
    assert!(shape.contains("`fc.b` has shape [3] in the model, [1, 3] in the weights"), "{shape}");
    assert!(
        fault(&[w, b, ("ids", &[1], &[0.0])])
            .starts_with("error[onnx-dtype]: the weights have `ids`, which holds int64")
    );
}

#[test]
fn a_checkpoint_may_leave_out_the_name_of_the_model() {
    let build = |values: &[f32]| {
        let w = tensor("model.fc.weight", FLOAT, &[4, 3], &raw(&singles(values)));
        model(&[node("MatMul", &["x", "model.fc.weight"], "y")], &[w])
    };
    let found = exported(&build(&counted(12)), None, &[("fc.weight", &[4, 3], &NEW)], MAX_MODEL_BYTES);
    assert!(found.unwrap() == (build(&NEW), None));
}

#[test]
fn numbers_that_do_not_fit_are_refused() {
    let model = product(&tensor("w", FLOAT16, &[4, 3], &raw(&[0; 24])));
    let mut values = NEW;
    values[5] = 70000.0;
    let fault = exported(&model, None, &[("w", &[4, 3], &values)], MAX_MODEL_BYTES).unwrap_err();
    assert!(fault.starts_with("error[weights]: element 5 of `w` is 70000, for which float16 has no room"), "{fault}");
}

#[test]
fn what_is_read_is_not_written_over() {
    let folder = folder();
    let onnx = folder.join("m.onnx");
    let original = product(&tensor("w", FLOAT, &[4, 3], &external("t.onnx.data", 0, 48)));
    std::fs::write(&onnx, &original).unwrap();
    save(&folder, &[("w", &[4, 3], &NEW)]);
    let weights = folder.join("model.safetensors");
    let code = |output: &str| {
        let output = folder.join(output);
        export(&Export { onnx: &onnx, weights: &folder, output: &output }).map_err(|faults| faults[0].code)
    };
    assert_eq!(code("m.onnx"), Err("usage"));
    assert_eq!(code("./m.onnx"), Err("usage"));
    assert_eq!(code("model.safetensors"), Err("usage"));
    assert_eq!(code(".."), Err("usage"));
    assert_eq!(code("missing/t.onnx"), Err("file"));
    assert!(std::fs::read(&onnx).unwrap() == original && weights.is_file());
    std::fs::write(folder.join("t.onnx.data"), [0; 48]).unwrap();
    assert_eq!(code("t.onnx"), Err("usage"));
    assert_eq!(code("u.onnx").unwrap().data, Some(folder.join("u.onnx.data")));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_model_with_its_own_weights_is_the_same_file() {
    for dialect in ["mlp/mlp.raw18", "mlp/mlp.ts17", "gpt2/gpt2.keep18", "gpt2/gpt2.dyn18", "gpt2/gpt2.st20"] {
        let path = format!("{}/tests/fixtures/{dialect}.onnx", env!("CARGO_MANIFEST_DIR"));
        let model = OnnxModel::open(Path::new(&path)).unwrap();
        let names = parameter_names(&model);
        let record = |name: &String| model.initializers.iter().find(|record| record.name == *name).unwrap();
        let of = |name: &String| {
            let shape: Vec<usize> = record(name).dims.iter().map(|&d| d as usize).collect();
            let values: Vec<f32> =
                record(name).bytes().unwrap().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            (name.clone(), shape, values)
        };
        let weights: Vec<_> = names.originals.iter().map(of).collect();
        let weights: Vec<_> = weights.iter().map(|(n, s, v)| (n.as_str(), s.as_slice(), v.as_slice())).collect();
        let original = std::fs::read(&path).unwrap();
        assert!(exported(&original, None, &weights, MAX_MODEL_BYTES).unwrap() == (original, None), "{dialect}");
    }
}
