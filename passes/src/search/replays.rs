//! The plans that the search lowers and prices node by node: the fastest that fits, and the smallest that does not.

use super::spaces::{Pick, Spaces};
use super::{Effort, Found, NoPlan};
use crate::apply;
use crate::cost::{CostModel, plan_cost};
use crate::strategy::Strategy;
use galvatron_ir::Module;
use galvatron_ir::headroom::StageMemory;

/// Nodes of all plans that are replayed, once one fits; the effort that a large model may take.
const REPLAYED_NODES: usize = 1 << 17;

/// The same for plans whose layers have something in common, beyond what was replayed before: where memory is ample the surrogate knows all but
/// a little of the time, where it is scarce most of what seems fast turns out to be too large.
const MORE_NODES: usize = 1 << 16;
const MORE_NODES_OF_SCARCE: usize = 1 << 17;

/// The margin for plans that the surrogate finds slower, at least and at most.
const LEAST_MARGIN_PPM: i64 = 4_000;
const MOST_MARGIN_PPM: i64 = 62_500;

/// Part of the memory that a plan may lack at most if it is tried whether it fits with everything in turn.
const IN_TURN_PARTS: u64 = 8;

/// Numbers of micro-batches whose smallest plan is tried where nothing else fits.
const MAX_SMALLEST: usize = 8;

/// The plans that were lowered and priced node by node.
pub struct Replays<'a> {
    module: &'a Module,
    model: &'a CostModel,
    spaces: &'a Spaces<'a>,
    /// The fastest plan that fits.
    pub best: Option<(Found, Pick)>,
    /// The plan that lacks fewest bytes, with the memory of its stages.
    smallest: Option<(Vec<StageMemory>, Pick)>,
    /// What was lowered, with the memory of the stage that lacks most or leaves least.
    known: Vec<(Strategy, StageMemory)>,
    /// A plan of no further use, of which the next one is made.
    spare: Option<Module>,
    n_nodes: usize,
    most_nodes: usize,
    /// The least and the most by which plans were slower than their surrogates, in parts per million.
    deviations_ppm: Option<(i64, i64)>,
}

