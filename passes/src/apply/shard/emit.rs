//! Emitting nodes into phases, and fetching operands in the placement that a node needs.

use super::Sharder;
use super::copies::Copy;
use crate::joint::{JointKind, joint_axes, joint_of};
use galvatron_ir::mesh::{FactorMap, Mesh, Sharding, ShardingRule, reshard_steps};
use galvatron_ir::op::comm::Reshard;
use galvatron_ir::op::mem::{Accumulate, Load};
use galvatron_ir::op::{Effects, Op};
use galvatron_ir::plan::{Chunk, PhaseKind, ResidentRole};
use galvatron_ir::{AxisId, NodeId, ValueId};
use std::collections::BTreeSet;

impl<'a> Sharder<'a> {
    /// Emits a program node under a map: fetches its operands, places its results.
    pub fn emit(&mut self, node: NodeId, map: &FactorMap, phase: PhaseKind) {
        let rule = self.rule_of(node);
        let n = self.program.graph.node(node).clone();
        let wanted: Vec<Sharding> = (0..n.args.len()).map(|i| rule.operand_sharding(i, map)).collect();
        let args: Vec<ValueId> = n.args.iter().zip(&wanted).map(|(&a, s)| self.fetch(a, s, phase)).collect();
        let placements = (0..n.results.len()).map(|i| rule.result_sharding(i, map)).collect();
        self.emit_node(node, &args, placements, phase);
    }

    /// Emits a backward node. A sum over micro-batches stays partial through a node that is linear in it: only an
    /// accumulator resolves it.
    pub fn emit_backward(&mut self, node: NodeId, map: &FactorMap) {
        let rule = self.rule_of(node);
        let n = self.program.graph.node(node);
        self.import_all(&n.args, PhaseKind::Backward);
        let sum = (0..n.args.len()).find(|&i| self.is_lazy_sum(n.args[i]));
        let Some(sum) = sum.filter(|&i| rule.is_linear_alone(i)) else {
            return self.emit(node, map, PhaseKind::Backward);
        };
        let is_free = |a: &AxisId| !map.axes.iter().flatten().any(|b| b == a);
        let partial = self.copies.all(n.args[sum])[0].sharding.partial.iter().copied().filter(is_free).collect();
        let map = FactorMap { partial, ..map.clone() };
        let wanted = |i: usize| {
            let partial = if i == sum { map.partial.clone() } else { Vec::new() };
            Sharding { partial, ..rule.operand_sharding(i, &map) }
        };
        let args =
            (0..n.args.len()).map(|i| self.fetch(n.args[i], &wanted(i), PhaseKind::Backward)).collect::<Vec<_>>();
        let placements = (0..n.results.len()).map(|i| rule.result_sharding(i, &map)).collect();
        self.emit_node(node, &args, placements, PhaseKind::Backward);
    }

    /// Whether a value stays partial until its last use: a sum over micro-batches, or a step on the way to a gradient.
    fn is_lazy_sum(&self, value: ValueId) -> bool {
        let is_step = || {
            let node = self.program.graph.producer(value).map(|n| self.program.graph.node(n));
            node.is_some_and(|n| n.fwd.is_some()) && self.program.graph.value(value).grad_of.is_none()
        };
        let is_partial = || self.copies.all(value).first().is_some_and(|copy| copy.sharding.is_partial());
        self.copies.is_sum_over_micro_batches(value) || (is_partial() && is_step())
    }

    /// How ranks compute a node, and so its gradient, together.
    fn joint_kind(&self, node: NodeId) -> Option<JointKind> {
        let forward = self.program.graph.node(node).fwd.unwrap_or(node);
        self.strategy.joint.get(&forward).copied()
    }

