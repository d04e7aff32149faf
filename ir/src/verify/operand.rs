//! `G0203` operand and `G0204` result placements of compute nodes, by the factor rule of each op.

use super::context::ChunkCx;
use super::{Finding, Part};
use crate::graph::Node;
use crate::id::{AxisId, NodeId};
use crate::mesh::{Factor, FactorKind, FactorMap, MapFault, Mesh, ShardingRule};
use crate::op::{Effects, Op};
use crate::plan::PhaseKind;

/// Checks the nodes that compute or read data.
pub(super) fn check(cx: &ChunkCx<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (phase, id) in cx.nodes() {
        let node = cx.chunk.graph.node(id);
        if is_compute(&node.op) {
            findings.extend(check_node(cx, id, node));
            findings.extend(whole_batch(cx, phase, id, node));
        }
    }
    findings
}

/// Whether the op obeys its factor rule: neither a collective nor a write, but also what ranks compute together.
pub(super) fn is_compute(op: &Op) -> bool {
    matches!(op.effects(), Effects::Pure | Effects::Reads) || op.undistributed().is_some()
}

fn check_node(cx: &ChunkCx<'_>, id: NodeId, node: &Node) -> Vec<Finding> {
    let graph = &cx.chunk.graph;
    let rule = node.op.rule(&graph.types(&node.args), &graph.types(&node.results));
    let operands: Vec<_> = node.args.iter().map(|&a| cx.sharding(a)).collect();
    let mut map = match rule.infer_map(&operands, cx.mesh) {
        Ok(map) => map,
        Err(fault) => return vec![explain(cx, id, node, &rule, &fault)],
    };
    bind_free_factors(cx, node, &rule, &mut map);
    let results = node.results.iter().enumerate();
    let expected = results.map(|(i, &result)| (i, cx.sharding(result), rule.result_sharding(i, &map)));
    expected
        .filter(|(_, declared, expected)| *declared != expected)
        .map(|(i, declared, expected)| {
            let (declared, expected) = (declared.display(cx.mesh), expected.display(cx.mesh));
            let message = format!("result {i} is declared `{declared}`, the operands give `{expected}`");
            cx.finding("G0204", id, Part::Result(i), message).help("no collective is implied: write it as a node")
        })
        .collect()
}

/// Takes the axes of factors that are in no operand from the first result that has them: every rank computes any part.
fn bind_free_factors(cx: &ChunkCx<'_>, node: &Node, rule: &ShardingRule, map: &mut FactorMap) {
    let mut bound = vec![false; rule.factors.len()];
    rule.operands.iter().flatten().flatten().for_each(|&f| bound[f] = true);
    for (dims, &result) in rule.results.iter().zip(&node.results) {
        for (factors, axes) in dims.iter().zip(&cx.sharding(result).dims) {
            let Some(&factor) = factors.first() else { continue };
            if !bound[factor] && can_cut(&rule.factors[factor], axes, cx.mesh) {
                bound[factor] = true;
                map.axes[factor] = axes.clone();
            }
        }
    }
}

/// An op that needs its own offset knows its rank, but not its micro-batch.
fn can_cut(factor: &Factor, axes: &[AxisId], mesh: &Mesh) -> bool {
    let allowed = match factor.kind {
        FactorKind::Plain => true,
        FactorKind::Offset => !axes.contains(&Mesh::MB),
        FactorKind::Whole => false,
    };
    allowed && factor.size.is_multiple_of(mesh.product(axes))
}

/// Within a micro-batch only that micro-batch is loaded, as the major part of dimension 0.
fn whole_batch(cx: &ChunkCx<'_>, phase: PhaseKind, id: NodeId, node: &Node) -> Option<Finding> {
    let is_load = matches!(node.op, Op::Load(_)) && phase.is_per_micro_batch() && cx.mesh.micro_batches() > 1;
    let dims = &cx.sharding(*node.results.first()?).dims;
    let is_cut = dims.first().is_some_and(|axes| axes.first() == Some(&Mesh::MB));
    let message =
        format!("phase `{}` loads one micro-batch, so dimension 0 must be sharded over `mb` first", phase.name());
    (is_load && !is_cut).then(|| cx.finding("G0204", id, Part::Result(0), message))
}

