//! Steps that are launched as a whole: a step is recorded while it runs, captured as a graph once it is done, and from then on
//! replayed. Whoever runs a step walks its nodes as always; while a step is replayed the walk launches nothing. It only checks
//! that the same things come in the same order, and lets the host write into the memory that the graph copies its inputs from.
//!
//! A walk that leaves the recorded path is not refused: what was skipped is launched after all, and the rest of the step as it
//! comes. This file knows no driver: a [`Stage`] is a GPU, the recorder or an emulator.

use crate::device::{Span, Write};

/// Steps that run as they come before one is recorded: they load kernels and make communicators.
pub const WARM_UP: u32 = 1;

/// One thing that a step does.
#[derive(Clone, Debug, PartialEq)]
pub enum Item<W> {
    /// Something prepared: a node, an exchange, a readout.
    Work(W),
    /// The host writes a part of the arena.
    Fill(Span),
}

/// Where a step is launched.
pub trait Stage {
    /// Something prepared; equal to what does the same at the same places.
    type Work: Clone + PartialEq;
    /// A captured step, with memory for what the host writes into it: one slot a fill, in their order.
    type Graph;

    /// Launches something now.
    ///
    /// # Errors
    /// The fault of the device.
    fn launch(&mut self, work: &Self::Work) -> Result<(), String>;

    /// Lets the host write a part of the arena now.
    ///
    /// # Errors
    /// Those of `write`, and the fault of the device.
    fn fill(&mut self, at: Span, write: Write<'_>) -> Result<(), String>;

    /// Captures a step without running it; nothing else is under way.
    ///
    /// # Errors
    /// Why it cannot be captured; the stage is as before.
    fn capture(&mut self, items: &[Item<Self::Work>]) -> Result<Self::Graph, String>;

    /// Launches a captured step.
    ///
    /// # Errors
    /// The fault of the device.
    fn replay(&mut self, graph: &mut Self::Graph) -> Result<(), String>;

    /// The slot of fill number `index`, to be written by the host.
    fn slot(graph: &mut Self::Graph, index: usize) -> &mut [u8];

    /// What the host wrote into the slot of fill number `index`.
    fn written(graph: &Self::Graph, index: usize) -> &[u8];
}

/// Where the walk through a step is.
enum Walk<W> {
    /// Everything is launched as it comes.
    Plain,
    /// The same, and noted.
    Recording(Vec<Item<W>>),
    /// The first `at` items have come, `n_fills` of them fills; nothing was launched.
    Replaying { at: usize, n_fills: usize },
}

/// What becomes of the steps of one device.
pub struct Replay<W, G> {
    /// Steps before the one that is recorded; none when no step is, any more.
    warm_up: Option<u32>,
    captured: Option<(Vec<Item<W>>, G)>,
    walk: Walk<W>,
    n_replayed: u64,
    refusal: Option<String>,
}

impl<W: Clone + PartialEq, G> Replay<W, G> {
    /// Before the first step; without `is_on` all steps run as they come.
    pub fn new(is_on: bool) -> Replay<W, G> {
        let warm_up = is_on.then_some(WARM_UP);
        Replay { warm_up, captured: None, walk: Walk::Plain, n_replayed: 0, refusal: None }
    }

    /// The captured step, if there is one.
    pub fn into_graph(self) -> Option<G> {
        self.captured.map(|(_, graph)| graph)
    }

    /// How many steps were launched as a whole.
    pub fn n_replayed(&self) -> u64 {
        self.n_replayed
    }

    /// Why steps are not launched as a whole, if that was tried.
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// A step begins that does what all other steps do that begin so.
    pub fn begin(&mut self) {
        self.walk = match (&self.captured, self.warm_up) {
            (Some(_), _) => Walk::Replaying { at: 0, n_fills: 0 },
            (None, Some(0)) => Walk::Recording(Vec::new()),
            (None, left) => {
                self.warm_up = left.map(|n| n - 1);
                Walk::Plain
            }
        };
    }

    /// Something prepared is run.
    ///
    /// # Errors
    /// The fault of the device.
    pub fn run<S: Stage<Work = W, Graph = G>>(&mut self, stage: &mut S, work: &W) -> Result<(), String> {
        match (&mut self.walk, &self.captured) {
            (Walk::Replaying { at, .. }, Some((items, _))) => match items.get(*at) {
                Some(Item::Work(next)) if next == work => {
                    *at += 1;
                    return Ok(());
                }
                _ => self.leave(stage)?,
            },
            (Walk::Recording(items), _) => items.push(Item::Work(work.clone())),
            _ => {}
        }
        stage.launch(work)
    }

