//! The sites of findings in the text that a module was read from.

use super::{Finding, Locate, Part, Site, diagnostics, verify, without_text};
use crate::diagnostic::Diagnostic;
use crate::module::Module;
use crate::text::{DeclSpans, NodeSpans, SourceMap};
use std::ops::Range;

/// Verifies a module; the diagnostics point into its text where there is one.
pub fn check(module: &Module, text: Option<&SourceMap>) -> Vec<Diagnostic> {
    let findings: Vec<Finding> = verify(module);
    match text {
        Some(map) => diagnostics(&findings, map),
        None => findings.iter().map(without_text).collect(),
    }
}

impl Locate for SourceMap {
    fn range(&self, site: &Site) -> Option<Range<usize>> {
        let declared = |spans: &[DeclSpans], i: usize| spans.get(i).map(|s| s.whole.clone());
        match *site {
            Site::Module => Some(self.module.clone()),
            Site::Input(i) => declared(&self.inputs, i),
            Site::Weight(i) => declared(&self.weights, i),
            Site::State(i) => declared(&self.states, i),
            Site::ProgramNode(node, part) => self.program_nodes.get(node.index()).and_then(|s| of_node(s, part)),
            Site::Update(i) => self.updates.get(i).cloned(),
            Site::Output(i) => self.outputs.get(i).cloned(),
            Site::Resident(chunk, i) => self.chunks.get(chunk as usize).and_then(|c| declared(&c.residents, i)),
            Site::ChunkNode(chunk, node, part) => {
                self.chunk_nodes.get(chunk as usize).and_then(|c| c.get(node.index())).and_then(|s| of_node(s, part))
            }
            Site::Stage(stage) => self.stages.get(stage).map(|s| s.header.clone()),
            Site::Schedule(stage, i) => {
                self.stages.get(stage).map(|s| s.schedule_steps.get(i).unwrap_or(&s.schedule).clone())
            }
            Site::Arena(stage) => self.stages.get(stage).map(|s| s.arena.clone()),
        }
    }
}

fn of_node(spans: &NodeSpans, part: Part) -> Option<Range<usize>> {
    match part {
        Part::Whole => Some(spans.whole.clone()),
        Part::Op => Some(spans.op.clone()),
        Part::Arg(i) => spans.args.get(i).cloned(),
        Part::Result(i) => spans.types.get(i).cloned(),
    }
}
