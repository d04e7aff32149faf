//! A path that is cut into the stages of a pipeline: where it is cut, and what a choice of candidates costs then.
//!
//! Given the cuts each stage is a path of its own with the whole memory of its devices. With one chunk a stage the best cut is found
//! exactly: no range of the path is left out that could be a stage of a faster pipeline than the one that is known. Chunks that share a
//! stage are cut where the least times of their segments balance, or in the best of all ways where these are few.

use super::assemble::StagesChoice;
use super::balance::Balance;
use super::candidates::{Choice, SpaceBuilder};
use super::cut::{Span, best_cut};
use super::price::Piece;
use super::solver::chain::{Candidate, Chain};
use super::solver::{Cost, Infeasible, Solution};
use super::stages::{Stages, cuts, starts_of};
use crate::strategy::Pipeline;
use std::collections::BTreeMap;
use std::ops::Range;

/// Paths of stages that are solved for the exact cut; where more could be part of it, the balanced one is taken.
const MAX_PATHS: usize = 384;

/// Cuts up to which all are tried where several chunks share a stage.
const FEW_CUTS: usize = 64;

/// A path that is cut into chunks.
pub struct Pipe {
    kind: Stages,
    micro_batches: u64,
    /// Micro-batches whose activations each chunk keeps at one time.
    in_flight: Vec<u64>,
    /// First segment of each chunk, if that is pinned.
    fixed: Option<Vec<usize>>,
    /// Segments in front of which the path may be cut.
    cuts: Vec<usize>,
    /// Bytes that a chunk may have.
    room: u64,
    /// No cut and no candidates take less, in nanoseconds.
    bound_ns: u64,
}

/// Candidates of a path with the first segment of each of its chunks.
#[derive(Clone, Debug)]
pub struct Solved {
    /// The candidates.
    pub solution: Solution,
    /// First segment of each chunk; only 0 where there is one stage.
    pub starts: Vec<usize>,
}

/// Nanoseconds of the candidates that were found for a stage, and the least that any take.
type Times = (u64, u64);

/// Solves the path of a stage.
type Solver<'s> = &'s dyn Fn(&Chain) -> Result<Solution, Infeasible>;

impl SpaceBuilder<'_> {
    /// How a path is cut, where there is more than one stage; no plan of the space takes less than `bound_ns`.
    pub(super) fn pipe(&self, kind: &Stages, micro_batches: u32, bound_ns: u64) -> Option<Pipe> {
        if kind.n_stages() == 1 {
            return None;
        }
        let each = u64::from(kind.n_chunks() / kind.n_stages());
        Some(Pipe {
            kind: kind.clone(),
            micro_batches: u64::from(micro_batches),
            in_flight: kind.in_flight(micro_batches),
            fixed: self.pins.stage_layers.as_ref().map(|layers| starts_of(layers, &self.is_layer)),
            cuts: cuts(&self.is_layer),
            room: self.facts.model.cluster().device.memory_bytes / each,
            bound_ns,
        })
    }
}

impl Pipe {
    /// Number of stages.
    pub fn n_stages(&self) -> u64 {
        u64::from(self.kind.n_stages())
    }

    fn n_chunks(&self) -> usize {
        self.in_flight.len()
    }

    fn step_ns(&self, times: &[u64]) -> u64 {
        let (slowest, all) = (times.iter().max().copied().unwrap_or(0), times.iter().sum::<u64>());
        self.kind.step_ns(slowest, all, self.micro_batches)
    }

    /// Chooses the cut, and the candidates of every stage by themselves; the cost is the time of a step and the bytes of the largest
    /// stage.
    ///
    /// # Errors
    /// When a stage has no candidates within the budget: the least bytes of the largest stage.
    pub fn solve(&self, chain: &Chain, choices: &[Vec<Choice>], solver: Solver<'_>) -> Result<Solved, Infeasible> {
        let paths = Paths { pipe: self, chain, choices };
        if let Some(starts) = &self.fixed {
            return paths.at(starts, solver);
        }
        let balance = Balance::new(chain, choices, &self.in_flight, self.room);
        let first = paths.at(&balance.cut(&self.cuts), solver);
        if self.n_chunks() as u64 != self.n_stages() {
            return paths.best_of_few(first, solver);
        }
        paths.best(&balance, first?, solver)
    }

