//! Where all ranks wait between two steps until the caller says how to go on.

use std::sync::{Condvar, Mutex};
use std::time::Duration;

/// How to go on after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// With the next step, if there is one.
    Continue,
    /// Not at all: what was asked to be collected is collected, and the run ends.
    Stop,
}

/// A gate that is opened once for every step.
pub(super) struct Gate {
    state: Mutex<State>,
    moved: Condvar,
}

struct State {
    /// The last step after which the ranks may go on.
    open_to: u64,
    flow: Flow,
}

impl Gate {
    /// A gate before step `first_step`.
    pub(super) fn new(first_step: u64) -> Gate {
        let state = State { open_to: first_step - 1, flow: Flow::Continue };
        Gate { state: Mutex::new(state), moved: Condvar::new() }
    }

    /// Waits until the caller has answered the report of `step`.
    pub(super) fn wait(&self, step: u64) -> Flow {
        let mut state = self.state.lock().expect("invariant: the gate's owner does not panic inside");
        while state.open_to < step && state.flow == Flow::Continue {
            state = self.moved.wait(state).expect("invariant: the gate's owner does not panic inside");
        }
        state.flow
    }

    /// Like [`wait`](Self::wait), at most for `limit`.
    pub(super) fn wait_for(&self, step: u64, limit: Duration) -> Option<Flow> {
        let state = self.state.lock().expect("invariant: the gate's owner does not panic inside");
        let is_closed = |state: &mut State| state.open_to < step && state.flow == Flow::Continue;
        let waited = self.moved.wait_timeout_while(state, limit, is_closed);
        let (state, timeout) = waited.expect("invariant: the gate's owner does not panic inside");
        (!timeout.timed_out()).then_some(state.flow)
    }

    /// Lets the ranks go on after `step`.
    pub(super) fn open(&self, step: u64, flow: Flow) {
        let mut state = self.state.lock().expect("invariant: waiting ranks do not panic inside");
        *state = State { open_to: step, flow };
        self.moved.notify_all();
    }
}

/// Stops everyone who waits at the gate when the caller's side is left, by a panic too.
pub(super) struct StopOnDrop<'a>(pub(super) &'a Gate);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.open(u64::MAX, Flow::Stop);
    }
}
