//! The search in one part of the plans, whose budget is brought to what really fits.

use super::part::Part;
use super::pipe::Solved;
use super::spaces::{MARGIN_PARTS, Pick};

/// Picks of one space at most, after which it is given up for its smallest plan.
const MAX_ROUNDS: usize = 8;

/// Parts of the limit below which a difference in bytes is not worth another round.
const FINE_PARTS: u64 = 256;

/// Where the search in one part stands.
pub struct Line {
    limit: u64,
    /// Surrogate bytes of its smallest plan.
    least: u64,
    /// Surrogate bytes that its plans may have.
    pub budget: u64,
    n_rounds: usize,
    /// No plan of it within its budget is faster.
    pub bound_ns: u64,
    /// Surrogate bytes and time of the fastest plan that fits.
    fitting: Option<(u64, u64)>,
    /// Surrogate bytes of the smallest plan that does not fit.
    over: u64,
    /// How far it is.
    pub state: State,
}

/// How far the search is.
pub enum State {
    /// Its candidates are not made; whether its bound is as tight as it gets without.
    Unopened(bool),
    /// The best plan within the budget, to a gap; whether that has been closed.
    Open(Solved, bool),
    /// Nothing better is left.
    Done,
}

impl Line {
    /// Not opened, with the whole limit as budget, and a bound on its plans in nanoseconds, which may be as tight as it gets.
    pub fn new(limit: u64, bound_ns: u64, is_tight: bool) -> Line {
        let state = State::Unopened(is_tight);
        Line { limit, least: 0, budget: limit, n_rounds: 0, bound_ns, fitting: None, over: u64::MAX, state }
    }

    /// Looks for the first plan.
    pub fn open(&mut self, part: &Part<'_>) {
        self.least = part.least_bytes();
        (self.bound_ns, self.state) = (u64::MAX, State::Done);
        // The surrogate may count what is freed in time: the smallest plan is tried although it seems a little too large.
        if self.least <= self.limit.saturating_add(self.limit / MARGIN_PARTS) {
            self.budget = self.budget.max(self.least);
            self.relax(part);
        }
    }

    /// Starts anew within the budget; done if that promises nothing faster than what fits already.
    fn relax(&mut self, part: &Part<'_>) {
        let found = part.solve(Some(self.budget), false).ok();
        self.bound_ns = found.as_ref().map_or(u64::MAX, |s| s.solution.lower_bound_ns);
        let known_ns = self.fitting.map_or(u64::MAX, |(_, time_ns)| time_ns);
        self.state = match found.filter(|s| s.solution.lower_bound_ns < known_ns) {
            Some(solved) => {
                let closed = solved.solution.proven;
                State::Open(solved, closed)
            }
            None => State::Done,
        };
    }

    /// Closes the gap of what was found.
    pub fn close(&mut self, part: &Part<'_>) {
        if let Ok(solved) = part.solve(Some(self.budget), true) {
            let Solved { solution, .. } = &solved;
            self.bound_ns = solution.lower_bound_ns;
            let known_ns = self.fitting.map_or(u64::MAX, |(_, time_ns)| time_ns);
            self.state = if solution.cost.time_ns < known_ns { State::Open(solved, true) } else { State::Done };
        }
    }

    /// Less budget: between what fits and what does not, or else by the excess, but never less than what the smallest plan
    /// needs, which is tried last.
    pub fn exceeds(&mut self, part: &Part<'_>, pick: &Pick, excess: u64) {
        self.n_rounds += 1;
        self.over = self.over.min(pick.cost.bytes);
        self.bound_ns = u64::MAX;
        let fine = self.budget / FINE_PARTS;
        if let Some((bytes, time_ns)) = self.fitting {
            self.bound_ns = time_ns;
            if self.n_rounds < MAX_ROUNDS && self.over - bytes > fine {
                self.budget = bytes.midpoint(self.over);
                self.relax(part);
            }
            return;
        }
        if pick.cost.bytes > self.least {
            let rest = self.budget.min(pick.cost.bytes).saturating_sub(excess.max(fine));
            self.budget = if self.n_rounds < MAX_ROUNDS { rest.max(self.least) } else { self.least };
            self.relax(part);
        }
    }

    /// Less budget by what its plan seems too large, before that is lowered; false if it is the smallest one.
    pub fn narrow(&mut self, part: &Part<'_>, solved: &Solved, excess: u64) -> bool {
        let bytes = solved.solution.cost.bytes;
        if bytes <= self.least {
            return false;
        }
        self.budget = self.budget.min(bytes).saturating_sub(excess).max(self.least);
        self.relax(part);
        true
    }

    /// More budget, as far as what fits leaves it.
    pub fn fits(&mut self, part: &Part<'_>, pick: &Pick, surplus: u64) {
        self.n_rounds += 1;
        self.fitting = Some((pick.cost.bytes, pick.cost.time_ns));
        let wider = pick.cost.bytes.saturating_add(surplus).min(self.over - 1);
        if self.n_rounds < MAX_ROUNDS && wider > self.budget.max(pick.cost.bytes + wider / FINE_PARTS) {
            self.budget = wider;
            self.relax(part);
        }
    }
}
