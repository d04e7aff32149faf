//! Finds the repeated layers of a forward program, whatever their names.
//!
//! Nodes are put into a canonical order (see [`order`]), in which equal layers are equal runs of signatures. The longest
//! periodic run becomes a chain of layers; what is left and right of it is searched again. A layer starts where the fewest
//! values cross, which for residual models is the residual stream. Layers that are similar and not equal, such as windows
//! with and without a shift, are told apart in the end (see [`similar`]).

mod order;
mod recorded;
mod similar;

pub use recorded::recorded;

use galvatron_ir::module::Program;
use galvatron_ir::op::{Effects, Op};
use galvatron_ir::{NodeId, ValueId};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// A run of forward nodes; segments of one class are isomorphic and can be decided once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Segments with the same class are equal up to names.
    pub class: usize,
    /// Layers in a row that have the same weights, and need not be equal, are of one kind.
    pub kind: usize,
    /// Whether the kind repeats: a layer, not an embedding or a head.
    pub is_layer: bool,
    /// The nodes, in order; node i of two segments of a class correspond.
    pub nodes: Vec<NodeId>,
}

/// Fewest nodes that make a layer.
const MIN_LAYER_NODES: usize = 6;

/// Splits the forward program into segments, puts `program.body` into their order and tags nodes with the number of their segment.
pub fn segment(program: &mut Program) -> Vec<Segment> {
    let (order, pieces) = best_order(program);
    let (mut segments, mut n_classes) = (Vec::new(), 0);
    for (kind, piece) in pieces.iter().enumerate() {
        for start in (piece.start..piece.end()).step_by(piece.period) {
            for (i, part) in piece.parts(start).enumerate() {
                let (class, is_layer) = (n_classes + i, piece.n_layers() > 1);
                segments.push(Segment { class, kind, is_layer, nodes: order[part].to_vec() });
            }
        }
        n_classes += piece.cuts.len() + 1;
    }
    program.body = order;
    tag_layers(program, &segments);
    segments
}

/// How many layers of one kind follow one another, kind by kind.
pub fn layers(segments: &[Segment]) -> Vec<usize> {
    segments.chunk_by(|a, b| a.kind == b.kind).filter(|run| run[0].is_layer).map(<[Segment]>::len).collect()
}

fn tag_layers(program: &mut Program, segments: &[Segment]) {
    for (i, segment) in segments.iter().enumerate() {
        for &node in &segment.nodes {
            program.graph.node_mut(node).layer = Some(i as u32);
        }
    }
}

/// `count` consecutive runs of `period` nodes from position `start`, each of similar parts.
#[derive(Clone, Debug)]
struct Piece {
    start: usize,
    period: usize,
    count: usize,
    /// Where each run is cut into parts, from its start; ascending, without its ends.
    cuts: Vec<usize>,
}

impl Piece {
    fn end(&self) -> usize {
        self.start + self.period * self.count
    }

    fn n_layers(&self) -> usize {
        self.count * (self.cuts.len() + 1)
    }

    /// The positions of the parts of the run that starts at `start`.
    fn parts(&self, start: usize) -> impl Iterator<Item = Range<usize>> {
        let starts = std::iter::once(0).chain(self.cuts.iter().copied());
        let ends = self.cuts.iter().copied().chain([self.period]);
        starts.zip(ends).map(move |(from, to)| start + from..start + to)
    }
}

/// Of the orders that the program may be put into the one whose equal layers have most nodes, then that whose layers have; the
/// first if several have. With its pieces.
fn best_order(program: &Program) -> (Vec<NodeId>, Vec<Piece>) {
    let mut best: Option<([usize; 2], Vec<NodeId>, Vec<Piece>)> = None;
    for order in order::candidates(program) {
        let last_read = last_read(program, &order);
        let (signatures, crossing) = (signatures(program, &order), crossing(program, &order, &last_read));
        let weights = program.weights.iter().filter(|w| w.trainable).map(|w| w.value).collect();
        let runs = Runs { program, order: &order, signatures, last_read, crossing, weights };
        let mut pieces = Vec::new();
        split(&runs, 0..order.len(), &mut pieces);
        let covered = [|p: &Piece| p.count, Piece::n_layers]
            .map(|n| pieces.iter().filter(|p| n(p) > 1).map(|p| p.period * p.count).sum());
        if best.as_ref().is_none_or(|(most, ..)| covered > *most) {
            best = Some((covered, order, pieces));
        }
    }
    best.map(|(_, order, pieces)| (order, pieces)).unwrap_or_default()
}

/// One number for each node: equal for equal ops on equal operand types and kinds.
fn signatures(program: &Program, order: &[NodeId]) -> Vec<usize> {
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    let position: BTreeMap<NodeId, usize> = order.iter().enumerate().map(|(i, &n)| (n, i)).collect();
    order
        .iter()
        .map(|&id| {
            let node = program.graph.node(id);
            let mut key = format!("{:?}", node.op.unnumbered());
            for &arg in &node.args {
                let made = program.graph.producer(arg).is_some_and(|p| position.contains_key(&p));
                key += &format!("|{}{}", program.graph.value(arg).ty, if made { "n" } else { "w" });
            }
            let next = known.len();
            *known.entry(key).or_insert(next)
        })
        .collect()
}

