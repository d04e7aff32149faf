//! Opens an ONNX file: decodes it, inlines its functions, orders its nodes and checks what they name.

mod inline;
mod order;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

use bytes::{Buf, Bytes};
use galvatron_ir::diagnostic::{Checked, Diagnostic};
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint};

use super::attributes::{Attributes, read_attributes};
use super::proto::{GraphProto, ModelProto, OperatorSetIdProto, TypeProto, ValueInfoProto};
use super::weights::{ElementType, TensorFile, TensorRecord, checked_dims};
use inline::FlatNode;

/// An ONNX model as plain data: one flat graph in topological order.
#[derive(Clone, Debug)]
pub struct OnnxModel {
    /// The path as the user typed it.
    pub file: String,
    /// Name and version of the tool that wrote the file.
    pub producer: String,
    /// Version of the operator set of each domain; the standard domain is the empty string.
    pub opsets: BTreeMap<String, i64>,
    /// Inputs that are not initializers.
    pub inputs: Vec<ValueType>,
    /// Outputs.
    pub outputs: Vec<ValueType>,
    /// All initializers, also unused ones, in file order.
    pub initializers: Vec<TensorRecord>,
    /// Types that the file states for inner values, by name; names inside inlined functions have none.
    pub value_types: BTreeMap<String, ValueType>,
    /// The nodes: every operand is an input, an initializer or a result of an earlier node.
    pub nodes: Vec<Node>,
}

/// Name and type of a tensor value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueType {
    /// Name.
    pub name: String,
    /// Type of the elements.
    pub dtype: ElementType,
    /// Extents, outermost first; none if the rank is unknown.
    pub dims: Option<Vec<Dimension>>,
}

/// One extent of a value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dimension {
    /// A number.
    Fixed(u64),
    /// A name that stands for a number; an unnamed unknown extent gets the name `?`.
    Symbol(String),
}

/// One call of an operator.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Name for messages: the node's own, or its first result's.
    pub name: String,
    /// Name of the operator.
    pub op_type: String,
    /// Domain of the operator; empty for the standard domain.
    pub domain: String,
    /// Version of the domain's operator set where the node stands.
    pub opset: i64,
    /// Names of the operands; empty where an optional operand is absent.
    pub inputs: Vec<String>,
    /// Names of the results; empty where an optional result is absent.
    pub outputs: Vec<String>,
    /// Attributes.
    pub attributes: Attributes,
    /// Whether graphs are among its attributes, so that it is control flow.
    pub has_body: bool,
}

impl OnnxModel {
    /// Reads a model. Weights are mapped and not read; external files need not exist.
    ///
    /// # Errors
    /// All faults that were found, with codes that start with `onnx-`.
    pub fn open(path: &Path) -> Checked<Self> {
        let TensorFile { name, bytes } = TensorFile::open(path).map_err(|fault| vec![fault])?;
        Self::from_bytes(bytes, name)
    }

    /// Reads a model from the content of a file; `name` stands for the file in sources of weights and in messages.
    ///
    /// # Errors
    /// As [`OnnxModel::open`].
    pub fn from_bytes(bytes: Bytes, name: String) -> Checked<Self> {
        let mut model = decode(&bytes, &name).map_err(|fault| vec![fault])?;
        let graph = model.graph.take().unwrap_or_default();
        Reader { file: TensorFile { name, bytes }, faults: Vec::new() }.model(model, graph)
    }
}

impl TensorFile {
    /// Maps an ONNX file.
    ///
    /// # Errors
    /// Code `onnx-file` when it cannot be read.
    pub fn open(path: &Path) -> Result<TensorFile, Diagnostic> {
        let name = path.to_string_lossy().into_owned();
        match map(path) {
            Ok(bytes) => Ok(TensorFile { name, bytes }),
            Err(error) => {
                let fault = Diagnostic::new("onnx-file", format!("cannot read `{name}`: {error}"));
                Err(fault.help("give the path of an ONNX file"))
            }
        }
    }
}

