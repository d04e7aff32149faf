//! The search: from a training program, a cluster and pins to a [`Strategy`]; a pure function.
//!
//! For each number of micro-batches, every class of segments gets candidates ([`candidates`]): for each split of the mesh into
//! data and tensor axes, each boundary placement, ZeRO level and recomputation mode an exact choice of the ops' placements. A
//! chain over the segments ([`solver::chain`]) then picks one candidate a segment under the memory limit. The best plans are
//! lowered and replayed; what does not fit tightens the budget.

mod assemble;
mod boundary;
mod candidates;
mod options;
mod pins;
mod price;
pub mod solver;
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

/// Rounds of tightening the budget by what a lowered plan exceeds it.
const MAX_ROUNDS: usize = 12;

/// Searches the fastest plan that fits `cluster.device.memory_bytes`.
///
/// # Errors
/// Pins that cannot be met, or a model that does not fit.
pub fn search(module: &Module, segments: &[Segment], model: &CostModel, pins: &Pins) -> Result<Found, NoPlan> {
    let limit = model.cluster().device.memory_bytes;
    let spaces = SpaceBuilder::new(module, segments, model, pins).map_err(NoPlan::Pin)?.build()?;
    let mut budget = limit;
    let mut effort = spaces.effort();
    let mut least = None;
    for _ in 0..MAX_ROUNDS {
        let round = spaces.solve(budget).map_err(|least_bytes| too_big(&spaces, least_bytes, &mut least))?;
        let mut best: Option<Found> = None;
        let mut over = u64::MAX;
        for pick in &round.picks {
            effort.n_replays += 1;
            let (strategy, decision) = spaces.assemble(pick);
            let mut plan = module.clone();
            plan.mesh = spaces.mesh(pick.micro_batches);
            crate::apply::apply(&mut plan, &strategy);
            if plan.arena.bytes() > limit {
                over = over.min(plan.arena.bytes() - limit);
                least = Some(least.unwrap_or(u64::MAX).min(plan.arena.bytes()));
                continue;
            }
            let cost = plan_cost(model, &plan);
            if best.as_ref().is_none_or(|b| cost.step_ns < b.cost.step_ns) {
                let (surrogate_ns, bound_ns) = (pick.cost.time_ns, round.bound_ns);
                let rejected = Vec::new();
                best = Some(Found { strategy, decision, plan, cost, surrogate_ns, bound_ns, rejected, effort });
            }
        }
        if let Some(mut found) = best {
            found.rejected = spaces.rejected(&round, limit);
            write_prediction(&mut found);
            found.effort = effort;
            return Ok(found);
        }
        budget = budget.saturating_sub(over.max(limit / 256));
    }
    Err(NoPlan::Memory { least_bytes: least.unwrap_or(u64::MAX), name: "the smallest plan found".into() })
}

fn too_big(spaces: &candidates::Spaces<'_>, surrogate: u64, replayed: &mut Option<u64>) -> NoPlan {
    let least_bytes = replayed.unwrap_or(surrogate).max(surrogate);
    NoPlan::Memory { least_bytes, name: spaces.smallest_name() }
}

fn write_prediction(found: &mut Found) {
    let excess = found.surrogate_ns.saturating_sub(found.bound_ns);
    found.plan.predicted.step_time_ns = found.cost.step_ns;
    found.plan.predicted.gap_ppm = (u128::from(excess) * 1_000_000 / u128::from(found.bound_ns.max(1))) as u64;
}
