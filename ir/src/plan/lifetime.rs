//! Lifetimes of the buffers of a chunk, and which buffers may be written over one that dies.
//!
//! Positions are indices into [`Chunk::nodes`]. A buffer is a value together with all views of it. The buffer assignment
//! and the verifier use these same intervals.

use super::{Chunk, PhaseKind, Region, ResidentRole, with_last_micro_batch};
use crate::id::{NodeId, ValueId};
use crate::mesh::Mesh;
use crate::op::{Alias, Op};
use std::ops::Range;

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A resident and the views of it.
    Resident(ValueId, ResidentRole),
    /// A computed value and the views of it.
    Value(ValueId),
    /// The scratch memory of a node.
    Workspace(NodeId),
}

/// A buffer and the closed interval of positions at which it holds something that is still needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// What it is for.
    pub owner: Owner,
    /// The value and the views of it, in order of definition; empty for a workspace.
    pub values: Vec<ValueId>,
    /// Bytes on one rank.
    pub bytes: u64,
    /// First position; the defining node's, or 0 for a resident.
    pub first: usize,
    /// Last position; of a resident the last one of all, of a prologue value that micro-batches read the last one of the
    /// last micro-batch.
    pub last: usize,
    /// Position of the last node that reads a member, a write of the resident by `update` not counted.
    pub last_read: usize,
    /// Where it must lie, unless it is written over a buffer that lies elsewhere.
    pub region: Region,
}

impl Lifetime {
    /// Whether the two are needed at one position.
    pub fn meets(&self, other: &Lifetime) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// A buffer that may have the place of another although both are live at the node that computes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reuse {
    /// Index of the buffer that is written.
    pub writer: usize,
    /// Index of the buffer that is written over.
    pub over: usize,
}

/// The buffers of a chunk: residents in order, then each node's results and workspace in order of execution.
///
/// Placements must divide their shapes and operands must be defined before they are read; views of views share one buffer.
pub fn lifetimes(chunk: &Chunk, mesh: &Mesh) -> Vec<Lifetime> {
    let mut table = Table::new(chunk, mesh);
    for resident in &chunk.residents {
        table.open(Owner::Resident(resident.value, resident.role), resident.value, 0);
    }
    for (position, (_, node)) in chunk.nodes().enumerate() {
        table.read(position, node);
        table.define(position, node);
    }
    table.close()
}

/// For each value of the chunk's graph the index of its buffer.
pub fn buffer_of_values(chunk: &Chunk, lifetimes: &[Lifetime]) -> Vec<Option<usize>> {
    let mut buffer_of = vec![None; chunk.graph.n_values()];
    for (index, lifetime) in lifetimes.iter().enumerate() {
        for value in &lifetime.values {
            buffer_of[value.index()] = Some(index);
        }
    }
    buffer_of
}

/// The buffers that may be written over another, at most one choice each, in order of execution.
///
/// A result may take the place of an operand that its op lists for it if that has the same bytes, is no other
/// operand of the node too, and dies here: no later node reads it. An accumulator dies with its last reader, of the last micro-batch; a parameter or a
/// state dies here if the result becomes its new value. What an `update` reads is never written over, nor is what lies in a region
/// that the result would outlive. A copy to host memory that becomes the new value of a resident there takes its place once nothing reads
/// that any more.
pub fn reuses(chunk: &Chunk, lifetimes: &[Lifetime]) -> Vec<Reuse> {
    let buffer_of = buffer_of_values(chunk, lifetimes);
    let updates = updates_of(chunk, &buffer_of, lifetimes.len());
    let micro_batches = micro_batch_positions(chunk);
    let late = with_last_micro_batch(chunk);
    let mut found = Vec::new();
    for (position, (_, id)) in chunk.nodes().enumerate() {
        let node = chunk.graph.node(id);
        let alias = node.op.alias();
        let again = micro_batches.contains(&position) && !late.contains(&id);
        for (i, &result) in node.results.iter().enumerate() {
            let Some(writer) = buffer_of[result.index()] else { continue };
            let is_free = |&operand: &usize| {
                let over = node.args.get(operand).and_then(|a| buffer_of[a.index()])?;
                let mut others = node.args.iter().enumerate().filter(|(i, _)| *i != operand);
                let is_other = others.any(|(_, a)| buffer_of[a.index()] == Some(over));
                let becomes_content = updates[writer].contains(&over);
                let again = Again { is_run: again, micro_batches: &micro_batches };
                let dies = dies_at(&lifetimes[over], position, &again, &updates[over], becomes_content);
                let lasts = lifetimes[over].region <= lifetimes[writer].region;
                (dies && lasts && !is_other && lifetimes[over].bytes == lifetimes[writer].bytes).then_some(over)
            };
            let replaced = || {
                let is_new_value = matches!(node.op, Op::ToHost(_));
                updates[writer].iter().copied().find(|&over| is_new_value && lifetimes[over].last_read < position)
            };
            if let Some(over) = alias.reusable(i, node.results.len()).iter().find_map(is_free).or_else(replaced) {
                found.push(Reuse { writer, over });
            }
        }
    }
    found
}