    /// Every way to cut the path: the first segment of each chunk.
    pub fn all_cuts(&self) -> Vec<Vec<usize>> {
        if let Some(starts) = &self.fixed {
            return vec![starts.clone()];
        }
        let mut all = Vec::new();
        each_combination(&self.cuts, self.n_chunks() - 1, &mut |chosen| all.push([&[0], chosen].concat()));
        all
    }

    /// The surrogate cost of a cut and a candidate a segment.
    pub fn cost(&self, chain: &Chain, choices: &[Vec<Choice>], starts: &[usize], chosen: &[usize]) -> Cost {
        let paths = Paths { pipe: self, chain, choices };
        let stage = |stage| {
            let ranges = paths.ranges(starts, stage);
            let own: Vec<usize> = ranges.iter().flat_map(|(_, range)| chosen[range.clone()].iter().copied()).collect();
            paths.path(&ranges).cost(&own)
        };
        let stages: Vec<Cost> = (0..self.n_stages() as usize).map(stage).collect();
        if stages.iter().any(|cost| cost.is_forbidden()) {
            return Cost::FORBIDDEN;
        }
        let times: Vec<u64> = stages.iter().map(|cost| cost.time_ns).collect();
        Cost::new(self.step_ns(&times), stages.iter().map(|cost| cost.bytes).max().unwrap_or(0))
    }

    /// What the passes apply.
    pub fn strategy(&self, pieces: &[Piece], starts: &[usize]) -> Pipeline {
        let chunks = (0..starts.len()).flat_map(|c| segments(starts, c, pieces.len()).map(move |s| (c, s)));
        let nodes = chunks.flat_map(|(c, s)| pieces[s].nodes.iter().map(move |&node| (node, c as u32)));
        Pipeline { chunk_of: nodes.collect(), ..self.kind.uncut() }
    }

    /// The same for reports.
    pub fn decision(&self, is_layer: &[bool], starts: &[usize]) -> StagesChoice {
        let layers = |c: usize| segments(starts, c, is_layer.len()).filter(|&s| is_layer[s]).count() as u32;
        self.kind.decision((0..starts.len()).map(layers).collect())
    }
}

/// The segments of a chunk of a path of `n` segments.
fn segments(starts: &[usize], chunk: usize, n: usize) -> Range<usize> {
    starts[chunk]..starts.get(chunk + 1).copied().unwrap_or(n)
}

/// The paths of the stages of a pipeline.
struct Paths<'a> {
    pipe: &'a Pipe,
    chain: &'a Chain,
    choices: &'a [Vec<Choice>],
}

