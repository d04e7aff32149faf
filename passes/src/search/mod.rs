//! The search: from a training program, a cluster and pins to a [`Strategy`]; a pure function.
//!
//! For each number of micro-batches, every class of segments gets candidates ([`candidates`]): for each split of the mesh into
//! data and tensor axes, each boundary placement, ZeRO level and recomputation mode an exact choice of the ops' placements. A
//! chain over the segments ([`solver::chain`]) then picks one candidate a segment under the memory limit. The best plans are
//! lowered and replayed; what does not fit tightens the budget for its number of micro-batches.

mod assemble;
mod boundary;
mod candidates;
mod options;
mod pins;
mod price;
mod queue;
pub mod solver;
mod spaces;
mod weights;

pub use assemble::{Decision, SegmentChoice};
pub use boundary::BoundaryKind;
pub use candidates::Mode;
pub use pins::{LayerPins, PinFault, Pins, Place, SequenceMode, WHOLE};
pub use weights::zero_shard;

use crate::cost::{CostModel, PlanCost, plan_cost};
use crate::segment::Segment;
use crate::strategy::Strategy;
use candidates::SpaceBuilder;
use galvatron_ir::Module;
use queue::Queue;
use spaces::{Pick, Space, Spaces};

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
    /// Plans that were lowered and replayed.
    pub n_replays: usize,
}

/// Why there is no plan.
#[derive(Clone, Debug)]
pub enum NoPlan {
    /// Pins that cannot be met.
    Pin(PinFault),
    /// Nothing fits: the least bytes a rank needs, and the plan's name that needs them.
    Memory {
        /// Bytes of the smallest plan.
        least_bytes: u64,
        /// Its name.
        name: String,
    },
}

/// Plans that fit and are compared by their replayed cost.
const MAX_FITTING: usize = 3;

/// Searches the fastest plan that fits `cluster.device.memory_bytes`.
///
/// # Errors
/// Pins that cannot be met, or a model that does not fit.
pub fn search(module: &Module, segments: &[Segment], model: &CostModel, pins: &Pins) -> Result<Found, NoPlan> {
    let limit = model.cluster().device.memory_bytes;
    let spaces = SpaceBuilder::new(module, segments, model, pins).map_err(NoPlan::Pin)?.build()?;
    let mut queue = Queue::new(&spaces, limit);
    let mut effort = spaces.effort();
    let mut best: Option<(Found, Pick)> = None;
    let mut smallest: Option<(u64, Pick)> = None;
    let mut n_fitting = 0;
    while let Some(pick) = queue.pop() {
        if best.as_ref().is_some_and(|(b, _)| b.cost.step_ns <= pick.cost.time_ns) {
            break;
        }
        effort.n_replays += 1;
        let (strategy, decision, plan) = replay(module, &spaces, &pick);
        let bytes = plan.arena.bytes();
        if bytes > limit {
            queue.tighten(&pick, bytes - limit);
            if smallest.as_ref().is_none_or(|(least, _)| bytes < *least) {
                smallest = Some((bytes, pick));
            }
            continue;
        }
        let cost = plan_cost(model, &plan);
        if best.as_ref().is_none_or(|(b, _)| cost.step_ns < b.cost.step_ns) {
            let surrogate_ns = pick.cost.time_ns;
            let (bound_ns, rejected) = (0, Vec::new());
            let found = Found { strategy, decision, plan, cost, surrogate_ns, bound_ns, rejected, effort };
            best = Some((found, pick));
        }
        n_fitting += 1;
        if n_fitting == MAX_FITTING {
            break;
        }
    }
    let Some((mut found, pick)) = best else { return Err(no_plan(module, &spaces, smallest)) };
    found.rejected = spaces.rejected(&pick, limit);
    found.bound_ns = queue.bound_ns().min(found.surrogate_ns);
    found.effort = effort;
    write_prediction(&mut found);
    Ok(found)
}

/// Lowers a pick to a plan.
fn replay(module: &Module, spaces: &Spaces<'_>, pick: &Pick) -> (Strategy, Decision, Module) {
    let (strategy, decision) = spaces.assemble(pick);
    let mut plan = module.clone();
    crate::apply::apply(&mut plan, &strategy);
    (strategy, decision, plan)
}

/// The smallest plan that was lowered; where none was, the smallest plan of the space whose surrogate is smallest.
fn no_plan(module: &Module, spaces: &Spaces<'_>, smallest: Option<(u64, Pick)>) -> NoPlan {
    let least = |(i, space): (usize, &Space)| {
        let none = space.solve(Some(0), false).err()?;
        Some(Pick { chosen: none.assignment, cost: none.least, space: i })
    };
    let (least_bytes, pick) = match smallest {
        Some(found) => found,
        None => {
            let picks = spaces.spaces.iter().enumerate().filter_map(least);
            let Some(pick) = picks.min_by_key(|p| p.cost.bytes) else {
                return NoPlan::Memory { least_bytes: u64::MAX, name: String::new() };
            };
            (replay(module, spaces, &pick).2.arena.bytes(), pick)
        }
    };
    NoPlan::Memory { least_bytes, name: spaces.name(&pick) }
}

fn write_prediction(found: &mut Found) {
    let bound_ns = if found.bound_ns == 0 { found.surrogate_ns } else { found.bound_ns };
    let excess = found.surrogate_ns.saturating_sub(bound_ns);
    found.plan.predicted.step_time_ns = found.cost.step_ns;
    found.plan.predicted.gap_ppm = (u128::from(excess) * 1_000_000 / u128::from(bound_ns.max(1))) as u64;
}
