//! A plan as lines of text that a test damages, and what the verifier says about the result.

use galvatron_ir::Diagnostic;
use galvatron_ir::text::parse_with_spans;
use galvatron_ir::verify::check;

/// The lines of a plan.
#[derive(Clone, Debug)]
pub struct Lines(pub Vec<String>);

/// A statement of a chunk taken apart.
#[derive(Clone, Debug)]
pub struct Statement {
    /// Names of its results, with the sigil.
    pub results: Vec<String>,
    /// The op with its attributes.
    pub op: String,
    /// Names of its operands, with the sigil.
    pub operands: Vec<String>,
    /// Types, placements and what follows, from the colon on; empty where there are no results.
    pub tail: String,
}

impl Lines {
    /// The lines of a text.
    pub fn new(text: &str) -> Lines {
        Lines(text.lines().map(str::to_string).collect())
    }

    /// The text.
    pub fn text(&self) -> String {
        self.0.join("\n") + "\n"
    }

    /// Index of the first line of the chunk, from the opening line of a phase on if one is named, that holds every needle.
    #[track_caller]
    pub fn find(&self, phase: &str, needles: &[&str]) -> usize {
        let at = |from: usize, needles: &[&str]| {
            (from..self.0.len()).find(|&i| needles.iter().all(|n| self.0[i].contains(n)))
        };
        let chunk = at(0, &["  chunk 0 {"]).expect("the plan has a chunk");
        let start = if phase.is_empty() { Some(chunk) } else { at(chunk, &[&format!("    {phase} {{")]) };
        let found = start.and_then(|start| at(start + 1, needles));
        found.unwrap_or_else(|| panic!("no line of `{phase}` has {needles:?}"))
    }

    /// The indices of the statements of the chunk's phases.
    pub fn nodes(&self) -> Vec<usize> {
        let chunk = self.find("", &["resident "]);
        let end = self.0.iter().position(|l| l.starts_with("  schedule")).expect("the plan has a schedule");
        (chunk..end).filter(|&i| self.0[i].starts_with("      ")).collect()
    }

    /// The statement of a line.
    #[track_caller]
    pub fn statement(&self, line: usize) -> Statement {
        let text = self.0[line].trim();
        let (head, tail) = text.split_at(text.find(": ").unwrap_or(text.len()));
        let names = |list: &str| list.split(", ").filter(|n| !n.is_empty()).map(str::to_string).collect();
        let (results, rest) = head.split_once(" = ").unwrap_or(("", head));
        let operands = rest.find(" %").map_or(rest.len(), |at| at + 1);
        let (op, operands) = rest.split_at(operands);
        Statement {
            results: names(results),
            op: op.trim().into(),
            operands: names(operands.trim()),
            tail: tail.to_string(),
        }
    }

    /// Puts a statement into a line.
    pub fn set(&mut self, line: usize, statement: &Statement) {
        self.0[line] = statement.spell();
    }

    /// Changes the statement of a line.
    #[track_caller]
    pub fn change(&mut self, line: usize, change: impl FnOnce(&mut Statement)) {
        let mut statement = self.statement(line);
        change(&mut statement);
        self.set(line, &statement);
    }

    /// Replaces a part of a line that must be there.
    #[track_caller]
    pub fn replace(&mut self, line: usize, from: &str, to: &str) {
        assert!(self.0[line].contains(from), "`{}` has no `{from}`", self.0[line]);
        self.0[line] = self.0[line].replacen(from, to, 1);
    }

    /// Removes a line.
    pub fn remove(&mut self, line: usize) -> String {
        self.0.remove(line)
    }

    /// Makes every statement behind a line that reads one value read another; returns the line of the first.
    #[track_caller]
    pub fn redirect(&mut self, line: usize, from: &str, to: &str) -> usize {
        let readers: Vec<usize> = self.nodes().into_iter().filter(|&i| i > line).collect();
        let readers: Vec<usize> =
            readers.into_iter().filter(|&i| self.statement(i).operands.iter().any(|o| o == from)).collect();
        for &reader in &readers {
            self.change(reader, |s| s.operands.iter_mut().filter(|o| *o == from).for_each(|o| *o = to.into()));
        }
        *readers.first().unwrap_or_else(|| panic!("nothing reads {from}"))
    }

    /// What reading and verifying says.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        match parse_with_spans(&self.text()) {
            Ok((module, spans)) => check(&module, Some(&spans)),
            Err(faults) => faults,
        }
    }

    /// The line that a diagnostic points at.
    pub fn line_of(&self, diagnostic: &Diagnostic) -> Option<usize> {
        let span = diagnostic.span.as_ref()?;
        Some(self.text()[..span.start].matches('\n').count())
    }
}

impl Statement {
    /// The statement as a line of a phase.
    pub fn spell(&self) -> String {
        let results = if self.results.is_empty() { String::new() } else { self.results.join(", ") + " = " };
        let operands = if self.operands.is_empty() { String::new() } else { format!(" {}", self.operands.join(", ")) };
        format!("      {results}{}{operands}{}", self.op, self.tail)
    }
}
