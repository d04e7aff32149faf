//! Pinned host memory through which small writes of the host reach the GPU without waiting for it.

use std::ffi::c_void;

use cudarc::driver::{result, sys};

use super::context::words;

/// Bytes of a slot; larger writes wait for their copy.
pub(super) const SLOT_BYTES: usize = 1 << 20;

const N_SLOTS: usize = 16;

/// A ring of slots, each with an event after its last copy.
pub(super) struct Staging {
    start: *mut c_void,
    events: Vec<sys::CUevent>,
    next: usize,
}

// SAFETY: the memory is owned, and reached by one thread at a time through `&mut`.
unsafe impl Send for Staging {}

impl Staging {
    /// A ring on the bound context.
    pub(super) fn new() -> Result<Staging, String> {
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let event = |_| result::event::create(flags).map_err(|e| words("create an event", e));
        let events = (0..N_SLOTS).map(event).collect::<Result<Vec<_>, _>>()?;
        // SAFETY: the memory is written before it is read.
        let start = unsafe { result::malloc_host(N_SLOTS * SLOT_BYTES, 0) };
        Ok(Staging { start: start.map_err(|e| words("allocate pinned memory", e))?, events, next: 0 })
    }

    /// Lets `write` fill a slot, then copies it to an address on a stream.
    pub(super) fn send(
        &mut self,
        to: sys::CUdeviceptr,
        bytes: usize,
        stream: sys::CUstream,
        write: &mut dyn FnMut(&mut [u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        assert!(bytes <= SLOT_BYTES, "invariant: larger writes do not come here");
        let (slot, event) = (self.next, self.events[self.next]);
        self.next = (slot + 1) % N_SLOTS;
        // SAFETY: the event is alive; it is done when the slot's last copy is, at once if there was none.
        unsafe { result::event::synchronize(event) }.map_err(|e| words("wait for a copy", e))?;
        // SAFETY: the slot lies in the allocation, and its last copy is done.
        let part = unsafe {
            let first = self.start.cast::<u8>().add(slot * SLOT_BYTES);
            first.write_bytes(0, bytes);
            std::slice::from_raw_parts_mut(first, bytes)
        };
        write(part)?;
        // SAFETY: the slot is left alone until the event says that the copy is done.
        unsafe { result::memcpy_htod_async(to, part, stream) }.map_err(|e| words("copy to the GPU", e))?;
        // SAFETY: event and stream are alive.
        unsafe { result::event::record(event, stream) }.map_err(|e| words("record an event", e))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // SAFETY: each is freed once; the device has finished its streams before.
        unsafe {
            self.events.iter().for_each(|&event| {
                let _ = result::event::destroy(event);
            });
            let _ = result::free_host(self.start);
        }
    }
}
