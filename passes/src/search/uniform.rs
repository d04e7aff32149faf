//! Plans whose layers all run alike: one split, boundary, ZeRO level and recomputation. They are replayed beside the plans that
//! the surrogate prefers, so that the result is no slower than a plan that a user would try first.

use super::boundary::BoundaryKind;
use super::candidates::{Choice, Mode};
use super::options::Split;
use super::solver::Cost;
use super::solver::chain::Chain;
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
        let costs = kinds(space, &layers).into_iter().map(|kind| (least(spaces, space, &layers, kind), i, kind));
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

/// What a plan of the kind takes at least: nanoseconds, and bytes of the largest stage.
fn least(spaces: &Spaces<'_>, space: &Space, layers: &[bool], kind: Kind<'_>) -> Cost {
    let of = |speed: usize, (choices, &is_layer): (&Vec<Choice>, &bool)| {
        let allowed = choices.iter().filter(|c| kind.allows(c, is_layer)).map(|c| c.cost_at(speed));
        let both = |least: Cost, c: Cost| Cost::new(least.time_ns.min(c.time_ns), least.bytes.min(c.bytes));
        allowed.fold(Cost::FORBIDDEN, both)
    };
    let by_variant = |speed| space.candidates.choices.iter().zip(layers).map(|choices| of(speed, choices)).collect();
    let speeds: Vec<Vec<Cost>> = (0..space.candidates.chains.len()).map(by_variant).collect();
    let path = space.candidates.path();
    let all = path.iter().fold(Cost::ZERO, |sum, &variant| sum.plus(speeds[0][variant]));
    let Some(pipe) = space.pipe.as_ref().filter(|_| !all.is_forbidden()) else { return all };
    let times = |costs: &Vec<Cost>| costs.iter().map(|cost| cost.time_ns).collect();
    let times: Vec<Vec<u64>> = speeds.iter().map(times).collect();
    // The largest stage has at least its share.
    let missing: u64 = (0..space.devices.n_stages()).map(|stage| space.devices.missing_bytes(stage)).sum();
    Cost::new(
        pipe.least_ns(&spaces.builder.is_layer, path, &times),
        all.bytes.saturating_add(missing) / pipe.n_stages(),
    )
}

/// The fastest plan of the kind.
fn pick(space: &Space, index: usize, layers: &[bool], kind: Kind<'_>, budget: u64) -> Option<Pick> {
    let allowed = |(choices, &is_layer): (&Vec<Choice>, &bool)| {
        (0..choices.len()).filter(|&c| kind.allows(&choices[c], is_layer)).collect::<Vec<usize>>()
    };
    let allowed: Vec<Vec<usize>> = space.candidates.choices.iter().zip(layers).map(allowed).collect();
    let of_kind = |chain: &Chain| {
        let classes = chain.classes.iter().zip(&allowed).map(|(class, own)| own.iter().map(|&c| class[c]).collect());
        Chain {
            classes: classes.collect(),
            layers: chain.layers.clone(),
            n_states: chain.n_states,
            switch: chain.switch.clone(),
        }
    };
    let chains: Vec<Chain> = space.candidates.chains.iter().map(of_kind).collect();
    let mut solved = space.solve_chains(&chains, Some(budget), false).ok()?;
    for (choice, &class) in solved.solution.assignment.iter_mut().zip(space.candidates.path()) {
        *choice = allowed[class][*choice];
    }
    Some(Pick::new(solved, index))
}
