//! Typed access to the attributes of a node.

use std::collections::BTreeMap;

use bytes::Bytes;
use galvatron_ir::diagnostic::Diagnostic;

use super::proto::AttributeProto;
use super::weights::{TensorFile, TensorRecord};

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// One number.
    Float(f32),
    /// One integer.
    Int(i64),
    /// Text; bytes that are not UTF-8 are replaced.
    String(String),
    /// A constant tensor.
    Tensor(TensorRecord),
    /// Several numbers.
    Floats(Vec<f32>),
    /// Several integers.
    Ints(Vec<i64>),
    /// Several texts.
    Strings(Vec<String>),
}

impl Attribute {
    fn kind(&self) -> &'static str {
        match self {
            Self::Float(_) => "FLOAT",
            Self::Int(_) => "INT",
            Self::String(_) => "STRING",
            Self::Tensor(_) => "TENSOR",
            Self::Floats(_) => "FLOATS",
            Self::Ints(_) => "INTS",
            Self::Strings(_) => "STRINGS",
        }
    }
}

/// The attributes of one node, by name.
///
/// The accessors return the default where the attribute is absent or of another kind; the reader has refused standard
/// operators whose common attributes are of another kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attributes {
    entries: BTreeMap<String, Attribute>,
}

impl Attributes {
    /// The attribute as it is in the file.
    pub fn get(&self, name: &str) -> Option<&Attribute> {
        self.entries.get(name)
    }

    /// Sets an attribute, for nodes that are made and not read.
    pub fn set(&mut self, name: impl Into<String>, value: Attribute) {
        self.entries.insert(name.into(), value);
    }

    /// The same attributes with one more.
    pub fn with(mut self, name: &str, value: Attribute) -> Self {
        self.set(name, value);
        self
    }

    /// Names and values in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Attribute)> {
        self.entries.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// An INT attribute, or the default.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        match self.get(name) {
            Some(Attribute::Int(value)) => *value,
            _ => default,
        }
    }

    /// An INTS attribute, if given.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.get(name) {
            Some(Attribute::Ints(values)) => Some(values),
            _ => None,
        }
    }

    /// A FLOAT attribute, or the default.
    pub fn float(&self, name: &str, default: f32) -> f32 {
        match self.get(name) {
            Some(Attribute::Float(value)) => *value,
            _ => default,
        }
    }

    /// A FLOATS attribute, if given.
    pub fn floats(&self, name: &str) -> Option<&[f32]> {
        match self.get(name) {
            Some(Attribute::Floats(values)) => Some(values),
            _ => None,
        }
    }

    /// A STRING attribute, or the default.
    pub fn string<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        match self.get(name) {
            Some(Attribute::String(text)) => text,
            _ => default,
        }
    }

    /// A TENSOR attribute, if given.
    pub fn tensor(&self, name: &str) -> Option<&TensorRecord> {
        match self.get(name) {
            Some(Attribute::Tensor(tensor)) => Some(tensor),
            _ => None,
        }
    }
}

/// What the attributes of a node hold besides values: bodies of control flow.
pub struct ReadAttributes {
    /// The values.
    pub attributes: Attributes,
    /// Whether an attribute is a graph, so that the node is control flow.
    pub has_subgraph: bool,
}

