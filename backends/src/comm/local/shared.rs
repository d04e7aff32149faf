//! The data movement of collectives: each member reads its peers' buffers in place. All `unsafe` of the folder is here.
//!
//! Why it is sound: members commit a call only when kind, byte count, operation and root agree (see `rendezvous`), so a
//! peer's window is known to be a live buffer of the stated length and element type. It stays borrowed by the peer's call
//! until the peer's last sync, which needs ours. Between two syncs no byte is written by one member and touched by
//! another; each function below says which ranges are whose.

use std::ops::Range;
use std::slice;

use super::rendezvous::Rendezvous;
use super::world::World;
use crate::comm::call::Shape;
use crate::comm::reduce::{BLOCK, chunk, fold};
use crate::comm::{CommFault, CommKind, ReduceOp, Site};

/// One member's access to its group, for one call.
pub(super) struct Port<'a> {
    pub(super) world: &'a World,
    pub(super) meeting: &'a Rendezvous,
    /// This member's place in the group.
    pub(super) index: usize,
    pub(super) site: Site<'a>,
}

impl<'a> Port<'a> {
    /// See [`Collective::all_reduce`](crate::comm::Collective::all_reduce).
    pub(super) fn all_reduce(self, buf: &mut [f32], op: ReduceOp) -> Result<(), CommFault> {
        let (len, n, me) = (buf.len(), self.meeting.n_members(), self.index);
        let shape = Shape { op: Some(op), ..shape(CommKind::AllReduce, size_of_val(buf)) };
        if len <= BLOCK {
            return self.all_reduce_small(buf, op, shape);
        }
        let mut exchange = self.join(buf.as_mut_ptr().cast(), shape, 2)?;
        for block in blocks(chunk(len, n, me)) {
            let mut acc = [0.0; BLOCK];
            let acc = &mut acc[..block.len()];
            // SAFETY: chunk `me` of every buffer is read by this member only, and written in its own buffer only.
            unsafe {
                exchange.reduce(block.clone(), op, acc);
                exchange.own_mut(block).copy_from_slice(acc);
            }
        }
        exchange.sync();
        for peer in exchange.members_from_me().skip(1) {
            let range = chunk(len, n, peer);
            // SAFETY: chunk `peer` is final in buffer `peer` and only read there; in this buffer only we touch it.
            unsafe { exchange.copy_to_own::<f32>(peer, range) };
        }
        Ok(())
    }

    /// The same sums, of at most a block: each member computes all of them, which saves a sync.
    fn all_reduce_small(self, buf: &mut [f32], op: ReduceOp, shape: Shape) -> Result<(), CommFault> {
        let mut acc = [0.0; BLOCK];
        let acc = &mut acc[..buf.len()];
        let exchange = self.join(buf.as_mut_ptr().cast(), shape, 1)?;
        // SAFETY: no buffer is written before the sync at the end of the exchange.
        unsafe { exchange.reduce(0..acc.len(), op, acc) };
        drop(exchange);
        buf.copy_from_slice(acc);
        Ok(())
    }

    /// See [`Collective::reduce_scatter`](crate::comm::Collective::reduce_scatter).
    pub(super) fn reduce_scatter(self, input: &[f32], output: &mut [f32]) -> Result<(), CommFault> {
        let (len, me) = (output.len(), self.index);
        assert_eq!(input.len(), len * self.meeting.n_members(), "invariant: the input is one output per member");
        let shape = shape(CommKind::ReduceScatter, size_of_val(input));
        let exchange = self.join(input.as_ptr().cast_mut().cast(), shape, 1)?;
        for (block, acc) in blocks(me * len..(me + 1) * len).zip(output.chunks_mut(BLOCK)) {
            // SAFETY: inputs are only read.
            unsafe { exchange.reduce(block, ReduceOp::Sum, acc) };
        }
        Ok(())
    }

