//! A captured step of one GPU.
//!
//! The capture begins on the compute stream; the other streams take part once they wait for an event of it, and computing waits
//! for them before it ends. It is of the calling thread alone, so that ranks that are other threads go on.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::context::{Context, words};
use super::order::Stream;
use super::pinned::Pinned;
use super::stage::Exchanged;
use crate::device::Span;

/// Slots begin at multiples of so many bytes.
const ALIGNMENT: usize = 256;

/// A captured step with the memory that its copies read.
pub(super) struct Graph {
    pub(super) executable: Executable,
    pub(super) slots: Slots,
    /// Its exchanges in order.
    pub(super) exchanges: Vec<Arc<Exchanged>>,
}

/// Memory for what the host writes into a step: one slot a fill.
pub(super) struct Slots {
    memory: Pinned,
    /// First byte and length.
    places: Vec<(usize, usize)>,
}

impl Slots {
    /// Slots for fills of these parts; the context is bound.
    pub(super) fn new(fills: impl Iterator<Item = Span>) -> Result<Slots, String> {
        let (mut end, mut places) = (0, Vec::new());
        for fill in fills {
            places.push((end, fill.bytes as usize));
            end = (end + fill.bytes as usize).next_multiple_of(ALIGNMENT);
        }
        Ok(Slots { memory: Pinned::new(end)?, places })
    }

    pub(super) fn get(&self, index: usize) -> &[u8] {
        let (first, bytes) = self.places[index];
        &self.memory.bytes()[first..first + bytes]
    }

    pub(super) fn get_mut(&mut self, index: usize) -> &mut [u8] {
        let (first, bytes) = self.places[index];
        &mut self.memory.bytes_mut()[first..first + bytes]
    }
}

/// What the driver makes of a captured step.
pub(super) struct Executable(sys::CUgraphExec);

// SAFETY: the handle may be used from any thread that has bound the context.
unsafe impl Send for Executable {}

impl Executable {
    /// Launches the step on the compute stream.
    pub(super) fn launch(&self, context: &Context) -> Result<(), String> {
        // SAFETY: both are alive and of one context.
        unsafe { result::graph::launch(self.0, context.stream(Stream::Compute)) }.map_err(|e| words("launch a step", e))
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        // SAFETY: the handle is destroyed once; the driver keeps what is still running until it has ended.
        let _ = unsafe { result::graph::exec_destroy(self.0) };
    }
}

/// Captures what `launch` launches, without running it; the context is bound and nothing is under way.
pub(super) fn capture(context: &Context, launch: &mut dyn FnMut() -> Result<(), String>) -> Result<Executable, String> {
    let (origin, mode) =
        (context.stream(Stream::Compute), sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    // SAFETY: the stream is alive, and no capture is under way on it.
    unsafe { result::stream::begin_capture(origin, mode) }.map_err(|e| words("begin to capture a step", e))?;
    let launched = launch();
    // SAFETY: the capture was begun above, by this thread; it ends whatever went wrong inside.
    let captured = unsafe { result::stream::end_capture(origin) };
    let graph = Captured(captured.unwrap_or(std::ptr::null_mut()));
    launched?;
    captured.map_err(|e| words("capture a step", e))?;
    let flags = sys::CUgraphInstantiate_flags_enum(0);
    // SAFETY: the graph was captured without a fault.
    let executable = unsafe { result::graph::instantiate(graph.0, flags) };
    let executable = Executable(executable.map_err(|e| words("make a captured step ready", e))?);
    // SAFETY: both are alive and of one context. Without this the first launch would upload it.
    unsafe { result::graph::upload(executable.0, origin) }.map_err(|e| words("upload a captured step", e))?;
    Ok(executable)
}

/// What a capture gave, if anything.
struct Captured(sys::CUgraph);

impl Drop for Captured {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the graph is destroyed once; an executable has its own copy.
            let _ = unsafe { result::graph::destroy(self.0) };
        }
    }
}