impl Paths<'_> {
    /// The candidates under a cut.
    fn at(&self, starts: &[usize], solver: Solver<'_>) -> Result<Solved, Infeasible> {
        let mut assignment = vec![0; self.chain.layers.len()];
        let (mut times, mut bounds, mut bytes) = (Vec::new(), Vec::new(), 0);
        let (mut fits, mut proven, mut width) = (true, true, 0);
        for stage in 0..self.pipe.n_stages() as usize {
            let ranges = self.ranges(starts, stage);
            let (cost, bound, chosen) = match solver(&self.path(&ranges)) {
                Ok(found) => {
                    proven &= found.proven;
                    width = width.max(found.width);
                    (found.cost, found.lower_bound_ns, found.assignment)
                }
                Err(none) if none.least.is_forbidden() => return Err(none),
                Err(none) => {
                    (fits, proven) = (false, proven && none.proven);
                    (none.least, none.least.time_ns, none.assignment)
                }
            };
            times.push(cost.time_ns);
            bounds.push(bound);
            bytes = bytes.max(cost.bytes);
            let of_stage = ranges.into_iter().flat_map(|(_, range)| range);
            of_stage.zip(chosen).for_each(|(segment, choice)| assignment[segment] = choice);
        }
        let cost = Cost::new(self.pipe.step_ns(&times), bytes);
        let lower_bound_ns = self.pipe.step_ns(&bounds);
        match fits {
            true => {
                let solution = Solution { assignment, cost, lower_bound_ns, width, proven };
                Ok(Solved { solution, starts: starts.to_vec() })
            }
            false => Err(Infeasible { least: cost, assignment, proven }),
        }
    }

    /// The chunks of a stage with their segments.
    fn ranges(&self, starts: &[usize], stage: usize) -> Vec<(usize, Range<usize>)> {
        let chunks = (stage..starts.len()).step_by(self.pipe.n_stages() as usize);
        chunks.map(|chunk| (chunk, segments(starts, chunk, self.chain.layers.len()))).collect()
    }

    /// The path of a stage of some chunks.
    fn path(&self, ranges: &[(usize, Range<usize>)]) -> Chain {
        let (mut layers, mut classes) = (Vec::new(), Vec::new());
        let mut known: BTreeMap<(usize, u64), usize> = BTreeMap::new();
        for (chunk, range) in ranges {
            for &class in &self.chain.layers[range.clone()] {
                let in_flight = self.pipe.in_flight[*chunk];
                let own = *known.entry((class, in_flight)).or_insert_with(|| {
                    let kept = |(candidate, choice): (&Candidate, &Choice)| {
                        let more = Cost::new(0, (in_flight - 1).saturating_mul(choice.saved_bytes));
                        Candidate { cost: candidate.cost.plus(more), ..*candidate }
                    };
                    classes.push(self.chain.classes[class].iter().zip(&self.choices[class]).map(kept).collect());
                    classes.len() - 1
                });
                layers.push(own);
            }
        }
        Chain { classes, layers, n_states: self.chain.n_states, switch: self.chain.switch.clone() }
    }

    /// The best of all cuts where these are few; otherwise the one that is known, whose gap is that to the bound of all.
    fn best_of_few(&self, first: Result<Solved, Infeasible>, solver: Solver<'_>) -> Result<Solved, Infeasible> {
        let (n_cuts, n_starts) = (self.pipe.cuts.len(), self.pipe.n_chunks() - 1);
        if combinations(n_cuts, n_starts) > FEW_CUTS {
            return first.map(|mut found| {
                found.solution.lower_bound_ns = found.solution.lower_bound_ns.min(self.pipe.bound_ns);
                found.solution.proven = found.solution.lower_bound_ns == found.solution.cost.time_ns;
                found
            });
        }
        let mut best = first;
        let mut bound_ns = best.as_ref().map_or(u64::MAX, |b| b.solution.lower_bound_ns);
        each_combination(&self.pipe.cuts, n_starts, &mut |chosen| {
            let found = self.at(&[&[0], chosen].concat(), solver);
            bound_ns = bound_ns.min(found.as_ref().map_or(u64::MAX, |f| f.solution.lower_bound_ns));
            let is_better = match (&found, &best) {
                (Ok(found), Ok(best)) => found.solution.cost < best.solution.cost,
                (Err(found), Err(best)) => found.least.bytes < best.least.bytes,
                (found, _) => found.is_ok(),
            };
            if is_better {
                best = found;
            }
        });
        best.map(|mut found| {
            found.solution.lower_bound_ns = bound_ns;
            found.solution.proven = bound_ns == found.solution.cost.time_ns;
            found
        })
    }

    /// The best cut with one chunk a stage, from one that is known.
    fn best(&self, balance: &Balance, first: Solved, solver: Solver<'_>) -> Result<Solved, Infeasible> {
        let known_ns = first.solution.cost.time_ns;
        let ends = [&[0], &self.pipe.cuts[..], &[self.chain.layers.len()]].concat();
        let promising = self.promising(balance, &ends, known_ns);
        let mut solved: BTreeMap<(u64, &[usize]), Option<Times>> = BTreeMap::new();
        for (stage, from, to) in promising.iter().copied() {
            solved.insert(self.key(stage, ends[from]..ends[to]), None);
        }
        if solved.len() > MAX_PATHS {
            let lower_bound_ns = self.pipe.bound_ns.min(first.solution.lower_bound_ns);
            let proven = lower_bound_ns == known_ns;
            return Ok(Solved { solution: Solution { lower_bound_ns, proven, ..first.solution }, ..first });
        }
        for (stage, from, to) in promising.iter().copied() {
            let range = ends[from]..ends[to];
            let times = solved.get_mut(&self.key(stage, range.clone())).expect("invariant: every key was entered");
            if times.is_none() {
                let found = solver(&self.path(&[(stage, range)]));
                // What does not fit takes for ever.
                *times = Some(found.map_or((u64::MAX, u64::MAX), |s| (s.cost.time_ns, s.lower_bound_ns)));
            }
        }
        let spans = |of: fn(Times) -> u64| {
            let mut spans = vec![Vec::new(); self.pipe.n_chunks()];
            for (stage, from, to) in promising.iter().copied() {
                let times = solved[&self.key(stage, ends[from]..ends[to])].expect("invariant: every key was solved");
                if of(times) < u64::MAX {
                    spans[stage].push(Span { from, to, ns: of(times) });
                }
            }
            spans
        };
        let step = |slowest: u64, all: u64| self.pipe.kind.step_ns(slowest, all, self.pipe.micro_batches);
        let bound = best_cut(&spans(|times| times.1), ends.len() - 1, step);
        let lower_bound_ns = bound.map_or(known_ns, |(ns, _)| ns.min(known_ns));
        let best = best_cut(&spans(|times| times.0), ends.len() - 1, step).filter(|(ns, _)| *ns < known_ns);
        let found = match best {
            Some((_, starts)) => self.at(&starts.iter().map(|&at| ends[at]).collect::<Vec<_>>(), solver)?,
            None => first,
        };
        let proven = lower_bound_ns >= found.solution.cost.time_ns;
        let lower_bound_ns = lower_bound_ns.min(found.solution.cost.time_ns);
        Ok(Solved { solution: Solution { lower_bound_ns, proven, ..found.solution }, ..found })
    }

    /// What decides the path of a stage: micro-batches that are kept, and the classes of its segments.
    fn key(&self, stage: usize, range: Range<usize>) -> (u64, &[usize]) {
        (self.pipe.in_flight[stage], &self.chain.layers[range])
    }

    /// The stages with their first and last cut that may be part of a pipeline that takes less than `known_ns`: by the least times of
    /// their segments, and reached from both ends.
    fn promising(&self, balance: &Balance, ends: &[usize], known_ns: u64) -> Vec<(usize, usize, usize)> {
        let (n_stages, last) = (self.pipe.n_chunks(), ends.len() - 1);
        let (_, all_ns) = balance.cost(0, 0, ends[last]);
        let can_win = |stage: usize, from: usize, to: usize| {
            let (_, ns) = balance.cost(stage, ends[from], ends[to]);
            self.pipe.kind.step_ns(ns, all_ns.max(ns), self.pipe.micro_batches) < known_ns
        };
        let mut reached = vec![vec![false; ends.len()]; n_stages + 1];
        reached[0][0] = true;
        let mut all = Vec::new();
        for stage in 0..n_stages {
            for from in (0..last).filter(|&from| reached[stage][from]).collect::<Vec<_>>() {
                for to in (from + 1..=last).take_while(|&to| can_win(stage, from, to)) {
                    reached[stage + 1][to] = true;
                    all.push((stage, from, to));
                }
            }
        }
        let mut leads = vec![vec![false; ends.len()]; n_stages + 1];
        leads[n_stages][last] = true;
        for &(stage, from, to) in all.iter().rev() {
            leads[stage][from] |= leads[stage + 1][to];
        }
        all.retain(|&(stage, _, to)| leads[stage + 1][to]);
        all
    }
}

