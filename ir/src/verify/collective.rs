//! `G0206` collectives: legal for their operand's placement, and giving their result's.

use super::context::ChunkCx;
use super::{Finding, Part};
use crate::graph::Node;
use crate::id::{AxisId, NodeId};
use crate::mesh::{Mesh, ReshardStep, Sharding, reshard_steps};
use crate::module::Level;
use crate::op::Op;
use crate::op::comm::step_of_op;

/// Checks every collective and local cut.
pub(super) fn check(cx: &ChunkCx<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (_, id) in cx.nodes() {
        let node = cx.chunk.graph.node(id);
        match (&node.op, step_of_op(&node.op)) {
            (Op::Reshard(_), _) => findings.extend(check_reshard(cx, id, node)),
            (_, Some(step)) => findings.extend(check_step(cx, id, node, &step)),
            (op, None) => findings.extend(op.undistributed().and_then(|(_, axes)| check_joint(cx, id, node, axes))),
        }
    }
    findings
}

fn check_reshard(cx: &ChunkCx<'_>, id: NodeId, node: &Node) -> Option<Finding> {
    if cx.module.level != Level::Sharded {
        let message = format!("`comm.reshard` cannot be in a module at level `{}`", cx.module.level.name());
        return Some(cx.finding("G0206", id, Part::Op, message));
    }
    let (from, to) = (cx.sharding(node.args[0]), cx.sharding(node.results[0]));
    let steps = reshard_steps(from, to).filter(|steps| !steps.iter().any(|s| s.axes().contains(&Mesh::MB)));
    let message = || format!("no collectives turn `{}` into `{}`", from.display(cx.mesh), to.display(cx.mesh));
    steps.is_none().then(|| cx.finding("G0206", id, Part::Result(0), message()))
}

fn check_step(cx: &ChunkCx<'_>, id: NodeId, node: &Node, step: &ReshardStep) -> Vec<Finding> {
    if let Err(why) = check_axes(cx, step.axes()) {
        return vec![cx.finding("G0206", id, Part::Op, why)];
    }
    let mut findings = Vec::new();
    for (i, (&arg, &result)) in node.args.iter().zip(&node.results).enumerate() {
        let (from, to) = (cx.sharding(arg), cx.sharding(result));
        if let Err(why) = check_operand(cx, step, from) {
            findings.push(cx.finding("G0206", id, Part::Arg(i), format!("operand {i}, `{}`, {why}", cx.name(arg))));
            continue;
        }
        let expected = step.apply(from);
        if expected != *to {
            let (declared, expected) = (to.display(cx.mesh), expected.display(cx.mesh));
            let message = format!("result {i} is declared `{declared}`, the collective gives `{expected}`");
            findings.push(cx.finding("G0206", id, Part::Result(i), message));
        }
    }
    findings
}

/// What ranks compute together.
fn check_joint(cx: &ChunkCx<'_>, id: NodeId, node: &Node, axes: &[AxisId]) -> Option<Finding> {
    if let Err(why) = check_axes(cx, axes) {
        return Some(cx.finding("G0206", id, Part::Op, why));
    }
    if node.op.is_routed() { check_routed(cx, id, node, axes) } else { check_ring(cx, id, node, axes) }
}

/// Tokens are routed over the first axes of the experts, which cut the tokens too; further axes of the experts leave the tokens alone.
fn check_routed(cx: &ChunkCx<'_>, id: NodeId, node: &Node, axes: &[AxisId]) -> Option<Finding> {
    let (tokens, experts) = (cx.sharding(node.args[0]), &cx.sharding(node.args[3]).dims[0]);
    let message = match experts.strip_prefix(axes) {
        None if experts.is_empty() => {
            format!("tokens are routed over {}, every rank has all experts", cx.axes(axes))
        }
        None => format!("tokens are routed over {}, the experts lie over {}", cx.axes(axes), cx.axes(experts)),
        Some(rest) => {
            let is_cut = |axis: &&AxisId| tokens.is_sharded_over(**axis);
            if let Some(&whole) = axes.iter().find(|axis| !is_cut(axis)) {
                format!("tokens are routed over {}, but every rank of {} has them", cx.axes(axes), cx.axes(&[whole]))
            } else {
                let &other = rest.iter().find(is_cut)?;
                format!("the tokens and the experts lie over {}, over which no tokens are routed", cx.axes(&[other]))
            }
        }
    };
    Some(cx.finding("G0206", id, Part::Op, message))
}

