//! Seeded random cost graphs for the tests of the solver.

use super::problem::{Cost, Edge, Problem, Var};

/// The splitmix64 generator (S. Vigna), which is enough for tests and the same everywhere.
pub(super) struct SplitMix(pub u64);

impl SplitMix {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// The family of graphs an instance is drawn from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    Chain,
    Tree,
    Diamonds,
    Hub,
    Sparse,
}

/// The pairs of a graph of this shape over `n` variables.
pub(super) fn pairs(shape: Shape, n: usize, rng: &mut SplitMix) -> Vec<(usize, usize)> {
    match shape {
        Shape::Chain => (1..n).map(|v| (v - 1, v)).collect(),
        Shape::Tree => (1..n).map(|v| (v, rng.below(v as u64) as usize)).collect(),
        Shape::Diamonds => {
            let diamond = |v: usize| if v.is_multiple_of(3) { vec![v - 1, v - 2] } else { vec![(v - 1) / 3 * 3] };
            (1..n).flat_map(|v| diamond(v).into_iter().map(move |u| (u, v))).collect()
        }
        Shape::Hub => (1..n).map(|v| (0, v)).chain((2..n).map(|v| (v - 1, v))).collect(),
        Shape::Sparse => {
            let pair = |_| (rng.below(n as u64) as usize, rng.below(n as u64) as usize);
            (0..n + n / 2).map(pair).collect()
        }
    }
}

/// What the costs of an instance look like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prices {
    /// Costs are below this.
    pub most: u64,
    /// One entry in so many is forbidden; 0: none.
    pub forbid_one_in: u64,
}

impl Prices {
    fn draw(self, rng: &mut SplitMix) -> Cost {
        if self.forbid_one_in > 0 && rng.below(self.forbid_one_in) == 0 {
            return Cost::FORBIDDEN;
        }
        Cost::new(rng.below(self.most), rng.below(self.most))
    }
}

/// A problem over the given pairs with up to `most_values` values a variable (exactly so many if `uniform`).
pub(super) fn problem_on(
    n: usize,
    pairs: &[(usize, usize)],
    most_values: usize,
    uniform: bool,
    prices: Prices,
    rng: &mut SplitMix,
) -> Problem {
    let mut extent = || if uniform { most_values } else { 1 + rng.below(most_values as u64) as usize };
    let extents: Vec<usize> = (0..n).map(|_| extent()).collect();
    let mut table = |cells: usize| (0..cells).map(|_| prices.draw(rng)).collect::<Vec<Cost>>();
    let vars = extents.iter().map(|&d| Var { domain: table(d) }).collect();
    let edge = |&(a, b): &(usize, usize)| Edge { a, b, table: table(extents[a] * extents[b]) };
    let edges = pairs.iter().map(edge).collect();
    Problem { vars, edges }
}

/// A small problem of a shape that the seed picks, with few or many ties and with or without forbidden entries.
pub(super) fn random_problem(seed: u64, most_vars: usize, most_values: usize) -> Problem {
    let mut rng = SplitMix(seed);
    let shape = [Shape::Chain, Shape::Tree, Shape::Diamonds, Shape::Hub, Shape::Sparse][seed as usize % 5];
    let n = 1 + rng.below(most_vars as u64) as usize;
    let pairs = pairs(shape, n, &mut rng);
    let most = [4, 30, 1000, 1_000_000][rng.below(4) as usize];
    let prices = Prices { most, forbid_one_in: [0, 5, 12][rng.below(3) as usize] };
    problem_on(n, &pairs, most_values, false, prices, &mut rng)
}