    /// The factor rule of a node as it is emitted.
    fn rule_of(&self, node: NodeId) -> &'a ShardingRule {
        let joint = self.joint_kind(node).and_then(|_| self.rules.joint(node));
        joint.unwrap_or(&self.rules[node])
    }

    /// The op of a node as it is emitted.
    fn op_of(&self, node: NodeId, args: &[ValueId]) -> Op {
        let joint = self.joint_kind(node).filter(|_| self.rules.joint(node).is_some()).and_then(|kind| {
            let placed = args.iter().map(|&arg| self.chunk.graph.value(arg).sharding.clone());
            joint_of(self.program, node, &joint_axes(kind, &placed.collect::<Option<Vec<_>>>()?), kind)
        });
        joint.unwrap_or_else(|| self.program.graph.node(node).op.clone())
    }

    /// Emits a program node whose operands and result placements are known.
    pub fn emit_node(&mut self, node: NodeId, args: &[ValueId], placements: Vec<Sharding>, phase: PhaseKind) {
        let n = self.program.graph.node(node);
        let values = n.results.iter().map(|&r| self.program.graph.value(r));
        let (types, names) = values.map(|v| (v.ty.clone(), v.name.clone())).unzip();
        let names: Vec<String> = names;
        let op = self.op_of(node, args);
        let new = self.chunk.graph.add_typed(op, args, types, &names);
        self.chunk.graph.node_mut(new).layer = n.layer;
        self.chunk.phase_mut(phase).push(new);
        let results = self.chunk.graph.node(new).results.clone();
        for ((&of, value), sharding) in n.results.iter().zip(results).zip(placements) {
            self.record(of, value, sharding, phase);
        }
    }

    fn record(&mut self, of: ValueId, value: ValueId, sharding: Sharding, phase: PhaseKind) {
        self.chunk.graph.value_mut(value).of = Some(of);
        self.chunk.graph.value_mut(value).sharding = Some(sharding.clone());
        self.copies.add(of, Copy { value, sharding, phase: Some(phase) });
    }

    /// Emits a node without results.
    pub fn push(&mut self, op: Op, args: &[ValueId], phase: PhaseKind) -> NodeId {
        let node = self.chunk.graph.add_typed(op, args, Vec::new(), &[]);
        self.chunk.phase_mut(phase).push(node);
        node
    }

    /// The copy of a program value in a placement, for a phase: an existing one, a load, or a reshard of the nearest one.
    pub fn fetch(&mut self, of: ValueId, wanted: &Sharding, phase: PhaseKind) -> ValueId {
        self.import(of, phase);
        if let Some(copy) = self.copies.readable(of, phase).find(|c| c.sharding == *wanted) {
            return copy.value;
        }
        if let Some(resident) = self.resident_copy(of) {
            return self.reshard(of, &resident, wanted, phase);
        }
        if let Some(input) = self.program.inputs.iter().find(|i| i.value == of) {
            let load = Load { input: input.name.clone(), ty: self.program.graph.value(of).ty.clone() };
            return self.source(of, load.into(), wanted, phase);
        }
        if !phase.is_per_micro_batch() && self.copies.is_sum_over_micro_batches(of) {
            self.accumulate(of, None);
        }
        let nearest = self.nearest(of, wanted, phase);
        self.reshard(of, &nearest, wanted, phase)
    }

    fn resident_copy(&self, of: ValueId) -> Option<Copy> {
        let value = self.copies.find_resident(of)?;
        let sharding = self.chunk.graph.value(value).sharding.clone().expect("invariant: residents are placed");
        Some(Copy { value, sharding, phase: None })
    }

    pub fn source(&mut self, of: ValueId, op: Op, sharding: &Sharding, phase: PhaseKind) -> ValueId {
        let source = self.program.graph.value(of);
        let node = self.chunk.graph.add_typed(op, &[], vec![source.ty.clone()], std::slice::from_ref(&source.name));
        self.chunk.phase_mut(phase).push(node);
        let value = self.chunk.graph.node(node).results[0];
        self.record(of, value, sharding.clone(), phase);
        value
    }

    /// The readable copy from which the placement is reached with the fewest collectives.
    fn nearest(&self, of: ValueId, wanted: &Sharding, phase: PhaseKind) -> Copy {
        let distance = |copy: &Copy| {
            let steps = reshard_steps(&copy.sharding, wanted)?;
            Some(steps.iter().map(|s| if s.communicates() { 16 } else { 1 }).sum::<usize>())
        };
        self.copies
            .readable(of, phase)
            .filter_map(|c| Some((distance(c)?, c)))
            .min_by_key(|(d, _)| *d)
            .map(|(_, c)| c.clone())
            .unwrap_or_else(|| {
                let value = self.program.graph.value(of);
                panic!("invariant: `%{}` has a copy that reaches {wanted:?} in phase {}", value.name, phase.name())
            })
    }

    fn reshard(&mut self, of: ValueId, from: &Copy, wanted: &Sharding, phase: PhaseKind) -> ValueId {
        if from.sharding == *wanted {
            return from.value;
        }
        // What is known before the first micro-batch moves once a step.
        let once = from.phase == Some(PhaseKind::Prologue) && !wanted.is_sharded_over(Mesh::MB);
        let phase = if once { PhaseKind::Prologue } else { phase };
        let source = self.program.graph.value(of);
        let names = std::slice::from_ref(&source.name);
        let node = self.chunk.graph.add_typed(Reshard.into(), &[from.value], vec![source.ty.clone()], names);
        self.chunk.graph.node_mut(node).layer = self.layer;
        self.chunk.phase_mut(phase).push(node);
        let value = self.chunk.graph.node(node).results[0];
        self.record(of, value, wanted.clone(), phase);
        value
    }

    /// The gradient of a weight goes where its accumulator lives as soon as it is computed.
    pub fn sink_gradient(&mut self, of: ValueId) {
        if let Some(weight) = self.weight_of_gradient.get(&of) {
            let placement = self.strategy.weights[weight].accumulator.clone();
            self.accumulate(of, Some(placement));
        }
    }

    /// Sums a value over micro-batches into a resident; with one micro-batch only its placement changes.
    pub fn accumulate(&mut self, of: ValueId, placement: Option<Sharding>) {
        let last = self.copies.all(of).last().cloned().expect("invariant: summed values are computed");
        let phase = last.phase.expect("invariant: summed values are computed");
        let is_sum = last.sharding.partial.contains(&Mesh::MB);
        let placement = placement.unwrap_or_else(|| last.sharding.without(Mesh::MB));
        let mut before = placement.clone();
        if is_sum {
            before.partial.push(Mesh::MB);
            before.partial.sort();
        }
        let value = self.fetch(of, &before, phase);
        if is_sum && !self.accumulators.contains_key(&of) {
            let accumulator = self.declare(of, placement.clone(), ResidentRole::Accumulator);
            self.push(Accumulate.into(), &[accumulator, value], phase);
            self.accumulators.insert(of, accumulator);
            self.copies.add(of, Copy { value: accumulator, sharding: placement, phase: Some(PhaseKind::Reduce) });
        }
    }
}

