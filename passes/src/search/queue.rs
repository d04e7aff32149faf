//! The plans of all parts, cheapest surrogate first, while the budget of each part is brought to what really fits.
//!
//! The surrogate counts what lives across a micro-batch; temporaries, and what is freed before they come, show only when a
//! plan is lowered. How much that is depends most on the number of micro-batches and on how layers are cut, so each part has a budget of
//! its own.

use super::kinds::{Kind, Likeness, promising_kinds};
use super::line::{Line, State};
use super::part::Part;
use super::solver::Cost;
use super::spaces::{Pick, Spaces};
use super::temporaries::Temporaries;
use galvatron_ir::headroom::StageMemory;
use std::cmp::Reverse;

/// A part before it is opened.
struct Source<'a> {
    space: usize,
    kind: Option<Kind<'a>>,
}

/// By how much plans are put off that seem too large: as large a part of their time as they exceed of the memory, and [`LATER_DELAY`] times
/// as much after so many plans. What is fast if it fits after all comes first; where too little of it fits, what probably does.
const MAX_HOPEFUL: usize = 128;
const LATER_DELAY: u128 = 8;

/// What to look at next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Next {
    /// Nanoseconds of its plan, or that its plans take at least.
    seeming_ns: u64,
    /// Its number.
    part: usize,
    /// Whether there is a plan of it.
    is_plan: bool,
}

/// Parts of the plans under the memory of their devices. Bytes are those that [`super::devices`] counts.
pub struct Queue<'a, 'q> {
    spaces: &'a Spaces<'a>,
    /// For each variant whether its segments are layers.
    layers: Vec<bool>,
    sources: Vec<Source<'a>>,
    /// Of those that are opened.
    parts: Vec<Option<Part<'a>>>,
    lines: Vec<Line>,
    /// Whether gaps of relaxations are closed.
    exact: bool,
    /// What the plans that were lowered took on top of their surrogate.
    temporaries: &'q mut Temporaries<'a>,
    /// Spaces whose kinds are not listed yet, by what their plans cost at least, the cheapest last; and in what the layers of kinds are alike.
    unlisted: Vec<(u64, usize)>,
    likeness: Likeness<'a>,
    /// Plans that were taken.
    n_taken: usize,
}

impl<'a, 'q> Queue<'a, 'q> {
    /// All spaces with the whole memory of their devices as budget.
    pub fn new(spaces: &'a Spaces<'a>, temporaries: &'q mut Temporaries<'a>) -> Queue<'a, 'q> {
        let mut queue = Queue::empty(spaces, true, Likeness::Alike, temporaries);
        (0..spaces.len()).for_each(|space| queue.add(spaces.bound_ns(space), Source { space, kind: None }));
        queue
    }

    /// The plans of kinds, with the whole memory as budget: what a space came to is due to other kinds of it. The kinds of a space are listed
    /// when no other plan that is left seems faster than it may be.
    pub fn of_kinds(
        spaces: &'a Spaces<'a>,
        likeness: Likeness<'a>,
        temporaries: &'q mut Temporaries<'a>,
    ) -> Queue<'a, 'q> {
        let mut queue = Queue::empty(spaces, false, likeness, temporaries);
        let concerned = (0..spaces.len()).filter(|&space| likeness.concerns(space));
        queue.unlisted = concerned.map(|space| (spaces.bound_ns(space), space)).collect();
        queue.unlisted.sort_by_key(|&unlisted| Reverse(unlisted));
        queue
    }

    fn empty(
        spaces: &'a Spaces<'a>,
        exact: bool,
        likeness: Likeness<'a>,
        temporaries: &'q mut Temporaries<'a>,
    ) -> Queue<'a, 'q> {
        let (sources, parts, lines, unlisted) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (layers, n_taken) = (spaces.layer_variants(), 0);
        Queue { spaces, layers, sources, parts, lines, exact, temporaries, unlisted, likeness, n_taken }
    }

    fn add(&mut self, bound_ns: u64, source: Source<'a>) {
        self.lines.push(Line::new(self.spaces.limit(source.space), bound_ns, source.kind.is_some()));
        self.parts.push(None);
        self.sources.push(source);
    }

    /// Lists the kinds of the cheapest space, unless all that is left takes more than `most_ns` or something is cheaper.
    fn list(&mut self, most_ns: u64, cheapest_ns: u64) -> bool {
        let is_next = |&mut (bound_ns, _): &mut (u64, usize)| bound_ns < most_ns && bound_ns <= cheapest_ns;
        let Some((bound_ns, space)) = self.unlisted.pop_if(is_next) else { return false };
        let tight_ns = self.spaces.tight_bound_ns(space);
        if tight_ns > bound_ns {
            let at = self.unlisted.partition_point(|&left| left > (tight_ns, space));
            self.unlisted.insert(at, (tight_ns, space));
            return true;
        }
        for (least, kind) in promising_kinds(self.spaces, self.likeness, space, most_ns) {
            self.add(least.time_ns, Source { space, kind: Some(kind) });
        }
        true
    }