/// The content of a file, mapped.
///
/// # Errors
/// When it cannot be read.
pub(super) fn map(path: &Path) -> std::io::Result<Bytes> {
    let file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the mapping is private and read-only; as with any mapped file, another process that truncates or rewrites
    // it while we read is outside what we can guard against.
    let map = unsafe { memmap2::Mmap::map(&file)? };
    Ok(Bytes::from_owner(map))
}

fn decode(bytes: &Bytes, name: &str) -> Result<ModelProto, Diagnostic> {
    let not_onnx = |what: &str| {
        Diagnostic::new("onnx-format", format!("`{name}` is not an ONNX file: {what}"))
            .help("export the model with `torch.onnx.export`, and unpack the file if it is compressed")
    };
    match ModelProto::decode(bytes.clone()) {
        _ if bytes.is_empty() => Err(not_onnx("it is empty")),
        Ok(model) if model.graph.is_some() => Ok(model),
        Ok(_) => Err(not_onnx("it holds no graph")),
        Err(_) if is_truncated(bytes.clone()) => {
            let message = format!("`{name}` is truncated: it ends within a field, after {} bytes", bytes.len());
            Err(Diagnostic::new("onnx-truncated", message).help("copy or export the file again"))
        }
        Err(error) => Err(not_onnx(&error.to_string())),
    }
}

/// Whether the bytes are fields of a `ModelProto` of which the last is cut short.
fn is_truncated(mut bytes: Bytes) -> bool {
    let mut n_fields = 0;
    while bytes.has_remaining() {
        let Ok((tag, wire_type)) = decode_key(&mut bytes) else { return n_fields > 0 && bytes.remaining() < 5 };
        let is_known = match wire_type {
            WireType::Varint => matches!(tag, 1 | 5),
            WireType::LengthDelimited => matches!(tag, 2..=4 | 6..=8 | 14 | 20 | 25 | 26),
            _ => false,
        };
        let Ok(value) = decode_varint(&mut bytes) else { return is_known && bytes.remaining() < 10 };
        if !is_known {
            return false;
        }
        if wire_type == WireType::LengthDelimited {
            if value > bytes.remaining() as u64 {
                return true;
            }
            bytes.advance(value as usize);
        }
        n_fields += 1;
    }
    false
}

/// Reads a decoded model and collects what is wrong with it.
struct Reader {
    file: TensorFile,
    faults: Vec<Diagnostic>,
}

impl Reader {
    fn model(mut self, model: ModelProto, graph: GraphProto) -> Checked<OnnxModel> {
        let opsets = opset_versions(&model.opset_import);
        let flat = inline::inline_functions(graph.node, &model.functions, &opsets)?;
        let nodes = self.nodes(flat);
        if !graph.sparse_initializer.is_empty() {
            self.fault("onnx-sparse", "sparse initializers are not supported".into());
        }
        let initializers = self.collect(&graph.initializer, |file, proto| file.tensor(proto));
        let inputs = self.inputs(&graph.input, &graph.initializer.iter().map(|i| i.name.as_str()).collect());
        let outputs = self.collect(&graph.output, |_, proto| value_type(proto));
        let value_types = graph.value_info.iter().filter_map(|v| Some((v.name.clone(), value_type(v).ok()?))).collect();
        if !self.faults.is_empty() {
            return Err(self.faults);
        }
        let given = inputs.iter().map(|i| i.name.as_str()).chain(initializers.iter().map(|i| i.name.as_str()));
        let order = order::topological_order(&nodes, given, outputs.iter().map(|o| o.name.as_str()))?;
        Ok(OnnxModel {
            producer: format!("{} {}", model.producer_name, model.producer_version).trim().to_string(),
            nodes: permuted(nodes, &order),
            file: self.file.name,
            opsets,
            inputs,
            outputs,
            initializers,
            value_types,
        })
    }

    fn fault(&mut self, code: &'static str, message: String) {
        self.faults.push(Diagnostic::new(code, message));
    }

    /// Converts each message; the faulty ones become faults and are left out.
    fn collect<P, T>(&mut self, protos: &[P], read: impl Fn(&TensorFile, &P) -> Result<T, Diagnostic>) -> Vec<T> {
        let mut values = Vec::with_capacity(protos.len());
        for proto in protos {
            match read(&self.file, proto) {
                Ok(value) => values.push(value),
                Err(fault) => self.faults.push(fault),
            }
        }
        values
    }

