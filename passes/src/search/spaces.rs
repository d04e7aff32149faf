//! The spaces that the search chooses from: one for each number of micro-batches and each kind of pipeline. A space has a bound on
//! what its plans cost; its candidates are made when it is opened.

use super::assemble::{Chosen, Decision, SegmentChoice};
use super::candidates::{Candidates, SpaceBuilder};
use super::choices::Setting;
use super::devices::Devices;
use super::options::NodeOption;
use super::outlines::{Least, fastest};
use super::pins::PinFault;
use super::pipe::{Pipe, Solved};
use super::price::{Group, groups};
use super::solver::chain::Chain;
use super::solver::{Cost, Infeasible, Limits};
use super::stages::Stages;
use super::{Effort, NoPlan, Rejected};
use crate::strategy::Strategy;
use galvatron_ir::NodeId;
use galvatron_ir::headroom::StageMemory;
use galvatron_ir::mesh::Mesh;
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// All candidates for one number of micro-batches and one kind of pipeline.
pub struct Space {
    /// Micro-batches in one step.
    pub micro_batches: u32,
    /// The mesh of one stage with these micro-batches.
    pub mesh: Mesh,
    /// What each segment may be.
    pub candidates: Rc<Candidates>,
    /// What the stages run on.
    pub devices: Rc<Devices>,
    /// How the path is cut into stages, if it is.
    pub pipe: Option<Pipe>,
}

/// A space before its candidates are made.
struct Outline {
    kind: Stages,
    family: usize,
    bound_ns: u64,
    /// The same with what flows.
    tight_bound_ns: OnceCell<u64>,
    space: OnceCell<Option<Space>>,
}

/// What spaces of one mesh and one number of micro-batches share.
struct Family {
    micro_batches: u32,
    mesh: Mesh,
    devices: Rc<Devices>,
    /// Nanoseconds that all stages together compute at least.
    all_ns: u64,
    /// At each speed that a stage has, the least time of each variant with what flows.
    flowing: OnceCell<Vec<Vec<u64>>>,
    candidates: OnceCell<Result<Rc<Candidates>, PinFault>>,
}

/// The spaces for all numbers of micro-batches and all kinds of pipelines.
pub struct Spaces<'a> {
    /// What the candidates are made from.
    pub builder: SpaceBuilder<'a>,
    families: Vec<Family>,
    /// By number of micro-batches, ascending.
    outlines: Vec<Outline>,
}

/// One candidate a segment.
#[derive(Clone, Debug)]
pub struct Pick {
    /// Candidate of each segment.
    pub chosen: Vec<usize>,
    /// Surrogate cost, with bytes as [`Devices`] counts them.
    pub cost: Cost,
    /// First segment of each chunk.
    pub starts: Vec<usize>,
    /// Index of the space.
    pub space: usize,
}

impl Pick {
    /// What a space was solved to.
    pub fn new(solved: Solved, space: usize) -> Pick {
        Pick { chosen: solved.solution.assignment, cost: solved.solution.cost, starts: solved.starts, space }
    }

    /// Whether both stand for the same plan.
    pub fn is_same(&self, other: &Pick) -> bool {
        (self.space, &self.chosen, &self.starts) == (other.space, &other.chosen, &other.starts)
    }
}

/// Work that the chain of one space may take: sums of two points, after which the gap stays open.
const CHAIN_SUMS: u64 = 1 << 22;

impl Space {
    /// The fastest candidates within a budget of counted bytes; with `exact` the gap of the relaxation is closed as far as the effort goes.
    pub fn solve(&self, budget: Option<u64>, exact: bool) -> Result<Solved, Infeasible> {
        self.solve_chains(&self.candidates.chains, budget, exact)
    }

    /// The same for other chains over the same segments, one at each speed.
    pub fn solve_chains(&self, chains: &[Chain], budget: Option<u64>, exact: bool) -> Result<Solved, Infeasible> {
        let limits = Limits { point_sums: CHAIN_SUMS, ..Limits::default() };
        let solver = |chain: &Chain, budget: Option<u64>| match exact {
            true => chain.solve(budget, &limits),
            false => chain.relax(budget, &limits),
        };
        match &self.pipe {
            None => solver(&chains[0], budget).map(|solution| Solved { solution, starts: vec![0] }),
            Some(pipe) => pipe.solve(chains, budget, &solver),
        }
    }

    /// Every way to cut the path into chunks: the first segment of each.
    pub fn cuts(&self) -> Vec<Vec<usize>> {
        self.pipe.as_ref().map_or(vec![vec![0]], Pipe::all_cuts)
    }