fn explain(cx: &ChunkCx<'_>, id: NodeId, node: &Node, rule: &ShardingRule, fault: &MapFault) -> Finding {
    let (part, message, help) = match *fault {
        MapFault::Whole { operand, dim } => whole(cx, node, operand, dim),
        MapFault::Disagree { operand, dim, factor } => disagree(cx, node, rule, (operand, dim, factor)),
        MapFault::Partial { operand } => partial(cx, node, operand),
        MapFault::Mixed { operand, other } => mixed(cx, node, operand, other),
        MapFault::Twice { factor, axis } => {
            let label = &rule.factors[factor].label;
            let message = format!("{} would shard two factors of the op, one of them `{label}`", cx.axes(&[axis]));
            (Part::Whole, message, "gather one of the operands over this axis".to_string())
        }
    };
    cx.finding("G0203", id, part, message).help(help)
}

/// Where the fault is, what it is, how to mend it.
type Explained = (Part, String, String);

fn whole(cx: &ChunkCx<'_>, node: &Node, operand: usize, dim: usize) -> Explained {
    let (axes, op) = (&cx.sharding(node.args[operand]).dims[dim], node.op.mnemonic());
    let message = format!("`{op}` cannot be cut along dimension {dim} of operand {operand} over {}", cx.axes(axes));
    let help = format!("insert `comm.all_gather{{{}, dim={dim}}} {}`", cx.axes_attr(axes), cx.name(node.args[operand]));
    (Part::Arg(operand), message, help)
}

fn disagree(
    cx: &ChunkCx<'_>,
    node: &Node,
    rule: &ShardingRule,
    (operand, dim, factor): (usize, usize, usize),
) -> Explained {
    let dims = rule.operands.iter().enumerate().flat_map(|(i, dims)| (0..dims.len()).map(move |d| (i, d)));
    let has_factor =
        |&(i, d): &(usize, usize)| (i, d) != (operand, dim) && rule.operands[i][d].first() == Some(&factor);
    let (other, other_dim) = dims.into_iter().find(has_factor).unwrap_or((operand, dim));
    let spell = |i: usize, d: usize| match cx.sharding(node.args[i]).dims[d].as_slice() {
        [] => "not sharded".to_string(),
        axes => format!("sharded over {}", cx.axes(axes)),
    };
    let message = format!(
        "dimension {dim} of operand {operand} is {}, dimension {other_dim} of operand {other}, which it meets, is {}",
        spell(operand, dim),
        spell(other, other_dim)
    );
    (Part::Arg(operand), message, "bring both to one placement by a collective".into())
}

fn partial(cx: &ChunkCx<'_>, node: &Node, operand: usize) -> Explained {
    let axes = &cx.sharding(node.args[operand]).partial;
    let message = format!("operand {operand} is a partial sum over {}", cx.axes(axes));
    (Part::Arg(operand), message, resolve(cx, node, operand))
}

/// Points at the operand that is partial, or at the second of two that are partial over different axes.
fn mixed(cx: &ChunkCx<'_>, node: &Node, operand: usize, other: usize) -> Explained {
    let axes = |i: usize| cx.sharding(node.args[i]).partial.as_slice();
    let (operand, other) = if axes(operand).is_empty() { (other, operand) } else { (operand, other) };
    let rest = match axes(other) {
        [] => "is none".to_string(),
        axes => format!("is one over {}", cx.axes(axes)),
    };
    let found = cx.axes(axes(operand));
    let message = format!("operand {operand} is a partial sum over {found}, but operand {other} {rest}");
    (Part::Arg(operand), message, resolve(cx, node, operand))
}

/// How to get rid of the partial sum in an operand.
fn resolve(cx: &ChunkCx<'_>, node: &Node, operand: usize) -> String {
    let axes = &cx.sharding(node.args[operand]).partial;
    if axes.contains(&Mesh::MB) {
        return "a sum over micro-batches is resolved by `accumulate` and read in phase `reduce`".into();
    }
    let (attr, name) = (cx.axes_attr(axes), cx.name(node.args[operand]));
    format!("insert `comm.all_reduce{{{attr}}} {name}`, or `comm.reduce_scatter` to keep it sharded")
}
