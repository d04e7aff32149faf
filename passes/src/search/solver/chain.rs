//! A path of layers whose boundary states must match or be switched, solved exactly under a budget of bytes.

use serde::{Deserialize, Serialize};

use super::frontier::close_gap;
use super::lagrange::{Bound, Dual, dual};
use super::path::Path;
use super::problem::{Cost, Edge, Problem, Var};
use super::{Infeasible, Limits, Solution};

/// One way to run a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// The state in which the layer takes its input.
    pub in_state: u16,
    /// The state in which it leaves its output.
    pub out_state: u16,
    /// What the layer costs by itself.
    pub cost: Cost,
    /// Bytes of one more micro-batch that waits for its backward pass. Those who put chains together add them to the cost.
    pub saved_bytes: u64,
}

/// A path of layers. Identical layers share a class, that is one list of candidates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// The candidates of each class.
    pub classes: Vec<Vec<Candidate>>,
    /// The class of each layer, first layer first.
    pub layers: Vec<usize>,
    /// The number of states.
    pub n_states: usize,
    /// Row-major `[n_states, n_states]`: from a layer's output state to the next layer's input state.
    pub switch: Vec<Cost>,
}

impl Chain {
    /// The total cost of one candidate per layer, switches between neighbours included.
    pub fn cost(&self, choices: &[usize]) -> Cost {
        let chosen = |layer: usize| self.classes[self.layers[layer]][choices[layer]];
        let layers = (0..choices.len()).map(|layer| chosen(layer).cost);
        let switches = (1..choices.len()).map(|layer| self.switch_cost(chosen(layer - 1), chosen(layer)));
        layers.chain(switches).fold(Cost::ZERO, Cost::plus)
    }

    /// What it costs to go from one candidate to the next.
    pub fn switch_cost(&self, from: Candidate, to: Candidate) -> Cost {
        self.switch[usize::from(from.out_state) * self.n_states + usize::from(to.in_state)]
    }

    /// The cost graph of the path: one variable per layer, one edge between neighbours.
    pub fn problem(&self) -> Problem {
        let domain = |&class: &usize| Var { domain: self.classes[class].iter().map(|c| c.cost).collect() };
        let edge = |(a, pair): (usize, &[usize])| {
            let (from, to) = (&self.classes[pair[0]], &self.classes[pair[1]]);
            let table = from.iter().flat_map(|f| to.iter().map(|t| self.switch_cost(*f, *t))).collect();
            Edge { a, b: a + 1, table }
        };
        let edges = self.layers.windows(2).enumerate().map(edge).collect();
        Problem { vars: self.layers.iter().map(domain).collect(), edges }
    }

    /// Finds the candidates with the least time whose bytes are at most `budget` (`None`: no limit); the assignment
    /// has the position of a candidate in its class for each layer.
    ///
    /// # Errors
    /// `Infeasible` when there are none.
    pub fn solve(&self, budget: Option<u64>, limits: &Limits) -> Result<Solution, Infeasible> {
        self.search(budget, limits, true)
    }

    /// Like [`Chain::solve`], but stops at the optimum of the dual: a lower bound, and candidates close to it.
    ///
    /// # Errors
    /// `Infeasible` when there are none.
    pub fn relax(&self, budget: Option<u64>, limits: &Limits) -> Result<Solution, Infeasible> {
        self.search(budget, limits, false)
    }

    fn search(&self, budget: Option<u64>, limits: &Limits, exact: bool) -> Result<Solution, Infeasible> {
        let path = Path::new(self);
        match dual(&path, budget, limits) {
            Dual::Infeasible((least, assignment)) => Err(Infeasible { least, assignment, proven: true }),
            Dual::Free(found) => Ok(solution(Bound::exact(found))),
            Dual::Bound(bound) => {
                let budget = budget.expect("invariant: only a budget binds");
                Ok(solution(if exact { close_gap(&path, bound, budget, limits) } else { bound }))
            }
        }
    }
}

/// A path has elimination width 1.
fn solution(bound: Bound) -> Solution {
    let Bound { lower_bound_ns, incumbent: (cost, assignment), .. } = bound;
    Solution { assignment, cost, lower_bound_ns, width: 1, proven: lower_bound_ns >= cost.time_ns }
}

#[cfg(test)]
mod tests {
    use super::super::brute::each_assignment;
    use super::super::samples::SplitMix;
    use super::*;

    fn random_chain(rng: &mut SplitMix, n_layers: usize, n_candidates: usize, n_states: u64) -> Chain {
        let candidate = |rng: &mut SplitMix| Candidate {
            in_state: rng.below(n_states) as u16,
            out_state: rng.below(n_states) as u16,
            cost: Cost::new(rng.below(1000), rng.below(1000)),
            saved_bytes: 0,
        };
        let class = |rng: &mut SplitMix| (0..n_candidates).map(|_| candidate(rng)).collect();
        let classes = (0..2).map(|_| class(rng)).collect();
        let layers = (0..n_layers).map(|layer| usize::from(layer > 0 && layer + 1 < n_layers)).collect();
        let switch = (0..n_states * n_states).map(|i| switch(rng, i % (n_states + 1) == 0)).collect();
        Chain { classes, layers, n_states: n_states as usize, switch }
    }

    fn switch(rng: &mut SplitMix, same: bool) -> Cost {
        match rng.below(6) {
            _ if same => Cost::ZERO,
            0 => Cost::FORBIDDEN,
            _ => Cost::new(rng.below(300), rng.below(20)),
        }
    }

    #[test]
    fn chains_agree_with_enumeration() {
        for seed in 0..100 {
            let chain = random_chain(&mut SplitMix(seed), 5, 5, 3);
            let mut costs = Vec::new();
            each_assignment(&[5; 5], |choices| costs.push(chain.cost(choices)));
            costs.retain(|c| !c.is_forbidden());
            for budget in [400, 800, 1200, 1800, 5000] {
                let best = costs.iter().filter(|c| c.bytes <= budget).map(|c| c.time_ns).min();
                let found = chain.solve(Some(budget), &Limits::default()).ok();
                assert!(found.as_ref().is_none_or(|f| f.proven && chain.cost(&f.assignment) == f.cost), "seed {seed}");
                assert_eq!(found.map(|f| f.cost.time_ns), best, "seed {seed}, budget {budget}");
            }
        }
    }

    #[test]
    fn identical_layers_mix_two_plans_to_fill_the_budget() {
        let stay = |state, time_ns, bytes| {
            let cost = Cost::new(time_ns, bytes);
            Candidate { in_state: state, out_state: state, cost, saved_bytes: 0 }
        };
        let switch = vec![Cost::ZERO, Cost::new(7, 0), Cost::new(7, 0), Cost::ZERO];
        let classes = vec![vec![stay(0, 10, 100), stay(1, 30, 40)]];
        let chain = Chain { classes, layers: vec![0; 96], n_states: 2, switch };
        let found = chain.solve(Some(96 * 70 + 5), &Limits::default()).expect("feasible");
        assert_eq!((found.cost, found.proven), (Cost::new(48 * 10 + 48 * 30 + 7, 48 * 140), true));
    }
}