/// What of a step runs more than once.
struct Again<'a> {
    /// Whether the node in question does: once for each micro-batch.
    is_run: bool,
    /// The positions of the micro-batches.
    micro_batches: &'a Range<usize>,
}

/// Whether nothing needs a buffer after a position, at which a value is written that may become its new content.
fn dies_at(buffer: &Lifetime, position: usize, again: &Again<'_>, updates: &[usize], becomes_content: bool) -> bool {
    match buffer.owner {
        Owner::Resident(_, role) => {
            let overwritten = role == ResidentRole::Accumulator || becomes_content;
            overwritten && buffer.last_read == position && !again.is_run
        }
        // The next micro-batch reads again what was written before the first one.
        _ => {
            let is_read_again = again.is_run && buffer.first < again.micro_batches.start;
            buffer.last == position && !is_read_again && updates.is_empty()
        }
    }
}

/// The positions that run once a micro-batch.
fn micro_batch_positions(chunk: &Chunk) -> Range<usize> {
    let start = chunk.phase(PhaseKind::Prologue).len();
    let passes = chunk.phases.iter().filter(|phase| phase.kind.is_per_micro_batch());
    start..start + passes.map(|phase| phase.body.len()).sum::<usize>()
}

/// For each buffer the resident buffers that it becomes the new content of.
fn updates_of(chunk: &Chunk, buffer_of: &[Option<usize>], n_buffers: usize) -> Vec<Vec<usize>> {
    let mut updates = vec![Vec::new(); n_buffers];
    for (_, node) in chunk.nodes() {
        let node = chunk.graph.node(node);
        if let (Op::Update(_), [resident, new]) = (&node.op, node.args.as_slice())
            && let (Some(resident), Some(new)) = (buffer_of[resident.index()], buffer_of[new.index()])
        {
            updates[new].push(resident);
        }
    }
    updates
}

/// The buffers so far.
struct Table<'a> {
    chunk: &'a Chunk,
    mesh: &'a Mesh,
    lifetimes: Vec<Lifetime>,
    buffer_of: Vec<Option<usize>>,
    in_host: Vec<bool>,
    micro_batches: Range<usize>,
    n_positions: usize,
}

impl<'a> Table<'a> {
    fn new(chunk: &'a Chunk, mesh: &'a Mesh) -> Self {
        let n_positions = chunk.phases.iter().map(|p| p.body.len()).sum();
        let buffer_of = vec![None; chunk.graph.n_values()];
        let (in_host, micro_batches) = (chunk.in_host(), micro_batch_positions(chunk));
        Table { chunk, mesh, lifetimes: Vec::new(), buffer_of, in_host, micro_batches, n_positions }
    }

    fn open(&mut self, owner: Owner, value: ValueId, position: usize) {
        let bytes = self.chunk.local_type(value, self.mesh).bytes();
        self.buffer_of[value.index()] = Some(self.lifetimes.len());
        self.push(owner, vec![value], bytes, position);
    }

    fn push(&mut self, owner: Owner, values: Vec<ValueId>, bytes: u64, at: usize) {
        let region = Region::Transient;
        self.lifetimes.push(Lifetime { owner, values, bytes, first: at, last: at, last_read: at, region });
    }

    fn read(&mut self, position: usize, node: NodeId) {
        let node = self.chunk.graph.node(node);
        let written = usize::from(matches!(node.op, Op::Update(_)));
        for &arg in node.args.iter().skip(written) {
            if let Some(buffer) = self.buffer_of[arg.index()] {
                self.lifetimes[buffer].last_read = position;
                self.lifetimes[buffer].last = self.needed_until(buffer, position);
            }
        }
    }

    /// What is written before the first micro-batch and read in each must outlive the last one.
    fn needed_until(&self, buffer: usize, position: usize) -> usize {
        let Range { start, end } = self.micro_batches;
        let crosses = self.lifetimes[buffer].first < start && position >= start;
        if crosses { position.max(end - 1) } else { position }
    }

