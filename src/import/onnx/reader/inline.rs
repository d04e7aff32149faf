//! Replaces calls of local functions by their bodies.

use std::collections::{BTreeMap, HashMap};

use galvatron_ir::diagnostic::{Checked, Diagnostic};
use prost::Message;

use super::super::proto::{AttributeProto, FunctionProto, NodeProto};
use super::{opset_versions, standard_domain};

/// How deep functions may call each other.
const MAX_DEPTH: usize = 64;
/// Most nodes of a flat graph, calls included.
const MAX_NODES: usize = 1 << 21;
/// Most bytes of the nodes that calls are replaced by.
const MAX_BYTES: usize = 1 << 30;

/// A node that calls an operator, and the version of the operator set where it stands.
pub(super) struct FlatNode {
    /// The node, its names those of the whole graph.
    pub proto: NodeProto,
    /// Version of the operator set of its domain.
    pub opset: i64,
}

/// The nodes with every call of a function replaced by the function's body.
///
/// A value `v` of a body becomes `RESULT/v`, where `RESULT` is the first result of the call.
///
/// # Errors
/// Code `onnx-opset` for a domain without version, `onnx-function` for functions that call themselves or grow beyond
/// measure.
pub(super) fn inline_functions(
    nodes: Vec<NodeProto>,
    functions: &[FunctionProto],
    opsets: &BTreeMap<String, i64>,
) -> Checked<Vec<FlatNode>> {
    inline_within(MAX_BYTES, nodes, functions, opsets)
}

/// The same for another largest sum of copies.
fn inline_within(
    max_bytes: usize,
    nodes: Vec<NodeProto>,
    functions: &[FunctionProto],
    opsets: &BTreeMap<String, i64>,
) -> Checked<Vec<FlatNode>> {
    let by_key = functions.iter().map(|f| ((standard_domain(&f.domain), &f.name[..], &f.overload[..]), f)).collect();
    let mut inliner = Inliner {
        functions: by_key,
        flat: Vec::new(),
        n_visited: 0,
        n_bytes_left: max_bytes,
        missing: BTreeMap::new(),
    };
    for node in nodes {
        inliner.node(node, opsets, 0).map_err(|fault| vec![fault])?;
    }
    let faults = inliner.missing.into_iter().map(|(domain, op_type)| no_version(&domain, &op_type));
    let faults: Vec<_> = faults.collect();
    if faults.is_empty() { Ok(inliner.flat) } else { Err(faults) }
}

fn no_version(domain: &str, op_type: &str) -> Diagnostic {
    let domain = if domain.is_empty() { "ai.onnx" } else { domain };
    let message = format!("the file uses `{op_type}` of the domain `{domain}` but states no version of that domain");
    Diagnostic::new("onnx-opset", message)
}

fn too_large() -> Diagnostic {
    Diagnostic::new("onnx-function", format!("the calls of functions copy more than {MAX_BYTES} bytes once inlined"))
}

struct Inliner<'a> {
    functions: HashMap<(&'a str, &'a str, &'a str), &'a FunctionProto>,
    flat: Vec<FlatNode>,
    n_visited: usize,
    /// Bytes that may still be copied.
    n_bytes_left: usize,
    /// Domains without version, each with the first operator that needs it.
    missing: BTreeMap<String, String>,
}

impl Inliner<'_> {
    fn node(&mut self, proto: NodeProto, opsets: &BTreeMap<String, i64>, depth: usize) -> Result<(), Diagnostic> {
        self.n_visited += 1;
        if self.n_visited > MAX_NODES {
            let message = format!("the graph has more than {MAX_NODES} nodes and calls once functions are inlined");
            return Err(Diagnostic::new("onnx-function", message));
        }
        let domain = standard_domain(&proto.domain);
        if let Some(&function) = self.functions.get(&(domain, &proto.op_type[..], &proto.overload[..])) {
            return self.call(&proto, function, opsets, depth);
        }
        let opset = opsets.get(domain).copied().unwrap_or_else(|| {
            self.missing.entry(domain.to_string()).or_insert_with(|| proto.op_type.clone());
            0
        });
        self.flat.push(FlatNode { proto, opset });
        Ok(())
    }

    fn call(
        &mut self,
        call: &NodeProto,
        function: &FunctionProto,
        opsets: &BTreeMap<String, i64>,
        depth: usize,
    ) -> Result<(), Diagnostic> {
        if depth >= MAX_DEPTH {
            let message = format!("function `{}` is nested more than {MAX_DEPTH} calls deep", function.name);
            return Err(Diagnostic::new("onnx-function", message).help("functions must not call themselves"));
        }
        let mut inner_opsets = opsets.clone();
        inner_opsets.extend(opset_versions(&function.opset_import));
        let names = Names::of_call(call, function);
        for node in pass_through(call, function) {
            self.node(node, &inner_opsets, depth + 1)?;
        }
        for node in &function.node {
            let instance = names.instance(node, call, function);
            self.n_bytes_left = self.n_bytes_left.checked_sub(instance.encoded_len()).ok_or_else(too_large)?;
            self.node(instance, &inner_opsets, depth + 1)?;
        }
        Ok(())
    }
}

