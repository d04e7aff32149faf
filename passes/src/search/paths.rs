//! The paths of the stages of a pipeline: their candidates under one cut, and the best of all cuts.

use super::balance::{Balance, keeping};
use super::cut::{Span, best_cut};
use super::pipe::{Pipe, Solved, Solver};
use super::solver::chain::{Candidate, Chain};
use super::solver::{Cost, Infeasible, Solution};
use std::collections::BTreeMap;
use std::ops::Range;

/// Paths of stages that are solved for the exact cut; where more could be part of it, the balanced one is taken.
const MAX_PATHS: usize = 384;

/// Cuts up to which all are tried where several chunks share a stage.
const FEW_CUTS: usize = 64;

/// Nanoseconds of the candidates that were found for a stage, and the least that any take.
type Times = (u64, u64);

/// What decides the path of a stage of one chunk, and what it is solved to: micro-batches that are kept, the speed and the missing bytes of
/// its devices, and the classes of its segments.
type Key<'a> = (u64, (usize, u64), &'a [usize]);

/// The chunks of a stage with their segments.
type Ranges = Vec<(usize, Range<usize>)>;

/// The paths of the stages of a pipeline.
pub struct Paths<'a> {
    /// How paths are cut.
    pub pipe: &'a Pipe,
    /// The whole path at each speed of a stage.
    pub chains: &'a [Chain],
    /// Counted bytes that a stage may have.
    pub budget: Option<u64>,
}

/// What a stage was solved to.
#[derive(Clone)]
struct OfStage {
    cost: Cost,
    lower_bound_ns: u64,
    chosen: Vec<usize>,
    width: usize,
    proven: bool,
    /// Whether that is within the budget.
    fits: bool,
}

