//! Prices one segment under one split of the mesh: per option of each op, and per pair of options where a value flows.

use super::experts::{Experts, experts_of};
use super::options::{NodeOption, OptionContext, options};
use super::recompute::Recompute;
use super::sequence::Sequences;
use super::solver::{Cost, Edge, Problem, Var};
use super::split::Split;
use super::weights::{Holding, Reduction, gradient_partial, weight_placement};
use crate::apply::bucket::{BUCKET_BYTES, SMALL_BYTES};
use crate::batch::BatchFactors;
use crate::cost::{Collective, CostModel, Types};
use crate::joint::{JointKind, joint_axes, joint_of};
use crate::rules::{Cuttable, Rules};
use crate::strategy::WeightPlacement;
use galvatron_ir::graph::Node;
use galvatron_ir::mesh::{FactorMap, Mesh, Sharding};
use galvatron_ir::module::Program;
use galvatron_ir::op::compute::SumSquares;
use galvatron_ir::op::mem::Update;
use galvatron_ir::op::{Alias, Op};
use galvatron_ir::types::TensorType;
use galvatron_ir::{AxisId, NodeId, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// What pricing reads of the training program; the same for all segments.
pub struct Facts<'a> {
    /// The training program.
    pub program: &'a Program,
    /// The rules of its nodes.
    pub rules: Rules,
    /// Batch factors of the forward nodes.
    pub batch: BatchFactors,
    /// Their sequences.
    pub sequences: Sequences,
    /// Backward nodes by forward node.
    pub backward: BTreeMap<NodeId, Vec<NodeId>>,
    /// Forward values that some backward node reads.
    pub saved: BTreeSet<ValueId>,
    /// Values through which a gradient flows.
    pub has_gradient: BTreeSet<ValueId>,
    /// The optimizer node of each weight.
    pub optimizer: BTreeMap<ValueId, NodeId>,
    /// The node that adds up the gradient contributions of a value.
    pub sums: BTreeMap<ValueId, NodeId>,
    /// Weights that several segments read.
    pub shared: BTreeSet<ValueId>,
    /// All weights.
    pub weights: BTreeSet<ValueId>,
    /// What a pinned tensor degree cuts.
    pub cuttable: Cuttable,
}

impl Facts<'_> {
    /// Whether the gradient of a node reads a value that the node read.
    fn is_read_again(&self, node: NodeId, value: ValueId) -> bool {
        let reads = |n: &NodeId| self.program.graph.node(*n).args.contains(&value);
        self.backward.get(&node).is_some_and(|nodes| nodes.iter().any(reads))
    }

    /// Whether the optimizer of a weight has states.
    pub(super) fn has_states(&self, weight: ValueId) -> bool {
        self.program.states.iter().any(|state| state.weight == weight)
    }

    /// An op that turns data into something without a batch before anything is trained on it: the count of labels.
    pub(super) fn is_whole_batch(&self, node: NodeId) -> bool {
        let n = self.program.graph.node(node);
        let has_batch = |v: &ValueId| self.batch.dims.contains_key(v);
        n.args.iter().any(has_batch)
            && !n.results.iter().any(has_batch)
            && !n.results.iter().any(|r| self.has_gradient.contains(r))
    }
}

/// A segment with its boundary.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Its nodes, in order.
    pub nodes: Vec<NodeId>,
    /// The value that enters from the segment before.
    pub input: Option<ValueId>,
    /// The value that leaves to the next segment.
    pub output: Option<ValueId>,
    /// The weights whose cost this segment carries.
    pub owned: BTreeSet<ValueId>,
    /// Positions of sibling nodes, group by group.
    pub siblings: Vec<Vec<usize>>,
}

impl Piece {
    /// What enters and what leaves from one placement of boundary values, where there is something.
    pub fn ends<'s>(&self, placed: Option<&'s Sharding>) -> (Option<&'s Sharding>, Option<&'s Sharding>) {
        (placed.filter(|_| self.input.is_some()), placed.filter(|_| self.output.is_some()))
    }
}

/// A group of sibling nodes that are decided together: equal ops on the same values.
pub struct Group {
    /// Positions of its nodes in the piece.
    pub members: Vec<usize>,
    /// Their common options.
    pub options: Vec<NodeOption>,
}

/// Which options of a node are allowed.
pub type Filter<'f> = &'f dyn Fn(NodeId, &NodeOption) -> bool;

