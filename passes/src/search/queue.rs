//! The plans of all parts, cheapest surrogate first, while the budget of each part is brought to what really fits.
//!
//! The surrogate counts what lives across a micro-batch; temporaries, and what is freed before they come, show only when a
//! plan is lowered. How much that is depends most on the number of micro-batches and on how layers are cut, so each part has a budget of
//! its own.

use super::kinds::{Kind, Kinds};
use super::line::{Line, State};
use super::part::Part;
use super::solver::Cost;
use super::spaces::{Pick, Spaces};
use galvatron_ir::headroom::StageMemory;
use std::collections::BTreeMap;

/// A part before it is opened.
struct Source<'a> {
    space: usize,
    kind: Option<Kind<'a>>,
}

/// Parts of the plans under the memory of their devices. Bytes are those that [`super::devices`] counts.
pub struct Queue<'a> {
    spaces: &'a Spaces<'a>,
    /// For each variant whether its segments are layers.
    layers: Vec<bool>,
    sources: Vec<Source<'a>>,
    /// Of those that are opened.
    parts: Vec<Option<Part<'a>>>,
    lines: Vec<Line>,
    /// Whether gaps of relaxations are closed.
    exact: bool,
    /// By how many bytes the last plan that was lowered of a space and a kind of cuts exceeds its surrogate.
    beyond: BTreeMap<(usize, Option<Kind<'a>>), i128>,
}

impl<'a> Queue<'a> {
    /// All spaces with the whole memory of their devices as budget.
    pub fn new(spaces: &'a Spaces<'a>) -> Queue<'a> {
        let all = (0..spaces.len()).map(|space| (spaces.bound_ns(space), Source { space, kind: None }));
        Queue::of(spaces, true, all.collect())
    }

    /// The plans of some kinds, with the whole memory as budget: what a space came to is due to other kinds of it.
    pub fn of_kinds(spaces: &'a Spaces<'a>, kinds: Kinds<'a>) -> Queue<'a> {
        let all = kinds.into_iter().map(|(least, space, kind)| (least.time_ns, Source { space, kind: Some(kind) }));
        Queue::of(spaces, false, all.collect())
    }

    fn of(spaces: &'a Spaces<'a>, exact: bool, all: Vec<(u64, Source<'a>)>) -> Queue<'a> {
        let lines = all.iter().map(|(bound_ns, source)| Line::new(spaces.limit(source.space), *bound_ns)).collect();
        let parts = all.iter().map(|_| None).collect();
        let sources = all.into_iter().map(|(_, source)| source).collect();
        Queue { spaces, layers: spaces.layer_variants(), sources, parts, lines, exact, beyond: BTreeMap::new() }
    }

    /// Takes the plan with the least surrogate time of all that are left, with the number of its part. One that seems too large counts as so
    /// much slower as it is too large: what has to be freed costs time.
    pub fn pop(&mut self) -> Option<(usize, Pick)> {
        loop {
            let open = self.lines.iter().enumerate().filter_map(|(i, line)| match &line.state {
                State::Unopened => Some((line.bound_ns, i, false)),
                State::Open(solved, closed) if *closed || !self.exact => {
                    let Cost { time_ns, bytes } = solved.solution.cost;
                    Some((time_ns.saturating_add(self.seeming_delay_ns(i, time_ns, bytes)), i, true))
                }
                State::Open(solved, _) => Some((solved.solution.lower_bound_ns, i, false)),
                State::Done => None,
            });
            let (.., i, closed) = open.min()?;
            let line = &mut self.lines[i];
            if closed {
                let State::Open(solved, _) = std::mem::replace(&mut line.state, State::Done) else { return None };
                return Some((i, Pick::new(solved, self.sources[i].space)));
            }
            match (&line.state, &self.parts[i]) {
                (State::Unopened, _) => self.open(i),
                (_, Some(part)) => line.close(part),
                (_, None) => line.state = State::Done,
            }
        }
    }

    /// As large a part of the time as the part of the memory by which a plan of a kind, with so many bytes by the surrogate, is too large if as
    /// much comes on top as with the last one with temporaries of about its size.
    fn seeming_delay_ns(&self, i: usize, time_ns: u64, bytes: u64) -> u64 {
        let Source { space, kind } = &self.sources[i];
        let beyond = kind.and_then(|kind| self.beyond.get(&(*space, Some(kind.temporaries()))));
        let limit = i128::from(self.spaces.limit(*space));
        let excess = beyond.map_or(0, |beyond| i128::from(bytes) + beyond - limit).max(0);
        u64::try_from(i128::from(time_ns) * excess / limit.max(1)).unwrap_or(u64::MAX)
    }

    /// Notes the memory of a plan of a part as it was lowered. The part comes back with less to spend where a stage is too large, with more
    /// where every stage leaves much.
    pub fn note(&mut self, part: usize, pick: &Pick, memory: StageMemory) {
        let Source { space, kind } = &self.sources[part];
        let counted =
            i128::from(self.spaces.limit(*space)) + i128::from(memory.excess_bytes()) - i128::from(memory.left_bytes());
        self.beyond.insert((*space, kind.map(|kind| kind.temporaries())), counted - i128::from(pick.cost.bytes));
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