    fn inputs(&mut self, protos: &[ValueInfoProto], initializers: &BTreeSet<&str>) -> Vec<ValueType> {
        let free: Vec<_> = protos.iter().filter(|v| !initializers.contains(v.name.as_str())).cloned().collect();
        self.collect(&free, |_, proto| value_type(proto))
    }

    fn nodes(&mut self, flat: Vec<FlatNode>) -> Vec<Node> {
        let mut nodes = Vec::with_capacity(flat.len());
        for FlatNode { proto, opset } in flat {
            let domain = standard_domain(&proto.domain).to_string();
            let name = if proto.name.is_empty() { proto.first_output_name() } else { proto.name.clone() };
            match read_attributes(&proto.attribute, &proto.op_type, domain.is_empty(), &self.file) {
                Ok(read) => nodes.push(Node {
                    attributes: read.attributes,
                    has_body: read.has_subgraph,
                    op_type: proto.op_type,
                    inputs: proto.input,
                    outputs: proto.output,
                    name,
                    domain,
                    opset,
                }),
                Err(faults) => self.faults.extend(faults.into_iter().map(|mut fault| {
                    fault.message = format!("node `{name}`: {}", fault.message);
                    fault
                })),
            }
        }
        nodes
    }
}

impl super::proto::NodeProto {
    /// The name of the first result that is used, or an empty string.
    fn first_output_name(&self) -> String {
        self.output.iter().find(|o| !o.is_empty()).cloned().unwrap_or_default()
    }
}

/// The standard domain has two spellings; here it is the empty string.
fn standard_domain(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

fn opset_versions(imports: &[OperatorSetIdProto]) -> BTreeMap<String, i64> {
    imports.iter().map(|o| (standard_domain(&o.domain).to_string(), o.version)).collect()
}

/// At most five names, in backticks.
fn abbreviated(names: &[String]) -> String {
    let listed: Vec<_> = names.iter().take(5).map(|name| format!("`{name}`")).collect();
    let rest = if names.len() > 5 { format!(" and {} more", names.len() - 5) } else { String::new() };
    listed.join(", ") + &rest
}

fn value_type(proto: &ValueInfoProto) -> Result<ValueType, Diagnostic> {
    let name = &proto.name;
    let fault = |code, what: &str| Diagnostic::new(code, format!("value `{name}` {what}"));
    let Some(TypeProto { tensor_type: Some(tensor) }) = &proto.r#type else {
        return Err(fault("onnx-type", "is not a tensor"));
    };
    let dtype = ElementType::from_number(tensor.elem_type);
    let dtype = dtype.ok_or_else(|| fault("onnx-dtype", "has an element type that is not numeric"))?;
    let dims: Option<Vec<_>> = tensor.shape.as_ref().map(|shape| shape.dim.iter().map(dimension).collect());
    let fixed: Vec<i64> = tensor.shape.iter().flat_map(|s| s.dim.iter().filter_map(|d| d.dim_value)).collect();
    checked_dims(&fixed).ok_or_else(|| fault("onnx-dims", &format!("has extents {fixed:?}")))?;
    Ok(ValueType { name: name.clone(), dtype, dims })
}

fn dimension(proto: &super::proto::DimensionProto) -> Dimension {
    match (&proto.dim_param, proto.dim_value) {
        (_, Some(value)) => Dimension::Fixed(value.max(0) as u64),
        (Some(symbol), None) if !symbol.is_empty() => Dimension::Symbol(symbol.clone()),
        _ => Dimension::Symbol("?".into()),
    }
}

fn permuted(nodes: Vec<Node>, order: &[usize]) -> Vec<Node> {
    let mut slots: Vec<Option<Node>> = nodes.into_iter().map(Some).collect();
    order.iter().map(|&i| slots[i].take().expect("invariant: an order names each node once")).collect()
}

#[cfg(test)]
mod tests;
