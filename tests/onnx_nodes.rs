//! The ONNX project's tests of single operators: a model of one node (or of a function of nodes), its inputs, its outputs.
//!
//! Each model is imported, and the program is run by the reference in f64 and by the CPU's kernels; both must give the outputs
//! within the tolerance of the test. Inputs are inputs of the program, except for the operands that shape the program
//! (axes, shapes, pads, ..., see [`shapes_the_program`]): those become constants of the model before it is imported.

#[path = "support/node_tests.rs"]
mod node_tests;

use galvatron::import::onnx::import_fixed;
use galvatron::import::onnx::reader::OnnxModel;
use galvatron::import::onnx::weights::{TensorContent, TensorRecord};
use galvatron_backends::cpu::Cpu;
use galvatron_backends::device::{BufferSpec, Device, NodeSpec, Span};
use galvatron_backends::reference::{Tensor, run_program};
use galvatron_ir::mesh::Mesh;
use galvatron_ir::types::{DType, TensorType};
use galvatron_ir::{Module, Program, ValueId};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Tests that do not pass, and why not. One of them that passes is an error.
const LISTED: [(&str, &str); 5] = [
    ("test_max_float64", DOUBLE),
    ("test_min_float64", DOUBLE),
    ("test_mod_float64_mixed_sign_fmod_0", DOUBLE),
    ("test_mod_float_edge_cases_fmod_0_float64", DOUBLE),
    ("test_mod_mixed_sign_float64", DOUBLE),
];
const DOUBLE: &str = "its inputs are in double precision, which the IR lacks; they are refused with that reason";

/// An entry of the index.
#[derive(Deserialize)]
struct NodeTest {
    name: String,
    rtol: f64,
    atol: f64,
}

#[test]
fn operators_compute_what_onnx_says() {
    let files = node_tests::files();
    let index = files.get("index.json").expect("the archive has an index");
    let tests: Vec<NodeTest> = serde_json::from_slice(index).expect("the index is a list");
    let listed: BTreeMap<&str, &str> = LISTED.into_iter().collect();
    let mut faults = Vec::new();
    for test in &tests {
        let file = |name: &str| &files[&format!("{}/{name}", test.name)][..];
        let outcome = run(test, file("model.onnx"), file("data.safetensors"));
        match (outcome, listed.get(&test.name[..])) {
            (Ok(()), Some(_)) => faults.push(format!("{} is listed and passes", test.name)),
            (Err(fault), None) => faults.push(format!("{}: {fault}", test.name)),
            _ => {}
        }
    }
    println!("{} tests, {} listed", tests.len(), tests.iter().filter(|t| listed.contains_key(&t.name[..])).count());
    assert!(faults.is_empty(), "{} of {} tests:\n{}", faults.len(), tests.len(), faults.join("\n"));
    assert!(tests.len() > 40, "{} tests", tests.len());
}

/// Imports and executes one test.
fn run(test: &NodeTest, model: &[u8], data: &[u8]) -> Result<(), String> {
    let text = |faults: Vec<galvatron_ir::diagnostic::Diagnostic>| {
        faults.iter().map(|fault| fault.to_string()).collect::<Vec<_>>().join("; ")
    };
    let data = SafeTensors::deserialize(data).expect("the data are a safetensors file");
    let mut model = OnnxModel::from_bytes(model.to_vec().into(), test.name.clone()).map_err(text)?;
    bind_what_shapes_the_program(&mut model, &data);
    let module = import_fixed(&model).map_err(text)?;
    let feeds: BTreeMap<ValueId, Tensor> = feeds(&module, &data);
    let reference = run_program(&module.program, feeds.clone());
    let kernels = run_on_cpu(&module.program, &feeds)?;
    for (name, value) in &module.program.outputs {
        let found = &module.program.graph.value(*value).ty;
        let (ty, expected) = tensor(&data, &format!("out.{name}"));
        let is_scalar = found.rank() == 0 && ty.shape == [1];
        if *found != ty && !(is_scalar && found.dtype == ty.dtype) {
            return Err(format!("`{name}` is {found}, not {ty}"));
        }
        let reference = reference[value.index()].as_ref().ok_or_else(|| format!("`{name}` is not computed"))?;
        compare(test, &reference.data, &expected).map_err(|e| format!("`{name}` of the reference: {e}"))?;
        compare(test, &kernels[value], &expected).map_err(|e| format!("`{name}` of the CPU: {e}"))?;
    }
    let n_outputs = data.names().iter().filter(|name| name.starts_with("out.")).count();
    if module.program.outputs.len() == n_outputs { Ok(()) } else { Err("an output is missing".into()) }
}

