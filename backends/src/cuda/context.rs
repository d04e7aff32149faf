//! A GPU with its streams and events, and waits that do not last for ever.

use std::collections::BTreeMap;
use std::ffi::{CString, c_void};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::meet::Uuid;
use super::nvrtc;
use super::order::{EVENTS, Event, Queue, Stream};
use super::unit::Unit;

/// Loaded machine code of the sources that a plan uses.
#[derive(Default)]
pub(super) struct Modules(BTreeMap<Unit, sys::CUmodule>);

// SAFETY: a module's handle may be used from any thread that has bound its context.
unsafe impl Send for Modules {}

impl Modules {
    pub(super) fn get(&self, unit: &Unit) -> Option<sys::CUmodule> {
        self.0.get(unit).copied()
    }

    pub(super) fn insert(&mut self, unit: Unit, module: sys::CUmodule) -> sys::CUmodule {
        self.0.insert(unit, module);
        module
    }
}

/// A GPU as one rank uses it: its streams, their events, its kernels.
pub(super) struct Context {
    pub(super) cuda: Arc<CudaContext>,
    streams: [sys::CUstream; 3],
    /// A stream for questions while the others are stuck.
    aside: sys::CUstream,
    /// For each stream its events.
    events: [Vec<sys::CUevent>; 3],
    /// Compute capability, as in `sm_90`.
    pub(super) arch: String,
}

// SAFETY: handles of the driver may be used from any thread that has bound the context, which every entry of the device does.
unsafe impl Send for Context {}
// SAFETY: as for `Send`; the driver orders calls on one stream, and the device serialises its own state by a lock.
unsafe impl Sync for Context {}

/// A driver's fault in words.
pub(super) fn words(what: &str, error: DriverError) -> String {
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
    format!("CUDA cannot {what}: {}", text.unwrap_or_else(|_| format!("{error:?}")))
}

/// Number of GPUs that this process may use.
///
/// # Errors
/// The fault of the driver.
pub fn device_count() -> Result<usize, String> {
    result::init().map_err(|e| words("start", e))?;
    result::device::get_count().map(|n| n as usize).map_err(|e| words("count GPUs", e))
}

/// What identifies a GPU among all machines; a partition of a GPU counts as one.
pub(super) fn uuid(ordinal: usize) -> Result<Uuid, String> {
    let device = result::device::get(ordinal as i32).map_err(|e| words("find the GPU", e))?;
    let uuid = result::device::get_uuid(device).map_err(|e| words("ask the GPU", e))?;
    Ok(uuid.bytes.map(|byte| byte as u8))
}

impl Context {
    /// The GPU of that number.
    pub(super) fn new(ordinal: usize) -> Result<Context, String> {
        let cuda = CudaContext::new(ordinal).map_err(|e| words("open the GPU", e))?;
        let (major, minor) = cuda.compute_capability().map_err(|e| words("ask the GPU", e))?;
        let create = || result::stream::create(result::stream::StreamKind::NonBlocking);
        let stream = || create().map_err(|e| words("create a stream", e));
        let streams = [stream()?, stream()?, stream()?];
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let event = || result::event::create(flags).map_err(|e| words("create an event", e));
        let ring = |n: u64| (0..n).map(|_| event()).collect::<Result<Vec<_>, _>>();
        let events = [ring(1)?, ring(EVENTS)?, ring(EVENTS)?];
        Ok(Context { cuda, streams, aside: stream()?, events, arch: format!("sm_{major}{minor}") })
    }

    /// Makes the context the calling thread's.
    pub(super) fn bind(&self) -> Result<(), String> {
        self.cuda.bind_to_thread().map_err(|e| words("use the GPU on this thread", e))
    }

    pub(super) fn stream(&self, stream: Stream) -> sys::CUstream {
        self.streams[stream.index()]
    }

    pub(super) fn aside(&self) -> sys::CUstream {
        self.aside
    }

    /// The machine code of a source, compiled if it is not cached.
    pub(super) fn load(&self, unit: &Unit) -> Result<sys::CUmodule, String> {
        let image = nvrtc::compile(unit, &self.arch)?;
        // SAFETY: the image is a CUBIN, which the driver copies.
        unsafe { result::module::load_data(image.as_ptr().cast::<c_void>()) }
            .map_err(|e| words(&format!("load the kernels `{}`", unit.name()), e))
    }

    /// A kernel of loaded machine code that may use that much dynamic shared memory, in bytes.
    pub(super) fn function(
        &self,
        module: sys::CUmodule,
        name: &str,
        shared_bytes: u32,
    ) -> Result<sys::CUfunction, String> {
        let text = CString::new(name).map_err(|_| "a name has a zero byte")?;
        // SAFETY: the module is loaded and never unloaded before the context ends.
        let function = unsafe { result::module::get_function(module, text) };
        let function = function.map_err(|e| words(&format!("find the kernel `{name}`"), e))?;
        if shared_bytes > 48 << 10 {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of this context.
            unsafe { result::function::set_function_attribute(function, attribute, shared_bytes as i32) }
                .map_err(|e| words(&format!("give `{name}` {shared_bytes} bytes of shared memory"), e))?;
        }
        Ok(function)
    }

    /// Waits until all that was launched on a stream is done, at most for `timeout`; false: it is not. `check` is asked again
    /// and again whether to give up.
    ///
    /// # Errors
    /// The driver's fault, or that of `check`.
    pub(super) fn wait_for(
        &self,
        stream: Stream,
        timeout: Duration,
        check: &mut dyn FnMut() -> Result<(), String>,
    ) -> Result<bool, String> {
        // SAFETY: the stream is alive.
        wait(timeout, &mut || unsafe { sys::cuStreamQuery(self.stream(stream)) }, check)
    }
}

/// Asks whether something is done until it is, or the time is over; then the answer is false.
pub(super) fn wait(
    timeout: Duration,
    query: &mut dyn FnMut() -> sys::CUresult,
    check: &mut dyn FnMut() -> Result<(), String>,
) -> Result<bool, String> {
    let start = Instant::now();
    loop {
        match query() {
            sys::CUresult::CUDA_SUCCESS => return Ok(true),
            sys::CUresult::CUDA_ERROR_NOT_READY => {}
            fault => return Err(words("finish", DriverError(fault))),
        }
        check()?;
        if start.elapsed() > timeout {
            return Ok(false);
        }
        // Short waits are spun through, long ones are not.
        if start.elapsed() > Duration::from_micros(200) {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// Records and waits on a context's events.
pub(super) struct Events<'a>(pub(super) &'a Context);

impl Queue for Events<'_> {
    type Fault = String;

    fn record(&mut self, event: Event) -> Result<(), String> {
        let handle = self.0.events[event.stream.index()][event.slot as usize];
        // SAFETY: event and stream are alive and of one context.
        unsafe { result::event::record(handle, self.0.stream(event.stream)) }.map_err(|e| words("record an event", e))
    }

    fn wait(&mut self, stream: Stream, event: Event) -> Result<(), String> {
        let handle = self.0.events[event.stream.index()][event.slot as usize];
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: as above.
        unsafe { result::stream::wait_event(self.0.stream(stream), handle, flags) }
            .map_err(|e| words("wait for an event", e))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.bind().is_err() {
            return;
        }
        // SAFETY: each handle is destroyed once, after its work: destroying a stream waits for nothing but frees it when done.
        unsafe {
            self.events.iter().flatten().for_each(|&event| {
                let _ = result::event::destroy(event);
            });
            self.streams.iter().chain([&self.aside]).for_each(|&stream| {
                let _ = result::stream::destroy(stream);
            });
        }
    }
}
