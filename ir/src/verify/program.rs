//! The program by itself: order, types, declarations, and the notes of autodiff.

use super::context::{ProgramFacts, node_name};
use super::{Finding, Part, Site, declarations, order};
use crate::id::NodeId;
use crate::module::Module;
use crate::op::{Effects, Op};

/// Every broken invariant of the program.
pub(super) fn check(module: &Module, facts: &ProgramFacts) -> Vec<Finding> {
    let program = &module.program;
    let declared = facts.inputs.keys().chain(facts.weights.keys()).chain(facts.states.keys()).copied();
    let mut findings = order::check_body(&program.graph, declared, program.body.iter().copied(), Site::ProgramNode);
    findings.extend(program.body.iter().filter_map(|&node| foreign_op(module, node)));
    findings.extend(forward_nodes(module));
    findings.extend(gradient_notes(module, facts));
    findings.extend(declarations::check(module, facts));
    findings
}

/// A program describes what one device computes: neither collectives nor memory.
fn foreign_op(module: &Module, node: NodeId) -> Option<Finding> {
    let graph = &module.program.graph;
    let op = &graph.node(node).op;
    let is_foreign =
        matches!(op.effects(), Effects::Communicates | Effects::Writes | Effects::Copies) || matches!(op, Op::Load(_));
    let message = || format!("{}: `{}` cannot be in a program", node_name(graph, node), op.mnemonic());
    is_foreign.then(|| Finding::new("G0214", Site::ProgramNode(node, Part::Op), message()))
}

/// The forward node of a gradient node runs before it.
fn forward_nodes(module: &Module) -> Vec<Finding> {
    let graph = &module.program.graph;
    let mut seen = vec![false; graph.n_nodes()];
    let mut findings = Vec::new();
    for &node in &module.program.body {
        if graph.node(node).fwd.is_some_and(|fwd| seen.get(fwd.index()) != Some(&true)) {
            let message = format!("{}: its forward node does not run before it", node_name(graph, node));
            findings.push(Finding::new("G0214", Site::ProgramNode(node, Part::Whole), message));
        }
        seen[node.index()] = true;
    }
    findings
}

/// The value that a value is a gradient of exists.
fn gradient_notes(module: &Module, facts: &ProgramFacts) -> Vec<Finding> {
    let graph = &module.program.graph;
    let mut findings = Vec::new();
    for &node in &module.program.body {
        for (i, &result) in graph.node(node).results.iter().enumerate() {
            let Some(of) = graph.value(result).grad_of else { continue };
            if !facts.knows(of) {
                let message =
                    format!("`%{}`: the value that it is the gradient of is not there", graph.value(result).name);
                findings.push(Finding::new("G0214", Site::ProgramNode(node, Part::Result(i)), message));
            }
        }
    }
    findings
}
