//! A node's line: `%h, %m = op{…} %x, %w: type, type layer=0`.

use super::Parser;
use super::cursor::Parsed;
use super::fields::{Fields, Named};
use super::types::{ValueTail, place};
use crate::diagnostic::Diagnostic;
use crate::id::{NodeId, ValueId};
use crate::op::{AttrReader, Op};
use crate::plan::Place;
use crate::text::NodeSpans;
use crate::text::fault;
use crate::text::lexer::{Kind, Token};
use crate::types::TensorType;

/// What a node's line says, before names and types are checked.
struct NodeLine<'t> {
    results: Vec<Token>,
    op: Token,
    fields: Fields<'t>,
    args: Vec<Token>,
    tails: Vec<ValueTail>,
    fwd: Option<Token>,
    layer: Option<u32>,
    workspace: Option<Place>,
}

/// A name that may be defined on a later line.
pub enum Later {
    /// The value is the gradient of the named one.
    Grad(ValueId, Token),
    /// The node belongs to the node that computes the named value.
    Fwd(NodeId, Token),
}

impl<'t> Parser<'t> {
    /// Reads a node into the graph; `None` if it is faulty.
    pub fn node(&mut self) -> Parsed<Option<NodeId>> {
        let (first, position) = (self.cursor.peek(), self.cursor.position());
        let line = match self.node_line() {
            Ok(line) => line,
            Err(reported) => {
                self.poison_results(position);
                return Err(reported);
            }
        };
        let spans = NodeSpans {
            whole: self.cursor.span_from(first),
            op: line.op.span(),
            args: line.args.iter().map(|t| t.span()).collect(),
            results: line.results.iter().map(|t| t.span()).collect(),
            types: line.tails.iter().map(|t| t.span.clone()).collect(),
        };
        let node = self.build(&line);
        if node.is_some() {
            self.node_spans.push(spans);
        }
        Ok(node)
    }

    /// Readers of what a faulty line defines are not reported.
    fn poison_results(&mut self, position: usize) {
        let line = self.cursor.line_from(position);
        let Some(equals) = line.iter().position(|t| t.kind == Kind::Sign('=')) else { return };
        for &token in line[..equals].iter().filter(|t| t.kind == Kind::Value) {
            self.names.poison(self.cursor.text_of(token));
        }
    }

