//! The candidates for each number of micro-batches with the chain over them, and what is read off a choice of them.

use super::assemble::{Chosen, Decision, SegmentChoice};
use super::candidates::{Choice, SpaceBuilder};
use super::options::NodeOption;
use super::price::{Group, groups};
use super::solver::chain::Chain;
use super::solver::{Cost, Infeasible, Limits, Solution};
use super::stages::Pipe;
use super::{Effort, Rejected};
use crate::strategy::Strategy;
use galvatron_ir::NodeId;
use galvatron_ir::mesh::Mesh;
use std::collections::BTreeMap;

/// All candidates for one number of micro-batches.
pub struct Space {
    /// Micro-batches in one step.
    pub micro_batches: u32,
    /// The mesh with these micro-batches.
    pub mesh: Mesh,
    /// Candidates by variant (class and pins).
    pub choices: Vec<Vec<Choice>>,
    /// The path of the segments.
    pub chain: Chain,
    /// How the path is cut into stages, if it is.
    pub pipeline: Option<Pipe>,
}

/// Candidates for all numbers of micro-batches.
pub struct Spaces<'a> {
    /// What the candidates were made from.
    pub builder: SpaceBuilder<'a>,
    /// By number of micro-batches, ascending.
    pub spaces: Vec<Space>,
    /// Largest elimination width of a segment.
    pub width: usize,
}

/// One candidate a segment.
#[derive(Clone, Debug)]
pub struct Pick {
    /// Candidate of each segment.
    pub chosen: Vec<usize>,
    /// Surrogate cost.
    pub cost: Cost,
    /// Index of the space.
    pub space: usize,
}

/// Work that the chain of one space may take: sums of two points, after which the gap stays open.
const CHAIN_SUMS: u64 = 1 << 22;

impl Space {
    /// The fastest candidates within a budget; with `exact` the gap of the relaxation is closed as far as the effort goes.
    pub fn solve(&self, budget: Option<u64>, exact: bool) -> Result<Solution, Infeasible> {
        self.solve_chain(&self.chain, budget, exact)
    }

    /// The same for another chain over the same candidates.
    pub fn solve_chain(&self, chain: &Chain, budget: Option<u64>, exact: bool) -> Result<Solution, Infeasible> {
        let limits = Limits { point_sums: CHAIN_SUMS, ..Limits::default() };
        let solve = |chain: &Chain| if exact { chain.solve(budget, &limits) } else { chain.relax(budget, &limits) };
        match &self.pipeline {
            None => solve(chain),
            Some(pipe) => pipe.solve(chain, &self.choices, solve),
        }
    }
}

impl Space {
    /// Surrogate bytes of the smallest plan.
    pub fn least_bytes(&self) -> u64 {
        self.solve(Some(0), false).map_or_else(|none| none.least.bytes, |_| 0)
    }
}

impl Spaces<'_> {
    /// Counts for the report.
    pub fn effort(&self) -> Effort {
        let n_candidates = self.spaces.iter().flat_map(|s| &s.choices).map(Vec::len).sum();
        Effort { n_candidates, width: self.width, n_replays: 0 }
    }

    /// For each variant whether its segments are layers; all of them where there are no repeated layers.
    pub fn layer_variants(&self) -> Vec<bool> {
        let builder = &self.builder;
        let is_layer = |(first, _): &(usize, _)| builder.is_layer[*first];
        let layers: Vec<bool> = builder.variants.iter().map(is_layer).collect();
        if layers.contains(&true) { layers } else { vec![true; layers.len()] }
    }

    /// The decisions of a pick.
    pub fn assemble(&self, pick: &Pick) -> (Strategy, Decision) {
        let space = &self.spaces[pick.space];
        let builder = &self.builder;
        let picked = || builder.variant_of.iter().copied().zip(pick.chosen.iter().copied());
        let mut groups: BTreeMap<(usize, usize), Vec<Group>> = BTreeMap::new();
        for (variant, c) in picked() {
            groups.entry((variant, c)).or_insert_with(|| self.groups(space, variant, c));
        }
        let chosen = |(piece, (variant, c)): (_, (usize, usize))| {
            let choice = &space.choices[variant][c];
            Chosen { piece, choice, groups: &groups[&(variant, c)] }
        };
        let chosen: Vec<Chosen<'_>> = builder.pieces.iter().zip(picked()).map(chosen).collect();
        let (mut strategy, mut decision) =
            super::assemble::assemble(&builder.facts, &chosen, &space.mesh, space.micro_batches);
        if let Some(pipe) = &space.pipeline {
            strategy.pipeline = Some(pipe.strategy(&builder.pieces));
            decision.stages = Some(pipe.decision(&builder.is_layer));
        }
        (strategy, decision)
    }

    /// The groups that the assignment of a variant's candidate counts.
    fn groups(&self, space: &Space, variant: usize, candidate: usize) -> Vec<Group> {
        let (builder, choice) = (&self.builder, &space.choices[variant][candidate]);
        let (first, pins) = &builder.variants[variant];
        let filter = |n: NodeId, o: &NodeOption| builder.obeys_tensor_pin(n, o, &choice.split, pins, &space.mesh);
        groups(&builder.facts, &builder.pieces[*first], &space.mesh, &choice.split, &filter)
            .expect("invariant: a chosen candidate has options")
    }

    /// A pick in words.
    pub fn name(&self, pick: &Pick) -> String {
        let space = &self.spaces[pick.space];
        let choice = |(segment, &c): (usize, &usize)| {
            let choice = &space.choices[self.builder.variant_of[segment]][c];
            SegmentChoice::of(&self.builder.pieces[segment], choice, &space.mesh)
        };
        let segments = pick.chosen.iter().enumerate().map(choice).collect();
        let stages = space.pipeline.as_ref().map(|pipe| pipe.decision(&self.builder.is_layer));
        Decision { micro_batches: space.micro_batches, segments, stages }.name()
    }

    /// The fastest plan of each number of micro-batches without the memory limit, but for the one that was taken.
    pub fn rejected(&self, taken: &Pick, limit: u64) -> Vec<Rejected> {
        let mut all = Vec::new();
        for (i, space) in self.spaces.iter().enumerate() {
            let Ok(solution) = space.solve(None, false) else { continue };
            let pick = Pick { chosen: solution.assignment, cost: solution.cost, space: i };
            if pick.chosen == taken.chosen && pick.space == taken.space {
                continue;
            }
            let why = match pick.cost.bytes > limit {
                true => format!("needs {:.3} GiB of {:.3}", gib(pick.cost.bytes), gib(limit)),
                false => format!("slower by {:.1} %", slower(pick.cost.time_ns, taken.cost.time_ns)),
            };
            let (time_ns, bytes) = (pick.cost.time_ns, pick.cost.bytes);
            all.push(Rejected { name: self.name(&pick), time_ns, bytes, why });
        }
        all.sort_by_key(|r| r.time_ns);
        all
    }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

fn slower(time: u64, than: u64) -> f64 {
    (time as f64 / than.max(1) as f64 - 1.0) * 100.0
}
