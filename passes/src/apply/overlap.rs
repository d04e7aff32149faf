//! `overlap`: communication stands where it can run beside computation.
//!
//! A device that communicates aside begins a collective once all that stands before it has been computed, and waits where something
//! needs its result. So the order of nodes decides what runs beside what:
//!
//! - gathers of parameters stand ahead of what reads them (as the prefetch of PyTorch FSDP, Zhao et al., 2023), as far as the room of
//!   one gathered parameter allows;
//! - a part of a gradient that was reduced is added to its sum before the next one is reduced, not at once;
//! - gradients are reduced in the backward phase of the last micro-batch, each once it is complete, as buckets of PyTorch DDP are (Li et
//!   al., 2020). With one micro-batch this also frees their memory early, so it is done on every device, unless another stage would wait
//!   for it.

use crate::strategy::Strategy;
use galvatron_ir::cluster::DeviceKind;
use galvatron_ir::mesh::Mesh;
use galvatron_ir::op::comm::step_of_op;
use galvatron_ir::op::{Effects, Op};
use galvatron_ir::plan::{Chunk, PhaseKind, ResidentRole};
use galvatron_ir::{Module, NodeId, ValueId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The phases of a micro-batch.
const PASSES: [PhaseKind; 3] = [PhaseKind::Forward, PhaseKind::Backward, PhaseKind::BackwardWeight];

/// Reorders the nodes of every chunk, whose backward phases have been split, where there is memory for what runs side by side.
pub fn overlap(module: &mut Module, strategy: &Strategy) {
    let Module { stages, chunks, .. } = module;
    for chunk in chunks {
        let mesh = &stages[chunk.stage as usize].mesh;
        let is_aside = communicates_aside(mesh) && !strategy.in_turn;
        if is_aside {
            for phase in PASSES {
                prefetch(chunk, phase, mesh, &begins_gather);
                prefetch(chunk, phase, mesh, &begins_fetch);
                defer_sums(chunk, phase);
            }
        }
        if is_aside || (mesh.micro_batches() == 1 && stages.len() == 1) {
            reduce_early(chunk);
        }
    }
}

/// Whether the devices of a mesh communicate while they compute: GPUs do, on a stream of their own; CPU ranks do both on the same cores.
pub(crate) fn communicates_aside(mesh: &Mesh) -> bool {
    mesh.device() == DeviceKind::Cuda
}

/// Whether a node exchanges something with other ranks.
pub(crate) fn communicates(chunk: &Chunk, node: NodeId) -> bool {
    step_of_op(&chunk.graph.node(node).op).is_some_and(|step| step.communicates())
}

/// Whether a node copies between the memories of device and host, which devices that communicate aside do beside computation too.
pub(crate) fn copies_host(chunk: &Chunk, node: NodeId) -> bool {
    chunk.graph.node(node).op.effects() == Effects::Copies
}

/// What begins a gather, or a copy from host memory: a node that may stand ahead of what reads its result.
type Begins<'b> = &'b dyn Fn(&Chunk, NodeId) -> bool;

/// Whether a node is the first one that gathers a parameter.
fn begins_gather(chunk: &Chunk, node: NodeId) -> bool {
    let is_parameter = |v: &ValueId| chunk.residents.iter().any(|r| r.value == *v && r.role == ResidentRole::Parameter);
    communicates(chunk, node) && chunk.graph.node(node).args.first().is_some_and(is_parameter)
}

/// Whether a node copies something to the device that an earlier phase has left in host memory.
fn begins_fetch(chunk: &Chunk, node: NodeId) -> bool {
    matches!(chunk.graph.node(node).op, Op::ToDevice(_))
}

/// The collectives that gather one parameter, or a copy from host memory.
struct Gather {
    nodes: Vec<NodeId>,
    /// Bytes of what is gathered, on one rank.
    bytes: u64,
    /// Position of its first reader among the other nodes.
    first_use: usize,
}

/// Moves gathers of one kind ahead. Before a node runs, the next ones are begun until those that nothing has read yet have the bytes of
/// a usual one, beside what the node itself reads.
fn prefetch(chunk: &mut Chunk, phase: PhaseKind, mesh: &Mesh, begins: Begins<'_>) {
    let (mut gathers, others) = take_gathers(chunk, phase, mesh, begins);
    let room = usual_bytes(&gathers);
    gathers.sort_by_key(|gather| gather.first_use);
    let mut next: VecDeque<Gather> = gathers.into();
    let (mut body, mut begun) = (Vec::new(), VecDeque::<(usize, u64)>::new());
    for (position, &node) in others.iter().enumerate() {
        begin(&mut next, &mut begun, &mut body, |gather, _| gather.first_use <= position);
        while begun.front().is_some_and(|&(first_use, _)| first_use <= position) {
            begun.pop_front();
        }
        begin(&mut next, &mut begun, &mut body, |_, begun_bytes| begun_bytes == 0 || begun_bytes < room);
        body.push(node);
    }
    body.extend(next.into_iter().flat_map(|gather| gather.nodes));
    *chunk.phase_mut(phase) = body;
}

/// Begins the next gathers while they may, given the bytes of those that nothing has read yet.
fn begin(
    next: &mut VecDeque<Gather>,
    begun: &mut VecDeque<(usize, u64)>,
    body: &mut Vec<NodeId>,
    may: impl Fn(&Gather, u64) -> bool,
) {
    while next.front().is_some_and(|gather| may(gather, begun.iter().map(|b| b.1).sum())) {
        let Some(gather) = next.pop_front() else { return };
        begun.push_back((gather.first_use, gather.bytes));
        body.extend(gather.nodes);
    }
}

/// The gathers of one kind of a phase, and its other nodes, both in order.
fn take_gathers(chunk: &Chunk, phase: PhaseKind, mesh: &Mesh, begins: Begins<'_>) -> (Vec<Gather>, Vec<NodeId>) {
    let mut gather_of: BTreeMap<ValueId, usize> = BTreeMap::new();
    let (mut gathers, mut others) = (Vec::<Gather>::new(), Vec::new());
    for &id in chunk.phase(phase) {
        let node = chunk.graph.node(id);
        let begun = node.args.first().and_then(|arg| gather_of.get(arg).copied());
        let is_step = step_of_op(&node.op).is_some() && node.args.len() == 1;
        let index = match begun {
            Some(index) if is_step => index,
            None if node.args.len() == 1 && begins(chunk, id) => {
                gathers.push(Gather { nodes: Vec::new(), bytes: 0, first_use: usize::MAX });
                gathers.len() - 1
            }
            _ => {
                for index in node.args.iter().filter_map(|arg| gather_of.get(arg)) {
                    gathers[*index].first_use = gathers[*index].first_use.min(others.len());
                }
                others.push(id);
                continue;
            }
        };
        gathers[index].nodes.push(id);
        gathers[index].bytes = chunk.local_type(node.results[0], mesh).bytes();
        gather_of.insert(node.results[0], index);
    }
    (gathers, others)
}

/// The size of gathers such that those up to it make half of all gathered bytes: not that of a few large ones, such as embeddings.
fn usual_bytes(gathers: &[Gather]) -> u64 {
    let mut sizes: Vec<u64> = gathers.iter().map(|gather| gather.bytes).collect();
    sizes.sort_unstable();
    let (total, mut sum) = (sizes.iter().sum::<u64>(), 0);
    let is_half = |bytes: &&u64| {
        sum += **bytes;
        2 * sum >= total
    };
    sizes.iter().find(is_half).copied().unwrap_or(0)
}

/// Moves each addition of something that was reduced behind what is computed until the next reduction.
fn defer_sums(chunk: &mut Chunk, phase: PhaseKind) {
    let body = std::mem::take(chunk.phase_mut(phase));
    let mut reduced: BTreeSet<ValueId> = BTreeSet::new();
    let sums: BTreeSet<ValueId> = body.iter().filter_map(|&id| added(chunk, id)).collect();
    let (mut order, mut waiting) = (Vec::new(), Vec::new());
    for id in body {
        if added(chunk, id).is_some_and(|value| reduced.contains(&value)) {
            waiting.push(id);
            continue;
        }
        if communicates(chunk, id) && chunk.graph.node(id).results.iter().any(|r| sums.contains(r)) {
            order.append(&mut waiting);
            reduced.extend(&chunk.graph.node(id).results);
        }
        order.push(id);
    }
    order.append(&mut waiting);
    *chunk.phase_mut(phase) = order;
}

/// What a node adds to an accumulator.
fn added(chunk: &Chunk, node: NodeId) -> Option<ValueId> {
    let node = chunk.graph.node(node);
    matches!(node.op, Op::Accumulate(_)).then(|| node.args[1])
}

/// Moves each collective of the reduce phase behind the last node of a backward phase that it needs, if it needs no other phase.
fn reduce_early(chunk: &mut Chunk) {
    let mut ready = complete_at(chunk);
    let mut behind: BTreeMap<(PhaseKind, usize), Vec<NodeId>> = BTreeMap::new();
    let mut left = Vec::new();
    for id in std::mem::take(chunk.phase_mut(PhaseKind::Reduce)) {
        let node = chunk.graph.node(id);
        let at = node.args.iter().map(|arg| ready.get(arg).copied()).collect::<Option<Vec<_>>>();
        let at = at.and_then(|at| at.into_iter().max()).filter(|_| step_of_op(&node.op).is_some());
        match at.filter(|(phase, _)| *phase > PhaseKind::Forward) {
            Some(at) => {
                behind.entry(at).or_default().push(id);
                ready.extend(node.results.iter().map(|&result| (result, at)));
            }
            None => left.push(id),
        }
    }
    *chunk.phase_mut(PhaseKind::Reduce) = left;
    for phase in PASSES {
        let body = std::mem::take(chunk.phase_mut(phase));
        let with = |(i, id)| std::iter::once(id).chain(behind.remove(&(phase, i)).unwrap_or_default());
        *chunk.phase_mut(phase) = body.into_iter().enumerate().flat_map(with).collect();
    }
}

/// For what the phases of micro-batches compute, and for the sums over them, the node after which it is complete.
fn complete_at(chunk: &Chunk) -> BTreeMap<ValueId, (PhaseKind, usize)> {
    let mut ready = BTreeMap::new();
    for phase in PASSES {
        for (i, &id) in chunk.phase(phase).iter().enumerate() {
            let node = chunk.graph.node(id);
            let sum = matches!(node.op, Op::Accumulate(_)).then(|| node.args[0]);
            ready.extend(node.results.iter().copied().chain(sum).map(|value| (value, (phase, i))));
        }
    }
    ready
}
