//! Training in bf16 stays close to f32, under every kind of plan, in the memory that the plan says.

#[path = "support/allocator.rs"]
mod allocator;
#[path = "support/fixture.rs"]
mod fixture;
#[path = "support/plan.rs"]
mod plan;

use fixture::{Fixture, N_STEPS};
use galvatron::config::{cluster::parse_cluster, train::parse_recipe};
use galvatron::driver::{Compilation, compile};
use galvatron::runner::PlanData;
use galvatron::weights::RandomWeights;
use galvatron_backends::exec::{Flow, RunOptions, Tensors};
use galvatron_ir::Module;
use galvatron_ir::cluster::DeviceKind;
use galvatron_ir::recipe::Recipe;
use galvatron_ir::types::DType;
use galvatron_passes::search::Pins;
use plan::Order;
use std::path::{Path, PathBuf};

/// Relative error that a loss may have against f32.
const BAND: f64 = 0.01;

/// Plans that place weights, gradients and activations in every way.
const STRATEGIES: [(u32, &str); 8] = [
    (1, "micro_batches = 2"),
    (2, "dp = 2\nzero = 1"),
    (2, "dp = 2\nzero = 2\nmicro_batches = 2"),
    (4, "dp = 4\nzero = 3\nrecompute = \"full\""),
    (2, "tp = 2"),
    (4, "tp = 4\nsequence = \"megatron\""),
    (4, "dp = 2\ntp = 2\nzero = 3\nmicro_batches = 2\nrecompute = \"selective\""),
    (4, ""),
];

/// Steps of the long run without the whole set of fixtures, and with it.
const LONG: [u64; 2] = [40, 200];

#[test]
fn bf16_plans_follow_pytorch() {
    let fixture = Fixture::open("gpt2");
    for (ranks, strategy) in STRATEGIES {
        for optimizer in ["sgd_momentum", "adamw"] {
            let compute = DType::Bf16;
            check(&Order { fixture: &fixture, dialect: "keep20", optimizer, ranks, strategy, compute });
        }
    }
}

/// The router's choices are made of rounded scores, so a token may see another expert; losses stay in the band.
#[test]
fn mixtures_of_experts_in_bf16_follow_pytorch() {
    let fixture = Fixture::open("mixtral");
    let (dialect, optimizer, compute) = ("keep20", "adamw", DType::Bf16);
    for (ranks, strategy) in [
        (1, "micro_batches = 2"),
        (4, "dp = 4\nep = 2\nzero = 1"),
        (4, "dp = 2\ntp = 2\nep = 2\nzero = 3\nrecompute = \"full\""),
        (4, "dp = 4\nep = 4\nep_kind = \"all_to_all\"\nzero = 1"),
        (4, "dp = 2\ntp = 2\nep = 4\nep_kind = \"all_to_all\"\nrecompute = \"full\""),
        (4, "dp = 2\ntp = 2\nep = 1\nsequence = \"megatron\"\nrecompute = \"selective\""),
    ] {
        check(&Order { fixture: &fixture, dialect, optimizer, ranks, strategy, compute });
    }
}

fn check(order: &Order<'_>) {
    let name = format!("{} on {}: {}", order.optimizer, order.ranks, order.strategy);
    let module = order.compile().unwrap_or_else(|faults| panic!("{name}: {}", faults[0])).module;
    assert!(has_bf16_parameters(&module), "{name}");
    let run = &order.fixture.manifest["reference"]["trajectories"][order.optimizer];
    let options = RunOptions { steps: N_STEPS, threads: Some(1), collect: true, ..RunOptions::default() };
    let mut each = |step: galvatron_backends::exec::StepReport| {
        let expected = run["losses"][step.step as usize - 1].as_f64().expect("the manifest has a number");
        let error = (step.loss - expected).abs() / expected;
        assert!(error < BAND, "{name}: loss {} of step {}, not {expected}", step.loss, step.step);
        assert!(step.peak_bytes == module.peak_bytes_by_rank(), "{name}: {:?}", step.peak_bytes);
        Flow::Continue
    };
    let report = galvatron_backends::run(&module, &options, order.fixture.data(), &order.weights(), &mut each);
    let report = report.unwrap_or_else(|fault| panic!("{name}: {fault}"));
    assert!(has_master_bits(&report.trained.expect("it was asked for").parameters), "{name}: parameters were rounded");
}

fn has_bf16_parameters(module: &Module) -> bool {
    let ty = |w: &galvatron_ir::module::Weight| module.program.graph.value(w.value).ty.dtype;
    module.program.weights.iter().any(|w| ty(w) == DType::Bf16)
}

