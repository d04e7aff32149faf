//! A rank's memory on its GPU: the arena of the plan, one allocation, and beside it a fixed reserve for kernels and libraries.

use cudarc::driver::{result, sys};

use super::command::{Place, SCRATCH_BYTES};
use super::context::words;

/// Workspace of matrix products, in bytes.
pub(super) const WORKSPACE_BYTES: u64 = 32 << 20;

/// Bytes that are set aside for the record of a fault, which comes first, and for the word that tells how far a step is.
const FAULT_BYTES: u64 = 256;

/// Where that word is among them.
const PROGRESS: u64 = 128;

/// Device memory beside the arena, in bytes: scratch memory, workspace, the fault record. What the driver and NCCL take for
/// themselves is not in it.
pub const RESERVE_BYTES: u64 = SCRATCH_BYTES + WORKSPACE_BYTES + FAULT_BYTES;

/// The two allocations of a rank.
pub(super) struct Arena {
    base: sys::CUdeviceptr,
    reserve: sys::CUdeviceptr,
}

impl Arena {
    /// Allocates and zeroes an arena of that many bytes and the reserve; the context is bound.
    pub(super) fn new(bytes: u64) -> Result<Arena, String> {
        let allocate = |bytes: u64| {
            // SAFETY: the memory is set to zero before it is used.
            let at = unsafe { result::malloc_sync(bytes.max(1) as usize) };
            let at = at.map_err(|e| words(&format!("allocate {bytes} bytes"), e))?;
            // SAFETY: the memory was just allocated with that size.
            unsafe { result::memset_d8_sync(at, 0, bytes as usize) }.map_err(|e| words("clear memory", e))?;
            Ok::<_, String>(at)
        };
        let base = allocate(bytes)?;
        match allocate(RESERVE_BYTES) {
            Ok(reserve) => Ok(Arena { base, reserve }),
            Err(why) => {
                // SAFETY: allocated above, freed once.
                let _ = unsafe { result::free_sync(base) };
                Err(why)
            }
        }
    }

    /// The address of a place.
    pub(super) fn address(&self, place: Place) -> sys::CUdeviceptr {
        match place {
            Place::Arena(offset) => self.base + offset,
            Place::Scratch(offset) => self.reserve + offset,
            Place::Fault => self.reserve + SCRATCH_BYTES + WORKSPACE_BYTES,
        }
    }

    /// The address of the word (`u32`) that tells how many exchanges of the step have ended.
    pub(super) fn progress(&self) -> sys::CUdeviceptr {
        self.address(Place::Fault) + PROGRESS
    }

    /// The address of the workspace of matrix products.
    pub(super) fn workspace(&self) -> sys::CUdeviceptr {
        self.reserve + SCRATCH_BYTES
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: both were allocated in `new` and are freed once; freeing waits for what still uses them.
        unsafe {
            let _ = result::free_sync(self.base);
            let _ = result::free_sync(self.reserve);
        }
    }
}