    fn node_line(&mut self) -> Parsed<NodeLine<'t>> {
        let mut results = Vec::new();
        if self.cursor.peek().kind == Kind::Value {
            results = self.values()?;
            self.cursor.sign('=')?;
        }
        let op = self.cursor.word("an op")?;
        let fields = Fields::read(&mut self.cursor)?;
        let args = if self.cursor.peek().kind == Kind::Value { self.values()? } else { Vec::new() };
        let mut line =
            NodeLine { results, op, fields, args, tails: Vec::new(), fwd: None, layer: None, workspace: None };
        if self.cursor.eats(':') {
            line.tails.push(self.value_tail()?);
            while self.cursor.eats(',') {
                line.tails.push(self.value_tail()?);
            }
        }
        self.node_tail(&mut line)?;
        if !self.cursor.is_at_line_end() {
            return Err(self.cursor.expected("the end of the line"));
        }
        Ok(line)
    }

    fn values(&mut self) -> Parsed<Vec<Token>> {
        let mut values = vec![self.cursor.value()?];
        while self.cursor.eats(',') {
            values.push(self.cursor.value()?);
        }
        Ok(values)
    }

    fn node_tail(&mut self, line: &mut NodeLine<'t>) -> Parsed<()> {
        loop {
            match self.cursor.peek_word() {
                Some("fwd") => line.fwd = Some(self.keyed_value()?),
                Some("layer") => {
                    self.cursor.advance();
                    self.cursor.sign('=')?;
                    line.layer = Some(self.cursor.unsigned32("the number of a layer")?);
                }
                Some("workspace") => {
                    self.cursor.advance();
                    self.cursor.sign('=')?;
                    line.workspace = Some(place(&mut self.cursor)?);
                }
                _ => return Ok(()),
            }
        }
    }

    fn build(&mut self, line: &NodeLine<'t>) -> Option<NodeId> {
        let op = self.op(line);
        let place = self.place;
        let found: Vec<_> = line.args.iter().map(|&t| self.names.find(&mut self.cursor, t, place)).collect();
        let args: Option<Vec<ValueId>> = found.into_iter().collect();
        let (Some(op), Some(args)) = (op, args) else { return self.declare_results(line) };
        if !self.types_fit(line, &op, &args) {
            return self.declare_results(line);
        }
        let types = line.tails.iter().map(|t| t.ty.clone()).collect();
        let names: Vec<String> = line.results.iter().map(|&t| self.cursor.text_of(t).to_string()).collect();
        let id = self.graph.add_typed(op, &args, types, &names);
        let node = self.graph.node_mut(id);
        (node.layer, node.workspace) = (line.layer, line.workspace);
        let results = node.results.clone();
        self.later.extend(line.fwd.map(|token| Later::Fwd(id, token)));
        for ((&token, tail), value) in line.results.iter().zip(&line.tails).zip(results) {
            self.names.define(&mut self.cursor, token, value);
            self.set_tail(value, tail);
        }
        Some(id)
    }

    /// The results of a faulty line still have their declared types, unless those are what is faulty.
    fn declare_results(&mut self, line: &NodeLine<'t>) -> Option<NodeId> {
        for (i, &token) in line.results.iter().enumerate() {
            let name = self.cursor.text_of(token);
            match line.tails.get(i) {
                Some(tail) if !self.names.is_poisoned(name) => {
                    let id = self.graph.declare(name, tail.ty.clone());
                    self.faulty.insert(id);
                    self.names.define(&mut self.cursor, token, id);
                }
                _ => self.names.poison(name),
            }
        }
        None
    }

    fn op(&mut self, line: &NodeLine<'t>) -> Option<Op> {
        let mnemonic = self.cursor.text_of(line.op);
        let named = Named { mesh: &self.axes, literals: &self.literals };
        let attrs = line.fields.attrs(&mut self.cursor, &named).ok()?;
        let mut reader = AttrReader::new(attrs);
        let Some(read) = Op::parse(mnemonic, &mut reader) else {
            let known = Op::all_mnemonics();
            self.cursor.report(fault::unknown((fault::OP, "op"), mnemonic, known, line.op.span()));
            return None;
        };
        match read.and_then(|op| reader.finish().map(|()| op)) {
            Ok(op) => Some(op),
            Err(message) => {
                let span = line.fields.span_named_in(&message);
                let message = format!("`{mnemonic}`: {message}");
                let span = if span.is_empty() { line.op.span() } else { span };
                self.cursor.report(Diagnostic::new(fault::ATTRIBUTE, message).at(span));
                None
            }
        }
    }

    /// Whether the op takes the operands and gives results of the declared types; otherwise it is reported.
    fn types_fit(&mut self, line: &NodeLine<'t>, op: &Op, args: &[ValueId]) -> bool {
        let given = match op.infer(&self.graph.types(args)) {
            Ok(given) => given,
            Err(message) => {
                let fault = Diagnostic::new(fault::TYPE, format!("`{}`: {message}", op.mnemonic())).at(line.op.span());
                self.cursor.report(fault.label(describe(&self.graph.types(args))));
                return false;
            }
        };
        self.counts_fit(line, op, &given) && self.declared_fit(line, &given)
    }

    fn counts_fit(&mut self, line: &NodeLine<'t>, op: &Op, given: &[TensorType]) -> bool {
        let (named, typed) = (line.results.len(), line.tails.len());
        if given.len() == named && named == typed {
            return true;
        }
        let message =
            format!("`{}` gives {} results; the line has {named} names and {typed} types", op.mnemonic(), given.len());
        let types: Vec<&TensorType> = given.iter().collect();
        let fault = Diagnostic::new(fault::TYPE, message).at(line.op.span());
        self.cursor.report(if types.is_empty() { fault } else { fault.help(format!("results: {}", describe(&types))) });
        false
    }

    fn declared_fit(&mut self, line: &NodeLine<'t>, given: &[TensorType]) -> bool {
        let mut fits = true;
        for ((&token, tail), ty) in line.results.iter().zip(&line.tails).zip(given) {
            if tail.ty != *ty {
                let name = self.cursor.text_of(token);
                self.names.poison(name);
                let message = format!("`%{name}`: declared `{}`, the op gives `{ty}`", tail.ty);
                let fault = Diagnostic::new(fault::TYPE, message).at(tail.span.clone());
                self.cursor.report(fault.help(format!("write `{ty}`, or change the operands")));
                fits = false;
            }
        }
        fits
    }

    /// Fills in what is said behind a value.
    pub fn set_tail(&mut self, id: ValueId, tail: &ValueTail) {
        let value = self.graph.value_mut(id);
        value.sharding.clone_from(&tail.sharding);
        (value.of, value.place) = (tail.of, tail.place);
        self.later.extend(tail.grad.map(|token| Later::Grad(id, token)));
    }

    /// Looks up the names that may be defined later than they are used, at the end of the graph.
    pub fn resolve_later(&mut self) {
        for later in std::mem::take(&mut self.later) {
            let (Later::Grad(_, token) | Later::Fwd(_, token)) = later;
            let Some(target) = self.names.find(&mut self.cursor, token, self.place) else { continue };
            match later {
                Later::Grad(value, _) => self.graph.value_mut(value).grad_of = Some(target),
                Later::Fwd(node, _) => match self.graph.producer(target) {
                    Some(forward) => self.graph.node_mut(node).fwd = Some(forward),
                    None if self.faulty.contains(&target) => {}
                    None => {
                        let message = format!("no node computes `%{}`", self.cursor.text_of(token));
                        let fault = Diagnostic::new(fault::VALUE, message).at(token.span());
                        self.cursor.report(fault.help("`fwd` names the first result of the forward node"));
                    }
                },
            }
        }
    }
}

fn describe(types: &[&TensorType]) -> String {
    let all: Vec<String> = types.iter().map(|t| format!("`{t}`")).collect();
    all.join(", ")
}