/// Whether an operand says what the program looks like, and not only what it computes.
fn shapes_the_program(op_type: &str, operand: usize) -> bool {
    match op_type {
        "Reshape" | "Expand" | "Tile" | "Squeeze" | "Unsqueeze" | "Split" | "TopK" | "CumSum" | "Trilu" => operand == 1,
        "Slice" | "Pad" => operand > 0,
        "ConstantOfShape" | "Range" => true,
        "OneHot" => operand == 1,
        _ => op_type.starts_with("Reduce") && operand == 1,
    }
}

/// Makes constants of the inputs that shape the program.
fn bind_what_shapes_the_program(model: &mut OnnxModel, data: &SafeTensors<'_>) {
    let mut names: Vec<String> = Vec::new();
    for node in &model.nodes {
        let operands = node.inputs.iter().enumerate();
        names.extend(operands.filter(|(i, _)| shapes_the_program(&node.op_type, *i)).map(|(_, name)| name.clone()));
    }
    let (bound, free) = std::mem::take(&mut model.inputs).into_iter().partition(|input| names.contains(&input.name));
    model.inputs = free;
    for input in bound {
        let view = data.tensor(&format!("in.{}", input.name)).expect("every input has data");
        let dims = view.shape().iter().map(|&d| d as u64).collect();
        let content = TensorContent::Values(view.data().to_vec().into());
        model.initializers.push(TensorRecord { name: input.name, dtype: input.dtype, dims, content });
    }
}

/// Type and elements of a stored tensor; integers are widened as the importer does. A scalar is stored with one dimension.
fn tensor(data: &SafeTensors<'_>, name: &str) -> (TensorType, Vec<f64>) {
    let view = data.tensor(name).unwrap_or_else(|e| panic!("`{name}`: {e}"));
    let bytes = view.data();
    let (dtype, elements) = match view.dtype() {
        Dtype::F32 => (DType::F32, bytes.as_chunks().0.iter().map(|c| f64::from(f32::from_le_bytes(*c))).collect()),
        Dtype::I64 => (DType::I64, bytes.as_chunks().0.iter().map(|c| i64::from_le_bytes(*c) as f64).collect()),
        Dtype::I32 => (DType::I64, bytes.as_chunks().0.iter().map(|c| f64::from(i32::from_le_bytes(*c))).collect()),
        Dtype::BOOL => (DType::Bool, bytes.iter().map(|&b| f64::from(b)).collect()),
        other => panic!("`{name}` holds {other:?}"),
    };
    (TensorType::new(dtype, view.shape().iter().map(|&d| d as u64).collect::<Vec<_>>()), elements)
}

fn feeds(module: &Module, data: &SafeTensors<'_>) -> BTreeMap<ValueId, Tensor> {
    assert!(module.program.weights.is_empty(), "a test has no weights");
    let feed = |input: &galvatron_ir::module::Input| {
        let (_, elements) = tensor(data, &format!("in.{}", input.name));
        (input.value, Tensor::new(module.program.graph.value(input.value).ty.shape.clone(), elements))
    };
    module.program.inputs.iter().map(feed).collect()
}

