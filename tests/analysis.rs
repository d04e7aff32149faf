//! Questions about plans: what `explain`, `diff`, `whatif` and `sweep` answer, from plans as they stand in files.

mod plans;
#[path = "support/snapshot.rs"]
mod snapshot;

use galvatron::analysis::{diff::Diff, explain, sweep, whatif};
use galvatron::config::cluster::parse_cluster;
use galvatron::config::strategy::parse_strategy;
use galvatron::driver::{CompileFault, Compiled, Training, pins_of};
use galvatron_ir::cluster::Cluster;
use galvatron_ir::{Module, text};
use galvatron_passes::recognize::recognize;
use galvatron_passes::search::Pins;
use plans::Job;
use serde_json::Value;
use snapshot::check;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// GPT-2 on four ranks.
const GPT2: Job<'_> = Job { model: "gpt2", train: "", ranks: 4, strategy: "" };

/// Texts of `strategy.toml` that are given other names by what the plans do.
const NAMED: [&str; 15] = [
    "dp = 4\nzero = 0\nmicro_batches = 1\nrecompute = \"none\"",
    "dp = 4\nzero = 1\nmicro_batches = 1\nrecompute = \"selective\"",
    "dp = 2\ntp = 2\nzero = 2\nmicro_batches = 2\nrecompute = \"full\"",
    "dp = 4\nzero = 3\nmicro_batches = 1\nrecompute = \"full\"",
    "dp = 2\ntp = 2\nzero = 3\nmicro_batches = 2\nsequence = \"megatron\"",
    "tp = 4\nmicro_batches = 4\nsequence = \"none\"",
    "dp = 2\nulysses = 2\nzero = 1\nmicro_batches = 2",
    "dp = 2\ncp = 2\nzero = 2\nmicro_batches = 2",
    "pp = 2\ndp = 2\nzero = 1\nmicro_batches = 2",
    "pp = 2\ntp = 2\nmicro_batches = 4\nschedule = \"gpipe\"",
    "micro_batches = 1\n[[layers]]\nrange = [0, 1]\ndp = 2\ntp = 2\n[[layers]]\nrange = [1, 2]\ndp = 4\nzero = 2",
    "",
    "dp = 2\ncp = 2\ncp_kind = \"ring\"\nzero = 2\nmicro_batches = 2",
    "cp = 4\ncp_kind = \"zigzag\"\nrecompute = \"full\"\nmicro_batches = 1",
    "pp = 2\ndp = 2\nzero = 2\nmicro_batches = 2\nschedule = \"zero-bubble\"",
];

fn compiled(strategy: &str) -> Compiled {
    let strategies = Job { strategy, ..GPT2 };
    strategies.compile(&mut |_, _| {}).unwrap_or_else(|faults| panic!("{strategy}: {faults:?}"))
}

/// The plan as it stands in a file.
fn plan(strategy: &str) -> Module {
    text::parse(&text::print(&compiled(strategy).module)).expect("printed plans parse")
}

fn explained(plan: &Module, cluster: &Cluster) -> explain::Explanation {
    let pins = Pins { pp: Some(1), ..Pins::default() };
    let inputs = explain::Inputs { cluster, profile: None, pins: &pins };
    let explained = explain::Explanation::new(plan, &inputs);
    explained.unwrap_or_else(|fault| panic!("{}", spelled(&fault)))
}

fn spelled(fault: &CompileFault) -> String {
    match fault {
        CompileFault::Input(faults) => format!("{faults:?}"),
        CompileFault::NoPlan { name, .. } => format!("nothing fits, not even {name}"),
        CompileFault::Bug(fault) => fault.to_string(),
    }
}

#[test]
fn a_plan_carries_what_it_was_planned_for() {
    for job in [GPT2, Job { model: "mixtral", ..GPT2 }, Job { model: "mlp", ranks: 2, ..GPT2 }] {
        let compiled = job.compile(&mut |_, _| {}).expect("there is a plan");
        let printed = text::print(&compiled.module);
        let reread = text::parse(&printed).expect("printed plans parse");
        let training = Training::of(&reread).expect("its layers are tagged");
        assert_eq!(training.segments.len(), compiled.segments.len(), "{}", job.model);
        let cluster = reread.cluster.as_ref().expect("it was recorded");
        assert_eq!(*cluster, job.cluster());
        let pins = pins_of(&parse_strategy(job.strategy).expect("it is well formed")).expect("it is supported");
        let found = training.plan(&training.costs(cluster, None), &pins);
        let again = found.unwrap_or_else(|fault| panic!("{}", spelled(&fault))).plan;
        assert_eq!(text::print(&again), printed, "{}", job.model);
    }
}

