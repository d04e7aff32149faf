//! Expert parallelism: the experts of a mixture over data axes, whose tokens they all see.
//!
//! Under such an option a mixture gathers the tokens of these axes, computes the experts that it holds for all of them, and gives
//! partial sums that go back to where the tokens lie: what is gathered and reduced follows from the placements. Or the tokens stay, and
//! each travels to the ranks of the experts that it chose, and back: then the axes cut tokens and experts, see [`crate::joint`].

use super::options::NodeOption;
use super::pins::{ExpertKind, LayerPins, PinFault, Pins};
use super::price::Facts;
use super::split::Split;
use crate::joint::JointKind;
use crate::segment::Segment;
use galvatron_ir::AxisId;
use galvatron_ir::mesh::{Mesh, ShardingRule};
use galvatron_ir::op::Op;
use galvatron_ir::{NodeId, Program};

/// Where the experts of a mixture lie, and how tokens reach them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Experts {
    /// Number of ranks.
    pub degree: u64,
    /// How tokens of other ranks reach them.
    pub kind: ExpertKind,
}

/// All on every rank, as also where there are none.
impl Default for Experts {
    fn default() -> Experts {
        Experts { degree: 1, kind: ExpertKind::Gather }
    }
}

impl Experts {
    /// Whether that is what is pinned; how tokens reach experts of other ranks says nothing where there are none.
    pub fn obeys(self, pins: &LayerPins) -> bool {
        let is_other = |kind| self.degree > 1 && kind != self.kind;
        pins.ep.is_none_or(|ep| u64::from(ep) == self.degree) && !pins.ep_kind.is_some_and(is_other)
    }
}

/// The factor of a mixture that counts its experts.
pub fn expert_factor(op: &Op, rule: &ShardingRule) -> Option<usize> {
    match op {
        Op::Moe(_) => rule.operands[3][0].first().copied(),
        _ => None,
    }
}

/// Where the experts of a mixture lie under an option; `None` for other ops.
pub fn experts_of(facts: &Facts<'_>, node: NodeId, option: &NodeOption, mesh: &Mesh) -> Option<Experts> {
    let factor = expert_factor(&facts.program.graph.node(node).op, &facts.rules[node])?;
    let is_routed = option.joint == Some(JointKind::Routed);
    let kind = if is_routed { ExpertKind::AllToAll } else { ExpertKind::Gather };
    Some(Experts { degree: mesh.product(&option.map.axes[factor]), kind })
}

/// Experts, and how tokens reach them, can be pinned where there are any: in the model, and in each part of it that has a pin of its own.
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
    let degree = pins.ep.filter(|&ep| ep != 1).map(|ep| format!("ep {ep}"));
    let Some(pin) = degree.or(pins.ep_kind.map(|_| "ep_kind".into())) else { return Ok(()) };
    if segments.flat_map(|s| counts(program, &s.nodes)).next().is_some() {
        return Ok(());
    }
    Err(PinFault {
        code: "no-experts",
        message: format!("{pin} is pinned, but no op of {name} is a mixture of experts"),
        help: "leave the key out".into(),
    })
}

/// Why the experts of these nodes cannot lie over as many ranks as is pinned, in the pinned way, under any of these splits; `None`
/// if they can.
pub fn why_none(
    program: &Program,
    nodes: &[NodeId],
    pins: &LayerPins,
    splits: &[Split],
    mesh: &Mesh,
) -> Option<PinFault> {
    let ep = u64::from(pins.ep?);
    if let Some(n) = counts(program, nodes).find(|n| !n.is_multiple_of(ep)) {
        return Some(PinFault {
            code: "divisibility",
            message: format!("{n} experts cannot be cut into {ep} equal parts"),
            help: "choose an expert degree that divides the number of experts".into(),
        });
    }
    let over = |axes: &[AxisId]| mesh.product(axes) == ep;
    let is_routed = ep > 1 && pins.ep_kind == Some(ExpertKind::AllToAll);
    let fits = |split: &Split| {
        let all = [&split.data[..], &split.tensor[..]].concat();
        // Tokens travel over one data axis at least.
        let firsts = 0..split.data.len() + usize::from(!is_routed);
        firsts.into_iter().any(|first| over(&split.data[first..]) || over(&all[first..]))
    };
    let is_lost = counts(program, nodes).next().is_some() && !splits.iter().any(fits);
    let (message, help) = match is_routed {
        true => (
            format!("{} devices have no {ep} neighbours over which tokens lie that could share experts", mesh.world()),
            "tokens travel over data ranks: choose a larger dp, or leave `ep_kind` out",
        ),
        false => (
            format!("{} devices have no {ep} neighbours that could share experts", mesh.world()),
            "experts lie over data ranks, or over all tensor ranks; each degree is a product of mesh axes",
        ),
    };
    is_lost.then(|| PinFault { code: "world-size", message, help: help.into() })
}

/// The numbers of experts of the mixtures among some nodes.
fn counts<'a>(program: &'a Program, nodes: &'a [NodeId]) -> impl Iterator<Item = u64> + 'a {
    nodes.iter().filter_map(|&n| match &program.graph.node(n).op {
        Op::Moe(moe) => Some(moe.experts),
        _ => None,
    })
}
