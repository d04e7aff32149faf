//! What lies under `examples/` is right: cluster files read, and the pinned strategy gives a plan that verifies and obeys.

use galvatron::config::{cluster::parse_cluster, strategy::parse_strategy, train::parse_recipe};
use galvatron::driver::{Compilation, CompileFault, Compiled, compile, pins_of};
use galvatron_ir::Module;
use galvatron_passes::search::{Mode, Pins};
use std::path::{Path, PathBuf};

fn example(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(file)
}

fn read(file: &str) -> String {
    std::fs::read_to_string(example(file)).unwrap()
}

/// Plans the quickstart's model on a cluster of the examples and verifies after each pass.
fn plan(cluster: &str, pins: &Pins) -> Compiled {
    let cluster = parse_cluster(&read(cluster)).unwrap();
    let recipe = parse_recipe(&read("quickstart/train.toml"), &[]).unwrap();
    let model = example("quickstart/gpt2_char.onnx");
    let what = Compilation {
        model: &model,
        cluster: &cluster,
        recipe: &recipe,
        pins,
        profile: None,
        retie: true,
        stop_after: None,
        verify_each: true,
    };
    match compile(&what, &mut |_: &str, _: &Module| {}) {
        Ok(compiled) => compiled,
        Err(CompileFault::Input(faults)) => panic!("{}", faults[0]),
        Err(CompileFault::Bug(fault)) => panic!("{fault}"),
        Err(CompileFault::NoPlan { name, .. }) => panic!("no plan fits; {name} is the smallest"),
    }
}

#[test]
fn cluster_files_say_how_many_devices_they_have_in_their_names() {
    let mut n = 0;
    for entry in std::fs::read_dir(example("clusters")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let cluster = parse_cluster(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(name.rsplit('-').next().unwrap(), cluster.world().to_string(), "{name}");
        n += 1;
    }
    assert!(n >= 4, "{n} cluster files");
}

#[test]
fn the_pinned_strategy_is_obeyed() {
    let pins = pins_of(&parse_strategy(&read("pinned-strategy/strategy.toml")).unwrap()).unwrap();
    let found = plan("clusters/cpu-4.toml", &pins).found.unwrap();
    assert_eq!(found.decision.micro_batches, 4);
    let layers: Vec<_> = found.decision.segments.iter().filter(|s| s.name().starts_with("dp 2 · tp 2")).collect();
    assert!(layers.len() >= 4, "{}", found.decision.name());
    let recomputing = found.decision.segments.iter().filter(|s| s.mode == Mode::Selective).count();
    assert_eq!(recomputing, 2, "{}", found.decision.name());
}

/// The gradient of a table that has no batch goes through a reshape while it is a sum over micro-batches.
#[test]
fn sums_over_micro_batches_pass_through_linear_nodes() {
    for micro_batches in [2, 16] {
        let pins = Pins { micro_batches: Some(micro_batches), ..Pins::default() };
        plan("clusters/cpu-4.toml", &pins);
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let text = || galvatron_ir::text::print(&plan("clusters/cpu-4.toml", &Pins::default()).module);
    assert_eq!(text(), text());
}
