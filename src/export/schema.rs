//! Which fields of which ONNX messages hold messages on the way to tensors.
//!
//! Field numbers are those of `onnx.proto`. Every tensor of a file is found by them, also those in bodies of control flow,
//! in functions and in sparse tensors: all of them may lie in files beside the model.

/// A message that is a tensor, or in which tensors may lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// The whole file.
    Model,
    /// How a model is initialised and trained.
    Training,
    /// A graph: that of the model, or the body of a node.
    Graph,
    /// A function.
    Function,
    /// A node.
    Node,
    /// An attribute of a node.
    Attribute,
    /// A sparse tensor: two dense ones.
    Sparse,
    /// A tensor.
    Tensor,
}

/// Field of a model: its graph.
pub(super) const GRAPH: u64 = 7;
/// Fields of a graph: its nodes, its initializers.
pub(super) const NODE: u64 = 1;
pub(super) const INITIALIZER: u64 = 5;
/// Fields of a node: its results, its operator, its attributes, the domain of the operator.
pub(super) const OUTPUT: u64 = 2;
pub(super) const OP_TYPE: u64 = 4;
pub(super) const ATTRIBUTE: u64 = 5;
pub(super) const DOMAIN: u64 = 7;
/// Fields of an attribute: its name, its tensor.
pub(super) const ATTRIBUTE_NAME: u64 = 1;
pub(super) const TENSOR: u64 = 5;
/// Fields of a tensor: its name, its elements as bytes, where they lie outside of the file, and whether they do.
pub(super) const TENSOR_NAME: u64 = 8;
pub(super) const RAW_DATA: u64 = 9;
pub(super) const EXTERNAL_DATA: u64 = 13;
pub(super) const DATA_LOCATION: u64 = 14;

impl Message {
    /// The message that a field holds, if tensors may lie in it.
    pub(super) fn inside(self, tag: u64) -> Option<Message> {
        Some(match (self, tag) {
            (Message::Model, GRAPH) => Message::Graph,
            (Message::Model, 20) => Message::Training,
            (Message::Model, 25) => Message::Function,
            (Message::Training, 1 | 2) => Message::Graph,
            (Message::Graph, NODE) | (Message::Function, 7) => Message::Node,
            (Message::Graph, INITIALIZER) => Message::Tensor,
            (Message::Graph, 15) => Message::Sparse,
            (Message::Function, 11) => Message::Attribute,
            (Message::Node, ATTRIBUTE) => Message::Attribute,
            (Message::Attribute, TENSOR | 10) => Message::Tensor,
            (Message::Attribute, 6 | 11) => Message::Graph,
            (Message::Attribute, 22 | 23) => Message::Sparse,
            (Message::Sparse, 1 | 2) => Message::Tensor,
            _ => return None,
        })
    }
}

/// Whether a field of a tensor holds elements, or says where they lie.
pub(super) fn is_data(tag: u64) -> bool {
    matches!(tag, 4..=7 | RAW_DATA..=11 | EXTERNAL_DATA)
}
