//! Kinds of plans: those whose layers are cut alike, and those whose layers run alike in everything. Each is looked into with a budget of
//! its own, since what is temporary depends most on how layers are cut. Where memory is scarce more are left than can be replayed, and the
//! result may be slower than a plan that a user would try first.

use super::boundary::BoundaryKind;
use super::candidates::{Choice, Mode};
use super::experts::Experts;
use super::sequence::TensorKind;
use super::solver::Cost;
use super::spaces::{MARGIN_PARTS, Pick, Space, Spaces};
use super::split::Split;

/// What the layers have in common: how they are cut, and perhaps everything else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind<'a> {
    split: &'a Split,
    tensor: TensorKind,
    experts: Experts,
    alike: Option<Alike>,
    /// How the other segments are cut, where that is given.
    rest: Option<&'a Split>,
}

/// What uniform layers have in common beyond their cuts, and whether the other segments share the split, the boundary and the ZeRO level.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Alike {
    boundary: BoundaryKind,
    zero: u8,
    mode: Mode,
    host_states: bool,
    everywhere: bool,
}

/// In what the layers of a kind of plans are alike.
#[derive(Clone, Copy)]
pub enum Likeness<'a> {
    /// In everything.
    Alike,
    /// In how they are cut.
    CutAlike,
    /// They are cut as the first layer of a pick; the other segments are cut alike.
    CutAs(&'a Pick),
}

/// Kinds of a space that are looked into.
const MAX_KINDS: usize = 1024;

impl<'a> Kind<'a> {
    fn cut_as(choice: &'a Choice) -> Kind<'a> {
        Kind { split: &choice.split, tensor: choice.tensor, experts: choice.experts, alike: None, rest: None }
    }

    fn alike(choice: &'a Choice, everywhere: bool) -> Kind<'a> {
        let &Choice { boundary, zero, mode, host_states, .. } = choice;
        Kind { alike: Some(Alike { boundary, zero, mode, host_states, everywhere }), ..Kind::cut_as(choice) }
    }

    /// All kinds whose temporaries are about as large: the same cuts, boundaries and ZeRO level, whatever is recomputed.
    pub fn temporaries(self) -> Kind<'a> {
        let alike = self.alike.map(|alike| Alike { mode: Mode::None, everywhere: false, ..alike });
        Kind { alike, ..self }
    }

    /// Whether a segment may run so.
    pub fn allows(&self, choice: &Choice, is_layer: bool) -> bool {
        let is_cut_so = (&choice.split, choice.tensor, choice.experts) == (self.split, self.tensor, self.experts);
        let Some(alike) = self.alike else {
            return if is_layer { is_cut_so } else { self.rest.is_none_or(|rest| choice.split == *rest) };
        };
        let same = (choice.boundary, choice.zero) == (alike.boundary, alike.zero);
        match is_layer {
            true => is_cut_so && same && (choice.mode, choice.host_states) == (alike.mode, alike.host_states),
            false => (same && choice.split == *self.split) || !alike.everywhere,
        }
    }
}

/// The kinds of a likeness in a space that may take less than `most_ns` and fit by the surrogate, fastest first, with what they cost at least; of
/// more than [`MAX_KINDS`] those are left out that would be slower with enough memory.
pub fn promising_kinds<'a>(
    spaces: &'a Spaces<'_>,
    likeness: Likeness<'_>,
    space: usize,
    most_ns: u64,
) -> Vec<(Cost, Kind<'a>)> {
    let layers = spaces.layer_variants();
    let Some(found) = spaces.open(space) else { return Vec::new() };
    let most_bytes = spaces.limit(space).saturating_add(spaces.limit(space) / MARGIN_PARTS);
    let costs = kinds(found, likeness, &layers).into_iter().map(|kind| (least(spaces, found, &layers, kind), kind));
    let is_promising = |(least, _): &(Cost, Kind<'_>)| least.time_ns < most_ns && least.bytes <= most_bytes;
    let mut promising: Vec<(Cost, Kind<'a>)> = costs.filter(is_promising).collect();
    promising.sort();
    promising.truncate(MAX_KINDS);
    promising
}

impl Likeness<'_> {
    /// Whether a space may have such kinds.
    pub fn concerns(self, space: usize) -> bool {
        !matches!(self, Likeness::CutAs(pick) if pick.space != space)
    }
}

/// The kinds that the first class of layers has.
fn kinds<'a>(space: &'a Space, likeness: Likeness<'_>, layers: &[bool]) -> Vec<Kind<'a>> {
    let first = layers.iter().position(|&l| l).unwrap_or(0);
    let choices = &space.candidates.choices;
    let mut kinds: Vec<Kind<'a>> = match likeness {
        Likeness::Alike => choices[first].iter().flat_map(|c| [Kind::alike(c, false), Kind::alike(c, true)]).collect(),
        Likeness::CutAlike => choices[first].iter().map(Kind::cut_as).collect(),
        Likeness::CutAs(pick) => {
            let mut chosen = space.candidates.path().iter().zip(&pick.chosen);
            let Some((&variant, &layer)) = chosen.find(|(variant, _)| layers[**variant]) else { return Vec::new() };
            let others = choices.iter().zip(layers).filter(|(_, is_layer)| !**is_layer).flat_map(|(c, _)| c);
            let layer = Kind::cut_as(&choices[variant][layer]);
            others.map(|other| Kind { rest: Some(&other.split), ..layer }).collect()
        }
    };
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