/// The groups of a piece with their options; `None` where some op has none (the batch does not divide).
pub fn groups(facts: &Facts<'_>, piece: &Piece, mesh: &Mesh, split: &Split, filter: Filter<'_>) -> Option<Vec<Group>> {
    let mut groups = Vec::new();
    for members in piece.siblings.iter().cloned() {
        let first = piece.nodes[members[0]];
        let rule = &facts.rules[first];
        let mut options = options(rule, &OptionContext::of(facts, first, split, mesh));
        options.retain(|o| filter(first, o));
        if options.is_empty() {
            return None;
        }
        groups.push(Group { members, options });
    }
    Some(groups)
}

/// Prices of one option of one node, in nanoseconds for one micro-batch and bytes.
pub(super) struct OptionPrice {
    pub(super) forward_ns: u64,
    pub(super) backward_ns: u64,
    pub(super) saved_bytes: u64,
    /// To copy what is saved to host memory or back, in each micro-batch.
    pub(super) offload_ns: u64,
    pub(super) weights: [WeightPrice; 4],
}

/// A weight as one node reads it under one option.
struct WeightUse<'a> {
    node: NodeId,
    weight: ValueId,
    operand: &'a Sharding,
    map: &'a FactorMap,
}

/// Price of the weights of one option at one ZeRO level.
#[derive(Clone, Copy, Default)]
pub(super) struct WeightPrice {
    /// What is computed for the gradient in each micro-batch.
    pub(super) micro_batch_ns: u64,
    /// What is communicated beside the forward and the backward pass of each.
    pub(super) forward_ns: u64,
    pub(super) backward_ns: u64,
    pub(super) reduce_ns: u64,
    pub(super) step_ns: u64,
    pub(super) bytes: u64,
    /// What of these bytes is optimizer state, and the time to copy that from host memory and back.
    pub(super) state_bytes: u64,
    pub(super) state_ns: u64,
}

/// A segment priced under one split, ready to be made into problems.
pub struct Priced<'a> {
    pub(super) facts: &'a Facts<'a>,
    /// Costs on the devices of a stage.
    pub(super) model: &'a CostModel,
    pub(super) piece: &'a Piece,
    pub(super) mesh: &'a Mesh,
    /// The split, and its axes whose ranks compute with the same weights.
    split: Split,
    replicas: Vec<AxisId>,
    pub(super) groups: Vec<Group>,
    /// By group, member and option.
    pub(super) prices: Vec<Vec<Vec<OptionPrice>>>,
    pub(super) group_of: BTreeMap<NodeId, usize>,
}

impl<'a> Priced<'a> {
    /// Prices every option; `None` where some op has none (the batch does not divide).
    pub fn new(
        (facts, model): (&'a Facts<'a>, &'a CostModel),
        piece: &'a Piece,
        mesh: &'a Mesh,
        split: &Split,
        filter: Filter<'_>,
    ) -> Option<Priced<'a>> {
        let groups = groups(facts, piece, mesh, split, filter)?;
        let (replicas, split) = (split.replicas(), split.clone());
        let (groups_so_far, prices, group_of) = (Vec::new(), Vec::new(), BTreeMap::new());
        let mut priced = Priced { facts, model, piece, mesh, split, replicas, groups: groups_so_far, prices, group_of };
        for (i, group) in groups.iter().enumerate() {
            let nodes = group.members.iter().map(|&m| piece.nodes[m]);
            priced
                .prices
                .push(nodes.clone().map(|n| group.options.iter().map(|o| priced.price(n, o)).collect()).collect());
            priced.group_of.extend(nodes.map(|n| (n, i)));
        }
        priced.groups = groups;
        Some(priced)
    }

    fn price(&self, node: NodeId, option: &NodeOption) -> OptionPrice {
        let program = self.facts.program;
        let n = program.graph.node(node);
        let forward_ns = match option.joint {
            Some(kind) => self.joint_ns(node, kind, &option.operands, &option.results),
            None => self.op_ns(node, &option.operands, &option.results),
        };
        let is_view = matches!(n.op.alias(), Alias::View(i) if self.facts.saved.contains(&n.args[i]));
        let saved = n.results.iter().zip(&option.results);
        let saved = saved.filter(|(r, _)| self.facts.saved.contains(r) && !n.args.is_empty() && !is_view);
        let saved: Vec<u64> = saved.map(|(&r, s)| self.bytes(r, s)).collect();
        let mut weights = [WeightPrice::default(); 4];
        for (i, arg) in n.args.iter().enumerate().filter(|(_, a)| self.facts.weights.contains(a)) {
            let used = WeightUse { node, weight: *arg, operand: &option.operands[i], map: &option.map };
            for (zero, price) in weights.iter_mut().enumerate() {
                self.add_weight(price, &used, zero as u8);
            }
        }
        OptionPrice {
            forward_ns,
            backward_ns: self.backward_ns(node, option),
            saved_bytes: saved.iter().sum(),
            offload_ns: saved.iter().map(|&bytes| self.model.host_copy_ns(bytes)).sum(),
            weights,
        }
    }

