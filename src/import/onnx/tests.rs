//! Small models for the tests of the importer.

use bytes::Bytes;
use prost::Message;

use super::proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use super::reader::OnnxModel;

/// A model under construction: input `x` f32 [batch, 4], output `y`.
#[derive(Clone)]
pub struct Builder {
    graph: GraphProto,
    opset: i64,
}

fn strings(names: &str) -> Vec<String> {
    names.split_whitespace().map(str::to_string).collect()
}

/// The words of a list with a space between them.
pub fn names<'a>(list: impl Iterator<Item = &'a str>) -> String {
    list.collect::<Vec<_>>().join(" ")
}

fn value(name: &str, elem_type: i32, dims: &str) -> ValueInfoProto {
    let dim = |text: &str| match text.parse() {
        Ok(value) => DimensionProto { dim_value: Some(value), ..Default::default() },
        Err(_) => DimensionProto { dim_param: Some(text.into()), ..Default::default() },
    };
    let shape = Some(TensorShapeProto { dim: dims.split_whitespace().map(dim).collect() });
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto { tensor_type: Some(TensorTypeProto { elem_type, shape }) }),
    }
}

/// A node from `results = Operator{name=value, …} operands`; values are integers, numbers with a point, lists or words.
fn node(text: &str) -> NodeProto {
    let (output, call) = text.split_once(" = ").unwrap();
    let (op_type, rest) = call.split_at(call.find(['{', ' ']).unwrap_or(call.len()));
    let (attributes, operands) = match rest.strip_prefix('{') {
        Some(rest) => rest.split_once('}').unwrap(),
        None => ("", rest),
    };
    let attribute = attributes.split_terminator(", ").map(attribute).collect();
    let input = operands.split_whitespace().map(|name| name.trim_matches('_').to_string()).collect();
    NodeProto { output: strings(output), op_type: op_type.into(), input, attribute, ..Default::default() }
}

fn attribute(text: &str) -> AttributeProto {
    let (name, value) = text.split_once('=').unwrap();
    let name = name.to_string();
    if let Ok(i) = value.parse() {
        return AttributeProto { name, i: Some(i), r#type: 2, ..Default::default() };
    }
    if let Ok(f) = value.parse() {
        return AttributeProto { name, f: Some(f), r#type: 1, ..Default::default() };
    }
    if let Some(list) = value.strip_prefix('[') {
        let ints = list.trim_end_matches(']').split_whitespace().map(|i| i.parse().unwrap()).collect();
        return AttributeProto { name, ints, r#type: 7, ..Default::default() };
    }
    AttributeProto { name, s: Some(Bytes::copy_from_slice(value.as_bytes())), r#type: 3, ..Default::default() }
}

impl Builder {
    /// A model of the given nodes.
    pub fn new(nodes: &[&str]) -> Self {
        let graph = GraphProto {
            node: nodes.iter().map(|text| node(text)).collect(),
            input: vec![value("x", 1, "batch 4")],
            output: vec![value("y", 1, "batch 4")],
            ..Default::default()
        };
        Builder { graph, opset: 20 }
    }

    /// Another version of the operator set.
    pub fn opset(mut self, version: i64) -> Self {
        self.opset = version;
        self
    }

    /// Replaces an input or adds one.
    pub fn input(mut self, name: &str, elem_type: i32, dims: &str) -> Self {
        self.graph.input.retain(|input| input.name != name);
        self.graph.input.push(value(name, elem_type, dims));
        self
    }

    fn tensor(mut self, name: &str, data_type: i32, dims: &[i64], raw: Vec<u8>) -> Self {
        let raw_data = Some(raw.into());
        let tensor = TensorProto { name: name.into(), dims: dims.to_vec(), data_type, raw_data, ..Default::default() };
        self.graph.initializer.push(tensor);
        self
    }

    /// An f32 initializer; its elements are 0.5, 1.5 and so on.
    pub fn f32(self, name: &str, dims: &[i64]) -> Self {
        let n = dims.iter().product::<i64>();
        let raw = (0..n).flat_map(|i| (i as f32 + 0.5).to_le_bytes()).collect();
        self.tensor(name, 1, dims, raw)
    }

    /// A vector of integers.
    pub fn ints(self, name: &str, values: &[i64]) -> Self {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.tensor(name, 7, &[values.len() as i64], raw)
    }

    /// An initializer whose elements are in another file.
    pub fn external(mut self, name: &str, dims: &[i64]) -> Self {
        let entry =
            |key: &str, value: &str| super::proto::StringStringEntryProto { key: key.into(), value: value.into() };
        let external_data = vec![entry("location", "m.weights")];
        let (dims, data_location) = (dims.to_vec(), 1);
        let tensor =
            TensorProto { name: name.into(), dims, data_type: 1, data_location, external_data, ..Default::default() };
        self.graph.initializer.push(tensor);
        self
    }

    /// The model as the reader gives it.
    pub fn read(&self) -> OnnxModel {
        let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: self.opset }];
        let model = ModelProto { graph: Some(self.graph.clone()), opset_import, ..Default::default() };
        OnnxModel::from_bytes(model.encode_to_vec().into(), "m.onnx".into()).unwrap()
    }
}
