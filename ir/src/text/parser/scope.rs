//! The names of one graph while it is read.

use super::cursor::Cursor;
use crate::diagnostic::Diagnostic;
use crate::id::ValueId;
use crate::text::fault;
use crate::text::lexer::Token;
use std::collections::HashMap;

/// Names and their values; `None` where the defining line was faulty, so that its readers are not reported too.
#[derive(Default)]
pub struct Names<'t> {
    values: HashMap<&'t str, Option<ValueId>>,
}

impl<'t> Names<'t> {
    /// Whether no name is defined.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Defines a name; one that is taken is reported.
    pub fn define(&mut self, cursor: &mut Cursor<'t>, token: Token, id: ValueId) {
        let name = cursor.text_of(token);
        if let Some(Some(_)) = self.values.insert(name, Some(id)) {
            let message = format!("`%{name}` is defined twice");
            let fault = Diagnostic::new(fault::REDEFINED, message).at(token.span());
            cursor.report(fault.help("names are unique in the program and in each chunk; rename one of the two"));
        }
    }

    /// Marks a name as defined by a faulty line.
    pub fn poison(&mut self, name: &'t str) {
        self.values.entry(name).or_insert(None);
    }

    /// Whether the name was marked so.
    pub fn is_poisoned(&self, name: &str) -> bool {
        self.values.get(name) == Some(&None)
    }

    /// The value of that name; an unknown one is reported.
    pub fn find(&self, cursor: &mut Cursor<'t>, token: Token, place: &str) -> Option<ValueId> {
        let name = cursor.text_of(token);
        if let Some(found) = self.values.get(name) {
            return *found;
        }
        let mut known: Vec<&str> = self.values.keys().copied().collect();
        known.sort_unstable();
        let fault = Diagnostic::new(fault::VALUE, format!("unknown value `%{name}` in {place}")).at(token.span());
        let help = match fault::nearest(name, &known) {
            Some(near) => format!("did you mean `%{near}`?"),
            None => "a value is defined on a line before its readers".into(),
        };
        cursor.report(fault.help(help));
        None
    }
}
