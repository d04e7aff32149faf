//! Attributes in braces: `{key=value, flag}`, of ops and of the sections of a module.

use super::cursor::{Cursor, Parsed};
use crate::diagnostic::Diagnostic;
use crate::id::AxisId;
use crate::mesh::Mesh;
use crate::op::AttrValue;
use crate::text::fault;
use crate::text::lexer::{Kind, Token};
use crate::types::Scalar;
use std::ops::Range;
use std::sync::Arc;

/// The value of an attribute as it was written.
enum Raw {
    /// The key stood alone.
    Flag,
    /// An integer, a float, a string or a word.
    One(Token),
    /// The number of a literal, behind `@`.
    Literal(Token),
    /// A list in brackets.
    List(Vec<Token>),
}

/// What attributes of ops may name.
pub struct Named<'a> {
    /// The axes.
    pub mesh: &'a Mesh,
    /// The literals that were read so far.
    pub literals: &'a [Arc<[Scalar]>],
}

/// One attribute.
struct Field<'t> {
    key: &'t str,
    value: Raw,
    span: Range<usize>,
}

/// The attributes of one pair of braces; what is taken out is left out of the end's complaint.
pub struct Fields<'t> {
    entries: Vec<Field<'t>>,
    span: Range<usize>,
}

impl<'t> Fields<'t> {
    /// Takes attributes, if an opening brace comes next.
    pub fn read(cursor: &mut Cursor<'t>) -> Parsed<Fields<'t>> {
        let first = cursor.peek();
        let mut fields = Fields { entries: Vec::new(), span: first.start..first.start };
        if cursor.eats('{') {
            fields.entries = cursor.items('}', read_field)?;
            fields.span = cursor.span_from(first);
        }
        fields.check_keys(cursor)?;
        Ok(fields)
    }

    fn check_keys(&self, cursor: &mut Cursor<'t>) -> Parsed<()> {
        for (i, field) in self.entries.iter().enumerate() {
            if self.entries[..i].iter().any(|f| f.key == field.key) {
                let message = format!("attribute `{}` is given twice", field.key);
                return Err(cursor.report(Diagnostic::new(fault::ATTRIBUTE, message).at(field.span.clone())));
            }
        }
        Ok(())
    }

    /// Range of the attribute that a message names in backticks, otherwise of all of them.
    pub fn span_named_in(&self, message: &str) -> Range<usize> {
        let named = self.entries.iter().find(|f| message.contains(&format!("`{}`", f.key)));
        named.map_or(self.span.clone(), |f| f.span.clone())
    }

    /// The attributes as ops read them.
    pub fn attrs(&self, cursor: &mut Cursor<'t>, named: &Named<'_>) -> Parsed<Vec<(String, AttrValue)>> {
        self.entries.iter().map(|f| Ok((f.key.to_string(), f.attr(cursor, named)?))).collect()
    }

    /// Whether an attribute is there and was not taken.
    pub fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|f| f.key == key)
    }

    /// Takes an integer that is not negative.
    pub fn u64(&mut self, cursor: &mut Cursor<'t>, key: &str) -> Parsed<u64> {
        let token = self.one(cursor, key, "an integer", &[Kind::Int])?;
        cursor.number(token)
    }

    /// The same where it may be left out.
    pub fn u64_or(&mut self, cursor: &mut Cursor<'t>, key: &str, default: u64) -> Parsed<u64> {
        if self.has(key) { self.u64(cursor, key) } else { Ok(default) }
    }

    /// Takes an integer.
    pub fn i64(&mut self, cursor: &mut Cursor<'t>, key: &str) -> Parsed<i64> {
        let token = self.one(cursor, key, "an integer", &[Kind::Int])?;
        cursor.number(token)
    }

    /// Takes a number.
    pub fn f64(&mut self, cursor: &mut Cursor<'t>, key: &str) -> Parsed<f64> {
        let token = self.one(cursor, key, "a number", &[Kind::Float, Kind::Int, Kind::Word])?;
        match cursor.text_of(token).parse() {
            Ok(value) => Ok(value),
            Err(_) => Err(wrong(cursor, key, "a number", token.span())),
        }
    }

    /// Takes a quoted string.
    pub fn string(&mut self, cursor: &mut Cursor<'t>, key: &str) -> Parsed<String> {
        let token = self.one(cursor, key, "a string", &[Kind::Str])?;
        Ok(cursor.unquoted(token))
    }

    /// Takes one of some words, bare or in quotes.
    pub fn choice<T: Copy>(&mut self, cursor: &mut Cursor<'t>, key: &str, choices: &[(T, &str)]) -> Parsed<T> {
        let token = self.one(cursor, key, "a word", &[Kind::Word, Kind::Str])?;
        let word = cursor.text_of(token).trim_matches('"');
        match choices.iter().find(|c| c.1 == word) {
            Some(&(choice, _)) => Ok(choice),
            None => {
                let known = choices.iter().map(|c| c.1);
                Err(cursor.report(fault::unknown((fault::ATTRIBUTE, key), word, known, token.span())))
            }
        }
    }

    /// Takes a list of integers that are not negative.
    pub fn u64s(&mut self, cursor: &mut Cursor<'t>, key: &str) -> Parsed<Vec<u64>> {
        let field = self.take(cursor, key)?;
        match &field.value {
            Raw::List(items) => items.iter().map(|&t| integer(cursor, key, t)).collect(),
            _ => Err(wrong(cursor, key, "a list of integers", field.span)),
        }
    }

    /// Complains if an attribute was not taken.
    pub fn finish(self, cursor: &mut Cursor<'t>) -> Parsed<()> {
        let Some(field) = self.entries.first() else { return Ok(()) };
        let message = format!("unknown attribute `{}`", field.key);
        Err(cursor.report(Diagnostic::new(fault::ATTRIBUTE, message).at(field.span.clone())))
    }

    fn take(&mut self, cursor: &mut Cursor<'t>, key: &str) -> Parsed<Field<'t>> {
        match self.entries.iter().position(|f| f.key == key) {
            Some(at) => Ok(self.entries.remove(at)),
            None => {
                let message = format!("attribute `{key}` is missing");
                Err(cursor.report(Diagnostic::new(fault::ATTRIBUTE, message).at(self.span.clone())))
            }
        }
    }

    fn one(&mut self, cursor: &mut Cursor<'t>, key: &str, what: &str, kinds: &[Kind]) -> Parsed<Token> {
        let field = self.take(cursor, key)?;
        match field.value {
            Raw::One(token) if kinds.contains(&token.kind) => Ok(token),
            _ => Err(wrong(cursor, key, what, field.span)),
        }
    }
}

