//! The search: from a training program, a cluster and pins to a [`Strategy`]; a pure function.
//!
//! Each number of micro-batches and each kind of pipeline is a space ([`spaces`](mod@spaces)) with a bound on what its plans cost
//! ([`outlines`]); it is opened when no other one promises more. Then every class of segments gets candidates ([`candidates`]): for each
//! split of the mesh into data, context and tensor axes, each boundary placement, ZeRO level and recomputation mode an exact choice of the ops'
//! placements. A chain over the segments ([`solver::chain`]), which may be cut into stages ([`pipe`]), picks one candidate a segment
//! under the memory of the devices ([`devices`]). The best plans are lowered and replayed; what does not fit tightens the budget of its space.

mod allowed;
mod assemble;
mod balance;
mod boundary;
mod candidates;
mod choices;
mod cut;
mod decided;
mod devices;
mod experts;
mod flows;
mod kinds;
mod line;
mod offload;
mod options;
mod outlines;
mod part;
mod paths;
mod pins;
mod pipe;
mod points;
mod price;
mod queue;
mod recompute;
mod refusal;
mod replays;
mod runner_up;
mod sequence;
pub mod solver;
mod spaces;
mod split;
mod stages;
mod temporaries;
mod threads;
mod unary;
mod weights;

pub use assemble::{Decision, SegmentChoice, StagesChoice};
pub use boundary::BoundaryKind;
pub use candidates::{Candidates, Choice, Listing, Mode};
pub use pins::{ContextKind, ExpertKind, LayerPins, Offload, PinFault, Pins, Place, RING, SequenceMode, WHOLE, ZIGZAG};
pub use pipe::Solved;
pub use runner_up::{RunnerUp, RunnersUp, runners_up};
pub use spaces::Space;
pub use threads::set_threads;
pub use weights::zero_shard;

use crate::cost::{CostModel, PlanCost};
use crate::segment::Segment;
use crate::strategy::Strategy;
use candidates::SpaceBuilder;
use galvatron_ir::Module;
use galvatron_ir::headroom::StageMemory;
use kinds::Likeness;
use queue::Queue;
use replays::Replays;
use solver::Cost;
use spaces::Spaces;
use std::collections::{BTreeMap, BTreeSet};
use temporaries::Temporaries;

/// What the search found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The decisions, ready to apply.
    pub strategy: Strategy,
    /// The decisions in terms of segments, for reports.
    pub decision: Decision,
    /// The plan: the module at level `plan`.
    pub plan: Module,
    /// Its replayed cost.
    pub cost: PlanCost,
    /// The surrogate cost that the search minimised, in nanoseconds.
    pub surrogate_ns: u64,
    /// No plan of the declared space costs less than this, in nanoseconds.
    pub bound_ns: u64,
    /// The best alternatives that were not taken, cheapest first.
    pub rejected: Vec<Rejected>,
    /// Counts of what was searched.
    pub effort: Effort,
}

/// A plan that was not taken, and its surrogate cost.
#[derive(Clone, Debug)]
pub struct Rejected {
    /// In words: micro-batches and the usual names of the layers' strategies.
    pub name: String,
    /// Nanoseconds.
    pub time_ns: u64,
    /// Bytes of the surrogate's memory.
    pub bytes: u64,
    /// Whether it needs more than the memory of its stages.
    pub is_too_large: bool,
    /// Why it was not taken.
    pub why: String,
}

/// Counts of what the search did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Effort {
    /// Candidates of all classes and micro-batch counts.
    pub n_candidates: usize,
    /// Largest elimination width of a segment.
    pub width: usize,
    /// Numbers of micro-batches and kinds of pipelines.
    pub n_spaces: usize,
    /// Those whose candidates were made; the bounds of the others did not ask for it.
    pub n_opened: usize,
    /// Plans that were lowered and replayed.
    pub n_replays: usize,
}

/// Why there is no plan.
#[derive(Clone, Debug)]
pub enum NoPlan {
    /// Pins that cannot be met.
    Pin(PinFault),
    /// Nothing fits.
    Memory {
        /// The memory of the stages of the smallest plan; of none where no plan was small enough to be lowered.
        stages: Vec<StageMemory>,
        /// Its name.
        name: String,
    },
}

/// Spaces whose best plans are compared by their replayed cost.
const MAX_FITTING: usize = 3;

/// Plans of kinds that are replayed.
const MAX_REPLAYS_OF_KINDS: usize = 384;

/// The spaces that the search chooses from, with all their candidates.
///
/// # Errors
/// Pins that cannot be met.
///
/// # Panics
/// When all candidates of a segment are to be listed and it has more than [`solver::brute::MOST_ASSIGNMENTS`].
pub fn spaces(
    module: &Module,
    segments: &[Segment],
    model: &CostModel,
    pins: &Pins,
    listing: Listing,
) -> Result<Vec<Space>, NoPlan> {
    let builder = SpaceBuilder::new(module, segments, model, pins, listing).map_err(NoPlan::Pin)?;
    let spaces = Spaces::new(builder)?;
    spaces.open_all();
    match spaces.fault() {
        Some(fault) if spaces.opened().next().is_none() => Err(NoPlan::Pin(fault)),
        _ => Ok(spaces.into_opened()),
    }
}

