//! Devices that differ: a slow node, a node of little memory, and a straggler, each with the plan that suits it and what `explain` says of it.

#[path = "support/snapshot.rs"]
mod snapshot;

use galvatron::analysis::explain::{Explanation, Inputs};
use galvatron::config::{cluster::parse_cluster, strategy::parse_strategy, train::parse_recipe};
use galvatron::driver::{Compilation, CompileFault, Compiled, compile, pins_of};
use galvatron::report::no_plan_message;
use galvatron_ir::cluster::Cluster;
use galvatron_ir::plan::PhaseKind;
use galvatron_ir::text;
use galvatron_passes::cost::{CostModel, plan_cost};
use galvatron_passes::search::Pins;
use snapshot::check;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A GPT-2 of twelve layers.
const CONFIG: &str = r#"{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 512, "n_positions": 128,
"n_embd": 256, "n_layer": 12, "n_head": 8, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}"#;

/// The model as a file, which each test writes for itself.
fn model(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("groups-{test}"));
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    let path = folder.join("gpt2-12.json");
    std::fs::write(&path, CONFIG).expect("the folder takes files");
    path
}

/// Nodes of CPU ranks, with groups.
fn cluster([nodes, devices]: [u32; 2], groups: &str) -> Cluster {
    let mut text = format!("name = \"{nodes} x {devices}\"\nnodes = {nodes}\ndevices_per_node = {devices}\n[device]\n");
    text += "kind = \"cpu\"\nmemory_gib = 1.0\npeak_tflops.f32 = 0.1\nmemory_bandwidth_gbps = 10.0\n";
    text += "[links.intra_node]\nbandwidth_gbps = 4.0\nlatency_us = 10.0\n";
    text += "[links.inter_node]\nbandwidth_gbps = 1.0\nlatency_us = 20.0\n";
    parse_cluster(&(text + groups)).expect("the cluster is well formed")
}

struct Planned {
    compiled: Compiled,
    cluster: Cluster,
    pins: Pins,
}

impl Planned {
    fn new(test: &str, cluster: Cluster, strategy: &str) -> Planned {
        let pins = pins_of(&parse_strategy(strategy).expect("it is well formed")).expect("it is supported");
        let settings = ["batch.global=24".to_string(), "batch.sequence=64".to_string()];
        let what = Compilation {
            model: &model(test),
            cluster: &cluster,
            recipe: &parse_recipe("", &settings).expect("the recipe is right"),
            pins: &pins,
            profile: None,
            retie: true,
            stop_after: None,
            verify_each: false,
        };
        let compiled = compile(&what, &mut |_, _| {}).unwrap_or_else(|fault| panic!("{}", spelled(&fault)));
        Planned { compiled, cluster, pins }
    }

    /// Layers of each stage.
    fn layers(&self) -> Vec<u32> {
        let found = self.compiled.found.as_ref().expect("the search ran");
        found.decision.stages.as_ref().expect("there are stages").layers.clone()
    }

    /// What `galvatronc explain` prints of the plan as it stands in a file.
    fn explained(&self) -> String {
        let plan = text::parse(&text::print(&self.compiled.module)).expect("printed plans parse");
        let cluster = plan.cluster.as_ref().expect("it is recorded");
        assert_eq!(*cluster, self.cluster);
        let explained = Explanation::new(&plan, &Inputs { cluster, profile: None, pins: &self.pins });
        let explained = explained.unwrap_or_else(|fault| panic!("{}", spelled(&fault)));
        assert!(explained.searched.is_same && explained.notes.is_empty(), "{explained:?}");
        explained.text()
    }

    fn fits(&self) -> bool {
        self.compiled.module.memory_by_stage(&self.cluster).iter().all(|stage| stage.fits())
    }
}

fn spelled(fault: &CompileFault) -> String {
    match fault {
        CompileFault::Input(faults) => format!("{faults:?}"),
        CompileFault::NoPlan { stages, .. } => no_plan_message(stages),
        CompileFault::Bug(fault) => fault.to_string(),
    }
}

/// Three stages of one rank each.
const THREE: &str = "pp = 3\nschedule = \"1f1b\"\nmicro_batches = 6\n";

#[test]
fn a_slow_stage_has_fewer_layers() {
    let equal = Planned::new("slow", cluster([3, 1], ""), THREE).layers();
    let groups = "[[group]]\nname = \"new\"\ncount = 1\n[[group]]\nname = \"old\"\ncount = 1\nspeed = 0.5\n\
                  [[group]]\nname = \"new\"\ncount = 1\n";
    let slow = Planned::new("slow", cluster([3, 1], groups), THREE);
    let layers = slow.layers();
    assert!(layers[1] < equal[1] && layers[1] * 2 <= layers[0] + 1 && layers[1] * 2 <= layers[2] + 1, "{layers:?}");
    check("explain.groups-slow-stage", &slow.explained());
}

