//! The placements that an op may take: its batch over the data axes, its sequence over the context axes, one more factor (or none)
//! over the tensor axes. Experts may take data axes from the batch, or share them with it.

use super::split::Split;
use crate::joint::JointKind;
use galvatron_ir::AxisId;
use galvatron_ir::mesh::{FactorKind, FactorMap, Mesh, Sharding, ShardingRule};

/// One placement of an op.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeOption {
    /// Axes of the factors.
    pub map: FactorMap,
    /// What it demands of the operands.
    pub operands: Vec<Sharding>,
    /// What it gives.
    pub results: Vec<Sharding>,
    /// The factor that the tensor axes shard, if any, together with what is minor to it.
    pub tensor_factor: Option<usize>,
    /// How ranks compute it together, if they do: some axes then cut two factors.
    pub joint: Option<JointKind>,
}

impl NodeOption {
    fn new(rule: &ShardingRule, map: FactorMap, tensor_factor: Option<usize>) -> NodeOption {
        let operands = (0..rule.operands.len()).map(|i| rule.operand_sharding(i, &map)).collect();
        let results = (0..rule.results.len()).map(|i| rule.result_sharding(i, &map)).collect();
        NodeOption { map, operands, results, tensor_factor, joint: None }
    }
}

/// What an op's options depend on besides its rule.
pub struct OptionContext<'a> {
    /// The mesh, its micro-batches included.
    pub mesh: &'a Mesh,
    /// Data, context and tensor axes.
    pub split: &'a Split,
    /// The factor that is the batch.
    pub batch: Option<usize>,
    /// The factor that is the sequence.
    pub sequence: Option<usize>,
    /// The factor that counts the heads of an attention, those of its keys if they are fewer.
    pub heads: Option<usize>,
    /// The factor that counts experts.
    pub experts: Option<usize>,
    /// The rule of an op that ranks can compute together.
    pub joint: Option<&'a ShardingRule>,
    /// Whether the op runs once a step on the whole batch.
    pub whole_batch: bool,
}

/// All options of an op; none if the batch does not divide.
pub fn options(rule: &ShardingRule, cx: &OptionContext<'_>) -> Vec<NodeOption> {
    let mut base = FactorMap::replicated(rule);
    if let Some(batch) = cx.batch {
        if !cx.whole_batch && cx.mesh.micro_batches() > 1 {
            base.axes[batch].push(Mesh::MB);
        }
        base.axes[batch].extend(&cx.split.data);
        if !divides(rule, batch, &base.axes[batch], cx.mesh) {
            return Vec::new();
        }
    }
    let mut bases = vec![base.clone()];
    if let (Some(batch), Some(experts)) = (cx.batch, cx.experts) {
        let over = over_data_axes(&base, batch, experts, &cx.split.data);
        bases.extend(over.into_iter().filter(|map| divides(rule, experts, &map.axes[experts], cx.mesh)));
    }
    let all = bases.into_iter().flat_map(|base| over_context_and_tensor_axes(rule, base, cx));
    all.chain(routed(&base, cx)).collect()
}

/// The options of a mixture whose tokens travel: the fastest data axes cut the experts and the batch, fewest first.
fn routed(base: &FactorMap, cx: &OptionContext<'_>) -> Vec<NodeOption> {
    let (Some(rule), Some(_), Some(experts)) = (cx.joint, cx.batch, cx.experts) else { return Vec::new() };
    let data = &cx.split.data;
    let over = |n: usize| {
        let mut map = base.clone();
        map.axes[experts].extend(&data[data.len() - n..]);
        map
    };
    let fits = |map: &FactorMap| divides(rule, experts, &map.axes[experts], cx.mesh);
    let options = (1..=data.len()).map(over).filter(fits).flat_map(|map| over_context_and_tensor_axes(rule, map, cx));
    options.map(|option| NodeOption { joint: Some(JointKind::Routed), ..option }).collect()
}

