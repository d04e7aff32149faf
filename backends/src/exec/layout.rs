//! What one rank holds of each value of the plan, and where in its arena.

use galvatron_ir::cluster::DeviceKind;
use galvatron_ir::mesh::{Mesh, Sharding};
use galvatron_ir::module::Module;
use galvatron_ir::plan::{ALIGNMENT, Arena, Chunk, Memory, Place, Region, Slots};
use galvatron_ir::types::TensorType;
use galvatron_ir::{AxisId, NodeId, ValueId};

use super::observe::Ends;
use crate::device::{BufferSpec, Span};
use crate::fault::RunFault;

/// One rank's view of a chunk: the persistent region lies first in its arena, then the slots, then the transient region; in the arena in
/// host memory the slots lie last.
#[derive(Clone)]
pub(super) struct Layout<'a> {
    pub(super) module: &'a Module,
    pub(super) chunk: &'a Chunk,
    pub(super) mesh: &'a Mesh,
    pub(super) rank: u64,
    /// Position of the rank along each axis of its stage's mesh, and the micro-batch.
    pub(super) coordinates: Vec<u64>,
    arena: Arena,
    /// The slot of the micro-batches that are looked at.
    slot: u32,
}

/// Bytes of an arena with all regions.
pub(super) fn arena_bytes(arena: &Arena) -> u64 {
    transient_start(arena) + arena.transient
}

/// Bytes of an arena in host memory with all regions.
pub(super) fn host_bytes(arena: &Arena) -> u64 {
    host_slots_start(arena) + arena.host_slots
}

/// Bytes of the largest f32 copies of a node of a rank that has no kernels for bf16, where the plan is for devices that have:
/// then it has no room for them.
pub(super) fn scratch_bytes(module: &Module) -> u64 {
    if module.mesh.device() == DeviceKind::Cpu {
        return 0;
    }
    let bytes = |chunk: &Chunk, id| {
        let (node, mesh) = (chunk.graph.node(id), module.mesh_of(chunk));
        let (args, results) = (chunk.local_types(&node.args, mesh), chunk.local_types(&node.results, mesh));
        node.op.widening_bytes(&args.iter().collect::<Vec<_>>(), &results.iter().collect::<Vec<_>>())
    };
    let nodes = module.chunks.iter().flat_map(|chunk| chunk.nodes().map(move |(_, id)| bytes(chunk, id)));
    nodes.max().unwrap_or(0)
}

fn slots_start(arena: &Arena) -> u64 {
    arena.persistent.next_multiple_of(ALIGNMENT)
}

fn transient_start(arena: &Arena) -> u64 {
    (slots_start(arena) + arena.slots).next_multiple_of(ALIGNMENT)
}

fn host_slots_start(arena: &Arena) -> u64 {
    arena.host.next_multiple_of(ALIGNMENT)
}

impl<'a> Layout<'a> {
    /// A rank's view of a chunk, if its stage hosts that.
    pub(super) fn hosted(module: &'a Module, chunk: usize, rank: usize) -> Option<Layout<'a>> {
        let (chunk, rank) = (&module.chunks[chunk], rank as u64);
        let stage = module.stage_of(chunk);
        let (mesh, arena) = (&stage.mesh, stage.arena);
        let place = rank.checked_sub(stage.first_rank).filter(|&place| place < mesh.world())?;
        Some(Layout { module, chunk, mesh, rank, coordinates: mesh.coordinates(place), arena, slot: 0 })
    }

    /// The same for the micro-batches of another slot.
    pub(super) fn in_slot(&self, slot: u32) -> Layout<'a> {
        Layout { slot, ..self.clone() }
    }

    /// The ranks that differ from this one only along `axes`, in row-major order over `axes`.
    pub(super) fn group(&self, axes: &[AxisId]) -> Vec<usize> {
        let first = self.module.stage_of(self.chunk).first_rank;
        self.mesh.group(axes, self.rank - first).into_iter().map(|rank| (first + rank) as usize).collect()
    }

    /// The rank at this rank's position of the stage that hosts another chunk.
    pub(super) fn peer(&self, chunk: u32) -> Option<usize> {
        let other = self.module.chunks.get(chunk as usize)?;
        let place = self.rank - self.module.stage_of(self.chunk).first_rank;
        Some((self.module.stage_of(other).first_rank + place) as usize)
    }

