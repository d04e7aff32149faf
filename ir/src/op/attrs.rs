//! Attributes of ops in the text format: an ordered list of keys and plain values.

use crate::id::AxisId;
use crate::types::{DType, Scalar};
use std::sync::Arc;

/// A value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttrValue {
    /// An integer.
    Int(i64),
    /// A float; printed with a point or an exponent.
    Float(Scalar),
    /// A quoted string.
    Str(String),
    /// Numbers in quotes with spaces between; a long list stands apart, as a literal of the module.
    Numbers(Arc<[Scalar]>),
    /// A list of integers.
    Ints(Vec<i64>),
    /// A list of mesh axes; its key is `axes`.
    Axes(Vec<AxisId>),
    /// A key that stands alone and means true.
    Flag,
    /// A bare word: an element type or a kind.
    Word(String),
}

/// An ordered list of attributes.
pub type Attrs = Vec<(&'static str, AttrValue)>;

/// Hands out parsed attributes by key and complains about those left over.
pub struct AttrReader {
    entries: Vec<(String, AttrValue)>,
}

impl AttrReader {
    /// A reader over parsed entries.
    pub fn new(entries: Vec<(String, AttrValue)>) -> Self {
        AttrReader { entries }
    }

    fn take(&mut self, key: &str) -> Option<AttrValue> {
        let at = self.entries.iter().position(|(k, _)| k == key)?;
        Some(self.entries.remove(at).1)
    }

    fn need(&mut self, key: &str) -> Result<AttrValue, String> {
        self.take(key).ok_or_else(|| format!("attribute `{key}` is missing"))
    }

    /// An integer.
    pub fn int(&mut self, key: &str) -> Result<i64, String> {
        match self.need(key)? {
            AttrValue::Int(v) => Ok(v),
            other => Err(wrong(key, "an integer", &other)),
        }
    }

    /// An integer that is not negative.
    pub fn uint(&mut self, key: &str) -> Result<u64, String> {
        let v = self.int(key)?;
        u64::try_from(v).map_err(|_| format!("attribute `{key}` is negative"))
    }

    /// A float; an integer is accepted.
    pub fn float(&mut self, key: &str) -> Result<Scalar, String> {
        match self.need(key)? {
            AttrValue::Float(v) => Ok(v),
            AttrValue::Int(v) => Ok(Scalar::new(v as f64)),
            other => Err(wrong(key, "a number", &other)),
        }
    }

    /// A string.
    pub fn string(&mut self, key: &str) -> Result<String, String> {
        match self.need(key)? {
            AttrValue::Str(v) => Ok(v),
            other => Err(wrong(key, "a string", &other)),
        }
    }

    /// Numbers.
    pub fn numbers(&mut self, key: &str) -> Result<Arc<[Scalar]>, String> {
        match self.need(key)? {
            AttrValue::Numbers(v) => Ok(v),
            AttrValue::Str(text) => numbers(&text),
            other => Err(wrong(key, "numbers in quotes", &other)),
        }
    }

    /// A list of integers.
    pub fn ints(&mut self, key: &str) -> Result<Vec<i64>, String> {
        match self.need(key)? {
            AttrValue::Ints(v) => Ok(v),
            other => Err(wrong(key, "a list of integers", &other)),
        }
    }

    /// A list of integers that are not negative.
    pub fn uints(&mut self, key: &str) -> Result<Vec<u64>, String> {
        let convert = |v: i64| u64::try_from(v).map_err(|_| format!("attribute `{key}` has a negative entry"));
        self.ints(key)?.into_iter().map(convert).collect()
    }

    /// A list of mesh axes.
    pub fn axes(&mut self, key: &str) -> Result<Vec<AxisId>, String> {
        match self.need(key)? {
            AttrValue::Axes(v) => Ok(v),
            other => Err(wrong(key, "a list of mesh axes", &other)),
        }
    }

    /// A bare word.
    pub fn word(&mut self, key: &str) -> Result<String, String> {
        match self.need(key)? {
            AttrValue::Word(w) => Ok(w),
            other => Err(wrong(key, "a word", &other)),
        }
    }

    /// An element type.
    pub fn dtype(&mut self, key: &str) -> Result<DType, String> {
        match self.need(key)? {
            AttrValue::Word(w) => DType::from_name(&w).ok_or_else(|| format!("`{w}` is no element type")),
            other => Err(wrong(key, "an element type", &other)),
        }
    }

    /// Whether a flag is present; one with a value is left over.
    pub fn flag(&mut self, key: &str) -> bool {
        let is_flag = self.entries.iter().any(|(k, value)| k == key && *value == AttrValue::Flag);
        is_flag && self.take(key).is_some()
    }

    /// An error if some attribute was not asked for.
    pub fn finish(self) -> Result<(), String> {
        match self.entries.first() {
            None => Ok(()),
            Some((key, AttrValue::Flag)) => Err(format!("unknown attribute `{key}`")),
            Some((key, value)) => Err(format!("unknown attribute `{key}` with {}", in_words(value))),
        }
    }
}

fn wrong(key: &str, expected: &str, found: &AttrValue) -> String {
    format!("attribute `{key}`: expected {expected}, found {}", in_words(found))
}

fn in_words(value: &AttrValue) -> String {
    match value {
        AttrValue::Int(v) => format!("the integer {v}"),
        AttrValue::Float(v) => format!("the number {v}"),
        AttrValue::Str(v) => format!("the string \"{v}\""),
        AttrValue::Numbers(_) => "a list of numbers".into(),
        AttrValue::Ints(_) => "a list of integers".into(),
        AttrValue::Axes(_) => "a list of mesh axes".into(),
        AttrValue::Flag => "no value".into(),
        AttrValue::Word(v) => format!("the word `{v}`"),
    }
}

/// The numbers of a text, with spaces between.
pub fn numbers(text: &str) -> Result<Arc<[Scalar]>, String> {
    let read = |word: &str| word.parse().map(Scalar::new).map_err(|_| format!("`{word}` is no number"));
    text.split_whitespace().map(read).collect()
}

/// A list of extents as attribute integers.
pub fn to_ints(values: &[u64]) -> AttrValue {
    AttrValue::Ints(values.iter().map(|&v| v as i64).collect())
}