    fn define(&mut self, position: usize, id: NodeId) {
        let node = self.chunk.graph.node(id);
        for (i, &result) in node.results.iter().enumerate() {
            match viewed(&node.op, i).and_then(|operand| self.buffer_of[node.args[operand].index()]) {
                Some(buffer) => {
                    self.buffer_of[result.index()] = Some(buffer);
                    self.lifetimes[buffer].values.push(result);
                }
                None => self.open(Owner::Value(result), result, position),
            }
        }
        let bytes = workspace_bytes(self.chunk, id, self.mesh);
        if bytes > 0 {
            self.push(Owner::Workspace(id), Vec::new(), bytes, position);
        }
    }

    fn close(mut self) -> Vec<Lifetime> {
        for i in 0..self.lifetimes.len() {
            if let Owner::Resident(..) = self.lifetimes[i].owner {
                self.lifetimes[i].last = self.n_positions.saturating_sub(1);
            }
            self.lifetimes[i].region = self.region(&self.lifetimes[i]);
        }
        self.lifetimes
    }

    fn region(&self, lifetime: &Lifetime) -> Region {
        let region = self.region_by_time(lifetime);
        match region {
            _ if !lifetime.values.first().is_some_and(|root| self.in_host[root.index()]) => region,
            Region::Slot => Region::HostSlot,
            _ => Region::Host,
        }
    }

    /// In a chunk with slots phases of other micro-batches and chunks run between its own: only what lives within one is transient.
    fn region_by_time(&self, lifetime: &Lifetime) -> Region {
        if let Owner::Resident(..) = lifetime.owner {
            return Region::Persistent;
        }
        match (phase_at(self.chunk, lifetime.first), phase_at(self.chunk, lifetime.last)) {
            _ if self.chunk.slots.count == 0 => Region::Transient,
            (first, last) if first == last => Region::Transient,
            (Some(first), Some(last)) if first.is_per_micro_batch() && last.is_per_micro_batch() => Region::Slot,
            _ => Region::Persistent,
        }
    }
}

/// The phase of the node at a position.
fn phase_at(chunk: &Chunk, position: usize) -> Option<PhaseKind> {
    let mut end = 0;
    let found = chunk.phases.iter().find(|phase| {
        end += phase.body.len();
        position < end
    });
    found.map(|phase| phase.kind)
}

/// The operand whose bytes a result is.
fn viewed(op: &Op, result: usize) -> Option<usize> {
    match op.alias() {
        Alias::View(operand) if result == 0 => Some(operand),
        _ => None,
    }
}

