//! `G0201` order and `G0202` types, of the program and of chunks.

use super::context::{ChunkCx, node_name};
use super::{Finding, Part, Site};
use crate::graph::{Def, Graph};
use crate::id::{NodeId, ValueId};
use crate::plan::PhaseKind;

/// Every node runs once, after the nodes whose results it reads, and its results have the types that its op infers.
///
/// `declared` are the values that need no node.
pub(super) fn check_body(
    graph: &Graph,
    declared: impl IntoIterator<Item = ValueId>,
    body: impl IntoIterator<Item = NodeId>,
    site: impl Fn(NodeId, Part) -> Site,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut defined = vec![false; graph.n_values()];
    let mut seen = vec![false; graph.n_nodes()];
    for value in declared {
        defined[value.index()] = true;
    }
    for node in body {
        if std::mem::replace(&mut seen[node.index()], true) {
            let message = format!("{}: the node runs more than once", node_name(graph, node));
            findings
                .push(Finding::new("G0201", site(node, Part::Whole), message).help("repeat it as a node of its own"));
            continue;
        }
        findings.extend(undefined_args(graph, node, &defined, &site));
        findings.extend(wrong_types(graph, node, &site));
        for &result in &graph.node(node).results {
            defined[result.index()] = true;
        }
    }
    findings
}

/// Order and types of a chunk.
pub(super) fn check_chunk(cx: &ChunkCx<'_>) -> Vec<Finding> {
    if let Some(finding) = phase_order(cx) {
        return vec![finding];
    }
    let graph = &cx.chunk.graph;
    let residents = cx.chunk.residents.iter().enumerate();
    let computed = residents.filter(|(_, r)| graph.value(r.value).def != Def::Declared);
    let mut findings: Vec<Finding> = computed
        .map(|(i, r)| {
            let message = format!("resident `{}` is the result of a node", cx.name(r.value));
            Finding::new("G0201", Site::Resident(cx.index, i), message)
        })
        .collect();
    let declared = cx.chunk.residents.iter().map(|r| r.value);
    let body = cx.nodes().map(|(_, node)| node);
    findings.extend(check_body(graph, declared, body, |node, part| cx.site(node, part)));
    findings
}

/// Phases come once each and in the order of [`PhaseKind`].
fn phase_order(cx: &ChunkCx<'_>) -> Option<Finding> {
    let kinds: Vec<PhaseKind> = cx.chunk.phases.iter().map(|p| p.kind).collect();
    let pair = kinds.windows(2).find(|w| w[0] >= w[1])?;
    let message = format!("phase `{}` of chunk {} comes after `{}`", pair[1].name(), cx.index, pair[0].name());
    let order = PhaseKind::ALL.map(|(_, name, _)| name).join(", ");
    Some(Finding::new("G0201", Site::Module, message).help(format!("each phase comes once, in the order {order}")))
}

fn undefined_args(graph: &Graph, node: NodeId, defined: &[bool], site: impl Fn(NodeId, Part) -> Site) -> Vec<Finding> {
    let args = graph.node(node).args.iter().enumerate();
    let undefined = args.filter(|(_, arg)| defined.get(arg.index()) != Some(&true));
    undefined
        .map(|(i, &arg)| {
            let value = if arg.index() < graph.n_values() { graph.value(arg).name.as_str() } else { "?" };
            let message = format!("{}: operand {i}, `%{value}`, is read before it is defined", node_name(graph, node));
            Finding::new("G0201", site(node, Part::Arg(i)), message)
        })
        .collect()
}

fn wrong_types(graph: &Graph, id: NodeId, site: impl Fn(NodeId, Part) -> Site) -> Vec<Finding> {
    let node = graph.node(id);
    if node.args.iter().any(|a| a.index() >= graph.n_values()) {
        return Vec::new();
    }
    let name = node_name(graph, id);
    let inferred = match node.op.infer(&graph.types(&node.args)) {
        Ok(inferred) => inferred,
        Err(why) => return vec![Finding::new("G0202", site(id, Part::Op), format!("{name}: {why}"))],
    };
    if inferred.len() != node.results.len() {
        let message = format!("{name}: the op has {} results, found {}", inferred.len(), node.results.len());
        return vec![Finding::new("G0202", site(id, Part::Whole), message)];
    }
    let results = node.results.iter().zip(&inferred).enumerate();
    let wrong = results.filter(|(i, (result, ty))| {
        let value = graph.value(**result);
        value.ty != **ty || value.def != Def::Node(id, *i as u32)
    });
    wrong
        .map(|(i, (&result, ty))| {
            let message = format!("{name}: result {i} is declared `{}`, the op gives `{ty}`", graph.value(result).ty);
            Finding::new("G0202", site(id, Part::Result(i)), message)
        })
        .collect()
}
