//! JSON as the tree of values that [`Fields`](super::Fields) reads, with the place of every key and value.

use std::fmt;

use galvatron_ir::diagnostic::{Checked, Diagnostic};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::set::{Item, Place, Table, Value};

/// Tables and arrays inside one another that a file may have.
const MAX_DEPTH: usize = 32;

/// Parses a file whose value is one object. Keys that stand twice in an object are faults.
pub(super) fn parse_json(text: &str) -> Checked<Table> {
    let raw: &RawValue = serde_json::from_str(text).map_err(|error| vec![syntax(text, &error)])?;
    let mut reader = Reader { text, faults: Vec::new() };
    let item = reader.convert(raw, 0);
    match item.value {
        Value::Table(table) if reader.faults.is_empty() => Ok(table),
        Value::Table(_) => Err(reader.faults),
        value => Err(vec![item.place.diagnostic("bad-value", format!("expected an object, found {value}"))]),
    }
}

/// The error at its line and column, which count from one.
fn syntax(text: &str, error: &serde_json::Error) -> Diagnostic {
    let start: usize = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    let at = (start + error.column().saturating_sub(1)).min(text.len());
    let message = error.to_string();
    let what = message.split(" at line ").next().unwrap_or_default().to_string();
    Diagnostic::new("syntax", what).at(at..at)
}

struct Reader<'t> {
    text: &'t str,
    faults: Vec<Diagnostic>,
}

impl<'t> Reader<'t> {
    fn convert(&mut self, raw: &'t RawValue, depth: usize) -> Item {
        let start = raw.get().as_ptr() as usize - self.text.as_ptr() as usize;
        let place = Place::File(start..start + raw.get().len());
        let value = match raw.get().as_bytes()[0] {
            b'{' | b'[' if depth == MAX_DEPTH => {
                self.faults.push(place.diagnostic("bad-value", format!("more than {MAX_DEPTH} levels of nesting")));
                Value::Null
            }
            b'{' => Value::Table(self.table(raw, start, depth)),
            b'[' => {
                Value::Array(parsed::<Vec<&RawValue>>(raw).into_iter().map(|r| self.convert(r, depth + 1)).collect())
            }
            b'"' => Value::Text(parsed(raw)),
            b't' | b'f' => Value::Boolean(raw.get() == "true"),
            b'n' => Value::Null,
            _ => number(raw.get()),
        };
        Item { value, place }
    }

    fn table(&mut self, raw: &'t RawValue, start: usize, depth: usize) -> Table {
        let mut table = Table::new();
        let mut from = start;
        for (key, raw) in parsed::<Pairs<'t>>(raw).0 {
            let item = self.convert(raw, depth + 1);
            let place = Place::File(self.key_span(&key, from, &item));
            from = item.place.span().end;
            if table.contains_key(&key) {
                self.faults.push(place.diagnostic("duplicate-key", format!("`{key}` stands twice")));
            }
            table.insert(key, (place, item));
        }
        table
    }

    /// The key between `from` and its value as it is written, in quotes.
    fn key_span(&self, key: &str, from: usize, item: &Item) -> std::ops::Range<usize> {
        let quoted = format!("\"{key}\"");
        let value = item.place.span();
        let between = &self.text[from..value.start];
        // A key that is written with escapes is shown with its value.
        between.rfind(&quoted).map_or(value, |at| from + at..from + at + quoted.len())
    }
}

/// A part of a text that was parsed before.
fn parsed<'t, T: Deserialize<'t>>(raw: &'t RawValue) -> T {
    serde_json::from_str(raw.get()).expect("invariant: the text is JSON of that kind")
}

fn number(text: &str) -> Value {
    match text.parse::<i128>() {
        Ok(number) => Value::Integer(number),
        Err(_) => Value::Float(text.parse().unwrap_or(f64::NAN)),
    }
}

/// Keys and values of an object in the order of the file.
struct Pairs<'t>(Vec<(String, &'t RawValue)>);

impl<'t> Deserialize<'t> for Pairs<'t> {
    fn deserialize<D: Deserializer<'t>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'t> Visitor<'t> for All {
            type Value = Pairs<'t>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'t>>(self, mut map: A) -> Result<Pairs<'t>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(All)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each value with what stands at the place of its key and of itself.
    fn show(text: &str, table: &Table) -> String {
        let one = |(_, (key, item)): (&String, &(Place, Item))| match &item.value {
            Value::Table(inner) => format!("{}{{{}}}", &text[key.span()], show(text, inner)),
            value => format!("{}={value}@{}", &text[key.span()], &text[item.place.span()]),
        };
        table.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    fn check(text: &str, expected: &str) {
        let shown = match parse_json(text) {
            Ok(table) => show(text, &table),
            Err(faults) => {
                let one = |f: &Diagnostic| format!("{}|{}|{}", f.code, &text[f.span.clone().unwrap()], f.message);
                faults.iter().map(one).collect::<Vec<_>>().join(";")
            }
        };
        assert_eq!(shown, expected);
    }

    #[test]
    fn keys_and_values_have_their_places() {
        check(r#"{"a": 1, "b":{"a" : 2.5}}"#, r#""a"=1@1 "b"{"a"=2.5@2.5}"#);
        check(r#"{"x": [true, null, "é"]}"#, r#""x"=[true, null, "é"]@[true, null, "é"]"#);
        check(r#"{"\u0061": 7}"#, "7=7@7");
    }

    #[test]
    fn what_is_no_object_is_refused() {
        check("[1]", "bad-value|[1]|expected an object, found [1]");
        check("{\"a\": }", "syntax||expected value");
        check(r#"{"a": 1, "a": 2}"#, r#"duplicate-key|"a"|`a` stands twice"#);
    }

    #[test]
    fn deep_nesting_is_refused() {
        let text = format!("{{\"a\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        let faults = parse_json(&text).unwrap_err();
        assert_eq!(faults.len(), 1);
        assert!(faults[0].message.starts_with("more than 32 levels"), "{}", faults[0]);
    }
}
