//! The steps of a ring under construction: kernels, conversions, messages, and chunks that change places.

use galvatron_ir::op::Op;
use galvatron_ir::op::compute::{Cast, Full};
use galvatron_ir::types::Scalar;

use super::scratch::{Scratch, packed};
use super::{CHUNKS, Ring, SEQUENCE_OF_ROWS, Work, piece};
use crate::device::{AttentionBlock, BufferSpec, Corner, Device, Move, NodeSpec};
use crate::exec::exchange::{Hop, Step};

pub(super) struct Steps<'a> {
    device: &'a dyn Device,
    ring: &'a Ring,
    steps: Vec<Step>,
}

impl<'a> Steps<'a> {
    pub(super) fn new(device: &'a dyn Device, ring: &'a Ring) -> Steps<'a> {
        Steps { device, ring, steps: Vec::new() }
    }

    pub(super) fn finish(self) -> Vec<Step> {
        self.steps
    }

    /// Writes one value everywhere.
    pub(super) fn fill(&mut self, at: &BufferSpec, value: f64) -> Result<(), String> {
        self.node(&Full { ty: at.ty.clone(), value: Scalar::new(value) }.into(), &[], at)
    }

    /// Converts between bf16 and f32; nothing where both are one buffer.
    pub(super) fn convert(&mut self, from: &BufferSpec, to: &BufferSpec) -> Result<(), String> {
        if from.span() == to.span() {
            return Ok(());
        }
        self.node(&Cast { to: to.ty.dtype }.into(), std::slice::from_ref(from), to)
    }

    fn node(&mut self, op: &Op, args: &[BufferSpec], result: &BufferSpec) -> Result<(), String> {
        let spec = NodeSpec { op, args, results: std::slice::from_ref(result), workspace: None };
        self.steps.push(Step::Run(self.device.prepare(&spec)?));
        Ok(())
    }

    /// The keys and values in hand as kernels take them: themselves, or their f32 copies if these are wanted.
    pub(super) fn load(
        &mut self,
        hand: &[BufferSpec; 2],
        copies: &[BufferSpec; 2],
        is_wide: bool,
    ) -> Result<[BufferSpec; 2], String> {
        if !is_wide {
            return Ok(hand.clone());
        }
        for (from, to) in hand.iter().zip(copies) {
            self.convert(from, to)?;
        }
        Ok(copies.clone())
    }

    /// Copies what a mask says of the queries at a place and of a chunk of keys; none without a mask.
    pub(super) fn columns(
        &mut self,
        mask: Option<&BufferSpec>,
        scratch: &Scratch,
        (queries, keys): (usize, usize),
    ) -> Result<Option<BufferSpec>, String> {
        let (Some(mask), Some(to)) = (mask, &scratch.mask) else { return Ok(None) };
        let rows = self.ring.piece(mask, SEQUENCE_OF_ROWS, queries);
        let first = vec![0, 0, 0, keys as u64 * to.ty.shape[3]];
        self.copy(&rows, first, to, vec![0; 4], &to.ty.shape)?;
        let wide = if scratch.wide.is_empty() { to } else { &scratch.wide[scratch.wide.len() - 1] };
        self.convert(to, wide)?;
        Ok(Some(wide.clone()))
    }

    /// Copies a block of one tensor into another one.
    fn copy(
        &mut self,
        from: &BufferSpec,
        from_first: Vec<u64>,
        to: &BufferSpec,
        to_first: Vec<u64>,
        extents: &[u64],
    ) -> Result<(), String> {
        let corner = |b: &BufferSpec, first| Corner { offset: b.offset, shape: b.ty.shape.clone(), first };
        let (from_corner, to_corner) = (corner(from, from_first), corner(to, to_first));
        let (dtype, extents) = (from.ty.dtype, extents.to_vec());
        let spec = Move::Block { dtype, extents, from: from_corner, to: to_corner };
        self.steps.push(Step::Run(self.device.prepare_move(&spec)?));
        Ok(())
    }

    /// Sends keys and values, or their gradients, to the next rank.
    pub(super) fn send(&mut self, tag: u64, pair: &[BufferSpec; 2]) {
        pair.iter().for_each(|b| self.send_to(self.ring.next(), tag, b));
    }

    /// Receives keys and values, or their gradients, from the rank before.
    pub(super) fn receive(&mut self, tag: u64, pair: &[BufferSpec; 2]) {
        pair.iter().for_each(|b| self.receive_from(self.ring.before(), tag, b));
    }

    fn send_to(&mut self, peer: usize, tag: u64, buffer: &BufferSpec) {
        self.steps.push(Step::Send(Hop { peer, tag, at: buffer.span(), counted: None }));
    }

    fn receive_from(&mut self, peer: usize, tag: u64, buffer: &BufferSpec) {
        self.steps.push(Step::Recv(Hop { peer, tag, at: buffer.span(), counted: None }));
    }

    pub(super) fn block(&mut self, block: &AttentionBlock<'_>) -> Result<(), String> {
        self.steps.push(Step::Run(self.device.prepare_block(block)?));
        Ok(())
    }

    /// Brings the operands of a zigzag to the ranks that compute them; nothing for other rings. `dims` are those of the sequence.
    pub(super) fn move_in(&mut self, args: &[BufferSpec], dims: &[usize], work: &Work) -> Result<(), String> {
        if self.ring.zigzag {
            for ((arg, &dim), moved) in args.iter().zip(dims).zip(&work.args) {
                self.chunks_in(arg, dim, moved, work)?;
            }
        }
        Ok(())
    }

    /// Brings the results of a zigzag home; nothing for other rings.
    pub(super) fn move_out(&mut self, results: &[BufferSpec], dims: &[usize], work: &Work) -> Result<(), String> {
        if self.ring.zigzag {
            for ((result, &dim), moved) in results.iter().zip(dims).zip(&work.results) {
                self.chunks_out(result, dim, moved, work)?;
            }
        }
        Ok(())
    }

    /// The rank at position i holds chunks 2 i and 2 i + 1: it gives them to whom they belong, and takes its own.
    fn chunks_in(&mut self, held: &BufferSpec, dim: usize, moved: &BufferSpec, work: &Work) -> Result<(), String> {
        let (ring, own) = (self.ring, self.ring.own);
        for half in 0..2 {
            let (position, place) = ring.seat_of(2 * own + half);
            let target = if position == own { piece(moved, dim, place, 2) } else { staging(work, moved, dim) };
            let origin = vec![0; target.ty.rank()];
            self.copy(held, first_of(&target, dim, half), &target, origin, &target.ty.shape)?;
            if position != own {
                self.send_to(ring.ranks[position], CHUNKS, &target);
            }
        }
        for (place, chunk) in ring.chunks(own).into_iter().enumerate() {
            if chunk / 2 != own {
                self.receive_from(ring.ranks[chunk / 2], CHUNKS, &piece(moved, dim, place, 2));
            }
        }
        Ok(())
    }

    /// The way back.
    fn chunks_out(&mut self, held: &BufferSpec, dim: usize, moved: &BufferSpec, work: &Work) -> Result<(), String> {
        let (ring, own) = (self.ring, self.ring.own);
        for (place, chunk) in ring.chunks(own).into_iter().enumerate() {
            if chunk / 2 != own {
                self.send_to(ring.ranks[chunk / 2], CHUNKS, &piece(moved, dim, place, 2));
            }
        }
        for half in 0..2 {
            let (position, place) = ring.seat_of(2 * own + half);
            let source = if position == own { piece(moved, dim, place, 2) } else { staging(work, moved, dim) };
            if position != own {
                self.receive_from(ring.ranks[position], CHUNKS, &source);
            }
            let origin = vec![0; source.ty.rank()];
            self.copy(&source, origin, held, first_of(&source, dim, half), &source.ty.shape)?;
        }
        Ok(())
    }
}

/// Index of the first element of a half of a tensor along a dimension.
fn first_of(chunk: &BufferSpec, dim: usize, half: usize) -> Vec<u64> {
    let mut first = vec![0; chunk.ty.rank()];
    first[dim] = half as u64 * chunk.ty.shape[dim];
    first
}

/// Room for one chunk of a tensor, behind all that is moved.
fn staging(work: &Work, moved: &BufferSpec, dim: usize) -> BufferSpec {
    let room = work.scratch.moved.last().expect("invariant: a zigzag has room for a chunk");
    packed(&piece(moved, dim, 0, 2).ty, room.offset)
}