/// How many ways there are to choose `k` of `n`; saturating.
fn combinations(n: usize, k: usize) -> usize {
    if k > n {
        return 0;
    }
    (0..k).fold(1usize, |all, i| all.saturating_mul(n - i) / (i + 1))
}

/// Calls `visit` with every ascending choice of `k` of these.
fn each_combination(of: &[usize], k: usize, visit: &mut dyn FnMut(&[usize])) {
    fn extend(of: &[usize], k: usize, chosen: &mut Vec<usize>, visit: &mut dyn FnMut(&[usize])) {
        if k == 0 {
            return visit(chosen);
        }
        for i in 0..of.len().saturating_sub(k - 1) {
            chosen.push(of[i]);
            extend(&of[i + 1..], k - 1, chosen, visit);
            chosen.pop();
        }
    }
    extend(of, k, &mut Vec::new(), visit);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_combinations_are_visited() {
        let mut seen = Vec::new();
        each_combination(&[3, 5, 7, 9], 2, &mut |chosen| seen.push(chosen.to_vec()));
        assert_eq!(seen, [[3, 5], [3, 7], [3, 9], [5, 7], [5, 9], [7, 9]]);
        assert_eq!((combinations(4, 2), combinations(2, 3)), (6, 0));
        assert!(combinations(200, 100) > FEW_CUTS);
    }
}
