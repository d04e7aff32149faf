//! Graphs of published sizes without weights: each is planned for a cluster that can hold it, and its layers are found.
//!
//! Two graphs and a configuration are committed; the rest lies in the folder that `GALVATRON_FIXTURES` names.

use galvatron::config::{cluster::parse_cluster, train::parse_recipe};
use galvatron::driver::{Compilation, CompileFault, compile};
use galvatron_passes::search::Pins;
use galvatron_passes::segment::layers as layers_of;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A graph, the number of its cluster's devices, and how many layers of each kind follow one another.
type Case = (&'static str, u32, &'static [usize]);

/// The committed ones.
const COMMITTED: [Case; 2] = [("gpt3-1.3b.op23", 8, &[24]), ("t5-11b.op23", 64, &[24, 24])];

/// The others.
const OTHERS: [Case; 13] = [
    ("bert-huge-32.op23", 8, &[32]),
    ("gpt3-1.3b.op18", 8, &[24]),
    ("gpt3-175b.op23", 1024, &[96]),
    ("gpt3-6.7b.op23", 64, &[32]),
    ("llama2-70b.op23", 64, &[80]),
    ("llama2-7b.op18", 64, &[32]),
    ("llama2-7b.op23", 64, &[32]),
    ("llama3-405b.op23", 1024, &[126]),
    ("llama3-8b.op23", 64, &[32]),
    ("mixtral-8x7b.op23", 64, &[32]),
    ("swin-huge-32.op23", 8, &[2, 2, 26, 2]),
    ("t5-large.op23", 8, &[24, 24]),
    ("vit-huge-32.op23", 8, &[32]),
];

/// A fresh folder for a graph.
fn unpacked(packed: &Path, name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("planning");
    std::fs::create_dir_all(&folder).expect("the folder is made");
    let mut graph = Vec::new();
    let file = std::fs::File::open(packed).unwrap_or_else(|e| panic!("{}: {e}", packed.display()));
    flate2::read::GzDecoder::new(file).read_to_end(&mut graph).expect("it is compressed with gzip");
    let path = folder.join(format!("{name}.onnx"));
    std::fs::write(&path, graph).expect("the graph is written");
    path
}

/// Plans a model; what is wrong, if anything is.
fn fault_of(model: &Path, (name, n_devices, layers): Case) -> Option<String> {
    let clusters = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/clusters");
    let cluster = std::fs::read_to_string(clusters.join(format!("a100-80gb-{n_devices}.toml"))).expect("it is there");
    let batch = if n_devices > 256 { 1024 } else { 256 };
    let settings = [format!("batch.global={batch}"), "batch.sequence=512".into()];
    let what = Compilation {
        model,
        cluster: &parse_cluster(&cluster).expect("the cluster is described well"),
        recipe: &parse_recipe("", &settings).expect("the recipe is right"),
        pins: &Pins::default(),
        profile: None,
        retie: true,
        stop_after: None,
        verify_each: false,
    };
    match compile(&what, &mut |_, _| {}) {
        Err(CompileFault::Input(faults)) => Some(format!("{name}: {}", faults[0])),
        Err(CompileFault::Bug(fault)) => Some(format!("{name}: {fault}")),
        Err(CompileFault::NoPlan { least_bytes, .. }) => Some(format!("{name}: the smallest plan needs {least_bytes}")),
        Ok(compiled) => {
            let found = layers_of(&compiled.segments);
            (found != layers).then(|| format!("{name}: layers {found:?}, not {layers:?}"))
        }
    }
}

fn check(folder: &Path, cases: &[Case]) {
    let fault = |&case: &Case| {
        let name = case.0;
        fault_of(&unpacked(&folder.join(format!("{name}.onnx.gz")), name), case)
    };
    let faults: Vec<String> = cases.iter().filter_map(fault).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn committed_graphs_are_planned() {
    check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/planning"), &COMMITTED);
}

#[test]
fn a_published_mixture_of_experts_is_planned_from_its_configuration() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/configs/mixtral-8x7b.json");
    assert_eq!(fault_of(&model, ("mixtral-8x7b", 64, &[32])), None);
}

#[test]
fn all_graphs_are_planned() {
    match std::env::var_os("GALVATRON_FIXTURES") {
        Some(folder) => check(&PathBuf::from(folder).join("planning"), &OTHERS),
        None => eprintln!("SKIPPED: GALVATRON_FIXTURES is not set, two graphs of fifteen are planned"),
    }
}