    /// Share that some contributions have in adding up the gradient of a value.
    pub(super) fn share_of_sum_ns(&self, value: ValueId, sharding: &Sharding, n_contributions: u64) -> u64 {
        let n_all = self.facts.sums.get(&value).map_or(1, |&sum| self.facts.program.graph.node(sum).args.len() as u64);
        self.sum_ns(value, sharding) * n_contributions / n_all
    }

    /// Time to add up the gradient contributions of a value that lie as `sharding` says.
    fn sum_ns(&self, value: ValueId, sharding: &Sharding) -> u64 {
        let Some(&sum) = self.facts.sums.get(&value) else { return 0 };
        let parts = vec![sharding.clone(); self.facts.program.graph.node(sum).args.len()];
        self.op_ns(sum, &parts, std::slice::from_ref(sharding))
    }

    fn backward_ns(&self, node: NodeId, option: &NodeOption) -> u64 {
        let Some(nodes) = self.facts.backward.get(&node) else { return 0 };
        nodes
            .iter()
            .map(|&b| {
                let rules = &self.facts.rules;
                let joint = rules.joint(b).filter(|_| option.joint.is_some());
                let kind = option.joint.filter(|_| joint.is_some());
                let (rule, map) = (joint.unwrap_or(&rules[b]), rules.inherit(b, &option.map));
                let operands: Vec<_> = (0..rule.operands.len()).map(|i| rule.operand_sharding(i, &map)).collect();
                let results: Vec<_> = (0..rule.results.len()).map(|i| rule.result_sharding(i, &map)).collect();
                match kind {
                    Some(kind) => self.joint_ns(b, kind, &operands, &results),
                    None => self.op_ns(b, &operands, &results),
                }
            })
            .sum()
    }

    fn op_ns(&self, node: NodeId, operands: &[Sharding], results: &[Sharding]) -> u64 {
        let n = self.facts.program.graph.node(node);
        self.with_types(node, operands, results, |whole, local| self.model.node_ns(n.layer, &n.op, whole, local))
    }

    /// Time of a node that ranks compute together.
    fn joint_ns(&self, node: NodeId, kind: JointKind, operands: &[Sharding], results: &[Sharding]) -> u64 {
        let op = joint_of(self.facts.program, node, &joint_axes(kind, operands), kind);
        let op = op.expect("invariant: the option is one of the node");
        let layer = self.facts.program.graph.node(node).layer;
        self.with_types(node, operands, results, |whole, local| {
            let times = self.model.joint_times(layer, &op, self.mesh, whole, local).unwrap_or_default();
            times.compute_ns + times.communication_ns
        })
    }

    /// Looks something up by the types of a node in the whole program and on one rank.
    fn with_types(
        &self,
        node: NodeId,
        operands: &[Sharding],
        results: &[Sharding],
        look: impl FnOnce(Types<'_>, Types<'_>) -> u64,
    ) -> u64 {
        let (graph, n) = (&self.facts.program.graph, self.facts.program.graph.node(node));
        let args: Vec<TensorType> = n.args.iter().zip(operands).map(|(&a, s)| self.local(a, s)).collect();
        let outs: Vec<TensorType> = n.results.iter().zip(results).map(|(&r, s)| self.local(r, s)).collect();
        let whole = (&graph.types(&n.args)[..], &graph.types(&n.results)[..]);
        look(whole, (&args.iter().collect::<Vec<_>>(), &outs.iter().collect::<Vec<_>>()))
    }

    fn local(&self, value: ValueId, sharding: &Sharding) -> TensorType {
        let ty = &self.facts.program.graph.value(value).ty;
        let shape = sharding.local_shape(&ty.shape, self.mesh).unwrap_or_else(|_| ty.shape.clone());
        ty.with_shape(shape)
    }

    /// A rank's part of the f32 gradient or state of a weight.
    fn wide(&self, weight: ValueId, sharding: &Sharding) -> TensorType {
        TensorType::f32(self.local(weight, sharding).shape)
    }

    pub(super) fn bytes(&self, value: ValueId, sharding: &Sharding) -> u64 {
        self.local(value, sharding).bytes()
    }