/// Searches the fastest plan whose every stage fits the memory of its devices and of their hosts.
///
/// The budget of the search is the devices' memory. Where its plan takes more host memory than there is, less is tried there: activations
/// or optimizer states alone, then nothing but what is pinned.
///
/// # Errors
/// Pins that cannot be met, or a model that does not fit.
pub fn search(module: &Module, segments: &[Segment], model: &CostModel, pins: &Pins) -> Result<Found, NoPlan> {
    let builder = || SpaceBuilder::new(module, segments, model, pins, Listing::Best).map_err(NoPlan::Pin);
    let excess = |found: &Found| offload::excess_bytes(&found.plan, model.cluster());
    let first = builder()?;
    let hosts = first.hosts;
    let found = search_from(first, module, model)?;
    if excess(&found) == 0 {
        return Ok(found);
    }
    let mut fastest = Err(NoPlan::Pin(offload::too_large(excess(&found), model.cluster())));
    for (less, _) in Offload::ALL.into_iter().filter(|&(less, _)| hosts.is_any() && less < hosts) {
        match (search_from(SpaceBuilder { hosts: less, ..builder()? }, module, model), &fastest) {
            (Ok(found), Ok(Found { cost, .. })) if cost.step_ns <= found.cost.step_ns => {}
            (Ok(found), _) if excess(&found) == 0 => fastest = Ok(found),
            (Err(no_plan), Err(_)) => fastest = Err(no_plan),
            _ => {}
        }
    }
    fastest
}

/// Searches the fastest plan of the spaces of a builder whose every stage fits the memory of its devices.
fn search_from(builder: SpaceBuilder<'_>, module: &Module, model: &CostModel) -> Result<Found, NoPlan> {
    let spaces = Spaces::new(builder)?;
    let mut temporaries = Temporaries::default();
    let mut queue = Queue::new(&spaces, &mut temporaries);
    let mut replays = Replays::new(module, model, &spaces);
    let mut fitting = BTreeSet::new();
    while let Some((part, pick)) = queue.pop(u64::MAX) {
        if replays.is_better(pick.cost.time_ns) || replays.is_spent() || fitting.len() == MAX_FITTING {
            break;
        }
        let memory = replays.run(&pick);
        queue.note(part, &pick, memory);
        if memory.fits() {
            fitting.insert(pick.space);
        }
    }
    let bound_ns = queue.bound_ns();
    let is_scarce = replays.are_mostly_too_large();
    for likeness in [Likeness::Alike, Likeness::CutAlike] {
        replays.allow_more(is_scarce);
        replay_kinds(&mut replays, &spaces, likeness, &mut temporaries);
    }
    if let Some(pick) = replays.best.as_ref().filter(|_| replays.has_too_large()).map(|(_, pick)| pick.clone()) {
        // What the head keeps for a moment may be most of what is temporary.
        replays.allow_more(false);
        replay_kinds(&mut replays, &spaces, Likeness::CutAs(&pick), &mut temporaries);
    }
    if replays.best.is_none() {
        replays.run_smallest();
    }
    let effort = Effort { n_replays: replays.n_plans(), ..spaces.effort() };
    let Some((mut found, pick)) = replays.best.take() else {
        return Err(spaces.fault().map_or_else(|| replays.no_plan(), NoPlan::Pin));
    };
    found.rejected = spaces.rejected(&pick);
    found.bound_ns = bound_ns.min(found.surrogate_ns);
    found.effort = effort;
    write_prediction(&mut found);
    Ok(found)
}

/// Replays the plans of kinds that may be faster than the best one.
fn replay_kinds<'a>(
    replays: &mut Replays<'_>,
    spaces: &'a Spaces<'a>,
    likeness: Likeness<'a>,
    temporaries: &mut Temporaries<'a>,
) {
    let mut queue = Queue::of_kinds(spaces, likeness, temporaries);
    let most = replays.n_plans() + MAX_REPLAYS_OF_KINDS;
    // Splits that differ in nothing but which axes are called data give the same plan under several names.
    let mut known: BTreeMap<(usize, Cost), StageMemory> = BTreeMap::new();
    while !replays.is_spent() && replays.n_plans() < most {
        // One that seems too large comes late, and may be fast.
        let Some((part, pick)) = queue.pop(replays.most_ns()) else { return };
        let memory = *known.entry((pick.space, pick.cost)).or_insert_with(|| replays.run(&pick));
        queue.note(part, &pick, memory);
    }
}

fn write_prediction(found: &mut Found) {
    let bound_ns = if found.bound_ns == 0 { found.surrogate_ns } else { found.bound_ns };
    let excess = found.surrogate_ns.saturating_sub(bound_ns);
    found.plan.predicted.step_time_ns = found.cost.step_ns;
    found.plan.predicted.gap_ppm = (u128::from(excess) * 1_000_000 / u128::from(bound_ns.max(1))) as u64;
}