/// All values of a program, computed node by node on a CPU rank.
fn run_on_cpu(program: &Program, feeds: &BTreeMap<ValueId, Tensor>) -> Result<BTreeMap<ValueId, Vec<f64>>, String> {
    let mut end = 0;
    let mut room = |bytes: u64| {
        let offset = end;
        end = (offset + bytes).next_multiple_of(64);
        offset
    };
    let buffer = |(value, offset): (ValueId, u64)| {
        let ty = program.graph.value(value).ty.clone();
        BufferSpec::whole(&ty, offset)
    };
    let ids = program.graph.value_ids().map(|id| (id, room(program.graph.value(id).ty.bytes())));
    let buffers: BTreeMap<ValueId, BufferSpec> = ids.map(|pair| (pair.0, buffer(pair))).collect();
    let one_rank = Mesh::new(1, Vec::new());
    let scratch = |node: galvatron_ir::NodeId| {
        let node = program.graph.node(node);
        node.op.workspace(&program.graph.types(&node.args), &program.graph.types(&node.results), &one_rank)
    };
    let workspaces: Vec<Span> =
        program.body.iter().map(|&n| (scratch(n), n)).map(|(bytes, _)| Span { offset: room(bytes), bytes }).collect();
    let device = Cpu::new(end, 1).expect("there is memory");
    for (value, tensor) in feeds {
        write(&device, &buffers[value], &tensor.data)?;
    }
    for (&node, workspace) in program.body.iter().zip(workspaces) {
        let node = program.graph.node(node);
        let all = |values: &[ValueId]| values.iter().map(|v| buffers[v].clone()).collect::<Vec<_>>();
        let (args, results) = (all(&node.args), all(&node.results));
        let workspace = (workspace.bytes > 0).then_some(workspace);
        let spec = NodeSpec { op: &node.op, args: &args, results: &results, workspace };
        let fault = |what: String| format!("`{}`: {what}", node.op.mnemonic());
        device.prepare(&spec).and_then(|kernel| kernel.run()).map_err(fault)?;
    }
    Ok(buffers.into_iter().map(|(value, buffer)| (value, read(&device, &buffer))).collect())
}

fn write(device: &Cpu, buffer: &BufferSpec, elements: &[f64]) -> Result<(), String> {
    let bytes: Vec<u8> = match buffer.ty.dtype {
        DType::F32 => elements.iter().flat_map(|&v| (v as f32).to_ne_bytes()).collect(),
        DType::I64 => elements.iter().flat_map(|&v| (v as i64).to_ne_bytes()).collect(),
        DType::Bool => elements.iter().map(|&v| v as u8).collect(),
        DType::Bf16 => panic!("no input has bf16"),
    };
    device.fill(buffer.span(), &mut |out| {
        out.copy_from_slice(&bytes);
        Ok(())
    })
}

fn read(device: &Cpu, buffer: &BufferSpec) -> Vec<f64> {
    let mut bytes = vec![0; buffer.span().bytes as usize];
    device.read(buffer.span(), &mut bytes);
    match buffer.ty.dtype {
        DType::F32 => bytes.as_chunks().0.iter().map(|c| f64::from(f32::from_ne_bytes(*c))).collect(),
        DType::I64 => bytes.as_chunks().0.iter().map(|c| i64::from_ne_bytes(*c) as f64).collect(),
        DType::Bool => bytes.iter().map(|&b| f64::from(b)).collect(),
        DType::Bf16 => panic!("no value has bf16"),
    }
}

/// |found - expected| is at most atol + rtol |expected|, or both are the same infinity, or both NaN.
fn compare(test: &NodeTest, found: &[f64], expected: &[f64]) -> Result<(), String> {
    assert_eq!(found.len(), expected.len(), "invariant: the shapes are the same");
    for (i, (&f, &e)) in found.iter().zip(expected).enumerate() {
        let close = (f - e).abs() <= test.atol + test.rtol * e.abs();
        if !(close || f == e || (f.is_nan() && e.is_nan())) {
            return Err(format!("element {i} is {f}, not {e}"));
        }
    }
    Ok(())
}