impl Paths<'_> {
    /// The candidates under a cut.
    pub fn at(&self, starts: &[usize], solver: Solver<'_>) -> Result<Solved, Infeasible> {
        let stages = self.stages(starts, solver)?;
        let mut assignment = vec![0; self.layers().len()];
        for (stage, found) in stages.iter().enumerate() {
            let segments = self.ranges(starts, stage).into_iter().flat_map(|(_, range)| range);
            segments.zip(&found.chosen).for_each(|(segment, &choice)| assignment[segment] = choice);
        }
        let step = |ns: fn(&OfStage) -> u64| self.pipe.step_ns(&stages.iter().map(ns).collect::<Vec<u64>>());
        let bytes = stages.iter().map(|s| s.cost.bytes).max().unwrap_or(0);
        let (cost, lower_bound_ns) = (Cost::new(step(|s| s.cost.time_ns), bytes), step(|s| s.lower_bound_ns));
        let width = stages.iter().map(|s| s.width).max().unwrap_or(0);
        let proven = stages.iter().all(|s| s.proven);
        match stages.iter().all(|s| s.fits) {
            true => {
                let solution = Solution { assignment, cost, lower_bound_ns, width, proven };
                Ok(Solved { solution, starts: starts.to_vec() })
            }
            false => Err(Infeasible { least: cost, assignment, proven }),
        }
    }

    /// The candidates of each stage. Of stages of the same classes and the same speed those that have more memory or keep fewer micro-batches are
    /// solved first: what is best there, and fits where there is less room, is best there too.
    fn stages(&self, starts: &[usize], solver: Solver<'_>) -> Result<Vec<OfStage>, Infeasible> {
        let n_stages = self.pipe.n_stages() as usize;
        let ranges: Vec<Ranges> = (0..n_stages).map(|stage| self.ranges(starts, stage)).collect();
        let classes = |r: &Ranges| r.iter().map(|(_, range)| &self.layers()[range.clone()]).collect::<Vec<_>>();
        let kept = |r: &Ranges| r.iter().map(|&(chunk, _)| self.pipe.in_flight[chunk]).collect::<Vec<u64>>();
        let devices = &self.pipe.devices;
        let like = |stage: usize| (classes(&ranges[stage]), devices.speed_of[stage]);
        let mut order: Vec<usize> = (0..n_stages).collect();
        let key = |&stage: &usize| (like(stage), devices.missing_bytes(stage), kept(&ranges[stage]), stage);
        order.sort_by_cached_key(key);
        let mut solved: Vec<Option<OfStage>> = vec![None; n_stages];
        for (i, &stage) in order.iter().enumerate() {
            let own = &ranges[stage];
            let before = i.checked_sub(1).map(|i| order[i]).filter(|&b| like(b) == like(stage));
            let looser = before.filter(|&b| no_more(&kept(&ranges[b]), &kept(own)));
            let reused = looser.and_then(|b| self.reused(solved[b].as_ref()?, stage, own));
            solved[stage] = Some(reused.map_or_else(|| self.solved(stage, own, solver), Ok)?);
        }
        Ok(solved.into_iter().flatten().collect())
    }

    /// The candidates of a stage that has more room, where they fit.
    fn reused(&self, looser: &OfStage, stage: usize, ranges: &[(usize, Range<usize>)]) -> Option<OfStage> {
        let cost = self.cost(stage, ranges, &looser.chosen);
        let fits = looser.fits && self.budget.is_none_or(|budget| cost.bytes <= budget);
        fits.then(|| OfStage { cost, ..looser.clone() })
    }

    /// The candidates of a stage; the smallest where none fit.
    fn solved(
        &self,
        stage: usize,
        ranges: &[(usize, Range<usize>)],
        solver: Solver<'_>,
    ) -> Result<OfStage, Infeasible> {
        match self.solution(stage, ranges, solver) {
            Ok(Solution { assignment: chosen, cost, lower_bound_ns, width, proven }) => {
                Ok(OfStage { cost, lower_bound_ns, chosen, width, proven, fits: true })
            }
            Err(none) if none.least.is_forbidden() => Err(none),
            Err(Infeasible { least: cost, assignment: chosen, proven }) => {
                Ok(OfStage { cost, lower_bound_ns: cost.time_ns, chosen, width: 0, proven, fits: false })
            }
        }
    }

    fn solution(
        &self,
        stage: usize,
        ranges: &[(usize, Range<usize>)],
        solver: Solver<'_>,
    ) -> Result<Solution, Infeasible> {
        let path = self.path(stage, ranges);
        self.pipe.devices.solve(stage, self.budget, |budget| solver(&path, budget))
    }

    /// The class of each segment.
    fn layers(&self) -> &[usize] {
        &self.chains[0].layers
    }

    /// The whole path at the speed of a stage.
    fn chain(&self, stage: usize) -> &Chain {
        &self.chains[self.pipe.devices.speed_of[stage]]
    }

    /// The chunks of a stage with their segments.
    pub fn ranges(&self, starts: &[usize], stage: usize) -> Ranges {
        let chunks = (stage..starts.len()).step_by(self.pipe.n_stages() as usize);
        chunks.map(|chunk| (chunk, segments(starts, chunk, self.layers().len()))).collect()
    }

    /// The path of a stage of some chunks.
    fn path(&self, stage: usize, ranges: &[(usize, Range<usize>)]) -> Chain {
        let whole = self.chain(stage);
        let (mut layers, mut classes) = (Vec::new(), Vec::new());
        let mut known: BTreeMap<(usize, u64), usize> = BTreeMap::new();
        for (chunk, range) in ranges {
            let in_flight = self.pipe.in_flight[*chunk];
            for &class in &whole.layers[range.clone()] {
                let own = *known.entry((class, in_flight)).or_insert_with(|| {
                    let kept = |candidate: &Candidate| Candidate { cost: of_kept(candidate, in_flight), ..*candidate };
                    classes.push(whole.classes[class].iter().map(kept).collect());
                    classes.len() - 1
                });
                layers.push(own);
            }
        }
        Chain { classes, layers, n_states: whole.n_states, switch: whole.switch.clone() }
    }

    /// What candidates cost on the path of a stage, with counted bytes.
    pub fn cost(&self, stage: usize, ranges: &[(usize, Range<usize>)], chosen: &[usize]) -> Cost {
        let chain = self.chain(stage);
        let segments = ranges.iter().flat_map(|(chunk, range)| range.clone().map(move |s| (*chunk, s)));
        let (mut cost, mut last) = (Cost::ZERO, None);
        for ((chunk, segment), &choice) in segments.zip(chosen) {
            let candidate = &chain.classes[chain.layers[segment]][choice];
            let switch = last.map_or(Cost::ZERO, |last| chain.switch_cost(last, *candidate));
            cost = cost.plus(switch).plus(of_kept(candidate, self.pipe.in_flight[chunk]));
            last = Some(*candidate);
        }
        self.pipe.devices.counted(stage, cost)
    }

    /// The best of all cuts where these are few; otherwise the one that is known, whose gap is that to the bound of all.
    pub fn best_of_few(&self, first: Result<Solved, Infeasible>, solver: Solver<'_>) -> Result<Solved, Infeasible> {
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

    /// The best cut with one chunk a stage, from one that is known, or that is known not to fit.
    pub fn best(
        &self,
        balance: &Balance,
        first: Result<Solved, Infeasible>,
        solver: Solver<'_>,
    ) -> Result<Solved, Infeasible> {
        let known_ns = first.as_ref().map_or(u64::MAX, |first| first.solution.cost.time_ns);
        let ends = [&[0], &self.pipe.cuts[..], &[self.layers().len()]].concat();
        let promising = self.promising(balance, &ends, known_ns);
        let mut solved: BTreeMap<Key<'_>, Option<Times>> = BTreeMap::new();
        for (stage, from, to) in promising.iter().copied() {
            solved.insert(self.key(stage, ends[from]..ends[to]), None);
        }
        if solved.len() > MAX_PATHS {
            let first = first?;
            let lower_bound_ns = self.pipe.bound_ns.min(first.solution.lower_bound_ns);
            let proven = lower_bound_ns == known_ns;
            return Ok(Solved { solution: Solution { lower_bound_ns, proven, ..first.solution }, ..first });
        }
        for (stage, from, to) in promising.iter().copied() {
            let range = ends[from]..ends[to];
            let times = solved.get_mut(&self.key(stage, range.clone())).expect("invariant: every key was entered");
            if times.is_none() {
                let found = self.solution(stage, &[(stage, range)], solver);
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
            None => first?,
        };
        let proven = lower_bound_ns >= found.solution.cost.time_ns;
        let lower_bound_ns = lower_bound_ns.min(found.solution.cost.time_ns);
        Ok(Solved { solution: Solution { lower_bound_ns, proven, ..found.solution }, ..found })
    }

    fn key(&self, stage: usize, range: Range<usize>) -> Key<'_> {
        let devices = &self.pipe.devices;
        let of_devices = (devices.speed_of[stage], devices.missing_bytes(stage));
        (self.pipe.in_flight[stage], of_devices, &self.layers()[range])
    }

    /// The stages with their first and last cut that may be part of a pipeline that takes less than `known_ns`: by the least times of
    /// their segments, and reached from both ends.
    fn promising(&self, balance: &Balance, ends: &[usize], known_ns: u64) -> Vec<(usize, usize, usize)> {
        let (n_stages, last) = (self.pipe.n_chunks(), ends.len() - 1);
        let can_win = |stage: usize, from: usize, to: usize| {
            let (_, ns) = balance.cost(stage, ends[from], ends[to]);
            self.pipe.kind.step_ns(ns, balance.all_ns.max(ns), self.pipe.micro_batches) < known_ns
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

/// The cost of a candidate that keeps so many micro-batches.
fn of_kept(candidate: &Candidate, in_flight: u64) -> Cost {
    Cost { bytes: keeping(candidate, in_flight), ..candidate.cost }
}

/// Whether none of these counts is above the other's.
fn no_more(counts: &[u64], others: &[u64]) -> bool {
    counts.iter().zip(others).all(|(a, b)| a <= b)
}

/// The segments of a chunk of a path of `n` segments.
pub fn segments(starts: &[usize], chunk: usize, n: usize) -> Range<usize> {
    starts[chunk]..starts.get(chunk + 1).copied().unwrap_or(n)
}

/// How many ways there are to choose `k` of `n`; saturating.
fn combinations(n: usize, k: usize) -> usize {
    if k > n {
        return 0;
    }
    (0..k).fold(1usize, |all, i| all.saturating_mul(n - i) / (i + 1))
}

/// Calls `visit` with every ascending choice of `k` of these.
pub fn each_combination(of: &[usize], k: usize, visit: &mut dyn FnMut(&[usize])) {
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
