//! Which splits of the mesh, boundary placements and options of ops the pins allow.

use super::boundary::{BoundaryKind, boundary_placements};
use super::candidates::SpaceBuilder;
use super::experts::experts_of;
use super::options::NodeOption;
use super::pins::{LayerPins, SequenceMode};
use super::price::{Piece, Priced};
use super::split::Split;
use crate::cost::CostModel;
use galvatron_ir::NodeId;
use galvatron_ir::mesh::{Mesh, Sharding, ShardingRule};
use galvatron_ir::op::Op;

impl SpaceBuilder<'_> {
    /// The splits of a mesh that the pins allow.
    pub(super) fn splits(&self, pins: &LayerPins, mesh: &Mesh) -> Vec<Split> {
        let mut all = Split::all(mesh);
        all.extend(Split::with_context(mesh).into_iter().filter(|split| self.needs_context(split, pins, mesh)));
        all.retain(|split| split.fits(pins, mesh));
        all
    }

    /// Whether the sequence is to lie over the context axes of a split: where that is pinned, or where attention has a sequence and the slowest of
    /// these axes divides no batch. An axis that does is as good a data axis, with which attention exchanges no keys.
    fn needs_context(&self, split: &Split, pins: &LayerPins, mesh: &Mesh) -> bool {
        let batch = self.module.train.as_ref().map_or(1, |t| t.global_batch);
        let parts = mesh.micro_batches() * mesh.product(&split.data);
        let is_spent = || !batch.is_multiple_of(parts * mesh.product(&split.context[..1]));
        let is_searched = || !self.facts.sequences.attending.is_empty() && batch.is_multiple_of(parts) && is_spent();
        pins.sequence_degree().is_some() || is_searched()
    }

    /// The prices of a piece under a split with the options that the pins allow; `None` where some op has none.
    pub(super) fn priced<'p>(
        &'p self,
        piece: &'p Piece,
        pins: &LayerPins,
        (mesh, model): (&'p Mesh, &'p CostModel),
        split: &Split,
    ) -> Option<Priced<'p>> {
        let filter = |node: NodeId, option: &NodeOption| self.obeys_tensor_pin(node, option, split, pins, mesh);
        Priced::new((&self.facts, model), piece, mesh, split, &filter)
    }

    /// Boundary placements that the pins allow; one without a placement for a segment that is the whole model.
    pub(super) fn boundaries(
        &self,
        piece: &Piece,
        pins: &LayerPins,
        split: &Split,
        mesh: &Mesh,
    ) -> Vec<(BoundaryKind, Option<Sharding>)> {
        let Some(value) = piece.input.or(piece.output) else {
            let has_none =
                pins.sequence == Some(SequenceMode::Megatron) || pins.cuts_sequence() || !split.context.is_empty();
            return if has_none { Vec::new() } else { vec![(BoundaryKind::Batch, None)] };
        };
        let ty = &self.facts.program.graph.value(value).ty;
        let Some(&batch) = self.facts.batch.dims.get(&value) else { return Vec::new() };
        let mut all = boundary_placements(ty, batch, split, mesh);
        if !split.context.is_empty() {
            all.retain(|(kind, _)| match kind {
                BoundaryKind::Batch => false,
                BoundaryKind::Replicated => pins.sequence != Some(SequenceMode::Megatron),
                BoundaryKind::Sequence => pins.sequence != Some(SequenceMode::None),
            });
            return all.into_iter().map(|(k, s)| (k, Some(s))).collect();
        }
        // With one degree pinned the other one follows from the number of ranks.
        let pinned_tensor = pins.tensor_degree().is_some_and(|degree| degree > 1) || pins.dp.is_some();
        all.retain(|(kind, _)| match (kind, pins.sequence) {
            (BoundaryKind::Batch, _) => !pinned_tensor || split.tensor.is_empty() || !self.pins.places.is_empty(),
            (BoundaryKind::Replicated, mode) => mode != Some(SequenceMode::Megatron) && !pins.cuts_sequence(),
            (BoundaryKind::Sequence, mode) => mode != Some(SequenceMode::None) || pins.cuts_sequence(),
        });
        all.into_iter().map(|(k, s)| (k, Some(s))).collect()
    }

    /// Under a pinned degree the tensor axes do not shard the batch; under a pinned tensor degree they shard the matrix products
    /// of weights, the attention heads, and the experts or what is inside of them. Experts lie over as many ranks as is pinned.
    pub fn obeys_tensor_pin(
        &self,
        node: NodeId,
        option: &NodeOption,
        split: &Split,
        pins: &LayerPins,
        mesh: &Mesh,
    ) -> bool {
        let program = self.facts.program;
        let n = program.graph.node(node);
        let name = n.results.first().map_or("", |&r| program.graph.value(r).name.as_str());
        if experts_of(&self.facts, node, option, mesh).is_some_and(|experts| !experts.obeys(pins)) {
            return false;
        }
        if let Some(place) = self.pins.places.get(name).filter(|_| !split.tensor.is_empty()) {
            return place.allows(&self.facts.rules[node], option, split)
                && self.obeys_context(node, option, split, pins);
        }
        let shards_batch = option.tensor_factor.is_some_and(|f| self.facts.batch.factors.get(&node) == Some(&f));
        if shards_batch && (pins.dp.is_some() || pins.tensor_degree().is_some()) {
            return false;
        }
        if !self.obeys_sequence_pins(node, option, split, pins) || !self.obeys_context(node, option, split, pins) {
            return false;
        }
        let cuts_weights = pins.tp.is_some_and(|tp| tp > 1) || self.facts.cuts_weights(node, split);
        if !cuts_weights || split.tensor.is_empty() {
            return true;
        }
        let wanted = self.tensor_factors(node, &self.facts.rules[node]);
        // Queries and experts are cut over all axes, the weights of keys as far as their heads reach.
        let cut = match n.op {
            Op::Attention(_) => Some(&option.operands[0]),
            Op::Moe(_) => Some(&option.operands[3]),
            _ => None,
        };
        let is_cut = split.tensor.iter().all(|&axis| cut.is_none_or(|operand| operand.is_sharded_over(axis)));
        wanted.is_empty() || (is_cut && option.tensor_factor.is_some_and(|f| wanted.contains(&f)))
    }

    /// The factors of which a pinned tensor degree cuts one.
    pub(super) fn tensor_factors(&self, node: NodeId, rule: &ShardingRule) -> Vec<usize> {
        self.facts.cuttable.factors(self.facts.program, node, rule)
    }
}
