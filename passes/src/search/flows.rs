//! What it costs that a value flows: between two groups of a segment, and over its borders. Placements decide it once for a split of
//! the mesh; a recomputation mode only says which flows happen twice.

use super::price::{Group, Priced};
use super::recompute::Recompute;
use super::solver::{Cost, Edge, elimination_width};
use super::weights::gradient_partial;
use galvatron_ir::ValueId;
use galvatron_ir::mesh::{Mesh, Sharding};

/// A value on its way from one placement to that in which an option reads it, in one micro-batch.
#[derive(Clone, Copy)]
struct Flow {
    forward_ns: u64,
    /// The same for its gradient.
    backward_ns: u64,
    /// Whether it moves again in the backward pass whatever is recomputed: what arrives is larger than what is kept.
    twice: bool,
}

/// The flows of a value from every option of one group to every option of another; `None` where no collective makes it.
pub struct Flows {
    from: usize,
    to: usize,
    /// Row-major, `[from, to]`.
    cells: Vec<Option<Flow>>,
}

/// What a boundary placement costs the groups that touch it.
pub struct Border {
    /// The readers of the value that enters, option by option.
    input: Vec<(usize, Vec<Option<Flow>>)>,
    /// The group that computes the value that leaves, option by option.
    output: Option<(usize, Vec<Cost>)>,
}

impl Priced<'_> {
    /// All flows inside of the segment.
    pub fn flows(&self) -> Vec<Flows> {
        let graph = &self.facts.program.graph;
        let inner = self.operands().filter_map(|(to, operand, value)| {
            let producer = graph.producer(value)?;
            let from = *self.group_of.get(&producer)?;
            let index = graph.node(producer).results.iter().position(|&r| r == value);
            let index = index.expect("invariant: producers list their results");
            let mut cells = Vec::with_capacity(self.groups[from].options.len() * self.groups[to].options.len());
            for option in &self.groups[from].options {
                cells.extend(self.flows_to(value, &option.results[index], (&self.groups[to], operand)));
            }
            Some(Flows { from, to, cells })
        });
        inner.collect()
    }

    /// The cost of these flows for all micro-batches under a recomputation mode.
    pub fn edges(&self, flows: &[Flows], recompute: &Recompute) -> Vec<Edge> {
        let edge = |flows: &Flows| Edge {
            a: flows.from,
            b: flows.to,
            table: self.costs(flows.to, &flows.cells, recompute).collect(),
        };
        flows.iter().map(edge).collect()
    }

    /// The elimination width of the choice of options.
    pub fn width(&self, flows: &[Flows]) -> usize {
        let extents: Vec<usize> = self.groups.iter().map(|group| group.options.len()).collect();
        let pairs: Vec<(usize, usize)> = flows.iter().map(|flows| (flows.from, flows.to)).collect();
        elimination_width(&extents, &pairs)
    }

    /// What it costs that the boundary values lie in these placements.
    pub fn border(&self, input: Option<&Sharding>, output: Option<&Sharding>) -> Border {
        let read = |placed: &Sharding| {
            let readers = self.operands().filter(|(_, _, value)| Some(*value) == self.piece.input);
            readers.map(|(j, k, value)| (j, self.flows_to(value, placed, (&self.groups[j], k)).collect())).collect()
        };
        let written = output.zip(self.piece.output).map(|(placed, value)| self.leaving(value, placed));
        Border { input: input.map(read).unwrap_or_default(), output: written }
    }

    /// By group what a border adds to the cost of its options under a recomputation mode.
    pub fn border_costs(&self, border: &Border, recompute: &Recompute) -> Vec<(usize, Vec<Cost>)> {
        let input = border.input.iter().map(|(group, flows)| (*group, self.costs(*group, flows, recompute).collect()));
        input.chain(border.output.clone()).collect()
    }

    /// Costs for all micro-batches of flows to a group.
    fn costs(&self, to: usize, flows: &[Option<Flow>], recompute: &Recompute) -> impl Iterator<Item = Cost> {
        let again = recompute.again.contains(&self.piece.nodes[self.groups[to].members[0]]);
        let m = self.mesh.micro_batches();
        flows.iter().map(move |flow| match flow {
            Some(flow) => {
                let times = if again || flow.twice { 2 } else { 1 };
                Cost::new(m * (times * flow.forward_ns + flow.backward_ns), 0)
            }
            None => Cost::FORBIDDEN,
        })
    }

    /// The flows of a value in a placement to each option of a group that reads it as one of its operands.
    fn flows_to<'s>(
        &'s self,
        value: ValueId,
        from: &Sharding,
        (group, operand): (&'s Group, usize),
    ) -> impl Iterator<Item = Option<Flow>> + use<'s> {
        let from = per_micro_batch(from);
        (0..group.options.len()).map(move |option| self.flow(value, &from, (group, operand), option))
    }

    fn flow(&self, value: ValueId, from: &Sharding, (group, operand): (&Group, usize), option: usize) -> Option<Flow> {
        let (facts, ty) = (self.facts, &self.facts.program.graph.value(value).ty);
        let choice = &group.options[option];
        let wanted = &choice.operands[operand];
        let forward_ns = self.model.reshard_ns(from, wanted, ty, self.mesh)?;
        let grows = forward_ns > 0 && !from.is_partial() && self.bytes(value, wanted) > self.bytes(value, from);
        let mut backward_ns = 0;
        if facts.has_gradient.contains(&value) {
            let gradient = Sharding { dims: wanted.dims.clone(), partial: gradient_partial(wanted, &choice.map) };
            backward_ns = self.model.reshard_ns(&gradient, &from.resolved(), ty, self.mesh)?;
            backward_ns += self.share_of_sum_ns(value, wanted, group.members.len() as u64);
        }
        Some(Flow { forward_ns, backward_ns, twice: grows && facts.saved.contains(&value) })
    }

    /// What it costs to leave the segment in a placement.
    fn leaving(&self, output: ValueId, placed: &Sharding) -> (usize, Vec<Cost>) {
        let graph = &self.facts.program.graph;
        let producer = graph.producer(output).expect("invariant: boundary values are computed");
        let index = graph.node(producer).results.iter().position(|&r| r == output).unwrap_or(0);
        let ty = &graph.value(output).ty;
        let group = self.group_of[&producer];
        let cost = |made: &Sharding| {
            let forward_ns = self.model.reshard_ns(made, placed, ty, self.mesh)?;
            let backward_ns = self.model.reshard_ns(placed, &made.resolved(), ty, self.mesh)?;
            Some(Cost::new(self.mesh.micro_batches() * (forward_ns + backward_ns), 0))
        };
        let options = self.groups[group].options.iter();
        (group, options.map(|option| cost(&option.results[index]).unwrap_or(Cost::FORBIDDEN)).collect())
    }
}

/// A placement without its partial sum over micro-batches, which an accumulator resolves.
fn per_micro_batch(sharding: &Sharding) -> Sharding {
    let mut s = sharding.clone();
    s.partial.retain(|&a| a != Mesh::MB);
    s
}
