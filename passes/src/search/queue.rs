//! The plans of all spaces, cheapest surrogate first, while the budget of each space is brought to what really fits.
//!
//! The surrogate counts what lives across a micro-batch; temporaries, and what is freed before they come, show only when a
//! plan is lowered. How much that is depends most on the number of micro-batches, so each space has a budget of its own.

use super::pipe::Solved;
use super::spaces::{MARGIN_PARTS, Pick, Space, Spaces};

/// Picks of one space at most, after which it is given up for its smallest plan.
const MAX_ROUNDS: usize = 8;

/// Parts of the limit below which a difference in bytes is not worth another round.
const FINE_PARTS: u64 = 256;

/// Where the search in one space stands.
struct Line {
    budget: u64,
    n_rounds: usize,
    /// No plan of the space within its budget is faster.
    bound_ns: u64,
    /// Surrogate bytes and time of the fastest plan that fits.
    fitting: Option<(u64, u64)>,
    /// Surrogate bytes of the smallest plan that does not fit.
    over: u64,
    state: State,
}

enum State {
    /// Its candidates are not made.
    Unopened,
    /// The best plan within the budget, to a gap; whether that has been closed.
    Open(Solved, bool),
    /// Nothing better is left.
    Done,
}

/// All spaces under the memory of their devices. Bytes are those that [`super::devices`] counts.
pub struct Queue<'a> {
    spaces: &'a Spaces<'a>,
    lines: Vec<Line>,
}

impl<'a> Queue<'a> {
    /// All spaces with the whole memory of their devices as budget.
    pub fn new(spaces: &'a Spaces<'a>) -> Queue<'a> {
        let lines = (0..spaces.len()).map(|space| Line::new(spaces.limit(space), spaces.bound_ns(space))).collect();
        Queue { spaces, lines }
    }

    /// Takes the plan with the least surrogate time of all that are left.
    pub fn pop(&mut self) -> Option<Pick> {
        loop {
            let open = self.lines.iter().enumerate().filter_map(|(i, line)| match &line.state {
                State::Unopened => Some((line.bound_ns, i, false)),
                State::Open(solved, true) => Some((solved.solution.cost.time_ns, i, true)),
                State::Open(solved, false) => Some((solved.solution.lower_bound_ns, i, false)),
                State::Done => None,
            });
            let (_, i, closed) = open.min()?;
            if closed {
                return self.take(i);
            }
            match (&self.lines[i].state, self.spaces.open(i)) {
                (_, None) => self.lines[i].state = State::Done,
                (State::Unopened, Some(space)) => self.lines[i].open(space),
                (_, Some(space)) => self.lines[i].close(space),
            }
        }
    }

    fn take(&mut self, i: usize) -> Option<Pick> {
        match std::mem::replace(&mut self.lines[i].state, State::Done) {
            State::Open(solved, _) => Some(Pick::new(solved, i)),
            _ => None,
        }
    }

    /// Notes by how many bytes a pick exceeds the memory of a stage; its space comes back with less to spend.
    pub fn exceeds(&mut self, pick: &Pick, excess: u64) {
        if let Some(space) = self.spaces.open(pick.space) {
            self.lines[pick.space].exceeds(space, pick, excess);
        }
    }

    /// Notes how many bytes a pick leaves of the memory of every stage; its space comes back if it may spend more.
    pub fn fits(&mut self, pick: &Pick, surplus: u64) {
        if let Some(space) = self.spaces.open(pick.space) {
            self.lines[pick.space].fits(space, pick, surplus);
        }
    }

    /// Surrogate bytes that plans of a space may have.
    pub fn budget(&self, space: usize) -> u64 {
        self.lines[space].budget
    }

    /// No plan of any space within its budget takes less time by the surrogate, in nanoseconds.
    pub fn bound_ns(&self) -> u64 {
        self.lines.iter().map(|l| l.bound_ns).min().unwrap_or(u64::MAX)
    }
}

impl Line {
    fn new(budget: u64, bound_ns: u64) -> Line {
        Line { budget, n_rounds: 0, bound_ns, fitting: None, over: u64::MAX, state: State::Unopened }
    }

    fn open(&mut self, space: &Space) {
        let least = space.least_bytes();
        (self.bound_ns, self.state) = (u64::MAX, State::Done);
        // The surrogate may count what is freed in time: the smallest plan is tried although it seems a little too large.
        if least <= self.budget.saturating_add(self.budget / MARGIN_PARTS) {
            self.budget = self.budget.max(least);
            self.relax(space);
        }
    }

    /// Starts anew within the budget; done if that promises nothing faster than what fits already.
    fn relax(&mut self, space: &Space) {
        let found = space.solve(Some(self.budget), false).ok();
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

    fn close(&mut self, space: &Space) {
        if let Ok(solved) = space.solve(Some(self.budget), true) {
            let Solved { solution, .. } = &solved;
            self.bound_ns = solution.lower_bound_ns;
            let known_ns = self.fitting.map_or(u64::MAX, |(_, time_ns)| time_ns);
            self.state = if solution.cost.time_ns < known_ns { State::Open(solved, true) } else { State::Done };
        }
    }

    /// Less budget: between what fits and what does not, or else by the excess, but never less than what the smallest plan
    /// needs, which is tried last.
    fn exceeds(&mut self, space: &Space, pick: &Pick, excess: u64) {
        self.n_rounds += 1;
        self.over = self.over.min(pick.cost.bytes);
        self.bound_ns = u64::MAX;
        let fine = self.budget / FINE_PARTS;
        if let Some((bytes, time_ns)) = self.fitting {
            self.bound_ns = time_ns;
            if self.n_rounds < MAX_ROUNDS && self.over - bytes > fine {
                self.budget = bytes.midpoint(self.over);
                self.relax(space);
            }
            return;
        }
        let least = space.least_bytes();
        if pick.cost.bytes > least {
            let rest = self.budget.min(pick.cost.bytes).saturating_sub(excess.max(fine));
            self.budget = if self.n_rounds < MAX_ROUNDS { rest.max(least) } else { least };
            self.relax(space);
        }
    }

    fn fits(&mut self, space: &Space, pick: &Pick, surplus: u64) {
        self.n_rounds += 1;
        self.fitting = Some((pick.cost.bytes, pick.cost.time_ns));
        let wider = pick.cost.bytes.saturating_add(surplus).min(self.over - 1);
        if self.n_rounds < MAX_ROUNDS && wider > self.budget.max(pick.cost.bytes + wider / FINE_PARTS) {
            self.budget = wider;
            self.relax(space);
        }
    }
}
