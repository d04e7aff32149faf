//! The tree of values that a configuration file and its `--set key=value` overrides make together.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use galvatron_ir::diagnostic::{Checked, Diagnostic};
use toml::de::{DeTable, DeValue};

/// Keys of one table with the place of the key and the value.
pub(super) type Table = BTreeMap<String, (Place, Item)>;

/// Where a key or a value was written.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// Byte range in the file.
    File(Range<usize>),
    /// The text of a `--set` argument.
    Set(String),
}

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) value: Value,
    pub(super) place: Place,
}

/// A value of TOML or JSON.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    Integer(i128),
    Float(f64),
    Boolean(bool),
    Date,
    Null,
    Array(Vec<Item>),
    Table(Table),
}

impl Place {
    /// Byte range in the file; empty for what a `--set` argument wrote.
    pub(super) fn span(&self) -> Range<usize> {
        match self {
            Place::File(span) => span.clone(),
            Place::Set(_) => 0..0,
        }
    }

    /// A diagnostic at this place.
    pub(super) fn diagnostic(&self, code: &'static str, message: String) -> Diagnostic {
        match self {
            Place::File(span) => Diagnostic::new(code, message).at(span.clone()),
            Place::Set(argument) => Diagnostic::new(code, format!("{message} (in `--set {argument}`)")),
        }
    }
}

/// The value as a message shows it.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Text(text) => write!(f, "{}", quoted(text)),
            Value::Integer(number) => write!(f, "{number}"),
            Value::Float(number) => write!(f, "{number:?}"),
            Value::Boolean(flag) => write!(f, "{flag}"),
            Value::Date => write!(f, "a date"),
            Value::Null => write!(f, "null"),
            Value::Array(items) if items.is_empty() => write!(f, "an empty array"),
            Value::Array(items) => {
                let shown: Vec<String> = items.iter().take(8).map(|item| item.value.to_string()).collect();
                write!(f, "[{}{}]", shown.join(", "), if items.len() > 8 { ", …" } else { "" })
            }
            Value::Table(_) => write!(f, "a table"),
        }
    }
}

/// Parses a file; all its syntax errors are collected.
pub(super) fn parse_file(text: &str) -> Checked<Table> {
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(errors.iter().map(|error| syntax(error, text.len())).collect());
    }
    Ok(convert_table(table.get_ref(), &Place::File))
}

/// Lays `key=value` arguments over a table, later ones over earlier ones; tables are merged key by key.
pub(super) fn apply_overrides(table: &mut Table, overrides: &[String]) -> Vec<Diagnostic> {
    let mut faults = Vec::new();
    for argument in overrides {
        match parse_override(argument) {
            Ok(over) => merge(table, over),
            Err(fault) => faults.push(fault),
        }
    }
    faults
}

/// A string as TOML writes it, in double quotes.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out + "\""
}

fn syntax(error: &toml::de::Error, end: usize) -> Diagnostic {
    let diagnostic = Diagnostic::new("syntax", one_line(error.message()));
    diagnostic.at(error.span().unwrap_or(end..end))
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join("; ")
}

fn convert_table(table: &DeTable<'_>, place: &dyn Fn(Range<usize>) -> Place) -> Table {
    let entry = |(key, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
        let name: &std::borrow::Cow<'_, str> = key.get_ref();
        (name.to_string(), (place(key.span()), convert(value, place)))
    };
    table.iter().map(entry).collect()
}

fn convert(value: &toml::Spanned<DeValue<'_>>, place: &dyn Fn(Range<usize>) -> Place) -> Item {
    let converted = match value.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => integer(number.as_str(), number.radix()),
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(flag) => Value::Boolean(*flag),
        DeValue::Datetime(_) => Value::Date,
        DeValue::Array(items) => Value::Array(items.iter().map(|item| convert(item, place)).collect()),
        DeValue::Table(table) => Value::Table(convert_table(table, place)),
    };
    Item { value: converted, place: place(value.span()) }
}

/// An integer; one that does not fit 128 bits is out of every range that a key may have.
fn integer(digits: &str, radix: u32) -> Value {
    Value::Integer(i128::from_str_radix(digits, radix).unwrap_or(i128::MAX))
}

