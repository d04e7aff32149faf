//! Expert parallelism: the experts of a mixture over data axes, whose tokens they all see.
//!
//! Under such an option a mixture gathers the tokens of these axes, computes the experts that it holds for all of them, and gives
//! partial sums that go back to where the tokens lie. What is gathered and reduced follows from the placements.

use super::pins::{LayerPins, PinFault, Pins};
use super::price::Facts;
use super::split::Split;
use crate::segment::Segment;
use galvatron_ir::AxisId;
use galvatron_ir::mesh::{FactorMap, Mesh, ShardingRule};
use galvatron_ir::op::Op;
use galvatron_ir::{NodeId, Program};

/// The factor of a mixture that counts its experts.
pub fn expert_factor(op: &Op, rule: &ShardingRule) -> Option<usize> {
    match op {
        Op::Moe(_) => rule.operands[3][0].first().copied(),
        _ => None,
    }
}

/// Ranks over which the experts of a mixture lie; `None` for other ops.
pub fn expert_degree(facts: &Facts<'_>, node: NodeId, map: &FactorMap, mesh: &Mesh) -> Option<u64> {
    let factor = expert_factor(&facts.program.graph.node(node).op, &facts.rules[node])?;
    Some(mesh.product(&map.axes[factor]))
}

/// Experts can be pinned where there are any: in the model, and in each part of it that has a pin of its own.
///
/// # Errors
/// Code `no-experts`.
pub fn check_pins(program: &Program, pins: &Pins, segments: &[Segment]) -> Result<(), PinFault> {
    check_part("the model", &pins.all, program, segments.iter())?;
    let (first, rest) = segments.split_at(segments.len().min(1));
    check_part("the embedding", &pins.embedding, program, first.iter().filter(|s| !s.is_layer))?;
    check_part("the head", &pins.head, program, rest.iter().filter(|s| !s.is_layer))?;
    let layers: Vec<&Segment> = segments.iter().filter(|s| s.is_layer).collect();
    pins.layers.iter().try_for_each(|(&n, pins)| {
        check_part(&format!("layer {n}"), pins, program, layers.get(n as usize).copied().into_iter())
    })
}

fn check_part<'a>(
    name: &str,
    pins: &LayerPins,
    program: &Program,
    segments: impl Iterator<Item = &'a Segment>,
) -> Result<(), PinFault> {
    let Some(ep) = pins.ep.filter(|&ep| ep != 1) else { return Ok(()) };
    if segments.flat_map(|s| counts(program, &s.nodes)).next().is_some() {
        return Ok(());
    }
    Err(PinFault {
        code: "no-experts",
        message: format!("ep {ep} is pinned, but no op of {name} is a mixture of experts"),
        help: "leave the key out".into(),
    })
}

/// Why the experts of these nodes cannot lie over as many ranks as is pinned, under any of these splits; `None` if they can.
pub fn why_none(
    program: &Program,
    nodes: &[NodeId],
    ep: Option<u32>,
    splits: &[Split],
    mesh: &Mesh,
) -> Option<PinFault> {
    let ep = u64::from(ep?);
    if let Some(n) = counts(program, nodes).find(|n| !n.is_multiple_of(ep)) {
        return Some(PinFault {
            code: "divisibility",
            message: format!("{n} experts cannot be cut into {ep} equal parts"),
            help: "choose an expert degree that divides the number of experts".into(),
        });
    }
    let fits = |split: &Split| {
        let all = [&split.data[..], &split.tensor[..]].concat();
        let over = |axes: &[AxisId]| mesh.product(axes) == ep;
        (0..=split.data.len()).any(|first| over(&split.data[first..]) || over(&all[first..]))
    };
    let is_lost = counts(program, nodes).next().is_some() && !splits.iter().any(fits);
    is_lost.then(|| PinFault {
        code: "world-size",
        message: format!("{} devices have no {ep} neighbours that could share experts", mesh.world()),
        help: "experts lie over data ranks, or over all tensor ranks; each degree is a product of mesh axes".into(),
    })
}

/// The numbers of experts of the mixtures among some nodes.
fn counts<'a>(program: &'a Program, nodes: &'a [NodeId]) -> impl Iterator<Item = u64> + 'a {
    nodes.iter().filter_map(|&n| match &program.graph.node(n).op {
        Op::Moe(moe) => Some(moe.experts),
        _ => None,
    })
}
