//! `G0208` phases: what may be read when.

use super::context::ChunkCx;
use super::{Finding, Part};
use crate::graph::Node;
use crate::id::{NodeId, ValueId};
use crate::mesh::Mesh;
use crate::op::{Alias, Op};
use crate::plan::{PhaseKind, ResidentRole, with_last_micro_batch};

/// Checks the reads of every node against its phase.
pub(super) fn check(cx: &ChunkCx<'_>) -> Vec<Finding> {
    let mut memory = Memory::new(cx);
    let late = with_last_micro_batch(cx.chunk);
    let mut findings = Vec::new();
    for (phase, id) in cx.nodes() {
        let node = cx.chunk.graph.node(id);
        findings.extend(misplaced(cx, phase, id, node));
        findings.extend(late.contains(&id).then(|| late_fault(cx, id, node)).flatten());
        for i in 0..node.args.len() {
            if is_read(node, i) {
                findings.extend(temporal(cx, phase, id, i));
                findings.extend(memory.read(phase, id, i));
            }
        }
        memory.run(node);
    }
    findings
}

/// Whether operand `i` is read rather than written.
fn is_read(node: &Node, i: usize) -> bool {
    i > 0 || !matches!(node.op, Op::Accumulate(_) | Op::Update(_))
}

/// Sums grow in micro-batches; weights and states change in the optimizer step.
fn misplaced(cx: &ChunkCx<'_>, phase: PhaseKind, id: NodeId, node: &Node) -> Option<Finding> {
    let expected = match node.op {
        Op::Accumulate(_) if !phase.is_per_micro_batch() => "forward`, `backward` or `backward_weight",
        Op::Update(_) if phase != PhaseKind::Step => "step",
        _ => return None,
    };
    let message = format!("`{}` belongs to phase `{expected}`, not `{}`", node.op.mnemonic(), phase.name());
    Some(cx.finding("G0208", id, Part::Whole, message))
}

/// What runs with the last micro-batch only is of the whole step, and no message, which every micro-batch has.
fn late_fault(cx: &ChunkCx<'_>, id: NodeId, node: &Node) -> Option<Finding> {
    let is_cut = |v: &ValueId| cx.sharding(*v).axes().any(|a| a == Mesh::MB);
    let why = match node.op {
        Op::Send(_) | Op::Recv(_) => "a message is sent with every micro-batch",
        _ if node.args.iter().chain(&node.results).any(is_cut) => "another operand or a result is of one micro-batch",
        _ => return None,
    };
    let message = format!("it reads a sum over micro-batches, which is complete with the last one, and {why}");
    Some(cx.finding("G0208", id, Part::Whole, message).help("move it to phase `reduce`"))
}

/// What is cut into micro-batches is gone after the last one.
fn temporal(cx: &ChunkCx<'_>, phase: PhaseKind, id: NodeId, i: usize) -> Option<Finding> {
    let arg = cx.chunk.graph.node(id).args[i];
    let escapes = !phase.is_per_micro_batch() && cx.sharding(arg).axes().any(|a| a == Mesh::MB);
    let message = || {
        let (name, phase) = (cx.name(arg), phase.name());
        format!("operand {i}, `{name}`, is of one micro-batch and cannot be read in phase `{phase}`")
    };
    let help = "sum it by `accumulate` and read the accumulator";
    escapes.then(|| cx.finding("G0208", id, Part::Arg(i), message()).help(help))
}

/// Which resident's bytes each value is, and which residents have been updated or added to.
struct Memory<'c, 'a> {
    cx: &'c ChunkCx<'a>,
    resident_of: Vec<Option<usize>>,
    updated: Vec<bool>,
    added_to: Vec<bool>,
}

impl<'c, 'a> Memory<'c, 'a> {
    fn new(cx: &'c ChunkCx<'a>) -> Self {
        let none = vec![false; cx.chunk.residents.len()];
        Memory { cx, resident_of: cx.resident.clone(), updated: none.clone(), added_to: none }
    }

    /// Follows views and notes updates and sums.
    fn run(&mut self, node: &Node) {
        if let (Alias::View(operand), Some(result)) = (node.op.alias(), node.results.first()) {
            self.resident_of[result.index()] = self.resident_of[node.args[operand].index()];
        }
        let written = match node.op {
            Op::Update(_) => &mut self.updated,
            Op::Accumulate(_) => &mut self.added_to,
            _ => return,
        };
        if let Some(resident) = self.resident_of[node.args[0].index()] {
            written[resident] = true;
        }
    }

    fn read(&self, phase: PhaseKind, id: NodeId, i: usize) -> Option<Finding> {
        let arg = self.cx.chunk.graph.node(id).args[i];
        let resident = self.resident_of[arg.index()]?;
        let name = self.cx.name(arg);
        let is_sum = self.cx.chunk.residents[resident].role == ResidentRole::Accumulator;
        let message = if is_sum && phase < PhaseKind::Reduce && !self.added_to[resident] {
            format!("operand {i}, `{name}`, is a sum over micro-batches and complete only after its `accumulate`")
        } else if self.updated[resident] {
            format!("operand {i}, `{name}`, is read after its resident got its new value")
        } else {
            return None;
        };
        Some(self.cx.finding("G0208", id, Part::Arg(i), message))
    }
}
