//! What the reader accepts, and the codes of what it refuses.

use bytes::Bytes;
use prost::Message;

use super::super::proto::{
    AttributeProto, DimensionProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use super::{Dimension, OnnxModel};

fn strings(names: &str) -> Vec<String> {
    names.split_whitespace().map(str::to_string).collect()
}

/// A node from `results = Operator operands`.
fn node(text: &str) -> NodeProto {
    let (output, call) = text.split_once('=').unwrap();
    let mut call = strings(call).into_iter();
    let op_type = call.next().unwrap();
    NodeProto { output: strings(output), op_type, input: call.collect(), ..Default::default() }
}

fn value(name: &str) -> ValueInfoProto {
    let batch = DimensionProto { dim_param: Some("batch".into()), ..Default::default() };
    let four = DimensionProto { dim_value: Some(4), ..Default::default() };
    let shape = Some(TensorShapeProto { dim: vec![batch, four] });
    let tensor_type = Some(TensorTypeProto { elem_type: 1, shape });
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type }) }
}

fn weight(name: &str) -> TensorProto {
    let raw_data = Some(Bytes::from_static(&[0; 16]));
    TensorProto { name: name.into(), dims: vec![4], data_type: 1, raw_data, ..Default::default() }
}

/// A model with input `x`, initializer `w`, output `y` and the given nodes.
fn model(nodes: &[&str]) -> ModelProto {
    let graph = GraphProto {
        node: nodes.iter().map(|text| node(text)).collect(),
        input: vec![value("x"), value("w")],
        initializer: vec![weight("w")],
        output: vec![value("y")],
        ..Default::default()
    };
    let opset_import = vec![OperatorSetIdProto { domain: "ai.onnx".into(), version: 20 }];
    ModelProto { graph: Some(graph), opset_import, ..Default::default() }
}

fn read(model: &ModelProto) -> Result<OnnxModel, Vec<&'static str>> {
    let read = OnnxModel::from_bytes(model.encode_to_vec().into(), "m.onnx".into());
    read.map_err(|faults| faults.iter().map(|f| f.code).collect())
}

fn codes(nodes: &[&str]) -> Vec<&'static str> {
    read(&model(nodes)).unwrap_err()
}

#[test]
fn nodes_are_put_into_topological_order() {
    let read = read(&model(&["y = Add b x", "b = Mul a w", "a = Relu x", "c = Neg x"])).unwrap();
    let order: Vec<_> = read.nodes.iter().map(|n| n.op_type.as_str()).collect();
    assert_eq!(order, ["Relu", "Mul", "Add", "Neg"]);
    assert_eq!((read.nodes[0].opset, read.nodes[0].name.as_str()), (20, "a"));
}

#[test]
fn inputs_with_a_value_are_initializers() {
    let read = read(&model(&["y = Add x w"])).unwrap();
    assert_eq!(read.inputs.len(), 1);
    assert_eq!(read.inputs[0].dims, Some(vec![Dimension::Symbol("batch".into()), Dimension::Fixed(4)]));
    assert_eq!(read.initializers[0].source().unwrap().bytes, 16);
}

#[test]
fn names_are_defined_once_and_before_use() {
    assert_eq!(codes(&["y = Add x q", "z = Neg p"]), ["onnx-undefined-name"; 2]);
    assert_eq!(codes(&["a = Neg x"]), ["onnx-undefined-name"]);
    assert_eq!(codes(&["y = Neg x", "y = Relu x", "w = Neg x"]), ["onnx-duplicate-name"; 2]);
    let mut twice = model(&["y = Neg x"]);
    twice.graph.as_mut().unwrap().output.push(value("y"));
    assert_eq!(read(&twice).unwrap_err(), ["onnx-duplicate-name"]);
    assert_eq!(codes(&["y = Add x b", "a = Neg y", "b = Neg a"]), ["onnx-cycle"]);
    assert_eq!(codes(&["y = Add x y"]), ["onnx-cycle"]);
}

#[test]
fn control_flow_is_marked() {
    let mut model = model(&["a = If x", "y = Neg a"]);
    let body = AttributeProto { name: "body".into(), g: Some(Box::default()), r#type: 5, ..Default::default() };
    model.graph.as_mut().unwrap().node[0].attribute.push(body);
    let read = OnnxModel::from_bytes(model.encode_to_vec().into(), "m.onnx".into()).unwrap();
    assert_eq!(read.nodes.iter().map(|node| node.has_body).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn functions_are_replaced_by_their_bodies() {
    let mut model = model(&["a = Twice x", "y = Twice a"]);
    let mut shift = node("out = Gemm t w2");
    shift.input[1] = "t".into();
    let alpha = AttributeProto { name: "alpha".into(), ref_attr_name: "scale".into(), r#type: 1, ..Default::default() };
    shift.attribute.push(alpha);
    let default = AttributeProto { name: "scale".into(), f: Some(2.0), r#type: 1, ..Default::default() };
    model.functions = vec![FunctionProto {
        name: "Twice".into(),
        input: strings("in"),
        output: strings("out"),
        node: vec![node("t = Neg in"), shift],
        attribute_proto: vec![default.clone()],
        ..Default::default()
    }];
    let given = AttributeProto { f: Some(3.0), ..default };
    model.graph.as_mut().unwrap().node[0].attribute.push(given);
    let nodes = read(&model).unwrap().nodes;
    let outputs: Vec<_> = nodes.iter().map(|n| n.outputs[0].as_str()).collect();
    assert_eq!(outputs, ["a/t", "a", "y/t", "y"]);
    assert_eq!((nodes[1].attributes.float("alpha", 1.0), nodes[3].attributes.float("alpha", 1.0)), (3.0, 2.0));
}

#[test]
fn functions_that_call_themselves_are_refused() {
    let mut model = model(&["y = F x"]);
    let body = vec![node("a = F in"), node("out = F a")];
    let (input, output) = (strings("in"), strings("out"));
    model.functions = vec![FunctionProto { name: "F".into(), input, output, node: body, ..Default::default() }];
    assert_eq!(read(&model).unwrap_err(), ["onnx-function"]);
}

#[test]
fn a_domain_needs_a_version() {
    let mut model = model(&["y = Neg x"]);
    model.opset_import.clear();
    assert_eq!(read(&model).unwrap_err(), ["onnx-opset"]);
}

#[test]
fn other_files_are_not_onnx() {
    let code = |bytes: &[u8]| OnnxModel::from_bytes(Bytes::copy_from_slice(bytes), "m".into()).unwrap_err()[0].code;
    assert_eq!(code(b""), "onnx-format");
    assert_eq!(code(b"import torch\n"), "onnx-format");
    assert_eq!(code(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0]), "onnx-format");
}

#[test]
fn every_prefix_of_a_file_is_refused() {
    let bytes = model(&["y = Add x w"]).encode_to_vec();
    for n in 1..bytes.len() {
        let prefix = Bytes::copy_from_slice(&bytes[..n]);
        let faults = OnnxModel::from_bytes(prefix, "m".into()).unwrap_err();
        assert!(["onnx-truncated", "onnx-format", "onnx-opset"].contains(&faults[0].code), "{n}: {}", faults[0]);
    }
}
