//! The functions of NCCL that are used, found in the library that the probe loaded.
//!
//! Types, constants and the start of the configuration are those of `nccl.h` of the versions 2.14.3 (the first with a
//! configuration, and the oldest that is supported), 2.18.1, 2.23.4 and 2.32.3, which were compared.

use std::ffi::{CStr, c_char, c_int, c_void};

use cudarc::driver::sys::{CUdeviceptr, CUstream};
use libloading::Library;

use super::meet::Name;
use super::probe::Libraries;

/// Names one communicator among processes.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId(Name);

/// A communicator of the library.
pub(super) type Handle = *mut c_void;

/// How a communicator is made: `ncclConfig_t` as version 2.14 has it. Every later version begins with these fields, takes no
/// more bytes than `size` says, and gives the fields that came after `version` its own defaults.
#[repr(C)]
struct Config {
    size: usize,
    magic: u32,
    version: u32,
    is_blocking: c_int,
    /// Fills the struct up to its size, which counts the padding at its end.
    padding: c_int,
}

/// The struct's mark, and the version that has just these fields: 10000 major + 100 minor + patch.
const CONFIG_MAGIC: u32 = 0xcafe_beef;
const CONFIG_VERSION: u32 = 21_400;

/// `ncclResult_t`.
const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;
/// `ncclDataType_t`: `ncclUint8` and `ncclFloat32`.
const BYTE: c_int = 1;
const FLOAT: c_int = 7;
/// `ncclRedOp_t`.
const SUM: c_int = 0;

type Status = c_int;
type Reduction = unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, CUstream) -> Status;
type Gather = unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Handle, CUstream) -> Status;
type Send = unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Handle, CUstream) -> Status;
type Receive = unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Handle, CUstream) -> Status;

/// The functions.
pub(super) struct Nccl {
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> Status,
    init: unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int, *mut Config) -> Status,
    async_error: unsafe extern "C" fn(Handle, *mut Status) -> Status,
    abort: unsafe extern "C" fn(Handle) -> Status,
    all_reduce: Reduction,
    reduce_scatter: Reduction,
    all_gather: Gather,
    send: Send,
    receive: Receive,
    group_start: unsafe extern "C" fn() -> Status,
    group_end: unsafe extern "C" fn() -> Status,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
}

/// A function of the library.
///
/// # Safety
/// `F` is the function's type.
unsafe fn function<F: Copy>(library: &'static Library, name: &str) -> Result<F, String> {
    // SAFETY: the caller knows the type.
    let symbol = unsafe { library.get::<F>(name.as_bytes()) };
    symbol.map(|f| *f).map_err(|_| format!("NCCL has no `{name}`; version 2.14 or later is needed"))
}

impl Nccl {
    /// Finds all functions.
    ///
    /// # Errors
    /// Which one the library lacks.
    pub(super) fn new(libraries: &Libraries) -> Result<Nccl, String> {
        let library = libraries.nccl();
        // SAFETY: the fields have the types that the library's header declares.
        unsafe {
            Ok(Nccl {
                get_unique_id: function(library, "ncclGetUniqueId")?,
                init: function(library, "ncclCommInitRankConfig")?,
                async_error: function(library, "ncclCommGetAsyncError")?,
                abort: function(library, "ncclCommAbort")?,
                all_reduce: function(library, "ncclAllReduce")?,
                reduce_scatter: function(library, "ncclReduceScatter")?,
                all_gather: function(library, "ncclAllGather")?,
                send: function(library, "ncclSend")?,
                receive: function(library, "ncclRecv")?,
                group_start: function(library, "ncclGroupStart")?,
                group_end: function(library, "ncclGroupEnd")?,
                error_string: function(library, "ncclGetErrorString")?,
            })
        }
    }

    fn check(&self, what: &str, status: Status) -> Result<(), String> {
        if status == SUCCESS || status == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: the library returns a text that it never frees.
        let text = unsafe { CStr::from_ptr((self.error_string)(status)) };
        Err(format!("NCCL cannot {what}: {}", text.to_string_lossy()))
    }

