//! Small models for the tests of the importer.

use bytes::Bytes;
use galvatron_ir::diagnostic::Checked;
use galvatron_ir::op::Op;
use galvatron_ir::recipe::Recipe;
use prost::Message;

use super::proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use super::reader::OnnxModel;
use super::{ImportOptions, Imported, import_model};

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

    /// An f32 matrix.
    pub fn elements(self, name: &str, rows: i64, columns: i64, element: impl Fn(i64, i64) -> f32) -> Self {
        let raw = (0..rows * columns).flat_map(|i| element(i / columns, i % columns).to_le_bytes()).collect();
        self.tensor(name, 1, &[rows, columns], raw)
    }

    /// A vector of integers.
    pub fn ints(self, name: &str, values: &[i64]) -> Self {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.tensor(name, 7, &[values.len() as i64], raw)
    }

    /// A scalar integer.
    pub fn int(self, name: &str, value: i64) -> Self {
        self.tensor(name, 7, &[], value.to_le_bytes().to_vec())
    }

    /// A square matrix of integers.
    pub fn matrix(self, name: &str, n: i64, element: impl Fn(i64, i64) -> i64) -> Self {
        let raw = (0..n * n).flat_map(|i| element(i / n, i % n).to_le_bytes()).collect();
        self.tensor(name, 7, &[n, n], raw)
    }

    /// One more node.
    pub fn node(mut self, text: &str) -> Self {
        self.graph.node.push(node(text));
        self
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
        self.try_read().unwrap()
    }

    fn try_read(&self) -> Checked<OnnxModel> {
        let mut opset_import = vec![OperatorSetIdProto { domain: String::new(), version: self.opset }];
        let foreign = self.graph.node.iter().map(|node| &node.domain).filter(|domain| !domain.is_empty());
        opset_import.extend(foreign.map(|domain| OperatorSetIdProto { domain: domain.clone(), version: 1 }));
        let model = ModelProto { graph: Some(self.graph.clone()), opset_import, ..Default::default() };
        OnnxModel::from_bytes(model.encode_to_vec().into(), "m.onnx".into())
    }

    /// The model imported for a batch of 2 and a sequence of 6, or the diagnostics as text.
    pub fn import(&self) -> Result<Imported, String> {
        let recipe = Recipe { global_batch: Some(2), sequence: Some(6), ..Recipe::default() };
        let options = ImportOptions { recipe: &recipe, retie: true };
        let imported = self.try_read().and_then(|model| import_model(&model, &options));
        imported.map_err(|faults| faults.iter().map(|fault| format!("{fault}\n")).collect())
    }

    /// The ops of the imported program in order, each with its first result: `mul f32[2, 4]; einsum<bi,oi->bo> f32[2, 3]`.
    pub fn ops(&self) -> String {
        let program = self.import().unwrap().module.program;
        let describe = |node| {
            let node = program.graph.node(node);
            let spec = match &node.op {
                Op::Einsum(einsum) => format!("<{}>", einsum.spec()),
                Op::Transpose(transpose) => format!("<{:?}>", transpose.perm),
                Op::Slice(slice) => format!("<{}: {}, {}>", slice.dim, slice.start, slice.len),
                Op::Broadcast(broadcast) => format!("<{:?}>", broadcast.dims),
                Op::Full(full) => format!("<{}>", full.value),
                Op::Attention(attention) if attention.causal => "<causal>".into(),
                _ => String::new(),
            };
            format!("{}{spec} {}", node.op.mnemonic(), program.graph.value(node.results[0]).ty)
        };
        program.body.iter().map(|&node| describe(node)).collect::<Vec<_>>().join("; ")
    }
}

/// Imports nodes over the input `x` f32 [2, 4] and compares the ops.
pub fn check(nodes: &[&str], expected: &str) {
    assert_eq!(Builder::new(nodes).ops(), expected);
}

#[test]
fn weights_keep_their_name_and_place() {
    let imported = Builder::new(&["a = MatMul x w", "y = MatMul a w"]).f32("w", &[4, 4]).import().unwrap();
    let module = imported.module;
    let weight = &module.program.weights[0];
    assert_eq!((module.program.weights.len(), module.initializers.len()), (1, 1), "a tied weight is one weight");
    assert_eq!((weight.trainable, module.program.graph.value(weight.value).name.as_str()), (true, "w"));
    assert_eq!((module.name.as_str(), module.initializers[0].file.as_str()), ("m", "m.onnx"));
    assert!(module.initializers[0].offset > 0);
}