/// Reads the attributes of one node of operator `op_type`, in the standard domain if `standard`.
///
/// # Errors
/// Code `onnx-attribute` for an attribute without a value, of a kind that is not read (sparse tensors, types), or of
/// another kind than the specification says; and the codes of [`TensorFile::tensor`].
pub fn read_attributes(
    protos: &[AttributeProto],
    op_type: &str,
    standard: bool,
    file: &TensorFile,
) -> Result<ReadAttributes, Vec<Diagnostic>> {
    let mut read = ReadAttributes { attributes: Attributes::default(), has_subgraph: false };
    let mut faults = Vec::new();
    for proto in protos {
        if proto.g.is_some() || !proto.graphs.is_empty() {
            read.has_subgraph = true;
            continue;
        }
        match value(proto, file).and_then(|value| expect_kind(value, proto, op_type, standard)) {
            Ok(value) => read.attributes.set(proto.name.clone(), value),
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(read) } else { Err(faults) }
}

fn value(proto: &AttributeProto, file: &TensorFile) -> Result<Attribute, Diagnostic> {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let found = match kind_number(proto) {
        1 => Some(Attribute::Float(proto.f.unwrap_or(0.0))),
        2 => Some(Attribute::Int(proto.i.unwrap_or(0))),
        3 => Some(Attribute::String(proto.s.as_ref().map(text).unwrap_or_default())),
        4 => proto.t.as_ref().map(|t| file.tensor(t)).transpose()?.map(Attribute::Tensor),
        6 => Some(Attribute::Floats(proto.floats.clone())),
        7 => Some(Attribute::Ints(proto.ints.clone())),
        8 => Some(Attribute::Strings(proto.strings.iter().map(text).collect())),
        _ => None,
    };
    found.ok_or_else(|| {
        let message = format!("attribute `{}` holds no number, text or tensor (type {})", proto.name, proto.r#type);
        Diagnostic::new("onnx-attribute", message)
    })
}

/// The discriminator, which files of IR version 1 leave out.
fn kind_number(proto: &AttributeProto) -> i32 {
    match proto.r#type {
        0 if proto.f.is_some() => 1,
        0 if proto.i.is_some() => 2,
        0 if proto.s.is_some() => 3,
        0 if proto.t.is_some() => 4,
        0 if !proto.floats.is_empty() => 6,
        0 if !proto.ints.is_empty() => 7,
        0 if !proto.strings.is_empty() => 8,
        number => number,
    }
}

fn expect_kind(
    value: Attribute,
    proto: &AttributeProto,
    op_type: &str,
    standard: bool,
) -> Result<Attribute, Diagnostic> {
    match standard_kind(&proto.name, op_type) {
        Some(expected) if standard && expected != value.kind() => {
            let message = format!(
                "attribute `{}` of `{op_type}` is of kind {} where {expected} was expected",
                proto.name,
                value.kind()
            );
            Err(Diagnostic::new("onnx-attribute", message))
        }
        _ => Ok(value),
    }
}

/// The kind that the operator specification gives to common attribute names.
fn standard_kind(name: &str, op_type: &str) -> Option<&'static str> {
    Some(match (name, op_type) {
        ("axis" | "keepdims" | "to" | "allowzero" | "batch_dims" | "transA" | "transB" | "num_outputs", _) => "INT",
        ("start" | "end", "Shape") | ("upper", "Trilu") | ("exclusive" | "reverse", "CumSum") => "INT",
        ("fmod", "Mod") | ("noop_with_empty_axes" | "select_last_index", _) => "INT",
        ("is_causal" | "q_num_heads" | "kv_num_heads", "Attention") | ("ignore_index", _) => "INT",
        ("interleaved" | "num_heads" | "rotary_embedding_dim", "RotaryEmbedding") => "INT",
        ("perm" | "axes" | "split" | "pads" | "strides" | "dilations" | "kernel_shape", _) => "INTS",
        ("starts" | "ends", "Slice") | ("repeats", _) | ("value_ints", "Constant") => "INTS",
        ("epsilon" | "alpha" | "beta" | "scale" | "softcap", _) | ("value_float", "Constant") => "FLOAT",
        ("value", "Constant" | "ConstantOfShape") => "TENSOR",
        ("reduction" | "auto_pad" | "approximate" | "mode", _) => "STRING",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(proto: AttributeProto) -> Result<Attributes, &'static str> {
        let file = TensorFile { name: "m.onnx".into(), bytes: Bytes::new() };
        read_attributes(&[proto], "Gather", true, &file).map(|r| r.attributes).map_err(|f| f[0].code)
    }

    #[test]
    fn absent_attributes_take_their_default() {
        assert_eq!(Attributes::default().int("axis", -1), -1);
        assert!(Attributes::default().ints("axes").is_none());
    }

    #[test]
    fn an_empty_list_differs_from_an_absent_one() {
        let read = read(AttributeProto { name: "axes".into(), r#type: 7, ..Default::default() }).unwrap();
        assert_eq!(read.ints("axes"), Some(&[][..]));
    }

    #[test]
    fn another_kind_than_specified_is_refused() {
        let axis = AttributeProto { name: "axis".into(), r#type: 1, f: Some(0.0), ..Default::default() };
        assert_eq!(read(axis), Err("onnx-attribute"));
        assert_eq!(read(AttributeProto { name: "axis".into(), ..Default::default() }), Err("onnx-attribute"));
    }

    #[test]
    fn untyped_attributes_of_old_files_are_read() {
        let axis = AttributeProto { name: "axis".into(), i: Some(3), ..Default::default() };
        assert_eq!(read(axis).unwrap().int("axis", 0), 3);
    }
}