    /// See [`Collective::all_gather`](crate::comm::Collective::all_gather).
    pub(super) fn all_gather(self, input: &[u8], output: &mut [u8]) -> Result<(), CommFault> {
        let (len, n) = (input.len(), self.meeting.n_members());
        assert_eq!(output.len(), len * n, "invariant: the output is one input per member");
        let exchange = self.join(input.as_ptr().cast_mut(), shape(CommKind::AllGather, len), 1)?;
        for peer in exchange.members_from_me() {
            // SAFETY: inputs are only read.
            output[chunk_of(len, peer)].copy_from_slice(unsafe { exchange.peer(peer, 0..len) });
        }
        Ok(())
    }

    /// See [`Collective::all_gather_in_place`](crate::comm::Collective::all_gather_in_place). The window is this
    /// member's chunk only, as in `all_gather`, so members may mix the two forms.
    pub(super) fn all_gather_in_place(self, buf: &mut [u8]) -> Result<(), CommFault> {
        let (n, me) = (self.meeting.n_members(), self.index);
        assert_eq!(buf.len() % n, 0, "invariant: the buffer is equal chunks");
        let len = buf.len() / n;
        let (before, rest) = buf.split_at_mut(me * len);
        let (own, after) = rest.split_at_mut(len);
        let exchange = self.join(own.as_ptr().cast_mut(), shape(CommKind::AllGather, len), 1)?;
        for peer in exchange.members_from_me().skip(1) {
            let target =
                if peer < me { &mut before[chunk_of(len, peer)] } else { &mut after[chunk_of(len, peer - me - 1)] };
            // SAFETY: the windows are only read.
            target.copy_from_slice(unsafe { exchange.peer(peer, 0..len) });
        }
        Ok(())
    }

    /// See [`Collective::all_to_all`](crate::comm::Collective::all_to_all).
    pub(super) fn all_to_all(self, input: &[u8], output: &mut [u8]) -> Result<(), CommFault> {
        let (n, me) = (self.meeting.n_members(), self.index);
        assert!(
            input.len() == output.len() && input.len().is_multiple_of(n),
            "invariant: both are equal chunks, one per member"
        );
        let len = input.len() / n;
        let exchange = self.join(input.as_ptr().cast_mut(), shape(CommKind::AllToAll, input.len()), 1)?;
        for peer in exchange.members_from_me() {
            // SAFETY: inputs are only read.
            output[chunk_of(len, peer)].copy_from_slice(unsafe { exchange.peer(peer, chunk_of(len, me)) });
        }
        Ok(())
    }

    /// See [`Collective::broadcast`](crate::comm::Collective::broadcast).
    pub(super) fn broadcast(self, root_index: usize, buf: &mut [u8]) -> Result<(), CommFault> {
        assert!(root_index < self.meeting.n_members(), "invariant: the root is a member");
        let (len, is_root) = (buf.len(), self.index == root_index);
        let shape = Shape { root_index: Some(root_index), ..shape(CommKind::Broadcast, len) };
        let mut exchange = self.join(buf.as_mut_ptr(), shape, 1)?;
        if !is_root {
            // SAFETY: the root's buffer is only read; no peer touches the buffer of a member that is not the root.
            unsafe { exchange.copy_to_own::<u8>(root_index, 0..len) };
        }
        Ok(())
    }

    /// See [`Collective::barrier`](crate::comm::Collective::barrier).
    pub(super) fn barrier(self) -> Result<(), CommFault> {
        self.join(std::ptr::null_mut(), shape(CommKind::Barrier, 0), 0).map(drop)
    }

    /// Waits until the call is committed. `n_syncs` is how many syncs this kind of call has; the last one is made when
    /// the exchange is dropped.
    fn join(self, window: *mut u8, shape: Shape, n_syncs: usize) -> Result<Exchange<'a>, CommFault> {
        self.meeting.arrive(self.world, self.index, window, shape, &self.site)?;
        Ok(Exchange { port: self, n_syncs_left: n_syncs })
    }
}