/// A ring runs over the axes of its sequence, which all of its operands have by its factor rule.
fn check_ring(cx: &ChunkCx<'_>, id: NodeId, node: &Node, axes: &[AxisId]) -> Option<Finding> {
    let found = node.args.first().and_then(|&q| cx.sharding(q).dims.get(1)).map_or(&[][..], Vec::as_slice);
    let message = || match found {
        [] => format!("the ring runs over {}, its sequence is whole", cx.axes(axes)),
        found => format!("the ring runs over {}, its sequence lies over {}", cx.axes(axes), cx.axes(found)),
    };
    if found != axes {
        return Some(cx.finding("G0206", id, Part::Op, message()));
    }
    let (sequence, n_chunks) = (cx.value(node.args[0]).ty.shape[1], 2 * cx.mesh.product(axes));
    let message = || format!("a sequence of {sequence} positions cannot be cut into the {n_chunks} chunks of a zigzag");
    let is_uneven = node.op.is_zigzag() && !sequence.is_multiple_of(n_chunks);
    is_uneven.then(|| cx.finding("G0206", id, Part::Op, message()))
}

/// The axes by themselves: spatial, at least one, none twice.
fn check_axes(cx: &ChunkCx<'_>, axes: &[AxisId]) -> Result<(), String> {
    if axes.is_empty() {
        return Err("a collective needs at least one axis".into());
    }
    if axes.contains(&Mesh::MB) {
        return Err("`mb` is not in space: a sum over micro-batches is resolved by `accumulate`".into());
    }
    if let Some(axis) = axes.iter().find(|a| a.index() >= cx.mesh.axes().len()) {
        return Err(format!("the mesh has no axis {}", axis.index()));
    }
    match axes.iter().enumerate().find(|(i, a)| axes[..*i].contains(a)) {
        Some((_, &axis)) => Err(format!("{} is used twice", cx.axes(&[axis]))),
        None => Ok(()),
    }
}

/// Whether the step can be applied to a value of this placement.
fn check_operand(cx: &ChunkCx<'_>, step: &ReshardStep, from: &Sharding) -> Result<(), String> {
    let rank = from.dims.len();
    match step {
        ReshardStep::AllReduce { axes } => needs_partial(cx, axes, from),
        ReshardStep::ReduceScatter { axes, dim } => {
            has_dim(rank, *dim)?;
            needs_partial(cx, axes, from)
        }
        ReshardStep::AllGather { axes, dim } => needs_minor(cx, axes, from, *dim),
        ReshardStep::AllToAll { axes, from: source, to } => {
            has_dim(rank, *to)?;
            if source == to {
                return Err("is joined and cut along one dimension".into());
            }
            needs_minor(cx, axes, from, *source)
        }
        ReshardStep::Shard { axes, dim } => {
            has_dim(rank, *dim)?;
            match axes.iter().find(|a| from.axes().any(|b| b == **a)) {
                Some(&axis) => Err(format!("is placed over {} already", cx.axes(&[axis]))),
                None => Ok(()),
            }
        }
    }
}

fn has_dim(rank: usize, dim: usize) -> Result<(), String> {
    if dim < rank { Ok(()) } else { Err(format!("has no dimension {dim}")) }
}

fn needs_partial(cx: &ChunkCx<'_>, axes: &[AxisId], from: &Sharding) -> Result<(), String> {
    match axes.iter().find(|a| !from.partial.contains(a)) {
        Some(&axis) => Err(format!("is no partial sum over {}", cx.axes(&[axis]))),
        None => Ok(()),
    }
}

fn needs_minor(cx: &ChunkCx<'_>, axes: &[AxisId], from: &Sharding, dim: usize) -> Result<(), String> {
    has_dim(from.dims.len(), dim)?;
    if from.dims[dim].ends_with(axes) {
        return Ok(());
    }
    Err(format!("is not sharded over {} as the minor axes of dimension {dim}", cx.axes(axes)))
}
