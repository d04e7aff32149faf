//! A plan trains on emulated GPUs with the losses of PyTorch: the launch table, the kernels and the engine together.

#[path = "support/emulated.rs"]
mod emulated;
#[allow(dead_code)]
#[path = "support/fixture.rs"]
mod fixture;
#[allow(dead_code)]
#[path = "support/plan.rs"]
mod plan;

use emulated::Emulated;
use fixture::Fixture;
use galvatron_backends::comm::local_world;
use galvatron_backends::exec::{Flow, RunOptions, World, arena_bytes, launch};
use galvatron_ir::types::DType;
use plan::Order;

/// Steps that are compared; the emulator is slow.
const STEPS: u64 = 3;

/// Losses of a run on CPU ranks, and of one on emulated GPUs.
fn losses(model: &str, optimizer: &str, ranks: u32, strategy: &str) -> Option<[Vec<f64>; 2]> {
    let program = emulated::program()?;
    let fixture = Fixture::open(model);
    let order = Order { fixture: &fixture, dialect: "keep20", optimizer, ranks, strategy, compute: DType::F32 };
    let module = order.compile().expect("the pins can be met").module;
    let options = RunOptions { steps: STEPS, ..RunOptions::default() };
    let data = fixture.data();
    let mut cpu = Vec::new();
    let note = |losses: &mut Vec<f64>, loss| {
        losses.push(loss);
        Flow::Continue
    };
    let ran = galvatron_backends::run(&module, &options, data, &order.weights(), &mut |s| note(&mut cpu, s.loss));
    ran.expect("the plan runs on CPU ranks");
    let mut gpu = Vec::new();
    let mut world: World = Vec::new();
    for comm in local_world(module.mesh.world() as usize, options.timeout) {
        world.push((Box::new(Emulated::new(program, arena_bytes(&module))), Box::new(comm)));
    }
    let ran = launch(&module, world, &options, (data, &order.weights()), &mut |s| note(&mut gpu, s.loss));
    ran.expect("the plan runs on emulated GPUs");
    Some([cpu, gpu])
}

fn check(model: &str, optimizer: &str, ranks: u32, strategy: &str) {
    let Some([cpu, gpu]) = losses(model, optimizer, ranks, strategy) else { return };
    assert_eq!((cpu.len(), gpu.len()), (STEPS as usize, STEPS as usize));
    for (step, (c, g)) in cpu.iter().zip(&gpu).enumerate() {
        assert!((c - g).abs() <= 1e-5 * c.abs().max(1.0), "step {}: {g} on emulated GPUs, {c} on CPU ranks", step + 1);
    }
}

#[test]
fn one_emulated_gpu_trains_like_the_cpu() {
    check("gpt2", "adamw", 1, "");
}

#[test]
fn sharded_plans_train_like_the_cpu() {
    check("gpt2", "sgd_momentum", 4, "dp = 2\ntp = 2\nzero = 3\nrecompute = \"full\"\nmicro_batches = 2");
}
