//! `G0216` host memory: what lies there is copied, and nothing else reads or writes it.

use super::context::ChunkCx;
use super::{Finding, Part};
use crate::graph::Node;
use crate::id::NodeId;
use crate::op::Op;

/// Checks in which memory the operands of every node lie, and that copies keep placements.
pub(super) fn check(cx: &ChunkCx<'_>) -> Vec<Finding> {
    let in_host = cx.chunk.in_host();
    let nodes = cx.nodes().map(|(_, id)| (id, cx.chunk.graph.node(id)));
    nodes.flat_map(|(id, node)| check_operands(cx, id, node, &in_host).or_else(|| moved(cx, id, node))).collect()
}

fn check_operands(cx: &ChunkCx<'_>, id: NodeId, node: &Node, in_host: &[bool]) -> Option<Finding> {
    let is_host = |i: usize| in_host[node.args[i].index()];
    let name = |i: usize| cx.name(node.args[i]);
    let (i, message, help) = match &node.op {
        Op::ToDevice(_) if !is_host(0) => {
            (0, format!("`{}` is in the device's memory already", name(0)), format!("read `{}` itself", name(0)))
        }
        Op::ToDevice(_) => return None,
        Op::ToHost(_) if is_host(0) => {
            (0, format!("`{}` is in host memory already", name(0)), "leave the copy out".into())
        }
        Op::Update(_) if is_host(0) == is_host(1) => return None,
        Op::Update(_) if is_host(0) => {
            let message = format!("`{}` lies in host memory, its new value `{}` does not", name(0), name(1));
            (1, message, format!("write the new value by `mem.to_host {}`", name(1)))
        }
        _ => {
            let i = (0..node.args.len()).find(|&i| is_host(i))?;
            let message = format!("operand {i}, `{}`, lies in host memory, which only `mem.to_device` reads", name(i));
            (i, message, format!("read `mem.to_device {}` instead", name(i)))
        }
    };
    Some(cx.finding("G0216", id, Part::Arg(i), message).help(help))
}

/// A copy whose placement is not that of its operand.
fn moved(cx: &ChunkCx<'_>, id: NodeId, node: &Node) -> Option<Finding> {
    if !matches!(node.op, Op::ToDevice(_) | Op::ToHost(_)) {
        return None;
    }
    let (from, to) = (cx.sharding(node.args[0]), cx.sharding(node.results[0]));
    let message = || {
        let (from, to) = (from.display(cx.mesh), to.display(cx.mesh));
        format!("the copy is placed `{to}`, its source `{from}`")
    };
    let help = "a copy between memories stays on its rank: a collective changes placements";
    (from != to).then(|| cx.finding("G0216", id, Part::Result(0), message()).help(help))
}