/// The options of an op with a sequence have it over the context axes. An attention may have its heads there instead (DeepSpeed-Ulysses,
/// Jacobs et al., 2023): minor to what the tensor axes cut, so that the context axes move from one dimension to the other and back.
fn over_context_and_tensor_axes(rule: &ShardingRule, base: FactorMap, cx: &OptionContext<'_>) -> Vec<NodeOption> {
    let Split { context, tensor, .. } = cx.split;
    if context.is_empty() {
        return over_axes(rule, &base, tensor, cx);
    }
    let mut along_sequence = base.clone();
    if let Some(sequence) = cx.sequence.filter(|&f| rule.is_shardable(f) && base.axes[f].is_empty()) {
        along_sequence.axes[sequence].extend(context);
        if !divides(rule, sequence, &along_sequence.axes[sequence], cx.mesh) {
            along_sequence = base.clone();
        }
    }
    let mut all = over_axes(rule, &along_sequence, tensor, cx);
    let along_heads = cx.heads.filter(|&f| rule.is_shardable(f));
    all.extend(along_heads.into_iter().flat_map(|f| over_factor(rule, &base, f, &[&tensor[..], context].concat(), cx)));
    all
}

/// The options that leave a map as it is, or put one factor over the axes.
fn over_axes(rule: &ShardingRule, base: &FactorMap, axes: &[AxisId], cx: &OptionContext<'_>) -> Vec<NodeOption> {
    let mut all = with_rings(rule, NodeOption::new(rule, base.clone(), None), cx);
    if !axes.is_empty() {
        let factors = (0..rule.factors.len()).filter(|&f| rule.is_shardable(f));
        all.extend(factors.flat_map(|factor| over_factor(rule, base, factor, axes, cx)));
    }
    all
}

/// The options that put one factor over the axes.
fn over_factor(
    rule: &ShardingRule,
    base: &FactorMap,
    factor: usize,
    axes: &[AxisId],
    cx: &OptionContext<'_>,
) -> Vec<NodeOption> {
    let mut map = base.clone();
    map.axes[factor].extend(axes);
    let option = match divides(rule, factor, &map.axes[factor], cx.mesh) {
        true => Some(NodeOption::new(rule, map, Some(factor))),
        false if cx.batch != Some(factor) => cut_into_single(rule, factor, base, axes, cx.mesh),
        false => None,
    };
    option.into_iter().flat_map(|option| with_rings(rule, option, cx)).collect()
}

/// An option, and where it cuts the queries the rings beside it: a causal one, whose queries know their place, also in a zigzag.
fn with_rings(rule: &ShardingRule, option: NodeOption, cx: &OptionContext<'_>) -> Vec<NodeOption> {
    let mut all = vec![option];
    let ring = cx.joint.filter(|_| cx.experts.is_none());
    let (Some(ring), Some(&[queries])) = (ring, rule.operands.first().and_then(|q| q.get(1)).map(|fs| &fs[..])) else {
        return all;
    };
    let map = all[0].map.clone();
    if map.axes[queries].is_empty() {
        return all;
    }
    let is_cut = divides(ring, queries, &map.axes[queries], cx.mesh);
    let has_chunks = ring.factors[queries].kind == FactorKind::Offset
        && ring.factors[queries].size.is_multiple_of(2 * cx.mesh.product(&map.axes[queries]));
    let kinds = [(JointKind::Ring, is_cut), (JointKind::Zigzag, is_cut && has_chunks)];
    let tensor_factor = all[0].tensor_factor;
    let option = |kind| NodeOption { joint: Some(kind), ..NodeOption::new(ring, map.clone(), tensor_factor) };
    all.extend(kinds.into_iter().filter(|(_, fits)| *fits).map(|(kind, _)| option(kind)));
    all
}

