//! `G0207` erasure: without collectives and recomputation the chunk computes the program.

use super::context::{ChunkCx, node_name};
use super::operand::is_compute;
use super::{Finding, Part, Site};
use crate::graph::Node;
use crate::id::NodeId;
use crate::op::{AttrValue, Op};
use crate::plan::ResidentRole;

/// Checks what residents and nodes claim to be copies of.
pub(super) fn check(cx: &ChunkCx<'_>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = (0..cx.chunk.residents.len()).filter_map(|i| check_resident(cx, i)).collect();
    for (_, id) in cx.nodes() {
        let node = cx.chunk.graph.node(id);
        match &node.op {
            Op::Load(_) => findings.extend(check_load(cx, id, node)),
            Op::Accumulate(_) => findings.extend(keeps(cx, id, node, 0, 1)),
            // Who sends is compared with who receives.
            Op::Update(_) | Op::Send(_) | Op::Recv(_) => {}
            op if is_compute(op) => findings.extend(check_compute(cx, id, node)),
            _ => findings.extend((0..node.results.len()).filter_map(|i| collective_keeps(cx, id, node, i))),
        }
    }
    findings
}

fn check_resident(cx: &ChunkCx<'_>, index: usize) -> Option<Finding> {
    let resident = cx.chunk.residents[index];
    let of = cx.of(resident.value);
    let (fits, expected) = match resident.role {
        ResidentRole::Parameter => (cx.facts.weights.contains_key(&of), "a weight"),
        ResidentRole::State => (cx.facts.states.contains_key(&of), "an optimizer state"),
        ResidentRole::Accumulator => (cx.program().graph.producer(of).is_some(), "a computed value"),
    };
    let (name, role, of) = (cx.name(resident.value), resident.role.name(), cx.program_name(of));
    let message = || format!("{role} `{name}` is a copy of `{of}`, which is not {expected} of the program");
    (!fits).then(|| Finding::new("G0207", Site::Resident(cx.index, index), message()))
}

fn check_load(cx: &ChunkCx<'_>, id: NodeId, node: &Node) -> Option<Finding> {
    let Op::Load(load) = &node.op else { return None };
    let of = cx.of(node.results[0]);
    let input = cx.facts.inputs.get(&of).map(|&i| &cx.program().inputs[i]);
    let fits = input.is_some_and(|i| i.name == load.input);
    let message = || format!("`{}` is not the input \"{}\" of the program", cx.program_name(of), load.input);
    (!fits).then(|| cx.finding("G0207", id, Part::Op, message()))
}

/// A sum over micro-batches is a copy of what its terms are copies of.
fn keeps(cx: &ChunkCx<'_>, id: NodeId, node: &Node, kept: usize, arg: usize) -> Option<Finding> {
    let (a, b) = (cx.of(node.args[kept]), cx.of(node.args[arg]));
    let message = || format!("a term of the sum `{}` is `{}`", cx.program_name(a), cx.program_name(b));
    (a != b).then(|| cx.finding("G0207", id, Part::Arg(arg), message()))
}

fn collective_keeps(cx: &ChunkCx<'_>, id: NodeId, node: &Node, i: usize) -> Option<Finding> {
    let (a, b) = (cx.of(node.args[i]), cx.of(node.results[i]));
    let message = || {
        let (a, b) = (cx.program_name(a), cx.program_name(b));
        format!("result {i} is said to be a copy of `{b}`, but operand {i} is one of `{a}`")
    };
    (a != b).then(|| cx.finding("G0207", id, Part::Result(i), message()))
}

/// The node repeats the program node that computes what its results are copies of.
fn check_compute(cx: &ChunkCx<'_>, id: NodeId, node: &Node) -> Vec<Finding> {
    let program = &cx.program().graph;
    let Some(&first) = node.results.first() else { return Vec::new() };
    let Some(source) = program.producer(cx.of(first)) else {
        let message = format!("`{}` is declared by the program, not computed", cx.program_name(cx.of(first)));
        return vec![cx.finding("G0207", id, Part::Result(0), message)];
    };
    let original = program.node(source);
    let op = node.op.undistributed().map_or_else(|| node.op.clone(), |(op, _)| op);
    if original.op != op {
        return vec![other_op(cx, id, &op, source)];
    }
    let help = || format!("in the program it is `{}`", spell(cx, source));
    let results = node.results.iter().zip(&original.results).enumerate();
    let results = results.filter(|(_, (copy, value))| cx.of(**copy) != **value).map(|(i, (&copy, &value))| {
        let (found, expected) = (cx.program_name(cx.of(copy)), cx.program_name(value));
        let message = format!("result {i} must be a copy of `{expected}`, not of `{found}`");
        cx.finding("G0207", id, Part::Result(i), message).help(help())
    });
    let args = node.args.iter().zip(&original.args).enumerate();
    let args = args.filter(|(_, (copy, value))| cx.of(**copy) != **value).map(|(i, (&copy, &value))| {
        let (found, expected) = (cx.program_name(cx.of(copy)), cx.program_name(value));
        let message = format!("operand {i} must be a copy of `{expected}`, not of `{found}`");
        cx.finding("G0207", id, Part::Arg(i), message).help(help())
    });
    let mut findings: Vec<Finding> = results.chain(args).collect();
    if node.args.len() != original.args.len() {
        let message = format!("expected {} operands, found {}", original.args.len(), node.args.len());
        findings.push(cx.finding("G0207", id, Part::Whole, message).help(help()));
    }
    findings
}

fn other_op(cx: &ChunkCx<'_>, id: NodeId, op: &Op, source: NodeId) -> Finding {
    let original = &cx.program().graph.node(source).op;
    let (found, expected) = (spell_op(op), spell_op(original));
    let message =
        format!("the op is `{found}`, that of {} in the program `{expected}`", node_name(&cx.program().graph, source));
    cx.finding("G0207", id, Part::Op, message)
}

fn spell(cx: &ChunkCx<'_>, node: NodeId) -> String {
    let node = cx.program().graph.node(node);
    let names =
        |values: &[crate::id::ValueId]| values.iter().map(|&v| cx.program_name(v)).collect::<Vec<_>>().join(", ");
    format!("{} = {} {}", names(&node.results), spell_op(&node.op), names(&node.args))
}

/// An op with its attributes, close to the text format.
fn spell_op(op: &Op) -> String {
    let attrs: Vec<String> = op.attrs().iter().map(|(key, value)| spell_attr(key, value)).collect();
    if attrs.is_empty() { op.mnemonic().to_string() } else { format!("{}{{{}}}", op.mnemonic(), attrs.join(", ")) }
}

fn spell_attr(key: &str, value: &AttrValue) -> String {
    match value {
        AttrValue::Int(v) => format!("{key}={v}"),
        AttrValue::Float(v) => format!("{key}={v}"),
        AttrValue::Str(v) => format!("{key}=\"{v}\""),
        AttrValue::Numbers(v) => format!("{key}={} numbers", v.len()),
        AttrValue::Ints(v) => format!("{key}={v:?}"),
        AttrValue::Axes(v) => format!("{key}={v:?}"),
        AttrValue::Word(v) => format!("{key}={v}"),
        AttrValue::Flag => key.to_string(),
    }
}