#[test]
fn a_weight_that_is_stored_twice_is_one_weight_and_a_transpose() {
    let element = |i, j| (100 * i + j) as f32;
    let builder = Builder::new(&["e = Gather wte ids", "y = MatMul e val_7"]).input("ids", 7, "batch 4");
    let builder = builder.elements("wte", 12, 9, element).elements("val_7", 9, 12, |i, j| element(j, i));
    let imported = builder.import().unwrap();
    assert_eq!(imported.module.program.weights.len(), 1);
    assert!(builder.ops().starts_with("transpose<[1, 0]> f32[9, 12]; "), "{}", builder.ops());
    let note = "`val_7` equals `wte` transposed: tied again; `--no-retie` keeps them apart";
    assert!(imported.notes.iter().any(|n| n == note), "{:?}", imported.notes);
}

#[test]
fn external_weights_need_not_exist() {
    let imported = Builder::new(&["y = MatMul x w"]).external("w", &[4, 3]).import().unwrap();
    assert_eq!(imported.module.initializers[0].file, "m.weights");
    let frozen = Builder::new(&["y = Mul x w"]).external("w", &[4, 1, 4]).import().unwrap();
    assert!(!frozen.module.program.weights[0].trainable, "a tensor without a role is read, but not trained");
}

#[test]
fn values_keep_their_names() {
    let nodes = ["h.0/a = Gemm{transB=1} x w", "b = Identity h.0/a", "y = Relu b"];
    let program = Builder::new(&nodes).f32("w", &[4, 4]).import().unwrap().module.program;
    let of = |node: usize| program.graph.value(program.graph.node(program.body[node]).results[0]).name.as_str();
    assert_eq!((of(0), of(1), program.outputs[0].0.as_str()), ("h.0/a", "y", "y"));
}

#[test]
fn what_depends_on_shapes_is_evaluated() {
    let nodes = ["s = Shape x", "n = Gather{axis=0} s zero", "r = Concat{axis=0} n minus", "y = Reshape x r"];
    let builder = Builder::new(&nodes).ints("zero", &[1]).ints("minus", &[-1]);
    assert_eq!(builder.ops(), "reshape f32[4, 2]");
}

#[test]
fn all_unsupported_operators_are_in_one_diagnostic() {
    let nodes =
        ["a = LSTM x", "b = NonZero x", "c = LSTM b", "y = Softmax a", "z = ScatterElements{reduction=mul} x n x"];
    let fault = Builder::new(&nodes).matrix("n", 2, |_, _| 0).import().unwrap_err();
    let expected = "error[onnx-op]: the model uses operators that are not supported: `LSTM` (at `a`, `c`); \
                    `NonZero` on values that depend on the data (at `b`); \
                    `ScatterElements` with the reduction `mul` (at `z`)\n";
    assert_eq!(fault, expected);
}

#[test]
fn control_flow_and_foreign_domains_are_listed_with_all_other_nodes() {
    let mut builder = Builder::new(&["a = If x", "b = Loop x", "c = If x", "d = GRU x", "y = Mine x"]);
    for node in &mut builder.graph.node[..3] {
        let name = "then_branch".into();
        node.attribute.push(AttributeProto { name, g: Some(Box::default()), r#type: 5, ..Default::default() });
    }
    builder.graph.node[4].domain = "my.own".into();
    let fault = builder.import().unwrap_err();
    let expected = "`If` with a body of its own (at `a`, `c`); `Loop` with a body of its own (at `b`); `GRU` (at `d`); \
                    `my.own::Mine` (at `y`)\n";
    assert!(fault.starts_with("error[onnx-op]") && fault.ends_with(expected), "{fault}");
}

#[test]
fn tensors_without_elements_are_known() {
    let builder = Builder::new(&["y = ReduceSum{axes=[1]} x"]).opset(12).input("x", 1, "batch 0 4");
    assert_eq!(builder.ops(), "full<0.0> f32[2, 1, 4]");
}

#[test]
fn operands_that_do_not_fit_name_the_node() {
    let fault = Builder::new(&["a = MatMul x w", "y = Relu a", "z = Add x w"]).f32("w", &[3, 3]).import().unwrap_err();
    assert_eq!(fault.matches("error[onnx-node]: node `").count(), 2, "{fault}");
    assert!(fault.starts_with("error[onnx-node]: node `a` (`MatMul`): "), "{fault}");
}

#[test]
fn weights_without_a_place_are_refused() {
    let mut builder = Builder::new(&["y = MatMul x w"]).f32("w", &[4, 1]);
    let tensor = &mut builder.graph.initializer[0];
    (tensor.raw_data, tensor.float_data) = (None, vec![1.0; 4]);
    assert!(builder.import().unwrap_err().starts_with("error[onnx-weight]: the elements of parameter `w`"));
}
