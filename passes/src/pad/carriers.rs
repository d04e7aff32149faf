//! The values that carry an extent that is to be padded, and what becomes of the program.

use super::filling::{Filling, filling};
use crate::extents::{At, Changes, Extents, led_by};
use galvatron_ir::mesh::ShardingRule;
use galvatron_ir::module::ViewStep;
use galvatron_ir::op::Op;
use galvatron_ir::op::compute::Slice;
use galvatron_ir::{NodeId, Program, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// All values that carry an extent, which every op between them can take with zeros behind it.
pub(super) struct Carriers<'a> {
    extents: Extents<'a>,
}

/// What becomes of the program.
pub(super) struct Padding {
    extents: Changes,
    /// Weights by index, with the step that their views get.
    views: Vec<(usize, ViewStep)>,
    /// Values of which the zeros are cut off again for some readers.
    cut: Vec<(ValueId, Slice)>,
}

/// Whether an op reads its operands without zeros.
fn takes_no_zeros(op: &Op) -> bool {
    matches!(op, Op::CrossEntropy(_))
}

impl<'a> Carriers<'a> {
    /// Follows a factor of a node both ways; `None` where it is led to an input, or where a value would carry it twice.
    pub(super) fn of(
        program: &'a Program,
        (id, rule, factor): (NodeId, &ShardingRule, usize),
        to: u64,
    ) -> Option<Carriers<'a>> {
        let mut carriers = Carriers { extents: Extents::new(program, rule.factors[factor].size, to) };
        let led = [&rule.operands, &rule.results].map(|all| all.iter().map(|dims| led_by(dims, factor)).collect());
        carriers.add(id, led)?;
        loop {
            let known = carriers.extents.dims.len();
            for &node in &program.body {
                carriers.spread(node)?;
            }
            if carriers.extents.dims.len() == known {
                break;
            }
        }
        let is_read_padded = program.inputs.iter().any(|input| carriers.extents.dims.contains_key(&input.value));
        (!is_read_padded && !carriers.extents.dims.is_empty()).then_some(carriers)
    }

    /// What carries the extent at a node by what is known of its operands and results.
    fn spread(&mut self, id: NodeId) -> Option<()> {
        let node = self.extents.program.graph.node(id);
        if takes_no_zeros(&node.op) {
            return Some(());
        }
        let operands = node.args.iter().enumerate().map(|(i, &v)| (At::Operand(i), v));
        for (at, value) in operands.chain(node.results.iter().enumerate().map(|(i, &v)| (At::Result(i), v))) {
            if let Some(&dim) = self.extents.dims.get(&value) {
                let beside = self.extents.beside(id, at, dim)?;
                self.add(id, beside)?;
            }
        }
        Some(())
    }

    fn add(&mut self, id: NodeId, [operands, results]: [Vec<Option<usize>>; 2]) -> Option<()> {
        let node = self.extents.program.graph.node(id);
        let all = node.args.iter().zip(operands).chain(node.results.iter().zip(results));
        for (&value, dim) in all.filter_map(|(value, dim)| Some((value, dim?))) {
            if *self.extents.dims.entry(value).or_insert(dim) != dim {
                return None;
            }
        }
        Some(())
    }

    /// What becomes of the program; `None` where an op could not take the zeros, or would make something else of them.
    pub(super) fn changes(&self) -> Option<Padding> {
        let Extents { program, dims, .. } = &self.extents;
        let weights = program.weights.iter().enumerate().filter(|(_, w)| dims.contains_key(&w.value));
        let mut fillings: BTreeMap<ValueId, Filling> = weights.clone().map(|(_, w)| (w.value, Filling::Zero)).collect();
        let mut ops = Vec::new();
        for &id in program.body.iter().filter(|&&id| self.extents.touches(id)) {
            let node = program.graph.node(id);
            if takes_no_zeros(&node.op) {
                continue;
            }
            let of_operands: Vec<Option<Filling>> = node.args.iter().map(|a| fillings.get(a).copied()).collect();
            let carry = |v: &ValueId| dims.contains_key(v);
            let filled = filling(&node.op, &of_operands, node.results.iter().any(carry))?;
            fillings.extend(node.results.iter().filter(|v| carry(v)).zip(filled).map(|(&v, filling)| (v, filling)));
            ops.push((id, self.extents.scaled_op(id).ok()?));
        }
        let step = |value: ValueId| {
            let dim = dims[&value];
            ViewStep::Pad { dim, extent: self.extents.scaled(value).shape[dim] }
        };
        let views = weights.map(|(i, w)| (i, step(w.value))).collect();
        Some(Padding { extents: Changes { types: self.extents.types(), ops }, views, cut: self.cut() })
    }

    /// The values that an op or an output reads without zeros.
    fn cut(&self) -> Vec<(ValueId, Slice)> {
        let Extents { program, dims, .. } = &self.extents;
        let nodes = program.body.iter().map(|&id| program.graph.node(id)).filter(|n| takes_no_zeros(&n.op));
        let read = nodes.flat_map(|n| &n.args).chain(program.outputs.iter().map(|(_, value)| value));
        let cut: BTreeSet<ValueId> = read.copied().filter(|v| dims.contains_key(v)).collect();
        let slice = |value: ValueId| {
            let dim = dims[&value];
            (value, Slice { dim, start: 0, len: program.graph.value(value).ty.shape[dim] })
        };
        cut.into_iter().map(slice).collect()
    }
}

impl Padding {
    pub(super) fn apply(self, program: &mut Program) {
        self.extents.apply(program);
        for (weight, step) in self.views {
            program.weights[weight].view.push(step);
        }
        for (value, slice) in self.cut {
            cut_off(program, value, slice);
        }
    }
}

/// Lets what takes no zeros read a value without them.
fn cut_off(program: &mut Program, value: ValueId, slice: Slice) {
    let name = format!("{}.cut", program.graph.value(value).name);
    let node = program.graph.add(slice.into(), &[value]).expect("invariant: the padded value holds what is sliced");
    let cut = program.graph.node(node).results[0];
    program.graph.rename(cut, &name);
    let readers: Vec<NodeId> =
        program.body.iter().copied().filter(|&id| takes_no_zeros(&program.graph.node(id).op)).collect();
    program.graph.replace_uses(&readers, value, cut);
    program.outputs.iter_mut().filter(|(_, output)| *output == value).for_each(|(_, output)| *output = cut);
    let producer = program.graph.producer(value);
    let after = program.body.iter().position(|&id| Some(id) == producer).map_or(0, |at| at + 1);
    program.body.insert(after, node);
}