    /// Takes the plan with the least surrogate time of all that are left and take less than `most_ns`, with the number of its part. What seems too
    /// large is looked for again with less to spend. Where nothing of a part is smaller, it counts as slower by the more the larger it is.
    pub fn pop(&mut self, most_ns: u64) -> Option<(usize, Pick)> {
        loop {
            let next = self.next(most_ns);
            if self.list(most_ns, next.map_or(u64::MAX, |next| next.seeming_ns)) {
                continue;
            }
            let Next { part: i, is_plan, .. } = next?;
            if is_plan {
                let State::Open(solved, _) = std::mem::replace(&mut self.lines[i].state, State::Done) else {
                    return None;
                };
                let excess = self.seeming_excess(i, solved.solution.cost.bytes);
                match &self.parts[i] {
                    Some(part) if excess > 0 && self.lines[i].narrow(part, &solved, excess) => continue,
                    _ => {
                        self.n_taken += 1;
                        return Some((i, Pick::new(solved, self.sources[i].space)));
                    }
                }
            }
            let line = &mut self.lines[i];
            match (&line.state, &self.parts[i]) {
                (State::Unopened(false), _) => {
                    let bound_ns = self.spaces.tight_bound_ns(self.sources[i].space);
                    (line.bound_ns, line.state) = (bound_ns, State::Unopened(true));
                }
                (State::Unopened(true), _) => self.open(i),
                (_, Some(part)) => line.close(part),
                (_, None) => line.state = State::Done,
            }
        }
    }

    /// The part that seems to have the fastest plan of those that take less than `most_ns`.
    fn next(&self, most_ns: u64) -> Option<Next> {
        let of = |(part, line): (usize, &Line)| {
            let (time_ns, delay_ns, is_plan) = match &line.state {
                State::Unopened(_) => (line.bound_ns, 0, false),
                State::Open(solved, closed) if *closed || !self.exact => {
                    let Cost { time_ns, bytes } = solved.solution.cost;
                    (time_ns, self.seeming_delay_ns(part, time_ns, bytes), true)
                }
                State::Open(solved, _) => (solved.solution.lower_bound_ns, 0, false),
                State::Done => return None,
            };
            let seeming_ns = time_ns.saturating_add(delay_ns);
            Some(Next { seeming_ns, part, is_plan }).filter(|_| time_ns < most_ns)
        };
        self.lines.iter().enumerate().filter_map(of).min()
    }

    /// By how much a plan is put off: a multiple of as large a part of the time as the part of the memory by which it seems too large.
    fn seeming_delay_ns(&self, i: usize, time_ns: u64, bytes: u64) -> u64 {
        let excess = u128::from(self.seeming_excess(i, bytes));
        let limit = u128::from(self.spaces.limit(self.sources[i].space)).max(1);
        let delay = if self.n_taken < MAX_HOPEFUL { 1 } else { LATER_DELAY };
        u64::try_from(u128::from(time_ns) * delay * excess / limit).unwrap_or(u64::MAX)
    }

    /// Bytes by which a plan of a kind, with so many by the surrogate, is too large if as much comes on top as is expected.
    fn seeming_excess(&self, i: usize, bytes: u64) -> u64 {
        let &Source { space, kind: Some(kind) } = &self.sources[i] else { return 0 };
        let excess = i128::from(bytes) + self.temporaries.expected(space, kind) - i128::from(self.spaces.limit(space));
        u64::try_from(excess).unwrap_or(0)
    }

    /// Notes the memory of a plan of a part as it was lowered. The part comes back with less to spend where a stage is too large, with more
    /// where every stage leaves much.
    pub fn note(&mut self, part: usize, pick: &Pick, memory: StageMemory) {
        let Source { space, kind } = &self.sources[part];
        let counted =
            i128::from(self.spaces.limit(*space)) + i128::from(memory.excess_bytes()) - i128::from(memory.left_bytes());
        self.temporaries.note(*space, *kind, counted - i128::from(pick.cost.bytes));
        let Some(found) = &self.parts[part] else { return };
        match memory.fits() {
            true => self.lines[part].fits(found, pick, memory.left_bytes()),
            false => self.lines[part].exceeds(found, pick, memory.excess_bytes()),
        }
    }

    fn open(&mut self, i: usize) {
        let Source { space, kind } = &self.sources[i];
        let part = self.spaces.open(*space).map(|space| match kind {
            Some(kind) => Part::of_kind(space, kind, &self.layers),
            None => Part::all(space),
        });
        match &part {
            Some(part) => self.lines[i].open(part),
            None => self.lines[i].state = State::Done,
        }
        self.parts[i] = part;
    }

    /// No plan of any part within its budget takes less time by the surrogate, in nanoseconds.
    pub fn bound_ns(&self) -> u64 {
        self.lines.iter().map(|l| l.bound_ns).min().unwrap_or(u64::MAX)
    }
}
