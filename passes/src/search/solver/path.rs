//! Least weighted costs along a path of layers, by dynamic programming over the states at its boundaries.
//!
//! A layer's candidates matter only through the states that they join: for one weighting each class needs its best
//! candidate for each pair of states, once, and a layer costs one minimum over the pairs of states.

use super::chain::Chain;
use super::eliminate::{INFINITE, Weights};
use super::incumbent::Scored;
use super::lagrange::Weighable;
use super::pareto::prune_covered;
use super::problem::{Assignment, Cost};

/// A chain whose candidates are sorted by the states that they join.
pub(super) struct Path<'a> {
    pub chain: &'a Chain,
    /// For each class its groups of candidates, by ascending states.
    pub groups: Vec<Vec<Group>>,
    totals: (u128, u128),
}

/// The candidates of a class between two states that no other one between them covers, fastest first.
pub(super) struct Group {
    pub from: usize,
    pub to: usize,
    pub candidates: Vec<usize>,
}

impl<'a> Path<'a> {
    /// Sorts the candidates of a chain.
    pub fn new(chain: &'a Chain) -> Path<'a> {
        let groups: Vec<Vec<Group>> = (0..chain.classes.len()).map(|class| groups(chain, class)).collect();
        Path { chain, totals: totals(chain, &groups), groups }
    }

    /// The cost of a candidate of a class.
    pub fn cost(&self, class: usize, candidate: usize) -> Cost {
        self.chain.classes[class][candidate].cost
    }

    /// The cost of going from one state to another between two layers.
    pub fn switch(&self, from: usize, to: usize) -> Cost {
        self.chain.switch[from * self.chain.n_states + to]
    }

    /// The least weighted costs of everything from each layer on.
    pub fn sweep(&self, weights: Weights) -> Sweep {
        let (n_layers, n_states) = (self.chain.layers.len(), self.chain.n_states);
        let best = self.best(weights);
        let switch: Vec<u128> = self.chain.switch.iter().map(|&c| weights.of(c)).collect();
        let mut rest = vec![vec![INFINITE; n_states]; n_layers];
        let mut onward = vec![vec![0; n_states]; n_layers + 1];
        for (layer, &class) in self.chain.layers.iter().enumerate().rev() {
            for (group, &(least, _)) in self.groups[class].iter().zip(&best[class]) {
                let all = least + onward[layer + 1][group.to];
                rest[layer][group.from] = rest[layer][group.from].min(all);
            }
            for (from, least) in onward[layer].iter_mut().enumerate() {
                let row = &switch[from * n_states..(from + 1) * n_states];
                *least = row.iter().zip(&rest[layer]).map(|(a, b)| a + b).fold(INFINITE, u128::min);
            }
        }
        Sweep { weights, best, switch, rest, onward }
    }

    /// For each class and group the least weighted cost and the first candidate that has it.
    fn best(&self, weights: Weights) -> Vec<Vec<(u128, usize)>> {
        let of = |class: usize, group: &Group| {
            let weighed = group.candidates.iter().map(|&c| (weights.of(self.cost(class, c)), c));
            weighed.min().expect("invariant: groups are not empty")
        };
        self.groups.iter().enumerate().map(|(class, groups)| groups.iter().map(|g| of(class, g)).collect()).collect()
    }

    /// Follows the least costs of a sweep from the first layer to the last.
    fn assignment(&self, sweep: &Sweep) -> Assignment {
        let n_states = self.chain.n_states;
        let mut assignment = Vec::with_capacity(self.chain.layers.len());
        let mut at: Option<usize> = None;
        for (layer, &class) in self.chain.layers.iter().enumerate() {
            let enter = |group: &Group| at.map_or(0, |from| sweep.switch[from * n_states + group.from]);
            let all = self.groups[class].iter().zip(&sweep.best[class]);
            let weighed = all.map(|(group, &(least, candidate))| {
                (enter(group) + least + sweep.onward[layer + 1][group.to], candidate, group.to)
            });
            let (_, candidate, to) = weighed.min().unwrap_or((0, 0, 0));
            assignment.push(candidate);
            at = Some(to);
        }
        assignment
    }
}

fn groups(chain: &Chain, class: usize) -> Vec<Group> {
    let candidates = &chain.classes[class];
    let states = |&i: &usize| (candidates[i].in_state, candidates[i].out_state);
    let mut order: Vec<usize> = (0..candidates.len()).filter(|&i| !candidates[i].cost.is_forbidden()).collect();
    order.sort_by_key(|i| (states(i), *i));
    let group = |run: &[usize]| {
        let mut kept = run.to_vec();
        prune_covered(&mut kept, |&i| candidates[i].cost);
        let (from, to) = states(&run[0]);
        Group { from: from.into(), to: to.into(), candidates: kept }
    };
    order.chunk_by(|a, b| states(a) == states(b)).map(group).collect()
}

/// Upper bounds on the time and the bytes of any allowed choice.
fn totals(chain: &Chain, groups: &[Vec<Group>]) -> (u128, u128) {
    let most = |costs: &mut dyn Iterator<Item = Cost>| {
        costs.filter(|c| !c.is_forbidden()).fold((0u64, 0u64), |m, c| (m.0.max(c.time_ns), m.1.max(c.bytes)))
    };
    let of = |class: usize| {
        most(&mut groups[class].iter().flat_map(|g| &g.candidates).map(|&c| chain.classes[class][c].cost))
    };
    let by_class: Vec<(u64, u64)> = (0..groups.len()).map(of).collect();
    let switch = most(&mut chain.switch.iter().copied());
    chain.layers.iter().fold((0, 0), |(time, bytes), &class| {
        let layer = by_class[class];
        (time + u128::from(layer.0) + u128::from(switch.0), bytes + u128::from(layer.1) + u128::from(switch.1))
    })
}

/// The least weighted costs along a path under one weighting.
pub(super) struct Sweep {
    pub weights: Weights,
    /// By class and group: the least weighted cost and its candidate.
    best: Vec<Vec<(u128, usize)>>,
    /// Weighted switches, row-major.
    switch: Vec<u128>,
    /// By layer and state: the least of the layer and all after it, if it takes its input in that state.
    pub rest: Vec<Vec<u128>>,
    /// By layer and state: the least of the layer, the switch to it and all after it, if the layer before leaves that state.
    pub onward: Vec<Vec<u128>>,
}

impl Sweep {
    /// The least weighted cost of the whole path.
    pub fn least(&self) -> u128 {
        self.rest.first().map_or(0, |first| first.iter().copied().fold(INFINITE, u128::min))
    }
}

impl Weighable for Path<'_> {
    fn totals(&self) -> (u128, u128) {
        self.totals
    }

    fn minimise(&self, weights: Weights) -> (Scored, u128) {
        let sweep = self.sweep(weights);
        match sweep.least() {
            least if least >= INFINITE => ((Cost::FORBIDDEN, Vec::new()), INFINITE),
            least => {
                let assignment = self.assignment(&sweep);
                ((self.chain.cost(&assignment), assignment), least)
            }
        }
    }

    /// The best choice that takes the first so many layers from one of the two and the rest from the other.
    fn improve(&self, over: &[usize], within: Scored, budget: u64) -> Scored {
        let mut best = within.clone();
        for (first, last) in [(over, &within.1[..]), (&within.1[..], over)] {
            for cut in 1..first.len() {
                let mixed: Assignment = first[..cut].iter().chain(&last[cut..]).copied().collect();
                let cost = self.chain.cost(&mixed);
                if cost < best.0 && cost.bytes <= budget && !cost.is_forbidden() {
                    best = (cost, mixed);
                }
            }
        }
        best
    }
}