#[test]
fn plans_are_named_by_what_they_do() {
    for strategy in NAMED {
        let compiled = compiled(strategy);
        let decided = compiled.found.expect("the search ran").decision;
        let mut recognized = recognize(&compiled.module, &compiled.segments);
        // Without sums over micro-batches level 2 is level 1.
        let without_sums = compiled.module.mesh.micro_batches() == 1;
        let names = |decision: &galvatron_passes::search::Decision| {
            let names = decision.segments.iter().zip(&compiled.segments);
            names.filter(|(_, s)| s.is_layer).map(|(c, _)| c.name()).collect::<Vec<_>>().join(" | ")
        };
        let expected = names(&decided);
        let expected = if without_sums { expected.replace("zero 2", "zero 1") } else { expected };
        assert_eq!(names(&recognized), expected, "{strategy}");
        assert_eq!(recognized.stages.take(), decided.stages, "{strategy}");
    }
}

#[test]
fn what_is_pinned_again_is_the_same_strategy() {
    for strategy in [NAMED[2], NAMED[4], NAMED[8]] {
        let plan = plan(strategy);
        let training = Training::of(&plan).expect("its layers are tagged");
        let decision = recognize(&plan, &training.segments);
        let costs = training.costs(&GPT2.cluster(), None);
        let found = training.plan(&costs, &decision.pins(&training.segments));
        let found = found.unwrap_or_else(|fault| panic!("{strategy}: {}", spelled(&fault)));
        assert_eq!(recognize(&found.plan, &training.segments).name(), decision.name(), "{strategy}");
    }
}

#[test]
fn reasons_for_a_searched_plan() {
    let plan = plan("pp = 1");
    let explained = explained(&plan, &GPT2.cluster());
    assert!(explained.searched.is_same && explained.notes.is_empty(), "{explained:?}");
    assert_eq!(explained.step_ns, plan.predicted.step_time_ns);
    assert!(explained.groups.iter().all(|g| g.runner_up.as_ref().is_none_or(|(_, more)| *more >= 0)), "{explained:?}");
    assert!(explained.groups.iter().any(|g| g.runner_up.is_some()));
    check("explain.gpt2", &explained.text());
}

#[test]
fn reasons_for_a_pinned_plan() {
    let explained =
        explained(&plan("dp = 2\ntp = 2\nzero = 1\nmicro_batches = 2\nrecompute = \"full\""), &GPT2.cluster());
    assert!(!explained.searched.is_same && explained.searched.step_ns < explained.step_ns);
    assert!(explained.groups.iter().any(|g| g.runner_up.as_ref().is_some_and(|(_, more)| *more < 0)), "{explained:?}");
    check("explain.gpt2-pinned", &explained.text());
}

/// A device that has just what the smallest plans need: memory has a price.
#[test]
fn memory_that_binds_has_a_price() {
    let roomy = plan("pp = 1");
    let mut cluster = GPT2.cluster();
    cluster.device.memory_bytes = roomy.peak_bytes() * 3 / 5;
    let training = Training::of(&roomy).expect("its layers are tagged");
    let pins = Pins { pp: Some(1), ..Pins::default() };
    let found = training.plan(&training.costs(&cluster, None), &pins);
    let tight = found.unwrap_or_else(|fault| panic!("{}", spelled(&fault))).plan;
    let explained = explained(&tight, &cluster);
    let saved = tight.predicted.step_time_ns - roomy.predicted.step_time_ns;
    assert!(saved > 0);
    assert_eq!(explained.saved_ns, explain::Saved { without_limit_ns: saved, by_one_gib_ns: saved });
    assert!(explained.groups.iter().any(|g| g.barred.is_some()), "{explained:?}");
    check("explain.gpt2-tight", &explained.text());
}

