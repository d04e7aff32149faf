//! What else a group of segments could do: the fastest plan in which it has a strategy of another name, and the rest of the plan
//! stays as it is. The most promising are lowered and replayed, as the finalists of the search are.

use super::assemble::SegmentChoice;
use super::candidates::{Choice, Listing, SpaceBuilder};
use super::solver::Cost;
use super::solver::chain::Chain;
use super::spaces::{Pick, Space, Spaces};
use super::{Decision, NoPlan};
use crate::cost::{CostModel, plan_cost};
use crate::segment::Segment;
use crate::strategy::Strategy;
use galvatron_ir::Module;
use std::ops::Range;

/// Strategies of a group that are replayed, of those that fit by the surrogate, and of all.
const MOST_REPLAYS: usize = 4;

/// Plans that are lowered to find the plan itself.
const MOST_ROUNDS: usize = 4;

/// A plan in which one group of segments does something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunnerUp {
    /// The strategy of the group.
    pub name: String,
    /// Nanoseconds of a step, replayed.
    pub step_ns: u64,
    /// Bytes of the largest arena.
    pub peak_bytes: u64,
}

/// A plan, and what groups of its segments could do instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunnersUp {
    /// The plan with all its names, as it is lowered here; a plan whose ops are placed otherwise under the same names may take another time.
    pub own: RunnerUp,
    /// For each group other plans, fastest first, whether they fit or not.
    pub others: Vec<Vec<RunnerUp>>,
}

/// For each of `groups` of segments other plans than `decision`. `None` where the declared space has no plan whose segments are named
/// so.
///
/// `plan` is the largest arena of the plan and the nanoseconds of its step.
///
/// # Errors
/// A decision that the model or the cluster cannot take.
pub fn runners_up(
    module: &Module,
    segments: &[Segment],
    model: &CostModel,
    decision: &Decision,
    groups: &[Range<usize>],
    plan: (u64, u64),
) -> Result<Option<RunnersUp>, NoPlan> {
    let pins = decision.outer_pins();
    let spaces = Spaces::new(SpaceBuilder::new(module, segments, model, &pins, Listing::Best).map_err(NoPlan::Pin)?)?;
    let names: Vec<String> = decision.segments.iter().map(SegmentChoice::name).collect();
    spaces.open_all();
    let menu = |(at, space)| Menu { module, model, spaces: &spaces, at, space, names: &names, groups };
    let menus = spaces.opened().map(menu);
    let priced = menus.filter_map(|menu| Some((menu.pick(None, None)?, menu)));
    let Some((fastest, menu)) = priced.min_by_key(|(pick, _)| pick.cost) else { return Ok(None) };
    let (pick, strategy, own) = menu.nearest(plan, fastest, &decision.name());
    // What the surrogate does not count of a plan it does not count of a similar one either.
    let limit = model.cluster().device.memory_bytes;
    let budget = limit.saturating_add(pick.cost.bytes).saturating_sub(own.peak_bytes);
    let others = (0..groups.len()).map(|group| menu.others(group, budget, &strategy)).collect();
    Ok(Some(RunnersUp { own, others }))
}

/// The candidates of a space, by the names of the strategies.
struct Menu<'a> {
    module: &'a Module,
    model: &'a CostModel,
    spaces: &'a Spaces<'a>,
    at: usize,
    space: &'a Space,
    names: &'a [String],
    groups: &'a [Range<usize>],
}

