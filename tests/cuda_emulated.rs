//! The CUDA kernels give the results of the reference, one op at a time. No GPU runs here: the sources are compiled as C++ and
//! each block's threads are fibers. That checks what they compute, not how fast, nor what only a GPU would do.

#[macro_use]
#[path = "support/conformance.rs"]
mod conformance;
#[path = "support/emulated.rs"]
mod emulated;

use galvatron_backends::device::Device;

/// An emulated GPU, where there is a C++ compiler.
fn device(arena_bytes: u64) -> Option<Box<dyn Device>> {
    let ranks = emulated::Emulated::world(emulated::program()?, 1, arena_bytes, false);
    ranks.into_iter().next().map(|device| Box::new(device) as Box<dyn Device>)
}

conformance_tests!(device);
