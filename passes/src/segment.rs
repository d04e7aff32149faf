//! Finds the repeated layers of a forward program, whatever their names.
//!
//! Nodes are put into a canonical order (see [`order`]), in which equal layers are equal runs of signatures. The longest
//! periodic run becomes a chain of layers; what is left and right of it is searched again. A layer starts where the fewest
//! values cross, which for residual models is the residual stream.

mod order;

use galvatron_ir::NodeId;
use galvatron_ir::module::Program;
use galvatron_ir::op::{Effects, Op};
use std::collections::BTreeMap;

/// A run of forward nodes; segments of one class are isomorphic and can be decided once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Segments with the same class are equal up to names.
    pub class: usize,
    /// Whether the class repeats: a layer, not an embedding or a head.
    pub is_layer: bool,
    /// The nodes, in order; node i of two segments of a class correspond.
    pub nodes: Vec<NodeId>,
}

/// Fewest nodes that make a layer.
const MIN_LAYER_NODES: usize = 6;

/// Splits the forward program into segments, puts `program.body` into their order and tags nodes with the number of their segment.
pub fn segment(program: &mut Program) -> Vec<Segment> {
    let (order, pieces) = best_order(program);
    let mut segments = Vec::new();
    for (i, piece) in pieces.iter().enumerate() {
        for layer in (piece.start..piece.end()).step_by(piece.period) {
            let nodes = order[layer..layer + piece.period].to_vec();
            segments.push(Segment { class: i, is_layer: piece.count > 1, nodes });
        }
    }
    program.body = order;
    tag_layers(program, &segments);
    segments
}

fn tag_layers(program: &mut Program, segments: &[Segment]) {
    for (i, segment) in segments.iter().enumerate() {
        for &node in &segment.nodes {
            program.graph.node_mut(node).layer = Some(i as u32);
        }
    }
}

/// `count` consecutive runs of `period` nodes from position `start`.
#[derive(Clone, Debug)]
struct Piece {
    start: usize,
    period: usize,
    count: usize,
}

impl Piece {
    fn end(&self) -> usize {
        self.start + self.period * self.count
    }
}

/// Of the orders that the program may be put into the one whose layers have most nodes, with its pieces; the first if several have.
fn best_order(program: &Program) -> (Vec<NodeId>, Vec<Piece>) {
    let mut best: Option<(usize, Vec<NodeId>, Vec<Piece>)> = None;
    for order in order::candidates(program) {
        let (signatures, crossing) = (signatures(program, &order), crossing(program, &order));
        let runs = Runs { program, order: &order, signatures, crossing };
        let mut pieces = Vec::new();
        split(&runs, 0..order.len(), &mut pieces);
        let covered = pieces.iter().filter(|p| p.count > 1).map(|p| p.period * p.count).sum();
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
            let mut key = format!("{:?}", node.op);
            for &arg in &node.args {
                let made = program.graph.producer(arg).is_some_and(|p| position.contains_key(&p));
                key += &format!("|{}{}", program.graph.value(arg).ty, if made { "n" } else { "w" });
            }
            let next = known.len();
            *known.entry(key).or_insert(next)
        })
        .collect()
}

/// Finds the longest periodic run in a range; recurses on what is left of it.
fn split(runs: &Runs<'_>, range: std::ops::Range<usize>, pieces: &mut Vec<Piece>) {
    if range.is_empty() {
        return;
    }
    match best_run(runs, range.clone()) {
        None => pieces.push(Piece { start: range.start, period: range.len(), count: 1 }),
        Some(run) => {
            split(runs, range.start..run.start, pieces);
            let end = run.end();
            pieces.push(run);
            split(runs, end..range.end, pieces);
        }
    }
}

fn best_run(runs: &Runs<'_>, range: std::ops::Range<usize>) -> Option<Piece> {
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
    Piece { start, period, count }
}

/// What the search for periodic runs reads.
struct Runs<'a> {
    program: &'a Program,
    order: &'a [NodeId],
    signatures: Vec<usize>,
    /// For each position the number of values that are computed before it and read from it on; constants left out.
    crossing: Vec<usize>,
}

impl Runs<'_> {
    fn is_layer(&self, piece: &Piece) -> bool {
        let contracts = |n: &NodeId| matches!(self.program.graph.node(*n).op, Op::Einsum(_));
        piece.count >= 2 && self.order[piece.start..piece.start + piece.period].iter().any(contracts)
    }
}

/// For each value whether it is computed from constants alone.
pub fn constants(program: &Program) -> Vec<bool> {
    let mut constant = vec![false; program.graph.n_values()];
    for &id in &program.body {
        let node = program.graph.node(id);
        let is_pure = node.op.effects() == Effects::Pure && node.args.iter().all(|a| constant[a.index()]);
        node.results.iter().for_each(|r| constant[r.index()] = is_pure);
    }
    constant
}

fn crossing(program: &Program, order: &[NodeId]) -> Vec<usize> {
    let mut last_read = vec![0; program.graph.n_values()];
    for (i, &node) in order.iter().enumerate() {
        for &arg in &program.graph.node(node).args {
            last_read[arg.index()] = i;
        }
    }
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