impl Menu<'_> {
    /// The plan of these names that takes most nearly `step_ns`: from the fastest on, smaller ones until one fits `peak_bytes`.
    fn nearest(&self, (peak_bytes, step_ns): (u64, u64), fastest: Pick, name: &str) -> (Pick, Strategy, RunnerUp) {
        let lowered = |pick: Pick| {
            let strategy = self.spaces.assemble(&pick).0;
            let own = self.replay(&strategy, name);
            (pick, strategy, own)
        };
        let mut all = vec![lowered(fastest)];
        while all.len() < MOST_ROUNDS {
            let (pick, _, own) = &all[all.len() - 1];
            let excess = own.peak_bytes.saturating_sub(peak_bytes);
            match self.pick(None, Some(pick.cost.bytes.saturating_sub(excess))).filter(|_| excess > 0) {
                Some(smaller) => all.push(lowered(smaller)),
                None => break,
            }
        }
        all.into_iter()
            .min_by_key(|(.., own)| own.step_ns.abs_diff(step_ns))
            .expect("invariant: the fastest is one of them")
    }

    /// The fastest plans in which a group has one other name, replayed. A name that changes nothing, such as a ZeRO level over one
    /// rank, is no other plan.
    fn others(&self, group: usize, budget: u64, own: &Strategy) -> Vec<RunnerUp> {
        let first = self.groups[group].start;
        let mut names: Vec<String> = self.choices(first).iter().map(|c| self.name(first, c)).collect();
        names.sort();
        names.dedup();
        names.retain(|name| *name != self.names[first]);
        let mut plans: Vec<(Strategy, &String)> = Vec::new();
        for budget in [Some(budget), None] {
            let all = names.iter().filter_map(|name| Some((self.pick(Some((group, name)), budget)?, name)));
            let mut all: Vec<(Pick, &String)> = all.collect();
            all.sort_by_key(|(pick, _)| pick.cost);
            let all = all.iter().map(|(pick, name)| (self.spaces.assemble(pick).0, *name));
            let others: Vec<_> = all.filter(|(strategy, _)| strategy != own).take(MOST_REPLAYS).collect();
            for (strategy, name) in others {
                if plans.iter().all(|(known, _)| *known != strategy) {
                    plans.push((strategy, name));
                }
            }
        }
        let mut found: Vec<RunnerUp> = plans.iter().map(|(strategy, name)| self.replay(strategy, name)).collect();
        found.sort_by(|a, b| (a.step_ns, a.peak_bytes, &a.name).cmp(&(b.step_ns, b.peak_bytes, &b.name)));
        found
    }

    fn replay(&self, strategy: &Strategy, name: &str) -> RunnerUp {
        let mut plan = self.module.clone();
        crate::apply::apply(&mut plan, strategy, &self.spaces.builder.facts.rules);
        RunnerUp { name: name.into(), step_ns: plan_cost(self.model, &plan).step_ns, peak_bytes: plan.peak_bytes() }
    }

    fn choices(&self, segment: usize) -> &[Choice] {
        &self.space.candidates.choices[self.spaces.builder.variant_of[segment]]
    }

    fn name(&self, segment: usize, choice: &Choice) -> String {
        SegmentChoice::of(&self.spaces.builder.pieces[segment], choice, &self.space.mesh).name()
    }

    /// The fastest plan by the surrogate whose segments have their names, those of one group another one.
    fn pick(&self, replaced: Option<(usize, &str)>, budget: Option<u64>) -> Option<Pick> {
        let chain = &self.space.candidates.chain;
        let (mut classes, mut layers, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
        let mut last: Option<(usize, &str)> = None;
        for segment in 0..chain.layers.len() {
            let wanted = match replaced {
                Some((group, name)) if self.groups[group].contains(&segment) => name,
                _ => &self.names[segment],
            };
            // Equal neighbours share a class, which the solver takes together.
            if last != Some((chain.layers[segment], wanted)) {
                let of_class = self.choices(segment);
                let kept: Vec<usize> =
                    (0..of_class.len()).filter(|&c| self.name(segment, &of_class[c]) == wanted).collect();
                if kept.is_empty() {
                    return None;
                }
                classes.push(kept.iter().map(|&c| chain.classes[chain.layers[segment]][c]).collect());
                numbers.push(kept);
                last = Some((chain.layers[segment], wanted));
            }
            layers.push(classes.len() - 1);
        }
        let restricted = Chain { classes, layers, ..chain.clone() };
        let solved = self.space.solve_chain(&restricted, budget, true).ok()?;
        let solution = &solved.solution;
        let chosen = solution.assignment.iter().zip(&restricted.layers).map(|(&choice, &class)| numbers[class][choice]);
        let (chosen, cost) = (chosen.collect(), solution.cost);
        (cost < Cost::FORBIDDEN).then_some(Pick { chosen, cost, starts: solved.starts, space: self.at })
    }
}
