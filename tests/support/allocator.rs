//! The allocator of the commands: the search makes and drops many small lists, and tests search thousands of plans.

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;