    /// Placement of a weight that an op reads under a map.
    pub fn weight_placement(&self, weight: ValueId, operand: &Sharding, map: &FactorMap, zero: u8) -> WeightPlacement {
        let ty = &self.facts.program.graph.value(weight).ty;
        let reduction = Reduction::of(operand, map, &self.replicas);
        match self.facts.shared.contains(&weight) {
            true => weight_placement(&Sharding::replicated(ty.rank()), &reduction, zero, ty, self.mesh),
            false => weight_placement(operand, &reduction, zero, ty, self.mesh),
        }
    }

    fn add_weight(&self, price: &mut WeightPrice, used: &WeightUse<'_>, zero: u8) {
        let (weight, operand) = (used.weight, used.operand);
        let placed = self.weight_placement(weight, operand, used.map, zero);
        let ty = &self.facts.program.graph.value(weight).ty;
        let reshard_as = |from: &Sharding, to: &Sharding, ty: &TensorType| {
            self.model.reshard_ns(from, to, ty, self.mesh).unwrap_or(0)
        };
        let reshard = |from: &Sharding, to: &Sharding| reshard_as(from, to, ty);
        let wide = TensorType::f32(ty.shape.clone());
        let owned = self.piece.owned.contains(&weight);
        // A gathered parameter is dropped after the forward pass; a backward pass that reads it gathers it again.
        let gather_ns = reshard(&placed.parameter, operand);
        price.forward_ns += gather_ns;
        price.backward_ns += u64::from(self.facts.is_read_again(used.node, weight)) * gather_ns;
        if owned {
            price.bytes += self.bytes(weight, &placed.parameter);
        }
        let Some(&optimizer) = self.facts.optimizer.get(&weight) else { return };
        let gradient = Sharding { dims: operand.dims.clone(), partial: gradient_partial(operand, used.map) };
        // Contributions that lie alike are summed before they are reduced.
        if owned || gradient.dims.iter().any(|axes| !axes.is_empty()) {
            price.backward_ns += reshard_as(&gradient, &placed.accumulator, &wide);
        }
        if !owned {
            return;
        }
        let has_master = u64::from(*ty != wide);
        let n_states = self.facts.program.graph.node(optimizer).results.len() as u64 - 1 + has_master;
        let accumulator = self.wide(weight, &placed.accumulator).bytes();
        if self.mesh.micro_batches() > 1 {
            price.micro_batch_ns += self.model.copy_ns(3 * accumulator);
        }
        // With one micro-batch the gradient is a temporary of the backward pass, whose activations it replaces.
        let kept = if self.mesh.micro_batches() > 1 { accumulator } else { 0 };
        let state = self.wide(weight, &placed.state).bytes();
        price.state_bytes += n_states * state;
        price.state_ns += 2 * n_states * self.model.host_copy_ns(state);
        price.bytes += kept + n_states * state;
        price.micro_batch_ns += self.sum_ns(weight, operand);
        price.reduce_ns += self.reduce_ns(weight, &placed);
        price.step_ns += self.optimizer_ns(optimizer, weight, &placed.state);
        if placed.parameter != placed.state {
            let copy: Op = Update.into();
            let whole = self.local(weight, &placed.parameter);
            // A master copy already lies where the optimizer reads it.
            let read = if has_master > 0 { 0 } else { reshard(&placed.parameter, &placed.state) };
            price.step_ns += read + reshard(&placed.state, &placed.parameter);
            price.step_ns += self.model.op_ns(&copy, &[&whole, &whole], &[]);
        }
    }

    /// Time to reduce an accumulated gradient once a step. A small one shares the latency of its bucket.
    fn reduce_ns(&self, weight: ValueId, placed: &WeightPlacement) -> u64 {
        let model = self.model;
        let ty = TensorType::f32(self.facts.program.graph.value(weight).ty.shape.clone());
        let all = model.reshard_ns(&placed.accumulator, &placed.state, &ty, self.mesh).unwrap_or(0);
        let bytes = self.wide(weight, &placed.accumulator).bytes();
        if placed.accumulator.dims != placed.state.dims || bytes > SMALL_BYTES {
            return all;
        }
        let latency = model.collective_ns(Collective::AllReduce, self.mesh, &placed.accumulator.partial, 0);
        all - latency + (u128::from(latency) * u128::from(bytes) / u128::from(BUCKET_BYTES)) as u64
    }