    /// A new name for a communicator.
    pub(super) fn unique_id(&self) -> Result<Name, String> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: it writes the struct.
        self.check("name a communicator", unsafe { (self.get_unique_id)(&mut id) })?;
        Ok(id.0)
    }

    /// Begins to make this rank's end of a communicator; [`Nccl::is_settled`] tells when it is made.
    pub(super) fn begin(&self, name: Name, n_ranks: usize, index: usize) -> Result<Handle, String> {
        let (size, magic, version) = (size_of::<Config>(), CONFIG_MAGIC, CONFIG_VERSION);
        let mut config = Config { size, magic, version, is_blocking: 0, padding: 0 };
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: the config tells its size, and the library writes the handle.
        let status = unsafe { (self.init)(&mut handle, n_ranks as c_int, UniqueId(name), index as c_int, &mut config) };
        self.check("make a communicator", status)?;
        Ok(handle)
    }

    /// Whether nothing is under way any more in the calls to a communicator.
    ///
    /// # Errors
    /// What went wrong in it.
    pub(super) fn is_settled(&self, handle: Handle) -> Result<bool, String> {
        let mut state = SUCCESS;
        // SAFETY: the handle is a communicator, and the library writes one int.
        self.check("ask a communicator", unsafe { (self.async_error)(handle, &mut state) })?;
        self.check("communicate", state)?;
        Ok(state == SUCCESS)
    }

    /// Ends a communicator; what was under way is given up.
    pub(super) fn abort(&self, handle: Handle) {
        // SAFETY: the handle is a communicator and is not used again.
        let _ = unsafe { (self.abort)(handle) };
    }

    /// Sums floats of all ranks in place.
    pub(super) fn all_reduce(&self, at: CUdeviceptr, n: usize, handle: Handle, stream: CUstream) -> Result<(), String> {
        // SAFETY: the buffer has `n` floats in this device's memory.
        let status = unsafe { (self.all_reduce)(at as _, at as _, n, FLOAT, SUM, handle, stream) };
        self.check("sum", status)
    }

    /// Sums floats of all ranks; each keeps `n` of them.
    pub(super) fn reduce_scatter(
        &self,
        [from, to]: [CUdeviceptr; 2],
        n: usize,
        handle: Handle,
        stream: CUstream,
    ) -> Result<(), String> {
        // SAFETY: the buffers have `n` floats for each rank and `n` floats.
        let status = unsafe { (self.reduce_scatter)(from as _, to as _, n, FLOAT, SUM, handle, stream) };
        self.check("sum and scatter", status)
    }

    /// Joins `n` bytes of each rank.
    pub(super) fn all_gather(
        &self,
        [from, to]: [CUdeviceptr; 2],
        n: usize,
        handle: Handle,
        stream: CUstream,
    ) -> Result<(), String> {
        // SAFETY: the buffers have `n` bytes and `n` bytes for each rank.
        let status = unsafe { (self.all_gather)(from as _, to as _, n, BYTE, handle, stream) };
        self.check("gather", status)
    }

    /// Gives `n` bytes to each rank and takes as many from each, as one group of calls.
    pub(super) fn all_to_all(
        &self,
        [from, to]: [CUdeviceptr; 2],
        (n, n_ranks): (usize, usize),
        handle: Handle,
        stream: CUstream,
    ) -> Result<(), String> {
        // SAFETY: it takes nothing.
        self.check("begin a group", unsafe { (self.group_start)() })?;
        let mut outcome = Ok(());
        for peer in 0..n_ranks {
            let offset = (peer * n) as u64;
            // SAFETY: both buffers have `n` bytes for each rank.
            let sent = unsafe { (self.send)((from + offset) as _, n, BYTE, peer as c_int, handle, stream) };
            // SAFETY: as above.
            let received = unsafe { (self.receive)((to + offset) as _, n, BYTE, peer as c_int, handle, stream) };
            outcome = outcome.and(self.check("send", sent)).and(self.check("receive", received));
        }
        // SAFETY: it ends the group that was begun, whatever happened inside.
        let ended = self.check("end a group", unsafe { (self.group_end)() });
        outcome.and(ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    /// The sizes and offsets that a C compiler gives the header's structs on 64-bit machines.
    #[test]
    fn structs_lie_in_memory_as_the_header_says() {
        assert_eq!((size_of::<UniqueId>(), align_of::<UniqueId>()), (128, 1));
        assert_eq!((size_of::<Config>(), offset_of!(Config, is_blocking)), (24, 16));
        assert_eq!((offset_of!(Config, magic), offset_of!(Config, version)), (8, 12));
    }
}
