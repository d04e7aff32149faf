//! Runs of nodes that a device may prepare together: consecutive kernels of a phase, with nothing between them but nodes whose
//! result is where their operand is.
//!
//! A group of a run is one kernel, which its first node runs. Collectives end a run: what is computed before one runs beside
//! it and is not to wait for it. So do copies to host memory and back, loads and scalars of the host, what is another kernel in each micro-batch, what runs with the last
//! one only, a result that is reported, and a gradient that is dumped.

use std::collections::{BTreeMap, BTreeSet};

use galvatron_ir::graph::Node;
use galvatron_ir::op::comm::step_of_op;
use galvatron_ir::op::{Op, mem};
use galvatron_ir::plan::Chunk;
use galvatron_ir::plan::lifetime::{Lifetime, Owner, buffer_of_values, lifetimes};
use galvatron_ir::{NodeId, ValueId};

use super::instr::{Builder, Work, is_in_host, is_same_place};
use crate::device::{BufferSpec, Kernel, NodeSpec, READ_LATER, RunNode, Span};
use crate::fault::RunFault;

/// The nodes that are the first in a step to write their accumulator.
pub(super) fn first_writes(chunk: &Chunk) -> BTreeSet<NodeId> {
    let mut written = BTreeSet::new();
    let is_first = |&(_, id): &(_, NodeId)| {
        let node = chunk.graph.node(id);
        matches!(node.op, Op::Accumulate(_)) && written.insert(node.args[0])
    };
    chunk.nodes().filter(is_first).map(|(_, id)| id).collect()
}

/// A node of a run.
struct Member {
    id: NodeId,
    args: Vec<BufferSpec>,
    results: Vec<BufferSpec>,
    workspace: Option<Span>,
    last_readers: Vec<Option<usize>>,
}

impl Member {
    fn run_node<'a>(&'a self, position: usize, op: &'a Op) -> RunNode<'a> {
        let spec = NodeSpec { op, args: &self.args, results: &self.results, workspace: self.workspace };
        RunNode { spec, position, last_readers: &self.last_readers }
    }
}

/// What a node is for the runs of its phase.
enum Place {
    /// It ends a run and belongs to none.
    Outside,
    /// It has nothing to do.
    Between,
    /// A kernel of the device.
    Inside(Member),
}

/// Which nodes read which buffers.
struct Readers {
    lifetimes: Vec<Lifetime>,
    buffer_of: Vec<Option<usize>>,
    /// For each buffer the nodes that read it or a view of it.
    of: Vec<Vec<NodeId>>,
}

impl Readers {
    fn new(builder: &Builder<'_>) -> Readers {
        let chunk = builder.layout.chunk;
        let lifetimes = lifetimes(chunk, builder.layout.mesh);
        let buffer_of = buffer_of_values(chunk, &lifetimes);
        let mut of = vec![Vec::new(); lifetimes.len()];
        for (_, id) in chunk.nodes() {
            let buffers = chunk.graph.node(id).args.iter().filter_map(|a| buffer_of[a.index()]);
            buffers.for_each(|buffer| of[buffer].push(id));
        }
        Readers { lifetimes, buffer_of, of }
    }

    /// Whether a node only gives a value another shape; who reads its result reads the same buffer.
    fn is_view(&self, node: &Node) -> bool {
        let buffer = |value: ValueId| self.buffer_of[value.index()];
        matches!(node.op, Op::Reshape(_)) && buffer(node.args[0]) == buffer(node.results[0])
    }
}