#[test]
fn two_plans_side_by_side() {
    let (a, b) = (plan(NAMED[2]), plan(NAMED[8]));
    let names = ["a.gir", "b.gir"];
    let same = Diff::new(&a, &a);
    assert!(same.identical);
    assert_eq!(same.text(names), "the plans are identical\n");
    let differs = |json: &Value| json.as_array().expect("a list").iter().any(|p| p["differs"] == true);
    let sections = ["plan", "layers", "memory_bytes", "time_ns", "sent_bytes"];
    assert!(sections.iter().all(|section| !differs(&same.json(names)[*section])));
    let diff = Diff::new(&a, &b);
    assert!(sections.iter().all(|section| differs(&diff.json(names)[*section])), "{diff:?}");
    check("diff.gpt2", &diff.text(names));
}

#[test]
fn models_of_other_layers_are_compared_too() {
    let mlp = Job { model: "mlp", ranks: 4, ..GPT2 }.compile(&mut |_, _| {}).expect("there is a plan").module;
    let diff = Diff::new(&plan(""), &mlp);
    assert!(!diff.identical && diff.layers.iter().all(|pair| pair.differs()));
}

fn asked(plan: &Module, cluster: &Cluster) -> whatif::WhatIf {
    let pins = Pins { pp: Some(1), ..Pins::default() };
    let inputs = whatif::Inputs { cluster, profile: None, training: None, pins: Some(&pins) };
    whatif::WhatIf::new(plan, &inputs).unwrap_or_else(|fault| panic!("{}", spelled(&fault)))
}

#[test]
fn the_same_machine_changes_nothing() {
    let plan = plan("pp = 1");
    let answer = asked(&plan, &GPT2.cluster());
    assert_eq!(answer.same.as_ref(), Ok(&answer.planned));
    assert_eq!(answer.replanned, Some(Ok(answer.planned)));
}

#[test]
fn a_slower_link_is_priced_and_planned_around() {
    let plan = plan("dp = 2\ntp = 2\nmicro_batches = 2\nzero = 1");
    let mut cluster = GPT2.cluster();
    cluster.levels[0].bandwidth /= 16.0;
    let answer = asked(&plan, &cluster);
    let same = answer.same.as_ref().expect("it is priced");
    let again = answer.replanned.as_ref().expect("it is asked for").as_ref().expect("it is planned");
    assert!(answer.planned.step_ns < same.step_ns && again.step_ns < same.step_ns, "{answer:?}");
    assert_eq!(same.strategy, answer.planned.strategy);
    check("whatif.gpt2", &answer.text());
    check("explain.gpt2-slow-link", &explained(&plan, &cluster).text());
}

#[test]
fn a_cluster_of_another_size_takes_only_a_plan_of_its_own() {
    let answer = asked(&plan("pp = 1"), &GPT2.cluster().resized(2).expect("half of a node"));
    assert!(answer.same.as_ref().is_err_and(|why| why.contains("4 devices")), "{answer:?}");
    assert!(answer.replanned.is_some_and(|case| case.is_ok()));
}

#[test]
fn a_sweep_goes_on_past_sizes_without_plan() {
    let training = Training::of(&plan("")).expect("its layers are tagged");
    let pins = pins_of(&parse_strategy("pp = 1\ndp = 2").expect("it is well formed")).expect("it is supported");
    let cluster = GPT2.cluster();
    let inputs = |pins, devices| sweep::Inputs { cluster: &cluster, profile: None, pins, devices, price: Some(2.0) };
    let pinned = sweep::Sweep::new(&training, &inputs(&pins, &[1, 2, 3, 4, 8]));
    let feasible: Vec<bool> = pinned.points.iter().map(|point| point.outcome.is_ok()).collect();
    assert_eq!(feasible, [false, true, false, true, false]);
    check("sweep.gpt2", &pinned.text());
    let json = pinned.json();
    assert!(json["points"][0]["infeasible"].as_str().is_some_and(|why| why.starts_with("world-size")), "{json}");
    assert_eq!(json["points"][1]["efficiency"], 1.0);
    let seconds = json["points"][3]["device_s_per_sample"].as_f64().expect("a number");
    let speed = json["points"][3]["samples_per_s"].as_f64().expect("a number");
    assert!((seconds * speed - 4.0).abs() < 1e-9);
}