fn wrong(cursor: &mut Cursor<'_>, key: &str, what: &str, span: Range<usize>) -> super::cursor::Reported {
    cursor.report(Diagnostic::new(fault::ATTRIBUTE, format!("attribute `{key}`: expected {what}")).at(span))
}

fn integer<T: std::str::FromStr>(cursor: &mut Cursor<'_>, key: &str, token: Token) -> Parsed<T> {
    match token.kind {
        Kind::Int => cursor.number(token),
        _ => Err(wrong(cursor, key, "integers", token.span())),
    }
}

fn read_field<'t>(cursor: &mut Cursor<'t>) -> Parsed<Field<'t>> {
    let first = cursor.word("an attribute")?;
    let value = if cursor.eats('=') { read_value(cursor)? } else { Raw::Flag };
    Ok(Field { key: cursor.text_of(first), value, span: cursor.span_from(first) })
}

fn read_value(cursor: &mut Cursor<'_>) -> Parsed<Raw> {
    if cursor.eats('[') {
        return Ok(Raw::List(cursor.items(']', read_scalar)?));
    }
    if cursor.eats('@') {
        return Ok(Raw::Literal(cursor.token(Kind::Int, "the number of a literal")?));
    }
    Ok(Raw::One(read_scalar(cursor)?))
}

fn read_scalar(cursor: &mut Cursor<'_>) -> Parsed<Token> {
    match cursor.peek().kind {
        Kind::Int | Kind::Float | Kind::Str | Kind::Word => Ok(cursor.advance()),
        _ => Err(cursor.expected("a number, a string, a word or a list")),
    }
}

impl<'t> Field<'t> {
    fn attr(&self, cursor: &mut Cursor<'t>, named: &Named<'_>) -> Parsed<AttrValue> {
        match &self.value {
            Raw::Flag => Ok(AttrValue::Flag),
            Raw::One(token) => scalar_attr(cursor, *token),
            Raw::Literal(token) => literal(cursor, named.literals, *token),
            Raw::List(items) if self.key == "axes" => {
                Ok(AttrValue::Axes(items.iter().map(|&t| axis(cursor, named.mesh, t)).collect::<Parsed<_>>()?))
            }
            Raw::List(items) => {
                Ok(AttrValue::Ints(items.iter().map(|&t| integer(cursor, self.key, t)).collect::<Parsed<_>>()?))
            }
        }
    }
}

fn scalar_attr(cursor: &mut Cursor<'_>, token: Token) -> Parsed<AttrValue> {
    let text = cursor.text_of(token);
    Ok(match (token.kind, text) {
        (Kind::Int, _) => AttrValue::Int(cursor.number(token)?),
        (Kind::Str, _) => AttrValue::Str(cursor.unquoted(token)),
        (Kind::Float, _) | (Kind::Word, "inf" | "NaN") => AttrValue::Float(Scalar::new(cursor.number(token)?)),
        _ => AttrValue::Word(text.to_string()),
    })
}

fn literal(cursor: &mut Cursor<'_>, literals: &[Arc<[Scalar]>], token: Token) -> Parsed<AttrValue> {
    let (index, n) = (cursor.number::<u64>(token)?, literals.len());
    match usize::try_from(index).ok().and_then(|index| literals.get(index)) {
        Some(numbers) => Ok(AttrValue::Numbers(numbers.clone())),
        None => {
            let message = format!("there is no literal {index}, the module has {n} before this line");
            Err(cursor.report(Diagnostic::new(fault::LITERAL, message).at(token.span())))
        }
    }
}

fn axis(cursor: &mut Cursor<'_>, mesh: &Mesh, token: Token) -> Parsed<AxisId> {
    axis_named(cursor, mesh, cursor.text_of(token), token.span())
}

/// The axis of that name.
pub fn axis_named(cursor: &mut Cursor<'_>, mesh: &Mesh, name: &str, span: Range<usize>) -> Parsed<AxisId> {
    let known = || mesh.axes().iter().map(|a| a.name.as_str());
    mesh.axis(name).ok_or_else(|| cursor.report(fault::unknown((fault::AXIS, "axis"), name, known(), span)))
}