impl Builder<'_> {
    /// Prepares the groups that the device makes of its runs, and notes what each of their nodes does. A group that cannot be
    /// prepared is left to its nodes, so that what is not supported is told of each.
    ///
    /// # Errors
    /// When a value or a workspace has no place.
    pub(super) fn prepare_groups(&mut self) -> Result<(), RunFault> {
        if !self.options.group {
            return Ok(());
        }
        let (chunk, readers) = (self.layout.chunk, Readers::new(self));
        for phase in &chunk.phases {
            if !self.prepares(phase.kind) {
                continue;
            }
            let mut run = Vec::new();
            for &id in &phase.body {
                if self.ends_before(id) {
                    self.close(std::mem::take(&mut run), &readers);
                }
                match self.place(id)? {
                    Place::Inside(member) => run.push(member),
                    Place::Between => {}
                    Place::Outside => self.close(std::mem::take(&mut run), &readers),
                }
                if self.ends_after(id) {
                    self.close(std::mem::take(&mut run), &readers);
                }
            }
            self.close(run, &readers);
        }
        Ok(())
    }

    /// Whether the host reads an operand just before a node.
    fn ends_before(&self, id: NodeId) -> bool {
        self.options.dump_gradients && self.optimizers.contains(&Some(id))
    }

    /// Whether the host reads a result just after a node.
    fn ends_after(&self, id: NodeId) -> bool {
        let results = &self.layout.chunk.graph.node(id).results;
        self.reported.iter().any(|value| results.contains(value))
    }

    fn place(&self, id: NodeId) -> Result<Place, RunFault> {
        let node = self.layout.chunk.graph.node(id);
        if self.with_last.contains(&id)
            || step_of_op(&node.op).is_some()
            || node.op.undistributed().is_some()
            || matches!(node.op, Op::Load(_) | Op::RunScalar(_) | Op::Send(_) | Op::Recv(_))
        {
            return Ok(Place::Outside);
        }
        let (args, results) = (self.layout.buffers(&node.args)?, self.layout.buffers(&node.results)?);
        let workspace = self.layout.workspace(id, &args, &results)?;
        let spec = NodeSpec { op: &node.op, args: &args, results: &results, workspace };
        if matches!(node.op, Op::Update(_) | Op::Reshape(_)) && is_same_place(&spec) {
            return Ok(Place::Between);
        }
        if is_in_host(&spec) {
            return Ok(Place::Outside);
        }
        Ok(Place::Inside(Member { id, args, results, workspace, last_readers: Vec::new() }))
    }

    /// Ends a run: its groups of more than one node are prepared.
    fn close(&mut self, mut run: Vec<Member>, readers: &Readers) {
        if run.len() < 2 {
            return;
        }
        let layout = self.layout;
        let op = |id: NodeId| &layout.chunk.graph.node(id).op;
        let position: BTreeMap<NodeId, usize> = run.iter().enumerate().map(|(i, member)| (member.id, i)).collect();
        for member in &mut run {
            let results = &self.layout.chunk.graph.node(member.id).results;
            member.last_readers = results.iter().map(|&value| self.last_reader(value, &position, readers)).collect();
        }
        let nodes: Vec<_> = run.iter().enumerate().map(|(i, member)| member.run_node(i, op(member.id))).collect();
        let groups = self.device.groups(&nodes);
        assert_eq!(groups.iter().sum::<usize>(), run.len(), "invariant: each node is in one group");
        let mut start = 0;
        for n in groups {
            let (members, group) = (&run[start..start + n], &nodes[start..start + n]);
            start += n;
            if n < 2 {
                continue;
            }
            if let Ok(work) = self.group(members, group) {
                self.grouped.extend(members[1..].iter().map(|member| (member.id, Work::Nothing)));
                self.grouped.insert(members[0].id, work);
            }
        }
    }

    /// The position in a run of the last node that reads a result.
    fn last_reader(&self, value: ValueId, run: &BTreeMap<NodeId, usize>, readers: &Readers) -> Option<usize> {
        let Some(buffer) = readers.buffer_of[value.index()] else { return READ_LATER };
        let Lifetime { owner, values, .. } = &readers.lifetimes[buffer];
        let is_resident = matches!(owner, Owner::Resident(..));
        if is_resident || self.reported.iter().any(|value| values.contains(value)) {
            return READ_LATER;
        }
        let graph = &self.layout.chunk.graph;
        let nodes = readers.of[buffer].iter().filter(|&&id| !readers.is_view(graph.node(id)));
        nodes.map(|id| run.get(id).copied().unwrap_or(usize::MAX)).max()
    }

    /// The kernels of a group: one for the first time in a step too, if that writes accumulators anew.
    fn group(&self, members: &[Member], group: &[RunNode<'_>]) -> Result<Work, String> {
        let kernel = self.device.prepare_group(group)?;
        let update = Op::from(mem::Update);
        let is_first = |member: &Member| self.first_writes.contains(&member.id);
        let graph = &self.layout.chunk.graph;
        let op = |member: &Member| if is_first(member) { &update } else { &graph.node(member.id).op };
        let both = members.iter().zip(group);
        let anew: Vec<_> = both.map(|(member, node)| member.run_node(node.position, op(member))).collect();
        let first: Option<Box<dyn Kernel>> = match members.iter().any(is_first) {
            true => Some(self.device.prepare_group(&anew)?),
            false => None,
        };
        Ok(Work::Group { first, kernel })
    }
}