    fn optimizer_ns(&self, optimizer: NodeId, weight: ValueId, state: &Sharding) -> u64 {
        let n = self.facts.program.graph.node(optimizer);
        let scalar = TensorType::f32([]);
        let local = self.wide(weight, state);
        let is_tensor = |v: &ValueId| self.facts.program.graph.value(*v).ty.rank() > 0;
        let args: Vec<&TensorType> = n.args.iter().map(|a| if is_tensor(a) { &local } else { &scalar }).collect();
        let results = vec![&local; n.results.len()];
        let squares: Op = SumSquares.into();
        self.model.op_ns(&n.op, &args, &results) + self.model.op_ns(&squares, &[&local], &[&scalar])
    }

    /// The groups of siblings.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The split of the mesh.
    pub fn split(&self) -> &Split {
        &self.split
    }

    /// The first node of a group.
    pub fn node(&self, group: &Group) -> &Node {
        self.facts.program.graph.node(self.piece.nodes[group.members[0]])
    }

    /// Whether a value is a weight.
    pub fn is_weight(&self, value: ValueId) -> bool {
        self.facts.weights.contains(&value)
    }

    /// Where the experts of the segment's mixtures lie under an assignment.
    pub fn experts(&self, assignment: &[usize]) -> Experts {
        let experts = |(group, &option): (&Group, &usize)| self.experts_of(group, option);
        self.groups.iter().zip(assignment).filter_map(experts).max().unwrap_or_default()
    }

    /// Where the experts of the segment's mixtures may lie; `None` where it has no mixture.
    pub fn all_experts(&self) -> Vec<Option<Experts>> {
        let all = self.groups.iter().flat_map(|g| (0..g.options.len()).map(|option| self.experts_of(g, option)));
        let all: BTreeSet<Option<Experts>> = all.collect();
        if all.len() > 1 { all.into_iter().filter(Option::is_some).collect() } else { vec![None] }
    }

    fn experts_of(&self, group: &Group, option: usize) -> Option<Experts> {
        experts_of(self.facts, self.piece.nodes[group.members[0]], &group.options[option], self.mesh)
    }

    /// The problem without the options under which experts lie elsewhere.
    pub fn with_experts(&self, mut problem: Problem, experts: Experts) -> Problem {
        for (var, group) in problem.vars.iter_mut().zip(&self.groups) {
            for (option, cost) in var.domain.iter_mut().enumerate() {
                if self.experts_of(group, option).is_some_and(|found| found != experts) {
                    *cost = Cost::FORBIDDEN;
                }
            }
        }
        problem
    }

    /// Group, position and value of every operand that is no weight.
    pub(super) fn operands(&self) -> impl Iterator<Item = (usize, usize, ValueId)> {
        self.groups.iter().enumerate().flat_map(|(j, group)| {
            let args = &self.facts.program.graph.node(self.piece.nodes[group.members[0]]).args;
            let all = args.iter().enumerate().map(move |(k, &value)| (j, k, value));
            all.filter(|(_, _, value)| !self.facts.weights.contains(value))
        })
    }

    /// The problem of choosing options, with what borders and edges cost under a recomputation mode, a way to hold weights, and the number of
    /// micro-batches whose activations are kept at one time.
    pub fn problem(
        &self,
        (border, edges): (&[(usize, Vec<Cost>)], &[Edge]),
        recompute: &Recompute,
        holding: Holding,
        in_flight: u64,
    ) -> Problem {
        let mut vars: Vec<Var> = (0..self.groups.len())
            .map(|i| Var { domain: self.unaries(i, recompute, holding, in_flight).collect() })
            .collect();
        for (group, costs) in border {
            vars[*group].domain.iter_mut().zip(costs).for_each(|(cost, more)| *cost = cost.plus(*more));
        }
        Problem { vars, edges: edges.to_vec() }
    }
}

/// Groups of nodes that apply equal ops to the same computed values with weights of equal types: query, key and value projections.
pub fn siblings(program: &Program, nodes: &[NodeId]) -> Vec<Vec<usize>> {
    let weights: BTreeSet<ValueId> = program.weights.iter().map(|w| w.value).collect();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut known: BTreeMap<(Op, Vec<Result<ValueId, TensorType>>), usize> = BTreeMap::new();
    for (i, &id) in nodes.iter().enumerate() {
        let node = program.graph.node(id);
        let operand = |a: &ValueId| if weights.contains(a) { Err(program.graph.value(*a).ty.clone()) } else { Ok(*a) };
        let args: Vec<_> = node.args.iter().map(operand).collect();
        let sharing = args.iter().any(Result::is_ok) && args.iter().any(Result::is_err);
        match known.get(&(node.op.clone(), args.clone())).filter(|_| sharing) {
            Some(&group) => groups[group].push(i),
            None => {
                known.insert((node.op.clone(), args), groups.len());
                groups.push(vec![i]);
            }
        }
    }
    groups
}
