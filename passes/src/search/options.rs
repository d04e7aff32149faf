//! The placements that an op may take: its batch over the data axes, one more factor (or none) over the tensor axes. Experts may
//! take data axes from the batch.

use crate::rings::RingKind;
use galvatron_ir::AxisId;
use galvatron_ir::mesh::{FactorKind, FactorMap, Mesh, Sharding, ShardingRule};

/// A split of the mesh: the data axes shard the batch of a layer's boundary, the tensor axes whatever each op chooses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Split {
    /// Slower axes.
    pub data: Vec<AxisId>,
    /// Faster axes.
    pub tensor: Vec<AxisId>,
}

impl Split {
    /// All splits of the spatial axes into two contiguous runs, fewest tensor axes first.
    pub fn all(mesh: &Mesh) -> Vec<Split> {
        let axes: Vec<AxisId> = mesh.spatial().collect();
        (0..=axes.len()).rev().map(|cut| Split { data: axes[..cut].to_vec(), tensor: axes[cut..].to_vec() }).collect()
    }
}

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
    /// If keys and values are cut as the queries are, and travel around a ring, which.
    pub ring: Option<RingKind>,
}

impl NodeOption {
    fn new(rule: &ShardingRule, map: FactorMap, tensor_factor: Option<usize>) -> NodeOption {
        let operands = (0..rule.operands.len()).map(|i| rule.operand_sharding(i, &map)).collect();
        let results = (0..rule.results.len()).map(|i| rule.result_sharding(i, &map)).collect();
        NodeOption { map, operands, results, tensor_factor, ring: None }
    }
}

/// What an op's options depend on besides its rule.
pub struct OptionContext<'a> {
    /// The mesh, its micro-batches included.
    pub mesh: &'a Mesh,
    /// Data and tensor axes.
    pub split: &'a Split,
    /// The factor that is the batch.
    pub batch: Option<usize>,
    /// The factor that counts experts.
    pub experts: Option<usize>,
    /// The rule of an attention as a ring, if it has one.
    pub ring: Option<&'a ShardingRule>,
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
    bases.into_iter().flat_map(|base| over_tensor_axes(rule, base, cx)).collect()
}

/// The options that leave a map as it is, or put one factor over the tensor axes.
fn over_tensor_axes(rule: &ShardingRule, base: FactorMap, cx: &OptionContext<'_>) -> Vec<NodeOption> {
    let mut all = vec![NodeOption::new(rule, base.clone(), None)];
    if cx.split.tensor.is_empty() {
        return all;
    }
    for factor in (0..rule.factors.len()).filter(|&f| rule.is_shardable(f)) {
        let mut map = base.clone();
        map.axes[factor].extend(&cx.split.tensor);
        if divides(rule, factor, &map.axes[factor], cx.mesh) {
            all.push(NodeOption::new(rule, map.clone(), Some(factor)));
            all.extend(rings(rule, &map, factor, cx));
        } else if cx.batch != Some(factor) {
            all.extend(cut_into_single(rule, factor, &base, cx));
        }
    }
    all
}

/// The rings beside the option that cuts the queries: a causal one, whose queries know their place, also in a zigzag.
fn rings(rule: &ShardingRule, map: &FactorMap, factor: usize, cx: &OptionContext<'_>) -> Vec<NodeOption> {
    let Some(ring) = cx.ring.filter(|_| rule.operands[0][1][..] == [factor]) else { return Vec::new() };
    let is_cut = divides(ring, factor, &map.axes[factor], cx.mesh);
    let sequence = ring.factors[factor].size;
    let has_chunks = ring.factors[factor].kind == FactorKind::Offset
        && sequence.is_multiple_of(2 * cx.mesh.product(&map.axes[factor]));
    let kinds = [(RingKind::Blocks, is_cut), (RingKind::Zigzag, is_cut && has_chunks)];
    let option = |kind| NodeOption { ring: Some(kind), ..NodeOption::new(ring, map.clone(), Some(factor)) };
    kinds.into_iter().filter(|(_, fits)| *fits).map(|(kind, _)| option(kind)).collect()
}

/// A factor smaller than the tensor degree, such as the heads of keys, is cut into single elements by the first axes; the
/// others cut what is minor to it, such as the queries of each of these heads, or else compute the same.
fn cut_into_single(rule: &ShardingRule, factor: usize, base: &FactorMap, cx: &OptionContext<'_>) -> Option<NodeOption> {
    let axes = &cx.split.tensor;
    let n = (0..axes.len()).find(|&n| cx.mesh.product(&axes[..n]) == rule.factors[factor].size)?;
    let mut map = base.clone();
    map.axes[factor].extend(&axes[..n]);
    if let Some(minor) = rule.minor_of(factor) {
        map.axes[minor].extend(&axes[n..]);
        if rule.takes(&map, cx.mesh) {
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
