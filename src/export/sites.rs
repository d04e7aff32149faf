//! Where the tensors of a file stand, and by which name a checkpoint may have them.

use super::schema::{
    ATTRIBUTE, ATTRIBUTE_NAME, DATA_LOCATION, DOMAIN, GRAPH, INITIALIZER, Message, NODE, OP_TYPE, OUTPUT, TENSOR,
    TENSOR_NAME,
};
use super::wire::{Field, Kind, Malformed, fields, varint};
use std::ops::Range;

/// How deep messages may lie in each other; deeper ones would not fit the stack.
pub(super) const MAX_DEPTH: usize = 100;

/// A tensor of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Site {
    /// Its message.
    pub at: Range<usize>,
    /// What it is.
    pub place: Place,
    /// Whether its elements lie in a file beside the model.
    pub is_external: bool,
}

/// What a tensor is to the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// An initializer of the model's graph, by name.
    Initializer(String),
    /// The value of a `Constant` node of the model's graph, by the name of its result.
    Constant(String),
    /// Anything else, which is never trained.
    Other,
}

impl Site {
    /// The name by which it may be trained.
    pub(super) fn name(&self) -> Option<&str> {
        match &self.place {
            Place::Initializer(name) | Place::Constant(name) => Some(name),
            Place::Other => None,
        }
    }
}

/// All tensors of a file, in its order.
pub(super) fn sites(file: &[u8]) -> Result<Vec<Site>, Malformed> {
    let mut walk = Walk { file, found: Vec::new() };
    walk.message(Message::Model, 0..file.len(), &Around::File, 0)?;
    Ok(walk.found)
}

/// What is around a message, as far as it gives tensors names.
enum Around {
    /// The file.
    File,
    /// The graph of the model.
    Graph,
    /// A `Constant` node of that graph, by the name of its result.
    Constant(String),
    /// The value of such a node.
    Value(String),
    /// Anything else.
    Other,
}

struct Walk<'a> {
    file: &'a [u8],
    found: Vec<Site>,
}

impl Walk<'_> {
    fn message(&mut self, kind: Message, range: Range<usize>, around: &Around, depth: usize) -> Result<(), Malformed> {
        if depth > MAX_DEPTH {
            return Err(Malformed { at: range.start });
        }
        for field in fields(self.file, range) {
            let Field { tag, kind: written, value, .. } = field?;
            let Some(inside) = kind.inside(tag).filter(|_| written == Kind::Bytes) else { continue };
            if inside == Message::Tensor {
                let site = self.site(value, around, tag)?;
                self.found.push(site);
            } else {
                let around = self.around(around, inside, tag, value.clone())?;
                self.message(inside, value, &around, depth + 1)?;
            }
        }
        Ok(())
    }

    /// What a message is to those in it.
    fn around(&self, outer: &Around, inside: Message, tag: u64, range: Range<usize>) -> Result<Around, Malformed> {
        Ok(match (outer, inside) {
            (Around::File, Message::Graph) if tag == GRAPH => Around::Graph,
            (Around::Graph, Message::Node) if tag == NODE => match self.constant(range)? {
                Some(result) => Around::Constant(result),
                None => Around::Other,
            },
            (Around::Constant(result), Message::Attribute)
                if tag == ATTRIBUTE && self.text(range, ATTRIBUTE_NAME)?.as_deref() == Some("value") =>
            {
                Around::Value(result.clone())
            }
            _ => Around::Other,
        })
    }

    /// The result of a node, if it is a constant.
    fn constant(&self, node: Range<usize>) -> Result<Option<String>, Malformed> {
        let domain = self.text(node.clone(), DOMAIN)?.unwrap_or_default();
        let is_constant = self.text(node.clone(), OP_TYPE)?.as_deref() == Some("Constant");
        let is_standard = ["", "ai.onnx"].contains(&domain.as_str());
        Ok(if is_constant && is_standard { self.texts(node, OUTPUT)?.into_iter().next() } else { None })
    }

    fn site(&self, at: Range<usize>, around: &Around, tag: u64) -> Result<Site, Malformed> {
        let place = match around {
            Around::Graph if tag == INITIALIZER => {
                Place::Initializer(self.text(at.clone(), TENSOR_NAME)?.unwrap_or_default())
            }
            Around::Value(result) if tag == TENSOR => Place::Constant(result.clone()),
            _ => Place::Other,
        };
        let mut is_external = false;
        for field in fields(self.file, at.clone()) {
            let field = field?;
            if field.tag == DATA_LOCATION && field.kind == Kind::Varint {
                is_external = varint(self.file, field.value.start)?.0 == 1;
            }
        }
        Ok(Site { at, place, is_external })
    }

    /// The text of a field that stands once in a message; if it stands there more often, the last counts.
    fn text(&self, message: Range<usize>, tag: u64) -> Result<Option<String>, Malformed> {
        Ok(self.texts(message, tag)?.pop())
    }

    /// All texts that a field of a message holds.
    fn texts(&self, message: Range<usize>, tag: u64) -> Result<Vec<String>, Malformed> {
        let mut texts = Vec::new();
        for field in fields(self.file, message) {
            let field = field?;
            if field.tag == tag && field.kind == Kind::Bytes {
                texts.push(String::from_utf8_lossy(&self.file[field.value]).into_owned());
            }
        }
        Ok(texts)
    }
}
