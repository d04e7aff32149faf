//! Slices: one for each execution of a node, with what it is in its arguments.

use super::us;
use galvatron_ir::module::Module;
use galvatron_ir::plan::{Chunk, PhaseKind};
use galvatron_ir::trace::{Stream, TraceEvent};
use galvatron_ir::{NodeId, ValueId};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// What is recomputed has this for its phase.
const RECOMPUTE: &str = "recompute";

/// Makes slices of a plan's events.
pub struct Slices<'m> {
    plan: &'m Module,
    /// The nodes of each chunk that compute again what its forward phase computed.
    recomputed: Vec<BTreeSet<NodeId>>,
}

impl<'m> Slices<'m> {
    /// Of the events of this plan.
    pub fn new(plan: &'m Module) -> Slices<'m> {
        Slices { plan, recomputed: plan.chunks.iter().map(|chunk| recomputed(plan, chunk)).collect() }
    }

    /// A slice for each event on its thread.
    pub fn all<'a>(&'a self, events: &'a [TraceEvent], threads: &'a [usize]) -> impl Iterator<Item = Value> + 'a {
        events.iter().zip(threads).map(|(event, &thread)| self.slice(event, thread))
    }

    fn slice(&self, event: &TraceEvent, thread: usize) -> Value {
        let (node, name) = (event.node_in(self.plan), event.name_in(self.plan));
        let op = node.op.mnemonic();
        let mut args = json!({
            "node": name, "op": op, "phase": self.phase(event), "micro_batch": event.micro_batch,
            "chunk": event.chunk, "layer": node.layer, "step": event.step,
        });
        if Stream::of(&node.op) == Stream::Communication {
            args["bytes"] = self.bytes(event).into();
        }
        let title = if node.results.is_empty() { name } else { format!("{op} {name}") };
        json!({
            "name": title, "cat": self.phase(event), "ph": "X", "pid": event.rank, "tid": thread,
            "ts": us(event.start_ns), "dur": us(event.duration_ns), "args": args,
        })
    }

    fn phase(&self, event: &TraceEvent) -> &'static str {
        match self.recomputed[event.chunk as usize].contains(&event.node) {
            true => RECOMPUTE,
            false => event.phase.name(),
        }
    }

    /// Bytes that a rank puts into a collective or a message, or receives.
    fn bytes(&self, event: &TraceEvent) -> u64 {
        let (chunk, node) = (event.chunk_in(self.plan), event.node_in(self.plan));
        let of = |values: &[ValueId]| {
            let types = chunk.local_types(values, self.plan.mesh_of(chunk));
            types.iter().map(|ty| ty.bytes()).sum::<u64>()
        };
        if node.args.is_empty() { of(&node.results) } else { of(&node.args) }
    }
}

/// The nodes outside of the forward phase that give another copy of a value that is computed there; parameters are not.
fn recomputed(plan: &Module, chunk: &Chunk) -> BTreeSet<NodeId> {
    let of = |node: NodeId| {
        let value = chunk.graph.node(node).results.first()?;
        chunk.graph.value(*value).of.filter(|&v| plan.program.graph.producer(v).is_some())
    };
    let forward: BTreeSet<ValueId> = chunk.phase(PhaseKind::Forward).iter().filter_map(|&node| of(node)).collect();
    let again = |(phase, node): (PhaseKind, NodeId)| {
        let is_backward = phase.is_per_micro_batch() && phase != PhaseKind::Forward;
        (is_backward && of(node).is_some_and(|v| forward.contains(&v))).then_some(node)
    };
    chunk.nodes().filter_map(again).collect()
}