/// Bytes of scratch memory that a node needs on one rank.
pub fn workspace_bytes(chunk: &Chunk, node: NodeId, mesh: &Mesh) -> u64 {
    let node = chunk.graph.node(node);
    let (args, results) = (chunk.local_types(&node.args, mesh), chunk.local_types(&node.results, mesh));
    node.op.workspace(&args.iter().collect::<Vec<_>>(), &results.iter().collect::<Vec<_>>(), mesh)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::Sharding;
    use crate::op::compute::{Binary, Full, Reshape};
    use crate::op::mem::{Accumulate, Update};
    use crate::plan::Resident;
    use crate::types::{Scalar, TensorType};

    /// Builds chunks of replicated values.
    struct Builder(Chunk);

    impl Builder {
        fn resident(&mut self, role: ResidentRole, shape: &[u64]) -> ValueId {
            let value = self.0.graph.declare("r", TensorType::f32(shape));
            self.0.graph.value_mut(value).sharding = Some(Sharding::replicated(shape.len()));
            self.0.residents.push(Resident { value, role, memory: crate::plan::Memory::Device });
            value
        }

        fn add(&mut self, phase: PhaseKind, op: impl Into<Op>, args: &[ValueId]) -> ValueId {
            let node = self.0.graph.add(op.into(), args).unwrap();
            self.0.phase_mut(phase).push(node);
            let results = self.0.graph.node(node).results.clone();
            for &r in &results {
                let rank = self.0.graph.value(r).ty.rank();
                self.0.graph.value_mut(r).sharding = Some(Sharding::replicated(rank));
            }
            results.first().copied().unwrap_or(ValueId(0))
        }

        fn full(&mut self, phase: PhaseKind, shape: &[u64]) -> ValueId {
            self.add(phase, Full { ty: TensorType::f32(shape), value: Scalar::new(1.0) }, &[])
        }
    }

    fn intervals(chunk: &Chunk) -> Vec<(usize, usize, u64)> {
        lifetimes(chunk, &Mesh::new(1, vec![])).iter().map(|l| (l.first, l.last, l.bytes)).collect()
    }

    #[test]
    fn views_live_in_the_buffer_of_their_source() {
        let mut b = Builder(Chunk::new());
        let x = b.full(PhaseKind::Forward, &[4]);
        let y = b.add(PhaseKind::Forward, Reshape { shape: vec![2, 2] }, &[x]);
        b.full(PhaseKind::Forward, &[2]);
        b.add(PhaseKind::Backward, Binary::ADD, &[y, y]);
        assert_eq!(intervals(&b.0), [(0, 3, 16), (2, 2, 8), (3, 3, 16)]);
    }

    #[test]
    fn prologue_values_outlive_the_last_micro_batch_if_that_reads_them() {
        let mut b = Builder(Chunk::new());
        let x = b.full(PhaseKind::Prologue, &[]);
        let y = b.add(PhaseKind::Prologue, Binary::ADD, &[x, x]);
        b.add(PhaseKind::Forward, Binary::ADD, &[y, y]);
        b.full(PhaseKind::Backward, &[]);
        b.full(PhaseKind::Step, &[]);
        assert_eq!(intervals(&b.0), [(0, 1, 4), (1, 3, 4), (2, 2, 4), (3, 3, 4), (4, 4, 4)]);
    }

    #[test]
    fn a_dying_operand_is_reused_and_a_shared_or_living_one_is_not() {
        let mut b = Builder(Chunk::new());
        let x = b.full(PhaseKind::Forward, &[4]);
        let y = b.full(PhaseKind::Forward, &[4]);
        let twice = b.add(PhaseKind::Forward, Binary::ADD, &[x, x]);
        let sum = b.add(PhaseKind::Forward, Binary::ADD, &[twice, y]);
        b.add(PhaseKind::Forward, Binary::ADD, &[sum, y]);
        let lifetimes = lifetimes(&b.0, &Mesh::new(1, vec![]));
        assert_eq!(reuses(&b.0, &lifetimes), [Reuse { writer: 3, over: 2 }, Reuse { writer: 4, over: 3 }]);
    }

    #[test]
    fn a_prologue_value_is_not_reused_by_the_last_node_of_a_micro_batch() {
        let mut b = Builder(Chunk::new());
        let x = b.full(PhaseKind::Prologue, &[4]);
        let y = b.full(PhaseKind::Prologue, &[4]);
        b.add(PhaseKind::Backward, Binary::ADD, &[x, y]);
        let lifetimes = lifetimes(&b.0, &Mesh::new(2, vec![]));
        assert_eq!(reuses(&b.0, &lifetimes), []);
    }

    /// What reads an accumulator runs with the last micro-batch, so it may write over it there.
    #[test]
    fn an_accumulator_dies_in_the_last_micro_batch() {
        let mut b = Builder(Chunk::new());
        let acc = b.resident(ResidentRole::Accumulator, &[4]);
        let w = b.resident(ResidentRole::Parameter, &[4]);
        let x = b.full(PhaseKind::Backward, &[4]);
        b.add(PhaseKind::Backward, Accumulate, &[acc, x]);
        let sum = b.add(PhaseKind::Backward, Binary::MUL, &[acc, w]);
        b.full(PhaseKind::Backward, &[2]);
        b.add(PhaseKind::Step, Binary::SUB, &[sum, w]);
        let late: Vec<usize> = with_last_micro_batch(&b.0).iter().map(|n| n.index()).collect();
        assert_eq!(late, [2]);
        let lifetimes = lifetimes(&b.0, &Mesh::new(2, vec![]));
        assert_eq!(reuses(&b.0, &lifetimes), [Reuse { writer: 3, over: 0 }, Reuse { writer: 5, over: 3 }]);
    }

    #[test]
    fn residents_are_reused_by_their_update_and_accumulators_by_their_last_reader() {
        let mut b = Builder(Chunk::new());
        let w = b.resident(ResidentRole::Parameter, &[4]);
        let acc = b.resident(ResidentRole::Accumulator, &[4]);
        let x = b.full(PhaseKind::Forward, &[4]);
        b.add(PhaseKind::Forward, Accumulate, &[acc, x]);
        let g = b.add(PhaseKind::Reduce, Binary::MUL, &[acc, w]);
        let new = b.add(PhaseKind::Step, Binary::SUB, &[w, g]);
        b.add(PhaseKind::Step, Update, &[w, new]);
        let lifetimes = lifetimes(&b.0, &Mesh::new(1, vec![]));
        assert_eq!(lifetimes[0].last_read, 3);
        assert_eq!(reuses(&b.0, &lifetimes), [Reuse { writer: 3, over: 1 }, Reuse { writer: 4, over: 0 }]);
    }
}
