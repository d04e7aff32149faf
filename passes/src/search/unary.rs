//! What each option of a group of siblings costs by itself, under a recomputation mode and a way to hold weights.

use super::price::{OptionPrice, Priced, WeightPrice};
use super::recompute::Recompute;
use super::solver::Cost;
use super::weights::Holding;

/// How often a node runs in a step, and where its results lie meanwhile.
struct MemberCost {
    /// Times that it runs forward and backward.
    micro_batches: u64,
    /// Times that it runs forward in each.
    n_forward: u64,
    /// Micro-batches whose results are kept on the device at one time.
    n_kept: u64,
    /// Whether they lie in host memory.
    is_hosted: bool,
}

impl Priced<'_> {
    /// Nanoseconds of an option in one step. What gathers parameters, reduces gradients and copies to host memory and back runs beside the
    /// pass that it is for, as far as the device can.
    fn step_ns(&self, price: &OptionPrice, weights: &WeightPrice, of: &MemberCost) -> u64 {
        let beside = |compute_ns: u64, communication_ns: u64| {
            compute_ns + communication_ns - self.model.hidden_ns(compute_ns, communication_ns)
        };
        let copies_ns = if of.is_hosted { price.offload_ns } else { 0 };
        let forward_ns = beside(price.forward_ns, weights.forward_ns + copies_ns);
        let backward_compute_ns = price.backward_ns + (of.n_forward - 1) * price.forward_ns;
        let backward_ns = beside(backward_compute_ns, weights.backward_ns + copies_ns);
        let last_ns = beside(backward_compute_ns, weights.backward_ns + copies_ns + weights.reduce_ns);
        of.micro_batches * (forward_ns + backward_ns + weights.micro_batch_ns)
            + (last_ns - backward_ns)
            + weights.step_ns
    }

    /// What each option of a group costs by itself.
    pub fn unaries(
        &self,
        group: usize,
        recompute: &Recompute,
        Holding { zero, host_states }: Holding,
        in_flight: u64,
    ) -> impl Iterator<Item = Cost> {
        let members = self.groups[group].members.iter().zip(&self.prices[group]);
        let members = members.map(|(&member, prices)| (prices, self.member(member, recompute, in_flight)));
        let members: Vec<_> = members.collect();
        (0..self.groups[group].options.len()).map(move |option| {
            members.iter().fold(Cost::ZERO, |sum, (prices, of)| {
                let (price, weights) = (&prices[option], &prices[option].weights[zero as usize]);
                let (saved_ns, saved_bytes) =
                    if host_states { (weights.state_ns, weights.state_bytes) } else { (0, 0) };
                let time_ns = self.step_ns(price, weights, of) + saved_ns;
                sum.plus(Cost::new(time_ns, weights.bytes - saved_bytes + of.n_kept * price.saved_bytes))
            })
        })
    }

    /// How often a node of the piece runs, and where its results lie meanwhile.
    fn member(&self, member: usize, recompute: &Recompute, in_flight: u64) -> MemberCost {
        let (facts, node) = (self.facts, self.piece.nodes[member]);
        let results = &facts.program.graph.node(node).results;
        let is_hosted = results.iter().any(|r| recompute.hosted.contains(r));
        let is_kept = !is_hosted && results.iter().any(|r| recompute.kept.contains(r));
        MemberCost {
            micro_batches: if facts.is_whole_batch(node) { 1 } else { self.mesh.micro_batches() },
            n_forward: 1 + u64::from(recompute.again.contains(&node)),
            n_kept: if is_kept { in_flight } else { 0 },
            is_hosted,
        }
    }
}