/// A committed call: the windows of all members are valid until it is dropped. Dropping makes all syncs that are left,
/// so that even a panic cannot end the borrow of a buffer that peers still read.
struct Exchange<'a> {
    port: Port<'a>,
    n_syncs_left: usize,
}

impl Exchange<'_> {
    fn sync(&mut self) {
        self.n_syncs_left -= 1;
        self.port.meeting.sync(self.port.world, self.port.index);
    }

    /// All members, this one first, so that they do not all read the same buffer at once.
    fn members_from_me(&self) -> impl Iterator<Item = usize> + use<> {
        let (n, me) = (self.port.meeting.n_members(), self.port.index);
        (0..n).map(move |offset| (me + offset) % n)
    }

    /// Elements `range` of the buffer of `member`.
    ///
    /// # Safety
    /// The member's window is a buffer of `T` that covers `range`, and nobody writes `range` before the next sync.
    unsafe fn peer<T: Element>(&self, member: usize, range: Range<usize>) -> &[T] {
        let base = self.port.meeting.window(member).cast::<T>();
        // SAFETY: by the contract the range is inside a live buffer and not written while the view, which ends at the
        // next sync, exists.
        unsafe { slice::from_raw_parts(base.add(range.start), range.len()) }
    }

    /// Elements `range` of this member's own buffer.
    ///
    /// # Safety
    /// Its window was published from a mutable buffer of `T` that covers `range`, and no peer touches `range` before the
    /// next sync.
    unsafe fn own_mut<T: Element>(&mut self, range: Range<usize>) -> &mut [T] {
        let base = self.port.meeting.window(self.port.index).cast::<T>();
        // SAFETY: by the contract the range is inside a live buffer that this call alone uses.
        unsafe { slice::from_raw_parts_mut(base.add(range.start), range.len()) }
    }

    /// Copies elements `range` of another member's buffer to the same place of this member's own.
    ///
    /// # Safety
    /// The contracts of [`peer`](Self::peer) and [`own_mut`](Self::own_mut); `member` is not this one.
    unsafe fn copy_to_own<T: Element>(&mut self, member: usize, range: Range<usize>) {
        debug_assert_ne!(member, self.port.index);
        let source = self.port.meeting.window(member).cast::<T>();
        let target = self.port.meeting.window(self.port.index).cast::<T>();
        // SAFETY: both ranges are valid by the contract, and the buffers of two members do not overlap.
        unsafe { source.add(range.start).copy_to_nonoverlapping(target.add(range.start), range.len()) }
    }

    /// Reduces elements `block` of all buffers, in rank order, into `acc`, which is as long as `block`.
    ///
    /// # Safety
    /// The contract of [`peer`](Self::peer) for all members, with `T` = f32.
    unsafe fn reduce(&self, block: Range<usize>, op: ReduceOp, acc: &mut [f32]) {
        // SAFETY: as the caller promises.
        acc.copy_from_slice(unsafe { self.peer(0, block.clone()) });
        for member in 1..self.port.meeting.n_members() {
            // SAFETY: as the caller promises.
            fold(acc, unsafe { self.peer(member, block.clone()) }, op);
        }
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        while self.n_syncs_left > 0 {
            self.sync();
        }
    }
}

/// The element types of windows: any bit pattern is a value.
trait Element: Copy {}
impl Element for u8 {}
impl Element for f32 {}

fn shape(kind: CommKind, n_bytes: usize) -> Shape {
    Shape::new(kind, n_bytes)
}

/// The place of equal chunk number `index` of `len` elements.
fn chunk_of(len: usize, index: usize) -> Range<usize> {
    index * len..(index + 1) * len
}

/// `range` in pieces of at most [`BLOCK`].
fn blocks(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(BLOCK).map(move |start| start..(start + BLOCK).min(range.end))
}
