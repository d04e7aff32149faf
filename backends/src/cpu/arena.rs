//! A rank's arena in host memory, and the typed slices that kernels take from it: all `unsafe` of the dispatch is here.
//!
//! Slices are taken when a prepared kernel runs and dropped when it returns. A rank runs one kernel at a time, and kernels
//! are prepared only after a check that what they write overlaps nothing that they hold at the same time.

use std::alloc::{Layout, alloc_zeroed, dealloc};

use crate::device::Span;

/// Alignment of the arena's first byte.
const ALIGNMENT: usize = galvatron_ir::plan::ALIGNMENT as usize;

/// Zeroed memory of a fixed size.
pub(super) struct Arena {
    allocation: *mut u8,
    layout: Layout,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the arena owns its memory; access is ordered by the rank that runs the kernels, as the module says.
unsafe impl Send for Arena {}
// SAFETY: as for `Send`; pool threads of one rank only see the slices that a kernel splits among them.
unsafe impl Sync for Arena {}

/// Element types of slices: any bytes are valid values.
pub(super) trait Element: Copy + Default + Send + Sync + 'static {}
impl Element for f32 {}
impl Element for i64 {}
impl Element for u8 {}
impl Element for u16 {}
impl Element for u32 {}
impl Element for u64 {}

impl Arena {
    /// An arena of zeros; `None` if there is not enough memory.
    ///
    /// The allocation has a small alignment and some slack, because then the system hands out zero pages on first use.
    pub(super) fn new(bytes: u64) -> Option<Arena> {
        let bytes = usize::try_from(bytes).ok()?;
        let layout = Layout::from_size_align(bytes.checked_add(ALIGNMENT)?, 16).ok()?;
        // SAFETY: the layout has at least `ALIGNMENT` bytes.
        let allocation = unsafe { alloc_zeroed(layout) };
        if allocation.is_null() {
            return None;
        }
        let shift = allocation.align_offset(ALIGNMENT);
        // SAFETY: the shift is below `ALIGNMENT`, which the allocation has in excess of `bytes`.
        let start = unsafe { allocation.add(shift) };
        Some(Arena { allocation, layout, start, bytes })
    }

    /// The first element of a buffer; panics unless the buffer lies in the arena and is aligned.
    fn element<T: Element>(&self, offset: u64, len: usize) -> *mut T {
        let offset = offset as usize;
        let end = offset.checked_add(len * size_of::<T>());
        assert!(end.is_some_and(|end| end <= self.bytes), "invariant: a buffer lies in the arena");
        assert!(offset.is_multiple_of(align_of::<T>()), "invariant: buffers are aligned");
        // SAFETY: the offset is within the allocation.
        unsafe { self.start.add(offset).cast() }
    }

    /// The elements of a buffer, to read.
    pub(super) fn slice<T: Element>(&self, offset: u64, len: usize) -> &[T] {
        let first = self.element::<T>(offset, len);
        // SAFETY: the memory is initialised, aligned and in bounds; nothing that the running kernel writes overlaps it.
        unsafe { std::slice::from_raw_parts(first, len) }
    }

    /// The elements of a buffer, to write.
    #[allow(clippy::mut_from_ref)]
    pub(super) fn slice_mut<T: Element>(&self, offset: u64, len: usize) -> &mut [T] {
        let first = self.element::<T>(offset, len);
        // SAFETY: the memory is initialised, aligned and in bounds; the running kernel holds no other slice of it.
        unsafe { std::slice::from_raw_parts_mut(first, len) }
    }

    /// The elements of a part, to read.
    pub(super) fn view<T: Element>(&self, at: Span) -> &[T] {
        self.slice(at.offset, at.bytes as usize / size_of::<T>())
    }

    /// The elements of a part, to write.
    #[allow(clippy::mut_from_ref)]
    pub(super) fn view_mut<T: Element>(&self, at: Span) -> &mut [T] {
        self.slice_mut(at.offset, at.bytes as usize / size_of::<T>())
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.allocation, self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arena_is_aligned_and_zero() {
        let arena = Arena::new(1000).unwrap();
        assert!(arena.slice::<u8>(0, 1000).iter().all(|&b| b == 0));
        assert_eq!(arena.slice::<u8>(0, 1).as_ptr() as usize % ALIGNMENT, 0);
        arena.slice_mut::<f32>(64, 4)[3] = 2.0;
        assert_eq!(arena.slice::<f32>(76, 1), [2.0]);
    }

    #[test]
    #[should_panic(expected = "a buffer lies in the arena")]
    fn a_buffer_beyond_the_end_is_refused() {
        Arena::new(64).unwrap().slice::<f32>(60, 2);
    }
}