fn parse_override(argument: &str) -> Result<Table, Diagnostic> {
    let help = "write `--set KEY=VALUE` with a TOML value, for example `--set optimizer.lr=3e-4`";
    let fault = |what: &str| Diagnostic::new("syntax", format!("`--set {argument}`: {what}")).help(help);
    let Some((key, value)) = argument.split_once('=') else {
        return Err(fault("no `=`"));
    };
    if argument.contains(['\n', '\r']) {
        return Err(fault("more than one line"));
    }
    let place = |_: Range<usize>| Place::Set(argument.to_string());
    let error = match DeTable::parse(argument) {
        Ok(table) => return Ok(convert_table(table.get_ref(), &place)),
        Err(error) => error,
    };
    if !is_bare_word(value.trim()) {
        return Err(fault(&one_line(error.message())));
    }
    let text = format!("{key} = {}", quoted(value.trim()));
    let table = DeTable::parse(&text).map_err(|error| fault(&one_line(error.message())))?;
    Ok(convert_table(table.get_ref(), &place))
}

/// Whether a value that is no TOML value stands for itself as a string.
fn is_bare_word(value: &str) -> bool {
    let special = |c: char| c.is_whitespace() || c.is_control() || "\"'[]{},=#\\".contains(c);
    !value.is_empty() && !value.contains(special)
}

fn merge(table: &mut Table, over: Table) {
    for (key, (place, item)) in over {
        match (table.get_mut(&key), item) {
            (Some((_, Item { value: Value::Table(below), .. })), Item { value: Value::Table(above), .. }) => {
                merge(below, above);
            }
            (_, item) => {
                table.insert(key, (place, item));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(table: &Table) -> String {
        let one = |(key, (_, item)): (&String, &(Place, Item))| match &item.value {
            Value::Table(inner) => format!("{key}{{{}}}", show(inner)),
            value => format!("{key}={value}"),
        };
        table.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    fn check(file: &str, overrides: &[&str], expected: &str) {
        let mut table = parse_file(file).unwrap();
        let overrides: Vec<String> = overrides.iter().map(|s| s.to_string()).collect();
        let faults = apply_overrides(&mut table, &overrides);
        let faults: Vec<String> = faults.iter().map(|f| f.message.clone()).collect();
        assert_eq!(format!("{}{}", show(&table), faults.join("|")), expected);
    }

    #[test]
    fn overrides_win_and_merge() {
        check("a = 1\n[b]\nc = 2\nd = 3", &["b.c=5", "e.f = 0x10", "a=1.5"], "a=1.5 b{c=5 d=3} e{f=16}");
        check("[b]\nc = 2", &["b={d=1}", "b.d=2"], "b{c=2 d=2}");
    }

    #[test]
    fn bare_words_are_strings() {
        check("", &["loss.output=/head/MatMul_output_0"], "loss{output=\"/head/MatMul_output_0\"}");
        check("", &["loss.kind=cross-entropy", "x=1f1b"], "loss{kind=\"cross-entropy\"} x=\"1f1b\"");
        check("", &["a=true", "b=[1, 2]", "dims.\"a.b\"=3"], "a=true b=[1, 2] dims{a.b=3}");
    }

    #[test]
    fn malformed_overrides_are_reported() {
        check("", &["lr"], "`--set lr`: no `=`");
        for bad in ["a=[1, 2", "a=1 2", "a=", "=1", "a b=1", "a=1\nb=2", "a=\"x"] {
            assert!(parse_override(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn syntax_errors_are_collected_with_their_place() {
        let faults = parse_file("a = \nb = 1\nb = 2\nc = [1,").unwrap_err();
        assert!(faults.len() >= 2, "{faults:?}");
        assert!(faults.iter().all(|f| f.code == "syntax" && f.span.is_some()));
    }

    #[test]
    fn quoted_strings_read_back() {
        for text in ["", "a\"b\\c", "tab\tnew\nline\u{7f}", "é"] {
            let table = parse_file(&format!("k = {}", quoted(text))).unwrap();
            assert!(matches!(&table["k"].1.value, Value::Text(back) if back == text));
        }
    }
}
