//! Pads what a degree does not divide: heads, the inner width of a feed-forward layer or of experts, classes.
//!
//! The zeros become part of the program, so that everything after this pass sees extents that divide: a weight is a padded view of what is
//! stored, and what is saved has the stored shape again. Padding changes no loss and no gradient. What is added to a weight is zero at first and
//! stays so, since its gradient is zero: wherever a padded extent is summed over, both sides of the product are zero there
//! ([`filling`]); the loss and the outputs read what is left after the zeros are cut off again. That the vocabulary and heads can be padded to
//! a multiple of the tensor degree is known from Megatron-LM (Shoeybi et al., 2019).

mod carriers;
mod filling;

use crate::rules::{Cuttable, rule_of};
use carriers::Carriers;
use galvatron_ir::mesh::{Mesh, ShardingRule};
use galvatron_ir::op::Op;
use galvatron_ir::{NodeId, Program};
use std::collections::BTreeSet;
use std::fmt;

/// The degrees that shall divide what tensor axes cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Degrees {
    /// Of matrix products of weights and of experts.
    pub weights: BTreeSet<u64>,
    /// Of the heads of attention.
    pub heads: BTreeSet<u64>,
}

impl Degrees {
    /// A multiple, for everything.
    pub fn all(multiple: u64) -> Degrees {
        let degrees: BTreeSet<u64> = (multiple > 1).then_some(multiple).into_iter().collect();
        Degrees { weights: degrees.clone(), heads: degrees }
    }

    /// The multiple that asks for the same, if one does.
    pub fn multiple(&self) -> Option<u32> {
        let first = *self.weights.first()?;
        (*self == Degrees::all(first)).then(|| u32::try_from(first).ok()).flatten()
    }

    /// Those of an op that tensor axes cut.
    fn of(&self, op: &Op) -> &BTreeSet<u64> {
        if matches!(op, Op::Attention(_)) { &self.heads } else { &self.weights }
    }
}

/// An extent that was padded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Padded {
    /// The first op for whose sake.
    pub name: String,
    /// How many others there are like it.
    pub n_others: usize,
    /// The extent's letter there.
    pub label: String,
    /// The extent.
    pub from: u64,
    /// The extent with the zeros.
    pub to: u64,
}

impl fmt::Display for Padded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Padded { name, n_others, label, from, to } = self;
        let others = match n_others {
            0 => String::new(),
            1 => " and of another op".into(),
            n => format!(" and of {n} other ops"),
        };
        write!(f, "the extent {label} {from} of `{name}`{others} is padded to {to}")
    }
}

/// Pads extents of a forward program with its loss: where a degree divides nothing that it could cut of an op, the first extent that can be padded
/// to a multiple of all degrees by less than its own size. What cannot be padded stays as it is.
pub fn pad(program: &mut Program, degrees: &Degrees) -> Vec<Padded> {
    let is_attention = |program: &Program, id: &NodeId| matches!(program.graph.node(*id).op, Op::Attention(_));
    // The heads of keys decide how many queries there are.
    let (first, second): (Vec<NodeId>, Vec<NodeId>) = program.body.iter().partition(|id| is_attention(program, id));
    let cuttable = Cuttable::of(program);
    let mut all: Vec<Padded> = Vec::new();
    for padded in first.into_iter().chain(second).filter_map(|id| pad_at(program, &cuttable, id, degrees)) {
        let is_like =
            |other: &&mut Padded| (&other.label, other.from, other.to) == (&padded.label, padded.from, padded.to);
        match all.iter_mut().find(is_like) {
            Some(other) => other.n_others += 1,
            None => all.push(padded),
        }
    }
    all
}

/// The multiple to which heads may be padded to advantage: where no product of the fastest axes of the mesh that are linked alike divides the
/// heads of some attention, the largest one that adds an eighth to the heads at most.
pub fn worth_trying(program: &Program, mesh: &Mesh) -> Option<u32> {
    let level = mesh.axes().last()?.level;
    let fastest = mesh.spatial().rev().take_while(|axis| mesh.axes()[axis.index()].level == level);
    let products = fastest.scan(1, |product, axis| {
        *product *= mesh.size(axis);
        Some(*product)
    });
    let products: Vec<u64> = products.collect();
    // The first factor is that of the keys' heads.
    let heads = |&id: &NodeId| {
        let rule = rule_of(program, id);
        rule.operands[0][2].first().map(|&f| rule.factors[f].size)
    };
    let is_attention = |id: &&NodeId| matches!(program.graph.node(**id).op, Op::Attention(_));
    let all: BTreeSet<u64> = program.body.iter().filter(is_attention).filter_map(heads).collect();
    if all.iter().all(|heads| products.iter().any(|n| heads.is_multiple_of(*n))) {
        return None;
    }
    let is_small = |heads: &u64, n: u64| (heads.next_multiple_of(n) - heads) * 8 <= *heads;
    let best = products.into_iter().rev().find(|&n| all.iter().all(|heads| is_small(heads, n)))?;
    u32::try_from(best).ok()
}

fn pad_at(program: &mut Program, cuttable: &Cuttable, id: NodeId, degrees: &Degrees) -> Option<Padded> {
    let degrees = degrees.of(&program.graph.node(id).op);
    if degrees.is_empty() {
        return None;
    }
    let rule = rule_of(program, id);
    let factors = cuttable.factors(program, id, &rule);
    // The queries of a key are no heads to cut where the keys are not cut into single ones.
    let sizes: Vec<u64> = factors.iter().filter(|&&f| rule.is_shardable(f)).map(|&f| rule.factors[f].size).collect();
    let divides = |degree: &u64| sizes.iter().any(|size| size.is_multiple_of(*degree));
    if factors.is_empty() || degrees.iter().all(divides) {
        return None;
    }
    let multiple = degrees.iter().copied().fold(1, lcm);
    factors.iter().find_map(|&factor| pad_factor(program, (id, &rule, factor), multiple))
}

fn pad_factor(
    program: &mut Program,
    (id, rule, factor): (NodeId, &ShardingRule, usize),
    multiple: u64,
) -> Option<Padded> {
    let (from, label) = (rule.factors[factor].size, rule.factors[factor].label.clone());
    let to = from.next_multiple_of(multiple);
    // With as much padding as there is to compute, some ranks would have nothing else.
    if to >= 2 * from {
        return None;
    }
    let carriers = Carriers::of(program, (id, rule, factor), to)?;
    let changes = carriers.changes()?;
    changes.apply(program);
    let name = program.graph.value(program.graph.node(id).results[0]).name.clone();
    Some(Padded { name, n_others: 0, label, from, to })
}

fn lcm(a: u64, b: u64) -> u64 {
    let (mut gcd, mut rest) = (a, b);
    while rest > 0 {
        (gcd, rest) = (rest, gcd % rest);
    }
    a / gcd * b
}

#[cfg(test)]
mod tests;