impl<'a> Replays<'a> {
    /// None yet, under the memory of the model's cluster.
    pub fn new(module: &'a Module, model: &'a CostModel, spaces: &'a Spaces<'a>) -> Replays<'a> {
        let (best, smallest, known, spare) = (None, None, Vec::new(), None);
        let most_nodes = REPLAYED_NODES;
        Replays { module, model, spaces, best, smallest, known, spare, n_nodes: 0, most_nodes, deviations_ppm: None }
    }

    /// Plans that were lowered.
    pub fn n_plans(&self) -> usize {
        self.known.len()
    }

    /// Whether memory barred some of them.
    pub fn has_too_large(&self) -> bool {
        self.smallest.is_some()
    }

    /// Whether memory barred most of them.
    pub fn are_mostly_too_large(&self) -> bool {
        self.known.iter().filter(|(_, memory)| !memory.fits()).count() * 2 > self.n_plans()
    }

    /// Lowers a pick unless the same strategy was lowered before; returns the memory of the stage that lacks most or leaves least.
    pub fn run(&mut self, pick: &Pick) -> StageMemory {
        self.run_unless(pick, is_far_too_large)
    }

    /// The same; what is too large to be tried with everything in turn is as given.
    fn run_unless(&mut self, pick: &Pick, is_hopeless: fn(&StageMemory) -> bool) -> StageMemory {
        let (strategy, decision) = self.spaces.assemble(pick);
        let known = self.known.iter().position(|(s, _)| *s == strategy);
        // What was tried under another measure may fit under this one.
        if let Some(&(_, memory)) = known.map(|i| &self.known[i])
            && is_hopeless(&memory) == is_far_too_large(&memory)
        {
            return memory;
        }
        let tried = strategy.clone();
        let (plan, strategy, memory) = self.lower(strategy, is_hopeless);
        self.n_nodes += plan.chunks.iter().map(|c| c.graph.n_nodes()).sum::<usize>();
        match known {
            Some(i) => self.known[i] = (tried, memory),
            None => self.known.push((tried, memory)),
        }
        if !memory.fits() {
            let lacks = |stages: &[StageMemory]| stages.iter().map(StageMemory::excess_bytes).max().unwrap_or(0);
            if self.smallest.as_ref().is_none_or(|(least, _)| memory.excess_bytes() < lacks(least)) {
                self.smallest = Some((plan.memory_by_stage(self.model.cluster()), pick.clone()));
            }
            self.spare = Some(plan);
            return memory;
        }
        let cost = plan_cost(self.model, &plan);
        let ppm = deviation_ppm(pick.cost.time_ns, cost.step_ns);
        let (least, most) = self.deviations_ppm.unwrap_or((ppm, ppm));
        self.deviations_ppm = Some((least.min(ppm), most.max(ppm)));
        if self.best.as_ref().is_none_or(|(b, _)| cost.step_ns < b.cost.step_ns) {
            let surrogate_ns = pick.cost.time_ns;
            let (bound_ns, rejected, effort) = (0, Vec::new(), Effort::default());
            let found = Found { strategy, decision, plan, cost, surrogate_ns, bound_ns, rejected, effort };
            let beaten = self.best.replace((found, pick.clone()));
            self.spare = beaten.map(|(found, _)| found.plan);
        } else {
            self.spare = Some(plan);
        }
        memory
    }

    /// The training program, of which a plan is to be made: what the passes wrote to a spare one is taken away.
    fn training(&mut self) -> Module {
        let Some(spare) = self.spare.take() else { return self.module.clone() };
        let Module { level, mesh, stages, chunks, predicted, .. } = self.module;
        let (mesh, stages, chunks) = (mesh.clone(), stages.clone(), chunks.clone());
        Module { level: *level, mesh, stages, chunks, predicted: *predicted, ..spare }
    }

    /// The plan of a strategy with the memory of the stage that lacks most or leaves least. Where nothing fits that runs beside computation,
    /// collectives stand where they are needed.
    fn lower(&mut self, strategy: Strategy, is_hopeless: fn(&StageMemory) -> bool) -> (Module, Strategy, StageMemory) {
        let (cluster, mut plan) = (self.model.cluster(), self.training());
        apply::order(&mut plan, &strategy, &self.spaces.builder.facts.rules);
        let in_turn = plan.chunks.iter().map(|chunk| chunk.phases.clone()).collect::<Vec<_>>();
        apply::finish(&mut plan, &strategy);
        let memory = plan.tightest_stage(cluster);
        if self.model.slowdown().is_none() || memory.fits() || is_hopeless(&memory) {
            return (plan, strategy, memory);
        }
        let strategy = Strategy { in_turn: true, ..strategy };
        plan.chunks.iter_mut().zip(in_turn).for_each(|(chunk, phases)| chunk.phases = phases);
        apply::finish(&mut plan, &strategy);
        let memory = plan.tightest_stage(cluster);
        (plan, strategy, memory)
    }

    /// Lowers the smallest plans of the smallest spaces, however much they lack before everything is in turn.
    pub fn run_smallest(&mut self) {
        let opened = self.spaces.opened();
        let mut order: Vec<(u64, usize)> = opened.map(|(i, space)| (space.least_bytes(), i)).collect();
        order.sort();
        for (bytes, i) in order.into_iter().take(MAX_SMALLEST) {
            let solved = self.spaces.open(i).and_then(|space| space.solve(Some(bytes), true).ok());
            if let Some(solved) = solved {
                self.run_unless(&Pick::new(solved, i), |_| false);
            }
        }
    }

    /// Why nothing fits: the smallest plan that was lowered.
    pub fn no_plan(self) -> NoPlan {
        match self.smallest {
            Some((stages, pick)) => NoPlan::Memory { stages, name: self.spaces.name(&pick) },
            None => NoPlan::Memory { stages: Vec::new(), name: String::new() },
        }
    }

    /// Whether the best plan so far takes no longer than this.
    pub fn is_better(&self, time_ns: u64) -> bool {
        self.best.as_ref().is_some_and(|(b, _)| b.cost.step_ns <= time_ns)
    }

    /// Nanoseconds that a plan may take by its surrogate if it is to be replayed: beyond the best plan's time as much as some plans deviate from
    /// their surrogates more than others.
    pub fn most_ns(&self) -> u64 {
        let Some((best, _)) = &self.best else { return u64::MAX };
        let (least, most) = self.deviations_ppm.unwrap_or((0, 0));
        let share_ppm = most.saturating_sub(least).clamp(LEAST_MARGIN_PPM, MOST_MARGIN_PPM);
        best.cost.step_ns + (i128::from(best.cost.step_ns) * i128::from(share_ppm) / 1_000_000) as u64
    }

    /// Allows some more effort, and more than that where memory is scarce.
    pub fn allow_more(&mut self, is_scarce: bool) {
        let more = if is_scarce { MORE_NODES_OF_SCARCE } else { MORE_NODES };
        self.most_nodes = self.n_nodes + more;
    }

    /// Whether the effort is spent; it never is before a plan fits.
    pub fn is_spent(&self) -> bool {
        self.best.is_some() && self.n_nodes > self.most_nodes
    }
}

/// Whether a plan lacks so much memory that it will hardly fit with everything in turn.
fn is_far_too_large(memory: &StageMemory) -> bool {
    memory.excess_bytes() > memory.memory_bytes / IN_TURN_PARTS
}

/// By how much a plan is slower than its surrogate, in parts per million.
fn deviation_ppm(surrogate_ns: u64, step_ns: u64) -> i64 {
    let excess = i128::from(step_ns) - i128::from(surrogate_ns);
    i64::try_from(excess * 1_000_000 / i128::from(surrogate_ns.max(1))).unwrap_or(i64::MAX)
}
