//! What is wrong with a user's input: code, message, place and mend.
//!
//! Diagnostics are collected, not thrown one at a time; the driver renders them with file, line and caret.

use std::fmt;
use std::ops::Range;

/// A fault in something that the user wrote (a model, a plan, a configuration file).
///
/// Messages start in lower case, carry no final dot and put names in backticks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Stable short code, for example `G0203` or `divisibility`.
    pub code: &'static str,
    /// What was found and what was expected.
    pub message: String,
    /// Byte range in the source text, where there is one.
    pub span: Option<Range<usize>>,
    /// What to say under the caret.
    pub label: Option<String>,
    /// What the user can do about it.
    pub help: Option<String>,
}

impl Diagnostic {
    /// A diagnostic without a place.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Diagnostic { code, message: message.into(), span: None, label: None, help: None }
    }

    /// Says where in the source text the fault is.
    pub fn at(mut self, span: Range<usize>) -> Self {
        self.span = Some(span);
        self
    }

    /// Says what to write under the caret.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Says how to mend the fault.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.code, self.message)?;
        if let Some(help) = &self.help {
            write!(f, "\n  = help: {help}")?;
        }
        Ok(())
    }
}

/// Several diagnostics, or a value.
pub type Checked<T> = Result<T, Vec<Diagnostic>>;