    /// The host writes a part of the arena.
    ///
    /// # Errors
    /// Those of `write`, and the fault of the device.
    pub fn fill<S: Stage<Work = W, Graph = G>>(
        &mut self,
        stage: &mut S,
        at: Span,
        write: Write<'_>,
    ) -> Result<(), String> {
        match (&mut self.walk, &mut self.captured) {
            (Walk::Replaying { at: place, n_fills }, Some((items, graph))) => {
                if items.get(*place) == Some(&Item::Fill(at)) {
                    write(S::slot(graph, *n_fills))?;
                    (*place, *n_fills) = (*place + 1, *n_fills + 1);
                    return Ok(());
                }
                self.leave(stage)?;
            }
            (Walk::Recording(items), _) => items.push(Item::Fill(at)),
            _ => {}
        }
        stage.fill(at, write)
    }

    /// Something else is about to look at the arena, or the walk has left the recorded path: what was skipped is launched, and
    /// the rest of the step comes as it comes. A step that is being recorded is not captured.
    ///
    /// # Errors
    /// The fault of the device.
    pub fn leave<S: Stage<Work = W, Graph = G>>(&mut self, stage: &mut S) -> Result<(), String> {
        let walk = std::mem::replace(&mut self.walk, Walk::Plain);
        let (Walk::Replaying { at, .. }, Some((items, graph))) = (walk, &self.captured) else { return Ok(()) };
        let mut n_fills = 0;
        for item in &items[..at] {
            match item {
                Item::Work(work) => stage.launch(work)?,
                Item::Fill(at) => {
                    let written = S::written(graph, n_fills);
                    n_fills += 1;
                    stage.fill(*at, &mut |out| {
                        out.copy_from_slice(written);
                        Ok(())
                    })?;
                }
            }
        }
        Ok(())
    }

    /// The step has come to its end: a replayed one is launched now.
    ///
    /// # Errors
    /// The fault of the device.
    pub fn end<S: Stage<Work = W, Graph = G>>(&mut self, stage: &mut S) -> Result<(), String> {
        match (&self.walk, &mut self.captured) {
            (Walk::Replaying { at, .. }, Some((items, graph))) if *at == items.len() => {
                self.walk = Walk::Plain;
                self.n_replayed += 1;
                stage.replay(graph)
            }
            (Walk::Replaying { .. }, _) => self.leave(stage),
            _ => Ok(()),
        }
    }

