//! Where the time of a step goes: the trace of rank 0 by kind of op.

use galvatron_ir::graph::Node;
use galvatron_ir::op::Op;
use galvatron_ir::plan::PhaseKind;
use galvatron_ir::trace::TraceEvent;
use galvatron_ir::{Module, NodeId, ValueId};
use std::collections::BTreeMap;

/// Rows of the table.
const SHOWN: usize = 24;

/// Operations of the matrix products of one step, over all ranks; recomputation counts.
pub fn model_flops(plan: &Module) -> u64 {
    let chunk = &plan.chunks[0];
    let runs = |phase: PhaseKind| plan.stages[0].schedule.iter().filter(|s| s.phase == phase).count() as u64;
    let flops = chunk.nodes().map(|(phase, node)| runs(phase) * matmul_flops(plan, chunk.graph.node(node)));
    plan.mesh.world() * flops.sum::<u64>()
}

fn matmul_flops(plan: &Module, node: &Node) -> u64 {
    let types = |values: &[ValueId]| plan.chunks[0].local_types(values, &plan.mesh);
    let (args, results) = (types(&node.args), types(&node.results));
    node.op.work(&args.iter().collect::<Vec<_>>(), &results.iter().collect::<Vec<_>>()).matmul_flops
}

/// What nodes of one kind took together.
#[derive(Default)]
struct Row {
    ns: u64,
    flops: u64,
    n: u64,
}

/// One line a kind of op, the longest first. Of each node it takes the fastest of the steps after `warmup`.
pub fn table(plan: &Module, trace: &[TraceEvent], warmup: u64) -> String {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    for (event, ns) in fastest(trace.iter().filter(|e| e.rank == 0 && e.step > warmup)) {
        let node = event.node_in(plan);
        let row = rows.entry(kind(event, node)).or_default();
        row.ns += ns;
        row.n += 1;
        row.flops += matmul_flops(plan, node);
    }
    let mut rows: Vec<(String, Row)> = rows.into_iter().collect();
    rows.sort_by_key(|(_, row)| std::cmp::Reverse(row.ns));
    let all: u64 = rows.iter().map(|(_, row)| row.ns).sum();
    let mut out = format!("  the nodes at their fastest: {:.1} ms\n", all as f64 / 1e6);
    rows.iter().take(SHOWN).for_each(|(kind, row)| out += &line(kind, row, all));
    out
}

fn line(kind: &str, row: &Row, all: u64) -> String {
    let (ms, share) = (row.ns as f64 / 1e6, 100.0 * row.ns as f64 / all.max(1) as f64);
    let speed =
        if row.flops > 0 { format!(" {:7.1} GFLOP/s", row.flops as f64 / row.ns as f64) } else { String::new() };
    format!("  {kind:<34} {:>4} x {ms:8.2} ms {share:5.1} %{speed}\n", row.n)
}

/// For each execution within a step its fastest over the steps, in nanoseconds.
fn fastest<'a>(trace: impl Iterator<Item = &'a TraceEvent>) -> Vec<(&'a TraceEvent, u64)> {
    let mut fastest: BTreeMap<(u32, NodeId, Option<u32>), (&TraceEvent, u64)> = BTreeMap::new();
    for event in trace {
        let entry = fastest.entry((event.chunk, event.node, event.micro_batch)).or_insert((event, event.duration_ns));
        entry.1 = entry.1.min(event.duration_ns);
    }
    fastest.into_values().collect()
}

/// The mnemonic, and for a contraction its labels.
fn kind(event: &TraceEvent, node: &Node) -> String {
    match &node.op {
        Op::Einsum(einsum) => format!("einsum {} {}", einsum.spec(), event.phase.name()),
        op => format!("{} {}", op.mnemonic(), event.phase.name()),
    }
}