/// Removes the nodes that nothing reads, that write nothing and that compute no reported value, in all chunks; a message that nobody
/// reads is not sent.
pub fn remove_dead(chunks: &mut [Chunk], reported: &[ValueId]) {
    let mut unread: BTreeSet<u32> = BTreeSet::new();
    loop {
        let n_unread = unread.len();
        for chunk in chunks.iter_mut().rev() {
            let dead = dead_nodes_of(chunk, reported, &unread);
            unread.extend(dead.iter().filter_map(|&n| match &chunk.graph.node(n).op {
                Op::Recv(recv) => Some(recv.channel),
                _ => None,
            }));
            for phase in &mut chunk.phases {
                phase.body.retain(|n| !dead.contains(n));
            }
        }
        if unread.len() == n_unread {
            return;
        }
    }
}

fn dead_nodes_of(chunk: &Chunk, reported: &[ValueId], unread: &BTreeSet<u32>) -> BTreeSet<NodeId> {
    let body: Vec<NodeId> = chunk.nodes().map(|(_, n)| n).collect();
    let keep = |id: NodeId| {
        let node = chunk.graph.node(id);
        let is_output = node.results.iter().any(|&r| chunk.graph.value(r).of.is_some_and(|v| reported.contains(&v)));
        let is_read = matches!(&node.op, Op::Send(send) if !unread.contains(&send.channel));
        node.op.effects() == Effects::Writes || is_output || is_read
    };
    galvatron_ir::graph::dead_nodes(&chunk.graph, &body, keep).into_iter().collect()
}