/// What is saved are the master copies: more bits than bf16 has.
fn has_master_bits(parameters: &Tensors) -> bool {
    parameters.values().flat_map(|t| &t.data).any(|v| v.to_bits() & 0xffff != 0)
}

/// A plan for GPUs has no room for the f32 copies of CPU ranks; these have memory of their own, and train to the same bits.
#[test]
fn plans_for_gpus_run_on_cpu_ranks_and_are_smaller() {
    let fixture = Fixture::open("gpt2");
    let (dialect, optimizer, strategy) = ("keep20", "adamw", "dp = 2\ntp = 2\nzero = 3");
    let order = |compute| Order { fixture: &fixture, dialect, optimizer, ranks: 4, strategy, compute };
    let plan = |compute, kind: &str| order(compute).compile_for(kind).expect("the pins can be met").module;
    let [cpu, gpu] = ["cpu", "cuda"].map(|kind| plan(DType::Bf16, kind));
    assert!(
        gpu.stages[0].arena.transient < cpu.stages[0].arena.transient,
        "{} and {} bytes",
        gpu.stages[0].arena.transient,
        cpu.stages[0].arena.transient
    );
    let run = |module: &Module| {
        let options = RunOptions { steps: 2, collect: true, ..RunOptions::default() };
        let weights = order(DType::Bf16).weights();
        galvatron_backends::run(module, &options, fixture.data(), &weights, &mut |_| Flow::Continue).expect("it runs")
    };
    let (on_cpu_plan, on_gpu_plan) = (run(&cpu), run(&gpu));
    assert_eq!(on_cpu_plan.trained, on_gpu_plan.trained);
    assert_eq!((on_cpu_plan.remarks.len(), on_gpu_plan.remarks.len()), (0, 4));
    assert!(on_gpu_plan.peak_bytes.iter().all(|&bytes| bytes == gpu.peak_bytes()), "{:?}", on_gpu_plan.peak_bytes);
    // In f32 there are no copies: the same plan is one for GPUs when its mesh says so.
    let text = galvatron_ir::text::print(&plan(DType::F32, "cpu"));
    let mesh = text.lines().find(|line| line.contains("mesh [")).expect("it has a mesh");
    let relabelled = galvatron_ir::text::parse(&text.replace(mesh, &format!("{mesh} of cuda"))).expect("it is a plan");
    assert_eq!(relabelled.mesh.device(), DeviceKind::Cuda);
    assert!(galvatron_ir::verify::check(&relabelled, None).is_empty());
}

#[test]
fn a_long_run_in_bf16_stays_beside_f32() {
    let is_whole_set = std::env::var_os("GALVATRON_FIXTURES").is_some();
    let steps = LONG[usize::from(is_whole_set)];
    let (f32, bf16) = (losses(DType::F32, steps), losses(DType::Bf16, steps));
    let errors = f32.iter().zip(&bf16).map(|(a, b)| (a - b).abs() / a);
    let worst = errors.fold(0.0, f64::max);
    println!(
        "{steps} steps: loss {:.4} in f32, {:.4} in bf16, {:.4} % apart at most",
        f32[f32.len() - 1],
        bf16[bf16.len() - 1],
        100.0 * worst
    );
    assert!(worst < BAND, "{worst}");
}

/// The losses of the quick start's model and data on two ranks.
fn losses(compute: DType, steps: u64) -> Vec<f64> {
    let file = |name: &str| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
    let read = |name: &str| std::fs::read_to_string(file(name)).expect("the example is there");
    let cluster = parse_cluster(&read("clusters/cpu-2.toml")).expect("the cluster is described well");
    let recipe = parse_recipe(&read("quickstart/train.toml"), &[]).expect("the recipe is right");
    let module = plan_of(&file("quickstart/gpt2_char.onnx"), &cluster, &Recipe { compute, ..recipe });
    let data = PlanData::open(&file("quickstart/corpus.bin"), &module).unwrap_or_else(|faults| panic!("{}", faults[0]));
    let options = RunOptions { steps, ..RunOptions::default() };
    let mut losses = Vec::new();
    let mut each = |step: galvatron_backends::exec::StepReport| {
        losses.push(step.loss);
        Flow::Continue
    };
    galvatron_backends::run(&module, &options, &data, &RandomWeights { seed: 0 }, &mut each)
        .unwrap_or_else(|fault| panic!("{fault}"));
    losses
}

fn plan_of(model: &Path, cluster: &galvatron_ir::cluster::Cluster, recipe: &Recipe) -> Module {
    let pins = Pins::default();
    let what = Compilation {
        model,
        cluster,
        recipe,
        pins: &pins,
        profile: None,
        retie: true,
        stop_after: None,
        verify_each: true,
    };
    compile(&what, &mut |_, _| {}).unwrap_or_else(|_| panic!("the model is planned")).module
}
