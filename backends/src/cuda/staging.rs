//! A ring in pinned host memory through which small writes of the host reach the GPU without waiting for it.

use cudarc::driver::{result, sys};

use super::context::words;
use super::pinned::Pinned;
use crate::device::Write;

/// Bytes of a slot; larger writes wait for their copy.
pub(super) const SLOT_BYTES: usize = 1 << 20;

const N_SLOTS: usize = 16;

/// A ring of slots, each with an event after its last copy.
pub(super) struct Staging {
    slots: Pinned,
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
        Ok(Staging { slots: Pinned::new(N_SLOTS * SLOT_BYTES)?, events, next: 0 })
    }

    /// Lets `write` fill a slot, then copies it to an address on a stream. `wait` waits for an event: that of the slot's last
    /// copy.
    pub(super) fn send(
        &mut self,
        to: sys::CUdeviceptr,
        bytes: usize,
        stream: sys::CUstream,
        write: Write<'_>,
        wait: &mut dyn FnMut(sys::CUevent) -> Result<(), String>,
    ) -> Result<(), String> {
        assert!(bytes <= SLOT_BYTES, "invariant: larger writes do not come here");
        let (slot, event) = (self.next, self.events[self.next]);
        self.next = (slot + 1) % N_SLOTS;
        wait(event)?;
        let part = &mut self.slots.bytes_mut()[slot * SLOT_BYTES..][..bytes];
        part.fill(0);
        write(part)?;
        // SAFETY: the slot is left alone until the event says that the copy is done.
        unsafe { result::memcpy_htod_async(to, part, stream) }.map_err(|e| words("copy to the GPU", e))?;
        // SAFETY: event and stream are alive.
        unsafe { result::event::record(event, stream) }.map_err(|e| words("record an event", e))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.events.iter().for_each(|&event| {
            // SAFETY: each is destroyed once; the device has finished its streams before.
            let _ = unsafe { result::event::destroy(event) };
        });
    }
}
