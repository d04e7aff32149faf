//! The program section: inputs, weights, states, nodes, updates and outputs.

use super::Parser;
use super::cursor::Parsed;
use super::fields::Fields;
use super::types::ValueTail;
use crate::diagnostic::Diagnostic;
use crate::id::ValueId;
use crate::module::{Input, OptimizerState, ViewStep, Weight};
use crate::text::lexer::Token;
use crate::text::{DeclSpans, fault};

/// The steps of a weight's view.
const VIEWS: [&str; 4] = ["reshape", "transpose", "slice", "pad"];

impl<'t> Parser<'t> {
    /// The program; its first word was taken.
    pub fn program(&mut self, first: Token) -> Parsed<()> {
        self.map.program = self.block_header(first)?;
        self.open_graph("the program");
        let header = self.map.program.clone();
        self.block(&header, Self::program_statement);
        let (graph, names, spans) = self.close_graph();
        self.module.program.graph = graph;
        self.program_names = names;
        self.map.program_nodes = spans;
        Ok(())
    }

    fn program_statement(&mut self) -> Parsed<()> {
        let first = self.cursor.peek();
        match self.cursor.peek_word() {
            Some("input") => self.input(first),
            Some(word @ ("weight" | "frozen")) => self.weight(first, word == "weight"),
            Some("state") => self.state(first),
            Some("update") => self.update(first),
            Some("output") => self.output(first),
            _ => {
                let node = self.node()?;
                self.module.program.body.extend(node);
                Ok(())
            }
        }
    }

    fn input(&mut self, first: Token) -> Parsed<()> {
        let name = self.declared_name('=')?;
        let source = self.source("the name of an array in quotes", name)?;
        let (value, spans) = self.declared(first, name)?;
        self.module.program.inputs.push(Input { name: source, value });
        self.map.inputs.push(spans);
        Ok(())
    }

    fn weight(&mut self, first: Token, trainable: bool) -> Parsed<()> {
        let name = self.declared_name('=')?;
        let at = self.cursor.peek();
        let source = self.source("the name of an initializer in quotes", name)?;
        let initializer = self.initializer_names.get(&source).copied();
        if initializer.is_none() {
            let known: Vec<&str> = self.module.initializers.iter().map(|i| i.name.as_str()).collect();
            self.cursor.report(fault::unknown((fault::INITIALIZER, "initializer"), &source, known, at.span()));
        }
        let mut view = Vec::new();
        while self.cursor.eats('|') {
            let step = self.view_step();
            view.push(self.or_poison(step, name)?);
        }
        let (value, spans) = self.declared(first, name)?;
        self.module.program.weights.push(Weight { value, initializer: initializer.unwrap_or(0), view, trainable });
        self.map.weights.push(spans);
        Ok(())
    }

    fn view_step(&mut self) -> Parsed<ViewStep> {
        let token = self.cursor.word("a view: `reshape`, `transpose`, `slice` or `pad`")?;
        let word = self.cursor.text_of(token);
        let mut fields = Fields::read(&mut self.cursor)?;
        let cursor = &mut self.cursor;
        let step = match word {
            "reshape" => ViewStep::Reshape(fields.u64s(cursor, "shape")?),
            "transpose" => {
                let perm = fields.u64s(cursor, "perm")?;
                ViewStep::Transpose(perm.into_iter().map(|d| d as usize).collect())
            }
            "slice" => ViewStep::Slice {
                dim: fields.u64(cursor, "dim")? as usize,
                start: fields.u64(cursor, "start")?,
                len: fields.u64(cursor, "len")?,
            },
            "pad" => ViewStep::Pad { dim: fields.u64(cursor, "dim")? as usize, extent: fields.u64(cursor, "extent")? },
            _ => return Err(cursor.report(fault::unknown((fault::KEYWORD, "view"), word, VIEWS, token.span()))),
        };
        fields.finish(cursor)?;
        Ok(step)
    }

    fn state(&mut self, first: Token) -> Parsed<()> {
        let name = self.declared_name('=')?;
        let kind = self.source("the kind of state in quotes", name)?;
        let of = self.cursor.keyword("of").and_then(|()| self.cursor.value());
        let of = self.or_poison(of, name)?;
        let weight = self.names.find(&mut self.cursor, of, self.place);
        let (value, spans) = self.declared(first, name)?;
        if let Some(weight) = weight {
            self.module.program.states.push(OptimizerState { value, weight, kind });
        }
        self.map.states.push(spans);
        Ok(())
    }

    fn update(&mut self, first: Token) -> Parsed<()> {
        self.cursor.advance();
        let old = self.cursor.value()?;
        self.cursor.sign('=')?;
        let new = self.cursor.value()?;
        let found = [old, new].map(|t| self.names.find(&mut self.cursor, t, self.place));
        if let [Some(old), Some(new)] = found {
            self.module.program.updates.push((old, new));
        }
        self.map.updates.push(self.cursor.span_from(first));
        Ok(())
    }

    fn output(&mut self, first: Token) -> Parsed<()> {
        self.cursor.advance();
        let name = self.cursor.string("the name of an output in quotes")?;
        let value = self.cursor.value()?;
        if let Some(value) = self.names.find(&mut self.cursor, value, self.place) {
            self.module.program.outputs.push((name, value));
        }
        self.map.outputs.push(self.cursor.span_from(first));
        Ok(())
    }

    /// The name after a keyword, and the sign behind it.
    pub fn declared_name(&mut self, sign: char) -> Parsed<Token> {
        self.cursor.advance();
        let name = self.cursor.value()?;
        let found = self.cursor.sign(sign);
        self.or_poison(found, name)?;
        Ok(name)
    }

    fn source(&mut self, what: &str, name: Token) -> Parsed<String> {
        let source = self.cursor.string(what);
        self.or_poison(source, name)
    }

    /// `: type …` and the value that it declares.
    fn declared(&mut self, first: Token, name: Token) -> Parsed<(ValueId, DeclSpans)> {
        let colon = self.cursor.sign(':');
        self.or_poison(colon, name)?;
        self.declared_tail(first, name)
    }

    /// Declares a value with the type that comes next.
    pub fn declared_tail(&mut self, first: Token, name: Token) -> Parsed<(ValueId, DeclSpans)> {
        let tail = self.value_tail();
        let tail: ValueTail = self.or_poison(tail, name)?;
        let value = self.graph.declare(self.cursor.text_of(name), tail.ty.clone());
        self.names.define(&mut self.cursor, name, value);
        self.set_tail(value, &tail);
        let spans = DeclSpans { whole: self.cursor.span_from(first), name: name.span(), ty: tail.span };
        Ok((value, spans))
    }

    /// Marks the name as faulty if reading failed.
    fn or_poison<T>(&mut self, read: Parsed<T>, name: Token) -> Parsed<T> {
        if read.is_err() {
            self.names.poison(self.cursor.text_of(name));
        }
        read
    }

    /// Reports a section that comes twice.
    pub fn once(&mut self, section: &'static str, first: Token) -> Parsed<()> {
        if self.sections.contains(&section) {
            let message = format!("`{section}` is given twice");
            return Err(self.cursor.report(Diagnostic::new(fault::SECTION, message).at(first.span())));
        }
        self.sections.push(section);
        Ok(())
    }
}
