//! Reading modules: one statement a line, all faults collected.

mod chunk;
mod cursor;
mod fields;
mod node;
mod program;
mod scope;
mod sections;
mod stage;
mod types;

use super::lexer::{Kind, Token};
use super::{NodeSpans, SourceMap, VERSION, fault};
use crate::diagnostic::{Checked, Diagnostic};
use crate::graph::Graph;
use crate::id::ValueId;
use crate::mesh::Mesh;
use crate::module::{Level, Module};
use crate::plan::PhaseKind;
use crate::types::Scalar;
use cursor::{Cursor, Parsed, Reported};
use node::Later;
use scope::Names;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// The sections of a module.
const SECTIONS: [&str; 11] = [
    "mesh",
    "cluster",
    "train",
    "initializer",
    "literal",
    "program",
    "stage",
    "chunk",
    "schedule",
    "arena",
    "predicted",
];

/// Reads a module.
///
/// # Errors
/// Everything that is wrong with the text, in its order, with byte ranges; codes `G01xx`.
pub fn parse(text: &str) -> Checked<Module> {
    parse_with_spans(text).map(|(module, _)| module)
}

/// Reads a module, and where each part of it stands in the text.
///
/// Ids of nodes and values follow the text. What only the verifier can know is not checked.
///
/// # Errors
/// As [`parse`].
pub fn parse_with_spans(text: &str) -> Checked<(Module, SourceMap)> {
    let mut parser = Parser::new(text);
    if parser.file().is_ok() && !parser.sections.contains(&"program") {
        let fault = Diagnostic::new(fault::SECTION, "the module has no program").at(parser.map.module.clone());
        parser.cursor.report(fault.help("add a section `program { … }`"));
    }
    let Parser { cursor, module, map, .. } = parser;
    let faults = cursor.into_faults();
    if faults.is_empty() { Ok((module, map)) } else { Err(faults) }
}

/// Everything that is known while reading; the parts of the grammar are in the files of this folder.
struct Parser<'t> {
    cursor: Cursor<'t>,
    module: Module,
    map: SourceMap,
    /// Sections that may come once and did.
    sections: Vec<&'static str>,
    initializer_names: BTreeMap<String, usize>,
    literals: Vec<Arc<[Scalar]>>,
    program_names: Names<'t>,
    /// The graph that is being read, its names, and how faults call it.
    graph: Graph,
    names: Names<'t>,
    place: &'static str,
    node_spans: Vec<NodeSpans>,
    later: Vec<Later>,
    /// The results of faulty nodes, which no node computes.
    faulty: BTreeSet<ValueId>,
    /// The last phase of the chunk that is being read.
    last_phase: Option<PhaseKind>,
    /// The mesh to which the axes of the graph that is being read belong.
    axes: Mesh,
    /// Whether stages were declared; otherwise the only one is the whole mesh.
    has_stages: bool,
}

impl<'t> Parser<'t> {
    fn new(text: &'t str) -> Self {
        Parser {
            cursor: Cursor::new(text),
            module: Module::new(""),
            map: SourceMap::default(),
            sections: Vec::new(),
            initializer_names: BTreeMap::new(),
            literals: Vec::new(),
            program_names: Names::default(),
            graph: Graph::new(),
            names: Names::default(),
            place: "",
            node_spans: Vec::new(),
            later: Vec::new(),
            faulty: BTreeSet::new(),
            last_phase: None,
            axes: Mesh::new(1, Vec::new()),
            has_stages: false,
        }
    }

    fn file(&mut self) -> Parsed<()> {
        self.cursor.skip_line_ends();
        self.version()?;
        let header = self.module_header()?;
        self.block(&header, Self::section);
        self.cursor.skip_line_ends();
        match self.cursor.peek().kind {
            Kind::End => Ok(()),
            _ => Err(self.cursor.expected("the end of the text")),
        }
    }

