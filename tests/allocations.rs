//! Once a plan runs, its ranks allocate nothing large: what they need lies in the arena. A counting allocator watches them from
//! the third step on, when buffers that a library keeps for itself have been made.

#[path = "support/fixture.rs"]
mod fixture;
#[path = "support/plan.rs"]
mod plan;

use fixture::{Fixture, N_STEPS};
use galvatron_backends::exec::{Flow, RunOptions};
use galvatron_ir::types::DType;
use plan::Order;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Largest allocation that a rank may make while it trains, in bytes.
const LIMIT: usize = 4 << 10;

/// The same for the buffers into which the gemm crate packs operands, once a product; they are bounded by the cache.
const PACKING_LIMIT: usize = 64 << 10;

/// The gemm crate's buffers, and nothing else here, are aligned to cache lines.
const PACKING_ALIGNMENT: usize = 64;

/// Whether the ranks are past their first steps.
static IS_WATCHING: AtomicBool = AtomicBool::new(false);

/// The largest allocation that was seen, in bytes.
static LARGEST: AtomicUsize = AtomicUsize::new(0);

/// The largest one for packed operands.
static LARGEST_PACKING: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The test's own thread is not watched.
    static IS_OWN: Cell<bool> = const { Cell::new(false) };
}

/// The system's allocator, watched.
struct Watched;

#[global_allocator]
static ALLOCATOR: Watched = Watched;

impl Watched {
    fn note(&self, bytes: usize, layout: Layout) {
        if IS_WATCHING.load(Ordering::Relaxed) && !IS_OWN.get() {
            let is_packing = layout.align() >= PACKING_ALIGNMENT;
            let largest = if is_packing { &LARGEST_PACKING } else { &LARGEST };
            largest.fetch_max(bytes, Ordering::Relaxed);
        }
    }
}

// SAFETY: every call is passed on to the system's allocator as it came; noting a size allocates nothing.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.note(layout.size(), layout);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.note(layout.size(), layout);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        self.note(bytes, layout);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(block, layout, bytes) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(block, layout) }
    }
}

#[test]
fn ranks_allocate_nothing_large_while_they_train() {
    IS_OWN.set(true);
    let fixture = Fixture::open("gpt2");
    for (ranks, strategy) in [
        (1, ""),
        (1, "recompute = \"full\"\nmicro_batches = 2"),
        (2, "dp = 2"),
        (2, "tp = 2"),
        (2, "dp = 2\nzero = 3"),
        (4, "dp = 4\nzero = 3"),
        (4, "dp = 2\ntp = 2\nzero = 3\nsequence = \"megatron\"\nmicro_batches = 2"),
    ] {
        let order =
            Order { fixture: &fixture, dialect: "keep20", optimizer: "adamw", ranks, strategy, compute: DType::F32 };
        let (largest, packing) = largest_allocations(&order);
        let found = format!("{ranks} ranks, {strategy:?}: {largest} bytes at once, packed operands {packing}");
        println!("{found}");
        assert!(largest <= LIMIT && packing <= PACKING_LIMIT, "{found}");
    }
}

/// Bytes of the largest allocations of a rank after its second step: of any, and of one for packed operands. Each rank has one
/// thread, so that everything a thread keeps for itself is there after a step.
fn largest_allocations(order: &Order<'_>) -> (usize, usize) {
    let module = order.compile().expect("the pins can be met").module;
    let options = RunOptions { steps: N_STEPS, threads: Some(1), ..RunOptions::default() };
    LARGEST.store(0, Ordering::Relaxed);
    LARGEST_PACKING.store(0, Ordering::Relaxed);
    let report = galvatron_backends::run(&module, &options, order.fixture.data(), &order.weights(), &mut |step| {
        IS_WATCHING.store((2..N_STEPS).contains(&step.step), Ordering::Relaxed);
        Flow::Continue
    });
    assert_eq!(report.expect("the plan runs").steps, N_STEPS);
    (LARGEST.load(Ordering::Relaxed), LARGEST_PACKING.load(Ordering::Relaxed))
}
