//! The plans of all spaces, cheapest surrogate first, while the budget of each space is tightened.
//!
//! The surrogate counts what lives across a micro-batch; temporaries and fragmentation show only when a plan is lowered. How much
//! that is depends most on the number of micro-batches, so each space has a budget of its own.

use super::solver::Solution;
use super::spaces::{Pick, Space, Spaces};

/// Picks of one space at most, after which it is given up for its smallest plan.
const MAX_ROUNDS: usize = 8;

/// Where the search in one space stands.
struct Line {
    budget: u64,
    n_rounds: usize,
    /// No plan of the space within its budget is faster.
    bound_ns: u64,
    state: State,
}

enum State {
    /// The best plan within the budget, to a gap; whether that has been closed.
    Open(Solution, bool),
    /// Its best plan was taken.
    Taken,
    /// Nothing fits; whether the smallest plan was tried.
    Empty,
}

/// All spaces under a memory limit.
pub struct Queue<'a> {
    spaces: &'a [Space],
    lines: Vec<Line>,
}

impl<'a> Queue<'a> {
    /// All spaces with the whole limit as budget.
    pub fn new(spaces: &'a Spaces<'_>, limit: u64) -> Queue<'a> {
        let spaces = &spaces.spaces;
        let lines = spaces.iter().map(|space| Line::new(space, limit)).collect();
        Queue { spaces, lines }
    }

    /// Takes the plan with the least surrogate time of all that are left.
    pub fn pop(&mut self) -> Option<Pick> {
        loop {
            let open = self.lines.iter().enumerate().filter_map(|(i, line)| match &line.state {
                State::Open(solution, closed) => {
                    let key = if *closed { solution.cost.time_ns } else { solution.lower_bound_ns };
                    Some((key, i, *closed))
                }
                _ => None,
            });
            let (_, i, closed) = open.min()?;
            if closed {
                return self.take(i);
            }
            self.lines[i].close(&self.spaces[i]);
        }
    }

    fn take(&mut self, i: usize) -> Option<Pick> {
        match std::mem::replace(&mut self.lines[i].state, State::Taken) {
            State::Open(solution, _) => Some(Pick { chosen: solution.assignment, cost: solution.cost, space: i }),
            _ => None,
        }
    }

    /// Puts a space back whose plan needs `excess` bytes more than there are, with so much less to spend.
    pub fn tighten(&mut self, pick: &Pick, excess: u64) {
        self.lines[pick.space].tighten(&self.spaces[pick.space], pick, excess);
    }

    /// No plan of any space within its budget takes less time by the surrogate, in nanoseconds.
    pub fn bound_ns(&self) -> u64 {
        self.lines.iter().map(|l| l.bound_ns).min().unwrap_or(u64::MAX)
    }
}

impl Line {
    fn new(space: &Space, budget: u64) -> Line {
        let mut line = Line { budget, n_rounds: 0, bound_ns: u64::MAX, state: State::Empty };
        line.relax(space);
        line
    }

    fn relax(&mut self, space: &Space) {
        (self.bound_ns, self.state) = match space.solve(Some(self.budget), false) {
            Ok(solution) => {
                let closed = solution.proven;
                (solution.lower_bound_ns, State::Open(solution, closed))
            }
            Err(_) => (u64::MAX, State::Empty),
        };
    }

    fn close(&mut self, space: &Space) {
        if let Ok(solution) = space.solve(Some(self.budget), true) {
            self.bound_ns = solution.lower_bound_ns;
            self.state = State::Open(solution, true);
        }
    }

    /// Less budget, but never less than what the smallest plan needs, which is tried last.
    fn tighten(&mut self, space: &Space, pick: &Pick, excess: u64) {
        let least = space.solve(Some(0), false).map_or_else(|none| none.least.bytes, |_| 0);
        self.n_rounds += 1;
        let rest = self.budget.min(pick.cost.bytes).saturating_sub(excess.max(self.budget / 256));
        (self.bound_ns, self.state) = (u64::MAX, State::Empty);
        if pick.cost.bytes > least {
            self.budget = if self.n_rounds < MAX_ROUNDS { rest.max(least) } else { least };
            self.relax(space);
        }
    }
}
