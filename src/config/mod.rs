//! Configuration files (`hw.toml`, `train.toml`, `strategy.toml`, `profile.json`): read with every fault collected and placed.
//!
//! A reader takes the keys it knows from [`Fields`]; what is left over is unknown. Codes of the diagnostics: `syntax`,
//! `unknown-key`, `missing-key`, `duplicate-key`, `bad-value` and `unsupported`.

pub mod cluster;
mod groups;
mod json;
mod levels;
pub mod profile;
mod set;
pub mod strategy;
pub mod train;

use std::cell::RefCell;
use std::ops::RangeInclusive;

use galvatron_ir::diagnostic::{Checked, Diagnostic};
use set::{Item, Place, Table, Value};

/// Collects what is wrong with one file.
#[derive(Default)]
struct Faults(RefCell<Vec<Diagnostic>>);

impl Faults {
    fn push(&self, fault: Diagnostic) {
        self.0.borrow_mut().push(fault);
    }

    /// The value if nothing was wrong, else all faults in the order of the file.
    fn check<T>(self, value: Option<T>) -> Checked<T> {
        let mut faults = self.0.into_inner();
        faults.sort_by_key(|fault| fault.span.as_ref().map_or((true, 0), |span| (false, span.start)));
        match value {
            Some(value) if faults.is_empty() => Ok(value),
            _ => {
                assert!(!faults.is_empty(), "invariant: a value that cannot be read leaves a fault");
                Err(faults)
            }
        }
    }
}

/// What a value should have been.
enum Wrong {
    /// The values that the key takes.
    Expected(String),
    /// The value has a meaning that is not built.
    Unsupported,
}

/// Reads the keys of one table and remembers which of them it knows.
struct Fields<'a> {
    table: &'a Table,
    path: String,
    place: Option<&'a Place>,
    known: Vec<&'static str>,
    faults: &'a Faults,
}

impl<'a> Fields<'a> {
    fn root(table: &'a Table, faults: &'a Faults) -> Self {
        Fields { table, path: String::new(), place: None, known: Vec::new(), faults }
    }

    /// The value of a key; `None` if it is missing or wrong (then there is a fault).
    fn read<T>(&mut self, key: &'static str, read: impl Fn(&Item) -> Result<T, Wrong>) -> Option<T> {
        self.known.push(key);
        let (_, item) = self.table.get(key)?;
        read(item).map_err(|wrong| self.faults.push(self.wrong_value(key, item, wrong))).ok()
    }

    /// The value of a key that must be there.
    fn require<T>(&mut self, key: &'static str, read: impl Fn(&Item) -> Result<T, Wrong>) -> Option<T> {
        self.need(key);
        self.read(key, read)
    }