    /// Everything that was launched is done, without a fault: if the step was recorded, it is captured. If it cannot be, all
    /// steps run as they come.
    pub fn done<S: Stage<Work = W, Graph = G>>(&mut self, stage: &mut S) {
        if let Walk::Recording(items) = std::mem::replace(&mut self.walk, Walk::Plain) {
            match stage.capture(&items) {
                Ok(graph) => self.captured = Some((items, graph)),
                Err(why) => (self.warm_up, self.refusal) = (None, Some(why)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Work is a number that is added to `sum`; fills set `input`, which is added too.
    #[derive(Default)]
    struct Adder {
        input: u8,
        sum: u64,
        n_launched: usize,
        refuses: bool,
    }

    struct Graph {
        items: Vec<Item<u8>>,
        slots: Vec<[u8; 1]>,
    }

    impl Stage for Adder {
        type Work = u8;
        type Graph = Graph;

        fn launch(&mut self, work: &u8) -> Result<(), String> {
            self.n_launched += 1;
            self.sum = 10 * self.sum + u64::from(work + self.input);
            Ok(())
        }

        fn fill(&mut self, _at: Span, write: Write<'_>) -> Result<(), String> {
            self.n_launched += 1;
            write(std::slice::from_mut(&mut self.input))
        }

        fn capture(&mut self, items: &[Item<u8>]) -> Result<Graph, String> {
            let n_fills = items.iter().filter(|item| matches!(item, Item::Fill(_))).count();
            let graph = Graph { items: items.to_vec(), slots: vec![[0]; n_fills] };
            if self.refuses { Err("no graphs here".into()) } else { Ok(graph) }
        }

        fn replay(&mut self, graph: &mut Graph) -> Result<(), String> {
            let n_launched = self.n_launched;
            let mut slots = graph.slots.iter();
            for item in &graph.items {
                match item {
                    Item::Work(work) => self.launch(work)?,
                    Item::Fill(_) => self.input = slots.next().map_or(0, |slot| slot[0]),
                }
            }
            self.n_launched = n_launched + 1;
            Ok(())
        }

        fn slot(graph: &mut Graph, index: usize) -> &mut [u8] {
            &mut graph.slots[index]
        }

        fn written(graph: &Graph, index: usize) -> &[u8] {
            &graph.slots[index]
        }
    }

    type Steps = Replay<u8, Graph>;

    const AT: Span = Span { offset: 0, bytes: 1 };

    fn set(replay: &mut Steps, adder: &mut Adder, value: u8) {
        let mut write = |out: &mut [u8]| {
            out[0] = value;
            Ok(())
        };
        replay.fill(adder, AT, &mut write).unwrap();
    }

    /// A step: set, run, set, run. Returns what it has left in `sum`.
    fn step(replay: &mut Steps, adder: &mut Adder, work: [u8; 2], values: [u8; 2]) -> u64 {
        adder.sum = 0;
        replay.begin();
        for (work, value) in work.into_iter().zip(values) {
            set(replay, adder, value);
            replay.run(adder, &work).unwrap();
        }
        replay.end(adder).unwrap();
        replay.done(adder);
        adder.sum
    }

    #[test]
    fn a_replayed_step_does_what_it_did_with_what_the_host_writes() {
        let (mut replay, mut adder) = (Steps::new(true), Adder::default());
        for number in 0..6u8 {
            let launched = adder.n_launched;
            let sum = step(&mut replay, &mut adder, [1, 2], [number, 2 * number]);
            assert_eq!(sum, u64::from(10 * (1 + number) + 2 + 2 * number), "step {number}");
            assert_eq!(adder.n_launched - launched, if number < 2 { 4 } else { 1 }, "step {number}");
        }
        assert_eq!((replay.n_replayed(), replay.refusal()), (4, None));
    }

    #[test]
    fn a_step_that_differs_is_launched_as_it_comes_and_the_next_one_is_replayed() {
        let (mut replay, mut adder) = (Steps::new(true), Adder::default());
        step(&mut replay, &mut adder, [1, 2], [0, 0]);
        step(&mut replay, &mut adder, [1, 2], [0, 0]);
        assert_eq!(step(&mut replay, &mut adder, [1, 5], [3, 4]), 49);
        assert_eq!(step(&mut replay, &mut adder, [7, 2], [0, 1]), 73);
        assert_eq!(replay.n_replayed(), 0);
        assert_eq!(step(&mut replay, &mut adder, [1, 2], [3, 4]), 46);
        assert_eq!(replay.n_replayed(), 1);
    }

    #[test]
    fn a_step_that_ends_early_or_is_looked_at_is_not_replayed() {
        let (mut replay, mut adder) = (Steps::new(true), Adder::default());
        step(&mut replay, &mut adder, [1, 2], [0, 0]);
        step(&mut replay, &mut adder, [1, 2], [0, 0]);
        adder.sum = 0;
        replay.begin();
        set(&mut replay, &mut adder, 4);
        replay.run(&mut adder, &1).unwrap();
        assert_eq!(adder.sum, 0, "nothing is launched while a step is replayed");
        replay.leave(&mut adder).unwrap();
        assert_eq!(adder.sum, 5);
        replay.run(&mut adder, &2).unwrap();
        assert_eq!(adder.sum, 56);
        replay.end(&mut adder).unwrap();
        adder.sum = 0;
        replay.begin();
        set(&mut replay, &mut adder, 6);
        replay.run(&mut adder, &1).unwrap();
        replay.end(&mut adder).unwrap();
        assert_eq!((adder.sum, replay.n_replayed()), (7, 0));
    }

    #[test]
    fn a_step_that_is_looked_at_is_not_captured() {
        let (mut replay, mut adder) = (Steps::new(true), Adder::default());
        step(&mut replay, &mut adder, [1, 2], [0, 0]);
        replay.begin();
        replay.run(&mut adder, &1).unwrap();
        replay.leave(&mut adder).unwrap();
        replay.run(&mut adder, &2).unwrap();
        replay.end(&mut adder).unwrap();
        replay.done(&mut adder);
        // The next one is recorded, the one after it replayed.
        step(&mut replay, &mut adder, [1, 2], [1, 1]);
        assert_eq!((step(&mut replay, &mut adder, [1, 2], [1, 1]), replay.n_replayed()), (23, 1));
    }

    #[test]
    fn without_graphs_all_steps_run_as_they_come() {
        for (is_on, refuses) in [(false, false), (true, true)] {
            let (mut replay, mut adder) = (Steps::new(is_on), Adder { refuses, ..Adder::default() });
            (0..4u8).for_each(|n| assert_eq!(step(&mut replay, &mut adder, [1, 2], [n, n]), u64::from(12 + 11 * n)));
            assert_eq!((replay.n_replayed(), adder.n_launched), (0, 16));
            assert_eq!(replay.refusal(), refuses.then_some("no graphs here"));
        }
    }
}