/// A folder that is removed with what is in it.
struct TempFolder(PathBuf);

impl TempFolder {
    fn new(name: &str) -> TempFolder {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("analysis-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("the folder can be made");
        TempFolder(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.0.join(name), text).expect("the folder takes files");
        self.path(name)
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn galvatronc(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_galvatronc")).args(args).output().expect("it starts")
}

fn json_of(args: &[&str]) -> Value {
    let output = galvatronc(&[args, &["--format", "json"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}"))
}

#[test]
fn the_plan_does_not_depend_on_the_threads() {
    let folder = TempFolder::new("threads");
    let cluster = folder.write("hw.toml", &galvatron::config::cluster::to_toml(&GPT2.cluster()));
    let plan = |threads| {
        let plan = folder.path(&format!("{threads}.gir"));
        let sets = ["--set", "batch.global=4", "--set", "batch.sequence=16", "--threads", threads, "-o", &plan];
        let output =
            galvatronc(&[&["tests/fixtures/gpt2/gpt2.keep20.onnx", "--cluster", &cluster][..], &sets].concat());
        (output.status.code(), std::fs::read_to_string(plan).ok())
    };
    let by_one = plan("1");
    assert!(by_one.0 == Some(0) && by_one.1.is_some(), "{by_one:?}");
    assert!(plan("3") == by_one);
    assert_eq!(plan("0"), (Some(2), None));
}

#[test]
fn the_commands_answer_from_files() {
    const MODEL: &str = "tests/fixtures/gpt2/gpt2.keep20.onnx";
    let folder = TempFolder::new("commands");
    let cluster = folder.write("hw.toml", &galvatron::config::cluster::to_toml(&GPT2.cluster()));
    let (a, b, trace) = (folder.path("a.gir"), folder.path("b.gir"), folder.path("trace.json"));
    let pins = folder.write("pins.toml", "dp = 4\nzero = 3\n");
    let sets = ["--set", "batch.global=4", "--set", "batch.sequence=16"];
    let make = |more: &[&str]| json_of(&[&[MODEL, "--cluster", &cluster][..], &sets, more].concat());
    let made = make(&["-o", &a, "--trace", &trace]);
    make(&["-o", &b, "--strategy", &pins]);
    let traced: Value = serde_json::from_slice(&std::fs::read(trace).expect("it was written")).expect("it is JSON");
    assert!(traced["traceEvents"].as_array().is_some_and(|events| events.len() > 100));
    let explained = json_of(&["explain", &a]);
    assert_eq!((&explained["step_ns"], &explained["searched"]["is_same"]), (&made["step_time_ns"], &true.into()));
    assert_eq!(json_of(&["diff", &a, &a])["identical"], true);
    assert_eq!(json_of(&["diff", &a, &b])["identical"], false);
    let supposed = json_of(&["whatif", &a, "--set", "device.memory_gib=4"]);
    assert_eq!(supposed["same_strategy"]["memory_bytes"], 4u64 << 30);
    assert_eq!(supposed["planned_anew"]["step_ns"], made["step_time_ns"]);
    let priced = json_of(&["whatif", &a, "--set", "device.memory_gib=4", "--same-strategy"]);
    assert_eq!((&priced["same_strategy"], priced.get("planned_anew")), (&supposed["same_strategy"], None));
    let larger = json_of(&["whatif", &a, "--set", "batch.global=8", "--model", MODEL]);
    assert!(larger["same_strategy"]["step_ns"].as_u64() > made["step_time_ns"].as_u64(), "{larger}");
    let swept = json_of(&[&["sweep", MODEL, "--cluster", &cluster, "--devices", "2,4"][..], &sets].concat());
    assert_eq!(swept["points"][1]["step_ns"], made["step_time_ns"]);
    let open = "tests/fixtures/gpt2/gpt2.dyn18.onnx";
    let lengths = json_of(&["sweep", open, "--cluster", &cluster, "--sequences", "8,16", sets[0], sets[1]]);
    assert_eq!(lengths["points"][1]["sequence"], 16);
    assert!(lengths["points"][0]["step_ns"].as_u64() < lengths["points"][1]["step_ns"].as_u64(), "{lengths}");
}

/// Under other settings the program is built again with the padding that the plan's degrees need. Galvatron's format has none.
#[test]
fn a_padded_plan_is_asked_about_as_it_is() {
    const MODEL: &str = "tests/fixtures/gpt2/gpt2.keep20.onnx";
    let folder = TempFolder::new("padded");
    let three = include_str!("../examples/clusters/cpu-4.toml").replace("devices_per_node = 4", "devices_per_node = 3");
    let cluster = folder.write("hw.toml", &three);
    let pins = folder.write("pins.toml", "tp = 3\n");
    let (plan, config) = (folder.path("plan.gir"), folder.path("galvatron_config_x.json"));
    let sets = ["--set", "batch.global=4", "--set", "batch.sequence=16"];
    let inputs = [&[MODEL, "--cluster", &cluster, "--strategy", &pins][..], &sets].concat();
    let step_ns = json_of(&[&inputs[..], &["-o", &plan]].concat())["step_time_ns"].as_u64().expect("a number");
    let same = |more: &[&str]| {
        let answer = json_of(&[&["whatif", &plan, "--same-strategy"][..], more].concat());
        answer["same_strategy"]["step_ns"].as_u64().unwrap_or_else(|| panic!("{answer}"))
    };
    assert!(same(&["--set", "batch.global=8", "--model", MODEL]) > step_ns);
    let level = "level=[{name=\"slow\", size=3, bandwidth_gbps=0.1, latency_us=10.0}]";
    assert!(same(&["--set", level]) > step_ns);
    let refused = galvatronc(&[&inputs[..], &["--emit-strategy", &config]].concat());
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && said.contains("padding; the format has none"), "{said}");
}

#[test]
fn questions_that_cannot_be_answered_are_refused() {
    let folder = TempFolder::new("refused");
    let mut bare = plan("");
    bare.cluster = None;
    let bare = folder.write("bare.gir", &text::print(&bare));
    let whole = folder.write("whole.gir", &text::print(&plan("")));
    let (model, cluster) = ("tests/fixtures/gpt2/gpt2.keep20.onnx", "examples/clusters/cpu-4.toml");
    let cases: [(&[&str], &str); 7] = [
        (&["explain", &bare], "error[no-cluster]"),
        (&["whatif", &whole, "--set", "batch.global=8"], "error[usage]"),
        (&["whatif", &whole, "--set", "device.memory=8"], "error[unknown-key]"),
        (&["sweep", model, "--devices", "2"], "error[usage]"),
        (&["sweep", model, "--cluster", cluster, "--sequences", "8,16", "--set", "batch.global=4"], "error[batch]"),
        (&["diff", &whole, "no-such-file.gir"], "error[plan-file]"),
        (&["explain", "tests/filetests/verify"], "error[plan-file]"),
    ];
    for (args, code) in cases {
        let output = galvatronc(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(code), "{args:?}: {said}");
    }
}

#[test]
fn a_length_that_the_file_does_not_have_is_said() {
    let (model, cluster) = ("tests/fixtures/gpt2/gpt2.keep20.onnx", "examples/clusters/cpu-2.toml");
    let warned = |sequence: &str| {
        let output = galvatronc(&[model, "--cluster", cluster, "--set", "batch.global=4", "--set", sequence]);
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8_lossy(&output.stderr).contains("but the file has sequences of 16")
    };
    assert_eq!(["batch.sequence=16", "batch.sequence=8"].map(warned), [false, true]);
}

#[test]
fn a_cluster_that_is_recorded_is_read_as_it_was() {
    let text = "name = \"two nodes\"\nnodes = 2\ndevices_per_node = 2\n[device]\nkind = \"cpu\"\nmemory_gib = 1.5\n\
                peak_tflops = { f32 = 0.1 }\nmemory_bandwidth_gbps = 12.8\n[links.intra_node]\nbandwidth_gbps = 4.7\n\
                latency_us = 0.3\n[links.inter_node]\nbandwidth_gbps = 1.1\nlatency_us = 25.0\n";
    let cluster = parse_cluster(text).expect("it is well formed");
    let mut module = plan("");
    module.cluster = Some(cluster.clone());
    let reread = galvatron_ir::text::parse(&galvatron_ir::text::print(&module)).expect("printed plans parse");
    assert_eq!(reread.cluster, Some(cluster));
}