    /// The keys of a sub-table; the reader calls [`Fields::finish`] on them.
    fn section(&mut self, key: &'static str) -> Option<Fields<'a>> {
        self.known.push(key);
        let (place, item) = self.table.get(key)?;
        let Value::Table(table) = &item.value else {
            self.faults.push(self.wrong_value(key, item, expected("a table")));
            return None;
        };
        Some(Fields { table, path: self.name(key), place: Some(place), known: Vec::new(), faults: self.faults })
    }

    /// The keys of a sub-table that must be there.
    fn require_section(&mut self, key: &'static str) -> Option<Fields<'a>> {
        self.need(key);
        self.section(key)
    }

    /// The keys of each table in an array of tables.
    fn sections(&mut self, key: &'static str) -> Vec<Fields<'a>> {
        self.known.push(key);
        let Some((_, item)) = self.table.get(key) else {
            return Vec::new();
        };
        let Value::Array(items) = &item.value else {
            self.faults.push(self.wrong_value(key, item, expected("an array of tables")));
            return Vec::new();
        };
        items.iter().enumerate().filter_map(|(index, item)| self.section_of(key, index, item)).collect()
    }

    fn section_of(&self, key: &str, index: usize, item: &'a Item) -> Option<Fields<'a>> {
        let path = format!("{}[{index}]", self.name(key));
        let Value::Table(table) = &item.value else {
            let message = format!("`{path}`: expected a table, found {}", item.value);
            self.faults.push(item.place.diagnostic("bad-value", message));
            return None;
        };
        Some(Fields { table, path, place: Some(&item.place), known: Vec::new(), faults: self.faults })
    }

    /// A key that has a meaning which is not built.
    fn reserve(&mut self, key: &'static str) {
        self.known.push(key);
        if let Some((place, _)) = self.table.get(key) {
            let message = format!("`{}` is not supported yet", self.name(key));
            self.faults.push(place.diagnostic("unsupported", message));
        }
    }

    /// A diagnostic at the value of a key, or at the table if the key is missing.
    fn fault(&self, key: &str, code: &'static str, message: impl Into<String>) -> Diagnostic {
        let place = self.table.get(key).map(|(_, item)| &item.place).or(self.place);
        let message = message.into();
        place.map_or_else(|| Diagnostic::new(code, message.clone()), |place| place.diagnostic(code, message.clone()))
    }

    fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Full name of a key of this table.
    fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_string() } else { format!("{}.{key}", self.path) }
    }

    fn need(&self, key: &str) {
        if !self.has(key) {
            self.faults.push(self.fault(key, "missing-key", format!("`{}` is missing", self.name(key))));
        }
    }

    fn wrong_value(&self, key: &str, item: &Item, wrong: Wrong) -> Diagnostic {
        let (name, found) = (self.name(key), &item.value);
        match wrong {
            Wrong::Expected(what) => {
                item.place.diagnostic("bad-value", format!("`{name}`: expected {what}, found {found}"))
            }
            Wrong::Unsupported => {
                item.place.diagnostic("unsupported", format!("`{name} = {found}` is not supported yet"))
            }
        }
    }

    /// Reports every key that nobody asked for.
    fn finish(self) {
        for (key, (place, _)) in self.table {
            if self.known.contains(&key.as_str()) {
                continue;
            }
            let fault = place.diagnostic("unknown-key", format!("unknown key `{}`", self.name(key)));
            let help = match nearest(key, &self.known) {
                Some(near) => format!("did you mean `{}`?", self.name(near)),
                None => format!("known keys here: {}", tick_list(&self.known)),
            };
            self.faults.push(fault.help(help));
        }
    }
}

fn expected(what: impl Into<String>) -> Wrong {
    Wrong::Expected(what.into())
}

fn number(item: &Item, what: &str, holds: impl Fn(f64) -> bool) -> Result<f64, Wrong> {
    let value = match item.value {
        Value::Float(value) => value,
        Value::Integer(value) => value as f64,
        _ => return Err(expected(what)),
    };
    if value.is_finite() && holds(value) { Ok(value) } else { Err(expected(what)) }
}

fn positive(item: &Item) -> Result<f64, Wrong> {
    number(item, "a positive number", |value| value > 0.0)
}

fn non_negative(item: &Item) -> Result<f64, Wrong> {
    number(item, "a number that is not negative", |value| value >= 0.0)
}

/// A decay rate, 0 ≤ value < 1.
fn rate(item: &Item) -> Result<f64, Wrong> {
    number(item, "a number in [0, 1)", |value| (0.0..1.0).contains(&value))
}

fn integer_in(range: RangeInclusive<u64>) -> impl Fn(&Item) -> Result<u64, Wrong> {
    move |item| match item.value {
        Value::Integer(value) if u64::try_from(value).is_ok_and(|value| range.contains(&value)) => Ok(value as u64),
        _ => Err(expected(format!("an integer from {} to {}", range.start(), range.end()))),
    }
}

/// A count that becomes a tensor dimension or a number of parts.
fn count(item: &Item) -> Result<u64, Wrong> {
    integer_in(1..=1 << 31)(item)
}

fn signed(item: &Item) -> Result<i64, Wrong> {
    match item.value {
        Value::Integer(value) => i64::try_from(value).map_err(|_| expected("a 64-bit integer")),
        _ => Err(expected("an integer")),
    }
}

fn flag(item: &Item) -> Result<bool, Wrong> {
    match item.value {
        Value::Boolean(value) => Ok(value),
        _ => Err(expected("true or false")),
    }
}

fn text(item: &Item) -> Result<String, Wrong> {
    match &item.value {
        Value::Text(value) => Ok(value.clone()),
        _ => Err(expected("a string")),
    }
}

fn list<T>(read: impl Fn(&Item) -> Result<T, Wrong>) -> impl Fn(&Item) -> Result<Vec<T>, Wrong> {
    move |item| {
        let Value::Array(items) = &item.value else {
            return Err(expected("an array"));
        };
        let each = |wrong| match wrong {
            Wrong::Expected(what) => expected(format!("an array, each element {what}")),
            Wrong::Unsupported => Wrong::Unsupported,
        };
        items.iter().map(|item| read(item).map_err(each)).collect()
    }
}

/// A pair `[a, b]`.
fn pair<T: Copy>(read: impl Fn(&Item) -> Result<T, Wrong>) -> impl Fn(&Item) -> Result<[T; 2], Wrong> {
    let read = list(read);
    move |item| match read(item)?.as_slice() {
        [first, second] => Ok([*first, *second]),
        _ => Err(expected("an array of two")),
    }
}

/// One of a few names; a name without a value is known but not built.
fn one_of<T: Copy>(names: &[(&'static str, Option<T>)]) -> impl Fn(&Item) -> Result<T, Wrong> {
    move |item| {
        let found = match &item.value {
            Value::Text(name) => names.iter().find(|(known, _)| known == name),
            _ => None,
        };
        match found {
            Some((_, value)) => value.ok_or(Wrong::Unsupported),
            None => {
                let all: Vec<&str> = names.iter().filter(|(_, value)| value.is_some()).map(|(name, _)| *name).collect();
                Err(expected(format!("one of {}", tick_list(&all))))
            }
        }
    }
}

/// A value together with its byte range in the file.
fn spanned<T>(read: impl Fn(&Item) -> Result<T, Wrong>) -> impl Fn(&Item) -> Result<serde_spanned::Spanned<T>, Wrong> {
    move |item| Ok(serde_spanned::Spanned::new(item.place.span(), read(item)?))
}

fn tick_list(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// The known word closest to a misspelt one, if it is close; the first of equals.
fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let near = known.iter().map(|name| (edit_distance(word, name), *name));
    let best = near.filter(|(distance, name)| *distance <= word.len().max(name.len()) / 3);
    best.min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
}

/// Levenshtein distance where a swap of two neighbours counts one (optimal string alignment).
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut table = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            table[i][j] = match (i, j) {
                (0, n) | (n, 0) => n,
                _ => {
                    let change = table[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                    let swap = if swapped { table[i - 2][j - 2] + 1 } else { usize::MAX };
                    change.min(table[i - 1][j] + 1).min(table[i][j - 1] + 1).min(swap)
                }
            };
        }
    }
    table[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_key_survives_a_slip_and_not_a_different_word() {
        let known = ["global", "sequence", "memory_gib", "lr"];
        for (word, expected) in
            [("globl", Some("global")), ("mem_gib", Some("memory_gib")), ("seqeunce", Some("sequence"))]
        {
            assert_eq!(nearest(word, &known), expected);
        }
        assert_eq!(nearest("momentum", &known), None);
    }

    #[test]
    fn edit_distance_counts_swaps_once() {
        for (a, b, distance) in [("", "abc", 3), ("abc", "acb", 1), ("kitten", "sitting", 3), ("a", "a", 0)] {
            assert_eq!(edit_distance(a, b), distance);
        }
    }
}