    fn version(&mut self) -> Parsed<()> {
        if !self.cursor.eats_word("gir") {
            let fault = Diagnostic::new(fault::VERSION, "the text does not start with `gir`");
            let fault = fault.at(self.cursor.peek().span());
            return Err(self.cursor.report(fault.help(format!("the first line is `gir {VERSION}`"))));
        }
        let token = self.cursor.peek();
        let version = self.cursor.unsigned("the version of the format")?;
        if version != VERSION {
            let message = format!("version {version} of the format is unknown");
            let fault = Diagnostic::new(fault::VERSION, message).at(token.span());
            return Err(self.cursor.report(fault.help(format!("this program reads version {VERSION}"))));
        }
        self.cursor.line_end()
    }

    /// `module @name level=plan {`
    fn module_header(&mut self) -> Parsed<Range<usize>> {
        let first = self.cursor.peek();
        self.cursor.keyword("module")?;
        self.cursor.sign('@')?;
        self.module.name = match self.cursor.peek().kind {
            Kind::Str => self.cursor.string("a name")?,
            _ => {
                let token = self.cursor.word("the name of the module")?;
                self.cursor.text_of(token).to_string()
            }
        };
        self.cursor.keyword("level")?;
        self.cursor.sign('=')?;
        let token = self.cursor.word("a level")?;
        let word = self.cursor.text_of(token);
        match Level::ALL.iter().find(|l| l.1 == word) {
            Some(&(level, _)) => self.module.level = level,
            None => {
                let known = Level::ALL.iter().map(|l| l.1);
                self.cursor.report(fault::unknown((fault::KEYWORD, "level"), word, known, token.span()));
            }
        }
        self.map.module = self.block_header(first)?;
        Ok(self.map.module.clone())
    }

    fn section(&mut self) -> Parsed<()> {
        let first = self.cursor.word("a section of the module")?;
        let word = self.cursor.text_of(first);
        let Some(&section) = SECTIONS.iter().find(|s| **s == word) else {
            return Err(self.cursor.report(fault::unknown((fault::KEYWORD, "section"), word, SECTIONS, first.span())));
        };
        let of_stages = self.has_stages && matches!(section, "schedule" | "arena");
        if !matches!(section, "initializer" | "literal" | "stage" | "chunk") && !of_stages {
            self.once(section, first)?;
        }
        match section {
            "mesh" => self.mesh(first),
            "cluster" => self.cluster(first),
            "train" => self.train(first),
            "initializer" => self.initializer(first),
            "literal" => self.literal(),
            "program" => self.program(first),
            "stage" => self.stage(first),
            "chunk" => self.chunk(first),
            "schedule" => self.schedule(first),
            "arena" => self.arena(first),
            _ => self.predicted(first),
        }
    }

    /// The `{` that ends the header of a block, and the range of the header.
    fn block_header(&mut self, first: Token) -> Parsed<Range<usize>> {
        let header = self.cursor.span_from(first);
        self.cursor.sign('{')?;
        Ok(header)
    }

    /// The statements of a block up to and with its `}`; after a fault it goes on with the next statement.
    fn block(&mut self, header: &Range<usize>, mut statement: impl FnMut(&mut Self) -> Parsed<()>) {
        if self.cursor.peek().kind != Kind::NewLine && !self.cursor.sees('}') {
            let Reported = self.cursor.expected("the end of the line");
            self.cursor.skip_statement();
        }
        while !self.cursor.at_block_end(header) {
            let read = statement(self);
            if read.is_err() || self.cursor.line_end().is_err() {
                self.cursor.skip_statement();
            }
        }
    }

    /// Starts a graph.
    fn open_graph(&mut self, place: &'static str) {
        self.graph = Graph::new();
        self.names = Names::default();
        self.place = place;
        self.faulty = BTreeSet::new();
        self.last_phase = None;
    }

    /// Ends the graph; its names and the ranges of its nodes.
    fn close_graph(&mut self) -> (Graph, Names<'t>, Vec<NodeSpans>) {
        self.resolve_later();
        (std::mem::take(&mut self.graph), std::mem::take(&mut self.names), std::mem::take(&mut self.node_spans))
    }
}
