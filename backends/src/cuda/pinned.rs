//! Pinned host memory: the GPU copies from and to it while the host goes on.

use std::ffi::c_void;

use cudarc::driver::result;

use super::context::words;

/// One allocation.
pub(super) struct Pinned {
    start: *mut c_void,
    bytes: usize,
}

// SAFETY: the memory is owned; who shares it with the GPU waits for the GPU before it looks.
unsafe impl Send for Pinned {}
// SAFETY: as for `Send`; writing takes `&mut`.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Zeroed memory of that many bytes; the context is bound.
    pub(super) fn new(bytes: usize) -> Result<Pinned, String> {
        // SAFETY: the memory is cleared before it is read.
        let start = unsafe { result::malloc_host(bytes.max(1), 0) };
        let start = start.map_err(|e| words(&format!("allocate {bytes} bytes of pinned memory"), e))?;
        // SAFETY: it was just allocated with that size.
        unsafe { start.cast::<u8>().write_bytes(0, bytes) };
        Ok(Pinned { start, bytes })
    }

    /// The memory; no copy to what is read of it is under way.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the allocation has that many bytes, which were initialised.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.bytes) }
    }

    /// The memory; no copy from or to what is written of it is under way.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and nobody else holds it.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, freed once.
        let _ = unsafe { result::free_host(self.start) };
    }
}