    /// The surrogate cost of a cut and a candidate a segment: the time of a step and the counted bytes of the largest stage.
    pub fn cost(&self, starts: &[usize], chosen: &[usize]) -> Cost {
        let chains = &self.candidates.chains;
        match &self.pipe {
            None => chains[0].cost(chosen),
            Some(pipe) => pipe.cost(chains, starts, chosen),
        }
    }

    /// The stage of a pick that leaves least of its memory, by the surrogate.
    fn tightest_stage(&self, pick: &Pick) -> StageMemory {
        let stages = match &self.pipe {
            None => vec![pick.cost],
            Some(pipe) => pipe.stage_costs(&self.candidates.chains, &pick.starts, &pick.chosen),
        };
        let largest = (0..stages.len()).rev().max_by_key(|&stage| stages[stage].bytes).unwrap_or(0);
        let peak_bytes = stages[largest].bytes - self.devices.missing_bytes(largest);
        StageMemory { stage: largest, peak_bytes, memory_bytes: self.devices.memory_bytes[largest] }
    }

    /// Counted surrogate bytes of the smallest plan.
    pub fn least_bytes(&self) -> u64 {
        self.solve(Some(0), false).map_or_else(|none| none.least.bytes, |_| 0)
    }
}

/// Plans that were not taken, of which a report has as many at least.
const MIN_REJECTED: usize = 6;

/// Part of the memory limit by which the surrogate's bytes may exceed it.
pub const MARGIN_PARTS: u64 = 4;