/// A factor smaller than the tensor degree, such as the heads of keys, is cut into single elements by the first axes; the
/// others cut what is minor to it, such as the queries of each of these heads, or else compute the same.
fn cut_into_single(
    rule: &ShardingRule,
    factor: usize,
    base: &FactorMap,
    axes: &[AxisId],
    mesh: &Mesh,
) -> Option<NodeOption> {
    let parts = |n: usize| mesh.product(&base.axes[factor]) * mesh.product(&axes[..n]);
    let n = (0..axes.len()).find(|&n| parts(n) == rule.factors[factor].size)?;
    let mut map = base.clone();
    map.axes[factor].extend(&axes[..n]);
    if let Some(minor) = rule.minor_of(factor) {
        map.axes[minor].extend(&axes[n..]);
        if rule.takes(&map, mesh) {
            return Some(NodeOption::new(rule, map, Some(factor)));
        }
        map.axes[minor].truncate(base.axes[minor].len());
    }
    (n > 0).then(|| NodeOption::new(rule, map, Some(factor)))
}

/// The maps in which the fastest data axes go from the batch to the experts, fewest first.
fn over_data_axes(base: &FactorMap, batch: usize, experts: usize, data: &[AxisId]) -> Vec<FactorMap> {
    let moved = |n: usize| {
        let mut map = base.clone();
        let kept = map.axes[batch].len() - n;
        map.axes[experts] = map.axes[batch].split_off(kept);
        map
    };
    (1..=data.len()).map(moved).collect()
}

fn divides(rule: &ShardingRule, factor: usize, axes: &[AxisId], mesh: &Mesh) -> bool {
    rule.factors[factor].size.is_multiple_of(mesh.product(axes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use galvatron_ir::op::comm::routed_of;
    use galvatron_ir::op::compute::{Moe, UnaryKind};
    use galvatron_ir::op::{Op, OpDef};
    use galvatron_ir::types::TensorType;

    /// What cuts the tokens, and what the experts, under every option of a mixture of four experts on two data axes.
    #[test]
    fn experts_take_data_axes_from_the_batch_or_share_them() {
        let f32 = |shape: &[u64]| TensorType::f32(shape.to_vec());
        let (inner, choices) = (f32(&[4, 6, 3]), TensorType::i64([8, 2]));
        let args = [f32(&[8, 3]), f32(&[8, 2]), choices, inner.clone(), inner, f32(&[4, 3, 6])];
        let args: Vec<&TensorType> = args.iter().collect();
        let (mesh, mixture) = (Mesh::from_levels(&[4], 1), Moe { activation: UnaryKind::Silu, experts: 4 });
        let routed = routed_of(&Op::from(mixture), &[]).expect("a mixture is routed").rule(&args, &args[..1]);
        let data: Vec<AxisId> = mesh.spatial().collect();
        let (rule, split) = (mixture.rule(&args, &args[..1]), Split { data, context: Vec::new(), tensor: Vec::new() });
        let [batch, experts] = [rule.operands[0][0][0], rule.operands[3][0][0]];
        let cx = OptionContext {
            mesh: &mesh,
            split: &split,
            batch: Some(batch),
            sequence: None,
            heads: None,
            experts: Some(experts),
            joint: Some(&routed),
            whole_batch: false,
        };
        let cuts = |option: &NodeOption| {
            let axes = |i: usize| option.operands[i].dims[0].iter().map(|axis| axis.index()).collect::<Vec<_>>();
            (axes(0), axes(3), option.results[0].is_partial(), option.joint.is_some())
        };
        let expected = [
            (vec![1, 2], vec![], false, false),
            (vec![1], vec![2], true, false),
            (vec![], vec![1, 2], true, false),
            (vec![1, 2], vec![2], false, true),
            (vec![1, 2], vec![1, 2], false, true),
        ];
        assert_eq!(options(&rule, &cx).iter().map(cuts).collect::<Vec<_>>(), expected);
    }
}