    /// The same for another micro-batch than the first.
    pub(super) fn in_micro_batch(&self, index: u64) -> Layout<'a> {
        let mut layout = self.clone();
        layout.coordinates[Mesh::MB.index()] = index;
        layout
    }

    /// How many slots the chunk has; one where what lies between forward and backward is transient.
    pub(super) fn n_slots(&self) -> usize {
        self.chunk.slots.count.max(1) as usize
    }

    /// The micro-batches of the slot, in order.
    pub(super) fn micro_batches(&self) -> impl Iterator<Item = u64> + use<> {
        (u64::from(self.slot)..self.mesh.micro_batches()).step_by(self.n_slots())
    }

    /// The placement of a value; none means a copy on every rank.
    pub(super) fn sharding(&self, value: ValueId) -> Sharding {
        let value = self.chunk.graph.value(value);
        value.sharding.clone().unwrap_or_else(|| Sharding::replicated(value.ty.rank()))
    }

    /// The rank's part of a value.
    ///
    /// # Errors
    /// When the plan gives the value no place, one outside of the arena, or a placement that does not fit.
    pub(super) fn buffer(&self, value: ValueId) -> Result<BufferSpec, RunFault> {
        let v = self.chunk.graph.value(value);
        let fault = |what: String| RunFault::Plan(format!("`%{}`: {what}", v.name));
        let sharding = self.sharding(value);
        sharding.check(&v.ty.shape, self.mesh).map_err(&fault)?;
        let ty = sharding.local_type(&v.ty, self.mesh);
        let place = v.place.ok_or_else(|| fault("it has no place in memory".into()))?;
        let offset = self.absolute(place, ty.bytes()).map_err(fault)?;
        let first = sharding.dims.iter().zip(&ty.shape).map(|(axes, extent)| self.index_along(axes) * extent).collect();
        Ok(BufferSpec { memory: place.region.memory(), offset, ty, global_shape: v.ty.shape.clone(), first })
    }

    /// The rank's parts of some values.
    pub(super) fn buffers(&self, values: &[ValueId]) -> Result<Vec<BufferSpec>, RunFault> {
        values.iter().map(|&v| self.buffer(v)).collect()
    }

    /// The scratch memory of a node.
    pub(super) fn workspace(
        &self,
        id: NodeId,
        args: &[BufferSpec],
        results: &[BufferSpec],
    ) -> Result<Option<Span>, RunFault> {
        let node = self.chunk.graph.node(id);
        let types = |buffers: &'_ [BufferSpec]| buffers.iter().map(|b| b.ty.clone()).collect::<Vec<TensorType>>();
        let (args, results) = (types(args), types(results));
        let bytes = node.op.workspace(&args.iter().collect::<Vec<_>>(), &results.iter().collect::<Vec<_>>(), self.mesh);
        if bytes == 0 {
            return Ok(None);
        }
        let fault = |what: String| RunFault::Plan(format!("`{}`: {what}", self.chunk.node_name(id)));
        let place = node.workspace.ok_or_else(|| fault(format!("it has no place for {bytes} bytes of workspace")))?;
        Ok(Some(Span { offset: self.absolute(place, bytes).map_err(fault)?, bytes }))
    }

    /// Offset from the start of its arena of a place that holds `bytes`.
    fn absolute(&self, place: Place, bytes: u64) -> Result<u64, String> {
        let (start, size) = match place.region {
            Region::Persistent => (0, self.arena.persistent),
            Region::Slot | Region::HostSlot => self.slot(place.region.memory()),
            Region::Host => (0, self.arena.host),
            Region::Transient => (transient_start(&self.arena), self.arena.transient),
        };
        if !place.offset.is_multiple_of(ALIGNMENT) {
            return Err(format!("offset {} is not a multiple of {ALIGNMENT}", place.offset));
        }
        if place.offset.checked_add(bytes).is_none_or(|end| end > size) {
            let name = place.region.name();
            return Err(format!("{bytes} bytes at {name}+{} do not fit into {size} bytes", place.offset));
        }
        Ok(start + place.offset)
    }

    /// Where the slot starts in the arena of a memory, and its bytes; the last one may be shorter than the others.
    fn slot(&self, memory: Memory) -> (u64, u64) {
        let Slots { bytes, offset, host_bytes, host_offset, .. } = self.chunk.slots;
        let (bytes, offset, start, all) = match memory {
            Memory::Device => (bytes, offset, slots_start(&self.arena), self.arena.slots),
            Memory::Host => (host_bytes, host_offset, host_slots_start(&self.arena), self.arena.host_slots),
        };
        let first = offset.saturating_add(bytes.saturating_mul(u64::from(self.slot)));
        (start.saturating_add(first), bytes.min(all.saturating_sub(first)))
    }

    /// Where the parts of values, and the workspace, end in their regions.
    pub(super) fn ends(&self, spans: impl Iterator<Item = (Memory, Span)>) -> Ends {
        let (slots, transient) = (slots_start(&self.arena), transient_start(&self.arena));
        let host_slots = host_slots_start(&self.arena);
        let mut ends = Ends::default();
        for (memory, span) in spans {
            let end = span.offset + span.bytes;
            let (region, start) = match (memory, span.offset) {
                (Memory::Device, offset) if offset < slots => (&mut ends.persistent, 0),
                (Memory::Device, offset) if offset < transient => (&mut ends.slots, slots),
                (Memory::Device, _) => (&mut ends.transient, transient),
                (Memory::Host, offset) if offset < host_slots => (&mut ends.host, 0),
                (Memory::Host, _) => (&mut ends.host_slots, host_slots),
            };
            *region = (*region).max(end - start);
        }
        ends
    }

    /// Index of the rank's part along an ordered list of axes.
    pub(super) fn index_along(&self, axes: &[AxisId]) -> u64 {
        self.mesh.index_along(axes, &self.coordinates)
    }

    /// Whether the rank is the first of those that hold the same part.
    pub(super) fn is_first_replica(&self, sharding: &Sharding) -> bool {
        self.mesh.spatial().all(|axis| self.coordinates[axis.index()] == 0 || sharding.is_sharded_over(axis))
    }
}