impl<'a> Spaces<'a> {
    /// The spaces for every number of micro-batches that divides the batch and every way to cut the ranks into stages.
    ///
    /// # Errors
    /// Pins that no space meets: the first one that is broken.
    pub fn new(builder: SpaceBuilder<'a>) -> Result<Spaces<'a>, NoPlan> {
        let kinds = Stages::all(&builder).map_err(NoPlan::Pin)?;
        let devices = kinds.chunk_by(|a, b| a.mesh == b.mesh);
        let devices = devices.map(|kinds| Rc::new(Devices::of(builder.model, kinds[0].n_stages())));
        let devices: Vec<Rc<Devices>> = devices.collect();
        let mut spaces = Spaces { builder, families: Vec::new(), outlines: Vec::new() };
        let mut fault = None;
        for m in spaces.builder.micro_batch_counts() {
            for (kinds, devices) in kinds.chunk_by(|a, b| a.mesh == b.mesh).zip(&devices) {
                if let Err(found) = spaces.add_family(m, kinds, devices) {
                    fault = fault.or(Some(found));
                }
            }
        }
        match (spaces.outlines.is_empty(), fault) {
            (true, Some(fault)) => Err(NoPlan::Pin(fault)),
            _ => Ok(spaces),
        }
    }

    /// Adds a space for each kind of pipeline of equal stages.
    fn add_family(&mut self, micro_batches: u32, kinds: &[Stages], devices: &Rc<Devices>) -> Result<(), PinFault> {
        let mut fitting: Vec<&Stages> = Vec::new();
        for stages in kinds.iter().filter(|stages| stages.check(micro_batches).is_ok()) {
            if !fitting.iter().any(|other| stages.runs_as(other, micro_batches)) {
                fitting.push(stages);
            }
        }
        let Some(first) = fitting.first() else { return kinds[0].check(micro_batches) };
        let mesh = first.mesh.with_micro_batches(micro_batches);
        let least = devices.models.iter().map(|model| self.builder.least(&mesh, model));
        let least = least.collect::<Result<Vec<Least>, PinFault>>()?;
        let free: Vec<Vec<u64>> = least.iter().map(|least| least.times(0)).collect();
        let all_ns = self.builder.all_ns(&least, devices);
        for kind in fitting {
            let bound_ns = self.builder.bound_ns(&free, all_ns, (kind, devices), micro_batches);
            let (kind, family) = (kind.clone(), self.families.len());
            let (tight_bound_ns, space) = (OnceCell::new(), OnceCell::new());
            self.outlines.push(Outline { kind, family, bound_ns, tight_bound_ns, space });
        }
        let (devices, flowing, candidates) = (devices.clone(), OnceCell::new(), OnceCell::new());
        self.families.push(Family { micro_batches, mesh, devices, all_ns, flowing, candidates });
        Ok(())
    }

    /// Number of spaces.
    pub fn len(&self) -> usize {
        self.outlines.len()
    }

    /// No plan of a space takes less time by the surrogate, in nanoseconds.
    pub fn bound_ns(&self, space: usize) -> u64 {
        self.outlines[space].bound_ns
    }

    /// A tighter bound, which is worked out at the first call; that takes a part of the time to make the candidates.
    pub fn tight_bound_ns(&self, space: usize) -> u64 {
        let Outline { kind, family, bound_ns, tight_bound_ns, .. } = &self.outlines[space];
        let Family { micro_batches, mesh, devices, all_ns, flowing, .. } = &self.families[*family];
        let bound = || {
            let times = |model| self.builder.flowing(mesh, model);
            let flowing = flowing.get_or_init(|| devices.models.iter().map(times).collect());
            let all_ns = self.builder.total_ns(&fastest(flowing.iter().cloned())).max(*all_ns);
            self.builder.bound_ns(flowing, all_ns, (kind, devices), *micro_batches).max(*bound_ns)
        };
        *tight_bound_ns.get_or_init(bound)
    }

    /// Counted bytes that plans of a space may have.
    pub fn limit(&self, space: usize) -> u64 {
        self.families[self.outlines[space].family].devices.most_bytes
    }

    /// A space with its candidates, which are made at the first call; `None` where it turns out to have none.
    pub fn open(&self, space: usize) -> Option<&Space> {
        let outline = &self.outlines[space];
        let family = &self.families[outline.family];
        let make = || {
            let candidates = family.candidates.get_or_init(|| {
                let (mesh, models) = (&family.mesh, &family.devices.models[..]);
                let setting = Setting { mesh, in_flight: self.most_in_flight(outline.family), models };
                self.builder.candidates(&setting).map(Rc::new)
            });
            let devices = family.devices.clone();
            let pipe = self.builder.pipe(&outline.kind, &devices, family.micro_batches, outline.bound_ns);
            let (micro_batches, mesh) = (family.micro_batches, family.mesh.clone());
            Some(Space { micro_batches, mesh, candidates: candidates.as_ref().ok()?.clone(), devices, pipe })
        };
        outline.space.get_or_init(make).as_ref()
    }

    /// The most micro-batches that a chunk of any space of a family keeps at one time.
    fn most_in_flight(&self, family: usize) -> u64 {
        let m = self.families[family].micro_batches;
        let own = self.outlines.iter().filter(|outline| outline.family == family);
        own.map(|outline| outline.kind.most_in_flight(m)).max().unwrap_or(1)
    }

    /// A space that has been opened.
    fn at(&self, space: usize) -> &Space {
        self.open(space).expect("invariant: what was picked has candidates")
    }

    /// The spaces that have been opened so far.
    pub fn opened(&self) -> impl Iterator<Item = (usize, &Space)> {
        self.outlines.iter().enumerate().filter_map(|(i, outline)| Some((i, outline.space.get()?.as_ref()?)))
    }

    /// The fault of a family that turned out to have no candidates.
    pub fn fault(&self) -> Option<PinFault> {
        self.families.iter().find_map(|family| family.candidates.get()?.as_ref().err().cloned())
    }

    /// Opens all spaces.
    pub fn open_all(&self) {
        (0..self.len()).for_each(|space| {
            self.open(space);
        });
    }

    /// The spaces that were opened, in order.
    pub fn into_opened(self) -> Vec<Space> {
        self.outlines.into_iter().filter_map(|outline| outline.space.into_inner()?).collect()
    }

    /// Counts for the report.
    pub fn effort(&self) -> Effort {
        let made = || self.families.iter().filter_map(|family| family.candidates.get()?.as_ref().ok());
        let n_candidates = made().flat_map(|candidates| &candidates.choices).map(Vec::len).sum();
        let width = made().map(|candidates| candidates.width).max().unwrap_or(0);
        let (n_spaces, n_opened) = (self.len(), self.opened().count());
        Effort { n_candidates, width, n_spaces, n_opened, n_replays: 0 }
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
        let space = self.at(pick.space);
        let builder = &self.builder;
        let picked = || builder.variant_of.iter().copied().zip(pick.chosen.iter().copied());
        let mut groups: BTreeMap<(usize, usize), Vec<Group>> = BTreeMap::new();
        for (variant, c) in picked() {
            groups.entry((variant, c)).or_insert_with(|| self.groups(space, variant, c));
        }
        let chosen = |(piece, (variant, c)): (_, (usize, usize))| {
            let choice = &space.candidates.choices[variant][c];
            Chosen { piece, choice, groups: &groups[&(variant, c)] }
        };
        let chosen: Vec<Chosen<'_>> = builder.pieces.iter().zip(picked()).map(chosen).collect();
        let (mut strategy, mut decision) =
            super::assemble::assemble(&builder.facts, &chosen, &space.mesh, space.micro_batches);
        if let Some(pipe) = &space.pipe {
            strategy.pipeline = Some(pipe.strategy(&builder.pieces, &pick.starts));
            decision.stages = Some(pipe.decision(&builder.is_layer, &pick.starts));
        }
        (strategy, decision)
    }

    /// The groups that the assignment of a variant's candidate counts.
    fn groups(&self, space: &Space, variant: usize, candidate: usize) -> Vec<Group> {
        let (builder, choice) = (&self.builder, &space.candidates.choices[variant][candidate]);
        let (first, pins) = &builder.variants[variant];
        let filter = |n: NodeId, o: &NodeOption| builder.obeys_tensor_pin(n, o, &choice.split, pins, &space.mesh);
        groups(&builder.facts, &builder.pieces[*first], &space.mesh, &choice.split, &filter)
            .expect("invariant: a chosen candidate has options")
    }

    /// A pick in words.
    pub fn name(&self, pick: &Pick) -> String {
        let space = self.at(pick.space);
        let choice = |(segment, &c): (usize, &usize)| {
            let choice = &space.candidates.choices[self.builder.variant_of[segment]][c];
            SegmentChoice::of(&self.builder.pieces[segment], choice, &space.mesh)
        };
        let segments = pick.chosen.iter().enumerate().map(choice).collect();
        let stages = space.pipe.as_ref().map(|pipe| pipe.decision(&self.builder.is_layer, &pick.starts));
        Decision { micro_batches: space.micro_batches, segments, stages }.name()
    }

    /// The fastest plan without the memory limit of each space that was opened, but for the one that was taken; where only few were, some more are.
    pub fn rejected(&self, taken: &Pick) -> Vec<Rejected> {
        self.open_some();
        let mut all = Vec::new();
        for (i, space) in self.opened() {
            let Ok(solved) = space.solve(None, false) else { continue };
            let pick = Pick::new(solved, i);
            if pick.is_same(taken) {
                continue;
            }
            let (time_ns, StageMemory { stage, peak_bytes: bytes, memory_bytes }) =
                (pick.cost.time_ns, space.tightest_stage(&pick));
            let stage = if space.devices.differ_in_memory() { format!(" on stage {stage}") } else { String::new() };
            let is_too_large = bytes > memory_bytes;
            let why = match is_too_large {
                true => format!("needs {:.3} GiB of {:.3}{stage}", gib(bytes), gib(memory_bytes)),
                false => format!("slower by {:.1} %", slower(time_ns, taken.cost.time_ns)),
            };
            all.push(Rejected { name: self.name(&pick), time_ns, bytes, is_too_large, why });
        }
        all.sort_by_key(|r| r.time_ns);
        all.extend(self.unopened(taken));
        all
    }

    /// Opens the most promising spaces until a report has enough to compare with.
    fn open_some(&self) {
        while self.opened().count() <= MIN_REJECTED {
            let left = (0..self.len()).filter(|&space| self.outlines[space].space.get().is_none());
            let Some((_, space)) = left.map(|space| (self.known_bound_ns(space), space)).min() else { return };
            if self.outlines[space].tight_bound_ns.get().is_none() {
                self.tight_bound_ns(space);
            } else {
                self.open(space);
            }
        }
    }

    /// The tightest bound that has been worked out.
    fn known_bound_ns(&self, space: usize) -> u64 {
        self.outlines[space].tight_bound_ns.get().copied().unwrap_or(self.bound_ns(space))
    }

    /// The spaces that were not opened, as one line.
    fn unopened(&self, taken: &Pick) -> Option<Rejected> {
        let left = || (0..self.len()).filter(|&space| self.outlines[space].space.get().is_none());
        let time_ns = left().map(|space| self.known_bound_ns(space)).min()?;
        let n = left().count();
        let name = format!("{n} more number{} of micro-batches and stages", if n == 1 { "" } else { "s" });
        let why = match slower(time_ns, taken.cost.time_ns) {
            percent if percent >= 0.0 => format!("at least {percent:.1} % slower"),
            percent => format!("not looked into, at most {:.1} % faster", -percent),
        };
        Some(Rejected { name, time_ns, bytes: 0, is_too_large: false, why })
    }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

fn slower(time: u64, than: u64) -> f64 {
    (time as f64 / than.max(1) as f64 - 1.0) * 100.0
}