/// What the names of a function's body are called in the caller.
struct Names<'a> {
    prefix: String,
    formal: HashMap<&'a str, &'a str>,
}

impl<'a> Names<'a> {
    fn of_call(call: &'a NodeProto, function: &'a FunctionProto) -> Self {
        let prefix = call.first_output_name();
        let mut formal = HashMap::new();
        for (index, name) in function.output.iter().enumerate() {
            if let Some(actual) = call.output.get(index).filter(|o| !o.is_empty()) {
                formal.insert(name.as_str(), actual.as_str());
            }
        }
        for (index, name) in function.input.iter().enumerate() {
            formal.insert(name.as_str(), call.input.get(index).map_or("", String::as_str));
        }
        Names { prefix, formal }
    }

    fn rename(&self, name: &str) -> String {
        match self.formal.get(name) {
            _ if name.is_empty() => String::new(),
            Some(actual) => (*actual).to_string(),
            None => format!("{}/{name}", self.prefix),
        }
    }

    fn instance(&self, node: &NodeProto, call: &NodeProto, function: &FunctionProto) -> NodeProto {
        let attribute = node.attribute.iter().filter_map(|a| bound_attribute(a, call, function)).collect();
        let rename = |names: &[String]| names.iter().map(|n| self.rename(n)).collect();
        let name = if node.name.is_empty() { String::new() } else { format!("{}/{}", self.prefix, node.name) };
        NodeProto { name, input: rename(&node.input), output: rename(&node.output), attribute, ..node.clone() }
    }
}

/// Copies for the results of a function that are its operands at the same time, which no node of the body defines.
fn pass_through(call: &NodeProto, function: &FunctionProto) -> Vec<NodeProto> {
    let copy = |(index, name): (usize, &String)| {
        let output = call.output.get(index).filter(|o| !o.is_empty())?.clone();
        let input = call.input.get(function.input.iter().position(|i| i == name)?)?.clone();
        let (input, output) = (vec![input], vec![output]);
        Some(NodeProto { op_type: "Identity".into(), input, output, ..Default::default() })
    };
    function.output.iter().enumerate().filter_map(copy).collect()
}

/// The attribute with a reference replaced by the caller's value or the default; none if neither exists.
fn bound_attribute(attribute: &AttributeProto, call: &NodeProto, function: &FunctionProto) -> Option<AttributeProto> {
    if attribute.ref_attr_name.is_empty() {
        return Some(attribute.clone());
    }
    let given = call.attribute.iter().chain(&function.attribute_proto).find(|a| a.name == attribute.ref_attr_name)?;
    Some(AttributeProto { name: attribute.name.clone(), ..given.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_calls_copy_is_counted() {
        let node = |op_type: &str| NodeProto { op_type: op_type.into(), ..Default::default() };
        let floats = AttributeProto { name: "values".into(), floats: vec![1.0; 100], r#type: 6, ..Default::default() };
        let body = NodeProto { attribute: vec![floats], ..node("Constant") };
        let function = FunctionProto { name: "F".into(), node: vec![body], ..Default::default() };
        let opsets = BTreeMap::from([(String::new(), 20)]);
        let inlined = |n_calls| inline_within(4000, vec![node("F"); n_calls], std::slice::from_ref(&function), &opsets);
        assert_eq!(inlined(5).map(|flat| flat.len()), Ok(5));
        assert_eq!(inlined(20).map(|flat| flat.len()).unwrap_err()[0].code, "onnx-function");
    }
}