/// Finds the longest periodic run in a range, or else the longest of similar layers; recurses on what is left of it.
fn split(runs: &Runs<'_>, range: Range<usize>, pieces: &mut Vec<Piece>) {
    if range.is_empty() {
        return;
    }
    let periodic = best_run(runs, range.clone()).map(|run| similar::divided(runs, run));
    match periodic.or_else(|| similar::best_run(runs, range.clone())) {
        None => pieces.push(Piece { start: range.start, period: range.len(), count: 1, cuts: Vec::new() }),
        Some(run) => {
            split(runs, range.start..run.start, pieces);
            let end = run.end();
            pieces.push(run);
            split(runs, end..range.end, pieces);
        }
    }
}

fn best_run(runs: &Runs<'_>, range: Range<usize>) -> Option<Piece> {
    let mut best: Option<Piece> = None;
    for period in MIN_LAYER_NODES..=range.len() / 2 {
        let mut at = range.start;
        while at + period < range.end {
            let same = |&i: &usize| runs.signatures[i] == runs.signatures[i + period];
            let run = (at..range.end - period).take_while(same).count();
            let at_most = (run + period) / period * period;
            // A multiple of a period covers a little more at best; only a real gain counts.
            let beats = |covered: usize| best.as_ref().is_none_or(|b| covered > b.period * (b.count + 1));
            if run >= period && beats(at_most) {
                let found = align(runs, at, at + run + period, period);
                if runs.is_layer(&found) && beats(found.period * found.count) {
                    best = Some(found);
                }
            }
            at += run + 1;
        }
    }
    best
}

/// The start within the first period at which the fewest values cross, then the one that gives most layers.
fn align(runs: &Runs<'_>, start: usize, end: usize, period: usize) -> Piece {
    let candidates = (start..(start + period).min(end - period + 1)).map(|s| {
        let count = (end - s) / period;
        let inner = if count > 1 { s + period } else { s };
        (runs.crossing[inner], std::cmp::Reverse(count), s)
    });
    let (_, std::cmp::Reverse(count), start) = candidates.min().expect("invariant: a run is longer than its period");
    Piece { start, period, count, cuts: Vec::new() }
}

/// What the search for periodic runs reads.
struct Runs<'a> {
    program: &'a Program,
    order: &'a [NodeId],
    signatures: Vec<usize>,
    /// For each value the position of its last reader; that of an output is the end.
    last_read: Vec<usize>,
    /// For each position the number of values that are computed before it and read from it on; constants left out.
    crossing: Vec<usize>,
    /// What is trained.
    weights: BTreeSet<ValueId>,
}

impl Runs<'_> {
    fn is_layer(&self, piece: &Piece) -> bool {
        piece.count >= 2 && self.contracts(piece.start..piece.start + piece.period)
    }

    fn contracts(&self, range: Range<usize>) -> bool {
        self.order[range].iter().any(|&n| matches!(self.program.graph.node(n).op, Op::Einsum(_)))
    }
}

/// For each value whether it is computed from constants and scalars of the run alone: it is the same in every layer.
pub fn constants(program: &Program) -> Vec<bool> {
    let mut constant = vec![false; program.graph.n_values()];
    for &id in &program.body {
        let node = program.graph.node(id);
        let is_pure = node.op.effects() == Effects::Pure || matches!(node.op, Op::RunScalar(_));
        let is_constant = is_pure && node.args.iter().all(|a| constant[a.index()]);
        node.results.iter().for_each(|r| constant[r.index()] = is_constant);
    }
    constant
}

fn last_read(program: &Program, order: &[NodeId]) -> Vec<usize> {
    let mut last_read = vec![0; program.graph.n_values()];
    for (i, &node) in order.iter().enumerate() {
        for &arg in &program.graph.node(node).args {
            last_read[arg.index()] = i;
        }
    }
    for (_, output) in &program.outputs {
        last_read[output.index()] = order.len();
    }
    last_read
}

fn crossing(program: &Program, order: &[NodeId], last_read: &[usize]) -> Vec<usize> {
    let constant = constants(program);
    let mut change = vec![0isize; order.len() + 2];
    for (i, &node) in order.iter().enumerate() {
        let node = program.graph.node(node);
        for &result in node.results.iter().filter(|r| !constant[r.index()]) {
            if last_read[result.index()] > i {
                change[i + 1] += 1;
                change[last_read[result.index()] + 1] -= 1;
            }
        }
    }
    change
        .iter()
        .scan(0isize, |n, c| {
            *n += c;
            Some(*n as usize)
        })
        .collect()
}