#[test]
fn a_stage_of_little_memory_needs_less() {
    let roomy = Planned::new("small", cluster([3, 1], ""), THREE);
    let middle = roomy.compiled.module.stages[1].arena.bytes();
    let gib = middle as f64 * 0.4 / f64::from(1 << 30);
    let groups = format!(
        "[[group]]\nname = \"large\"\ncount = 1\n[[group]]\nname = \"small\"\ncount = 1\nmemory_gib = {gib}\n\
         [[group]]\nname = \"large\"\ncount = 1\n"
    );
    let tight = Planned::new("small", cluster([3, 1], &groups), THREE);
    assert!(tight.fits() && !roomy.compiled.module.memory_by_stage(&tight.cluster)[1].fits());
    assert_ne!(
        tight.compiled.found.as_ref().expect("found").decision.name(),
        roomy.compiled.found.as_ref().expect("found").decision.name()
    );
    check("explain.groups-small-stage", &tight.explained());
}

#[test]
fn a_plan_for_unequal_devices_is_run_as_any_other() {
    let groups = "[[group]]\ncount = 2\n[[group]]\ncount = 1\nmemory_gib = 0.5\nspeed = 0.7\n";
    let planned = Planned::new("run", cluster([3, 1], groups), THREE);
    let file = |name: &str| model("run").with_file_name(name);
    std::fs::write(file("plan.gir"), text::print(&planned.compiled.module)).expect("the plan is written");
    let tokens: Vec<u8> = (0..24 * 64 + 1).flat_map(|i: u32| ((i * 7 % 512) as u16).to_le_bytes()).collect();
    std::fs::write(file("tokens.bin"), tokens).expect("the tokens are written");
    let mut exec = Command::new(env!("CARGO_BIN_EXE_galvatron-exec"));
    exec.arg(file("plan.gir")).arg("--data").arg(file("tokens.bin")).args(["--init", "random", "--steps", "1"]);
    let output = exec.output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Four ranks of a node, the last of which is throttled.
const STRAGGLER: &str =
    "[[group]]\nname = \"sound\"\ncount = 3\n[[group]]\nname = \"straggler\"\ncount = 1\nspeed = 0.6\n";

#[test]
fn a_straggler_has_a_stage_of_fewer_layers() {
    let strategy = "pp = 2\nschedule = \"1f1b\"\nmicro_batches = 6\n";
    let equal = Planned::new("straggler", cluster([1, 4], ""), strategy).layers();
    let with = Planned::new("straggler", cluster([1, 4], STRAGGLER), strategy);
    assert!(with.layers()[1] < equal[1], "{equal:?} {:?}", with.layers());
    check("explain.groups-straggler", &with.explained());
}

#[test]
fn without_stages_all_wait_for_the_straggler() {
    let with = Planned::new("together", cluster([1, 4], STRAGGLER), "pp = 1\n");
    let prices = |cluster: &Cluster| plan_cost(&CostModel::analytic(cluster), &with.compiled.module).phases;
    let (equal, slow) = (prices(&cluster([1, 4], "")), prices(&with.cluster));
    for phase in [PhaseKind::Forward, PhaseKind::Backward, PhaseKind::Step] {
        let ratio = slow[&phase].compute_ns as f64 / equal[&phase].compute_ns as f64;
        // All but the launches.
        assert!((1.6..=1.0 / 0.6).contains(&ratio), "{phase:?}: {ratio}");
        assert_eq!(slow[&phase].communication_ns, equal[&phase].communication_ns);
    }
    check("explain.groups-one-stage", &with.explained());
}

#[test]
fn groups_that_are_alike_change_nothing() {
    let groups = "[[group]]\ncount = 2\n[[group]]\ncount = 2\n";
    let [bare, alike] = ["", groups].map(|groups| Planned::new("alike", cluster([1, 4], groups), "").compiled.module);
    let without = |module: galvatron_ir::Module| text::print(&galvatron_ir::Module { cluster: None, ..module });
    assert_eq!(without(bare), without(alike));
}

#[test]
fn what_does_not_fit_is_said_of_its_stage() {
    let groups = "[[group]]\ncount = 2\n[[group]]\ncount = 1\nmemory_gib = 0.001\n";
    let pins = pins_of(&parse_strategy(THREE).expect("it is well formed")).expect("it is supported");
    let what = Compilation {
        model: &model("none"),
        cluster: &cluster([3, 1], groups),
        recipe: &parse_recipe("", &["batch.global=24".into(), "batch.sequence=64".into()])
            .expect("the recipe is right"),
        pins: &pins,
        profile: None,
        retie: true,
        stop_after: None,
        verify_each: false,
    };
    let Err(fault) = compile(&what, &mut |_, _| {}) else { panic!("a MiB is not enough") };
    assert!(spelled(&fault).ends_with("a device of stage 2, which has 1.02 MiB"), "{}", spelled(&fault));
}
