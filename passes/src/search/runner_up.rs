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
use galvatron_ir::headroom::StageMemory;
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
    /// The memory of the stage that lacks most or leaves least.
    pub memory: StageMemory,
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
/// `plan` is the memory of the stage of the plan that lacks most or leaves least, and the nanoseconds of its step.
///
/// # Errors
/// A decision that the model or the cluster cannot take.
pub fn runners_up(
    module: &Module,
    segments: &[Segment],
    model: &CostModel,
    decision: &Decision,
    groups: &[Range<usize>],
    plan: (StageMemory, u64),
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
    let budget = own.memory.memory_bytes.saturating_add(pick.cost.bytes).saturating_sub(own.memory.peak_bytes);
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
    /// The plan of these names that takes most nearly `step_ns`: from the fastest on, smaller ones until one leaves as much memory as `plan`.
    fn nearest(&self, (plan, step_ns): (StageMemory, u64), fastest: Pick, name: &str) -> (Pick, Strategy, RunnerUp) {
        let lowered = |pick: Pick| {
            let strategy = self.spaces.assemble(&pick).0;
            let own = self.replay(&strategy, name);
            (pick, strategy, own)
        };
        let mut all = vec![lowered(fastest)];
        while all.len() < MOST_ROUNDS {
            let (pick, _, own) = &all[all.len() - 1];
            let needs = own.memory.peak_bytes.saturating_add(plan.memory_bytes);
            let excess = needs.saturating_sub(plan.peak_bytes.saturating_add(own.memory.memory_bytes));
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
        let key = |r: &RunnerUp| (r.step_ns, r.memory.peak_bytes);
        found.sort_by(|a, b| (key(a), &a.name).cmp(&(key(b), &b.name)));
        found
    }

    fn replay(&self, strategy: &Strategy, name: &str) -> RunnerUp {
        let mut plan = self.module.clone();
        crate::apply::apply(&mut plan, strategy, &self.spaces.builder.facts.rules);
        let memory = plan.tightest_stage(self.model.cluster());
        RunnerUp { name: name.into(), step_ns: plan_cost(self.model, &plan).step_ns, memory }
    }

    fn choices(&self, segment: usize) -> &[Choice] {
        &self.space.candidates.choices[self.spaces.builder.variant_of[segment]]
    }

    fn name(&self, segment: usize, choice: &Choice) -> String {
        SegmentChoice::of(&self.spaces.builder.pieces[segment], choice, &self.space.mesh).name()
    }

    /// The fastest plan by the surrogate whose segments have their names, those of one group another one.
    fn pick(&self, replaced: Option<(usize, &str)>, budget: Option<u64>) -> Option<Pick> {
        let path = self.space.candidates.path();
        let (mut layers, mut numbers) = (Vec::new(), Vec::new());
        let mut last: Option<(usize, &str)> = None;
        for (segment, &variant) in path.iter().enumerate() {
            let wanted = match replaced {
                Some((group, name)) if self.groups[group].contains(&segment) => name,
                _ => &self.names[segment],
            };
            // Equal neighbours share a class, which the solver takes together.
            if last != Some((variant, wanted)) {
                let of_class = self.choices(segment);
                let kept: Vec<usize> =
                    (0..of_class.len()).filter(|&c| self.name(segment, &of_class[c]) == wanted).collect();
                if kept.is_empty() {
                    return None;
                }
                numbers.push((variant, kept));
                last = Some((variant, wanted));
            }
            layers.push(numbers.len() - 1);
        }
        let restricted = |chain: &Chain| {
            let class =
                |(variant, kept): &(usize, Vec<usize>)| kept.iter().map(|&c| chain.classes[*variant][c]).collect();
            Chain { classes: numbers.iter().map(class).collect(), layers: layers.clone(), ..chain.clone() }
        };
        let chains: Vec<Chain> = self.space.candidates.chains.iter().map(restricted).collect();
        let solved = self.space.solve_chains(&chains, budget, true).ok()?;
        let solution = &solved.solution;
        let chosen = solution.assignment.iter().zip(&layers).map(|(&choice, &class)| numbers[class].1[choice]);
        let (chosen, cost) = (chosen.collect(), solution.cost);
        (cost < Cost::FORBIDDEN).then_some(Pick { chosen, cost, starts: solved.starts, space: self.at })
    }
}
