//! Plans whose layers all run alike: one split, boundary, ZeRO level and recomputation. They are replayed beside the plans that
//! the surrogate prefers, so that the result is no slower than a plan that a user would try first.

use super::boundary::BoundaryKind;
use super::candidates::{Choice, Mode};
use super::options::Split;
use super::solver::Cost;
use super::spaces::{Pick, Space, Spaces};

/// What uniform layers have in common, and whether the other segments share the split, the boundary and the ZeRO level.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Kind<'a> {
    split: &'a Split,
    boundary: BoundaryKind,
    zero: u8,
    mode: Mode,
    everywhere: bool,
}

impl<'a> Kind<'a> {
    fn of(choice: &'a Choice, everywhere: bool) -> Kind<'a> {
        let Choice { split, boundary, zero, mode, .. } = choice;
        Kind { split, boundary: *boundary, zero: *zero, mode: *mode, everywhere }
    }

    fn allows(&self, choice: &Choice, is_layer: bool) -> bool {
        let same = (&choice.split, choice.boundary, choice.zero) == (self.split, self.boundary, self.zero);
        match is_layer {
            true => same && choice.mode == self.mode,
            false => same || !self.everywhere,
        }
    }
}

/// The fastest plan within its budget of every kind that may take less than `most_ns` by the surrogate, fastest first; of more
/// than `n_most` kinds those are tried that could be fastest with enough memory.
pub fn uniform_picks(spaces: &Spaces<'_>, budget: impl Fn(usize) -> u64, most_ns: u64, n_most: usize) -> Vec<Pick> {
    let layers = spaces.layer_variants();
    let mut promising = Vec::new();
    for i in (0..spaces.len()).filter(|&i| spaces.bound_ns(i) < most_ns) {
        let Some(space) = spaces.open(i) else { continue };
        let costs = kinds(space, &layers).into_iter().map(|kind| (least(space, &layers, kind), i, kind));
        promising.extend(costs.filter(|(least, ..)| least.time_ns < most_ns && least.bytes <= budget(i)));
    }
    promising.sort();
    promising.truncate(n_most);
    let solve = |&(_, i, kind): &(Cost, usize, Kind<'_>)| pick(spaces.open(i)?, i, &layers, kind, budget(i));
    let mut picks: Vec<Pick> = promising.iter().filter_map(solve).filter(|p| p.cost.time_ns < most_ns).collect();
    picks.sort_by(|a, b| (a.cost, a.space, &a.chosen).cmp(&(b.cost, b.space, &b.chosen)));
    // Splits that differ in nothing but which axes are called data give the same plan under several names.
    picks.dedup_by(|a, b| (a.space, a.cost) == (b.space, b.cost));
    picks
}

/// The kinds that the first class of layers has.
fn kinds<'a>(space: &'a Space, layers: &[bool]) -> Vec<Kind<'a>> {
    let first = layers.iter().position(|&l| l).unwrap_or(0);
    let both = |c: &'a Choice| [false, true].map(|everywhere| Kind::of(c, everywhere));
    let mut kinds: Vec<Kind<'a>> = space.candidates.choices[first].iter().flat_map(both).collect();
    kinds.sort();
    kinds.dedup();
    kinds
}

/// The sums over the segments of the least time and of the least bytes of the candidates that the kind allows.
fn least(space: &Space, layers: &[bool], kind: Kind<'_>) -> Cost {
    let of = |(choices, &is_layer): (&Vec<Choice>, &bool)| {
        let allowed = choices.iter().filter(|c| kind.allows(c, is_layer));
        let both =
            |least: Cost, c: &Choice| Cost::new(least.time_ns.min(c.cost.time_ns), least.bytes.min(c.cost.bytes));
        allowed.fold(Cost::FORBIDDEN, both)
    };
    let by_variant: Vec<Cost> = space.candidates.choices.iter().zip(layers).map(of).collect();
    let all = space.candidates.chain.layers.iter().fold(Cost::ZERO, |sum, &variant| sum.plus(by_variant[variant]));
    // The largest stage has at least its share.
    let n = space.pipe.as_ref().map_or(1, |pipe| pipe.n_stages());
    Cost::new(all.time_ns / n, all.bytes / n)
}

/// The fastest plan of the kind.
fn pick(space: &Space, index: usize, layers: &[bool], kind: Kind<'_>, budget: u64) -> Option<Pick> {
    let mut chain = space.candidates.chain.clone();
    for ((class, choices), &is_layer) in chain.classes.iter_mut().zip(&space.candidates.choices).zip(layers) {
        for (candidate, _) in class.iter_mut().zip(choices).filter(|(_, c)| !kind.allows(c, is_layer)) {
            candidate.cost = Cost::FORBIDDEN;
        }
    }
    let solved = space.solve_chain(&chain, Some(budget), false).ok()?;
    Some(Pick::new(solved, index))
}
