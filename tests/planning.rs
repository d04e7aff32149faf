//! Graphs of published sizes without weights: each is planned for a cluster that can hold it, and its layers are found.
//!
//! Two graphs are committed, and the configurations of the examples; the rest lies in the folder that `GALVATRON_FIXTURES` names.

#[path = "support/allocator.rs"]
mod allocator;
#[path = "support/snapshot.rs"]
mod snapshot;

use galvatron::analysis::lengths::Lengths;
use galvatron::config::{cluster::parse_cluster, train::parse_recipe};
use galvatron::driver::{Compilation, CompileFault, Compiled, Training, compile};
use galvatron::report::no_plan_message;
use galvatron_passes::search::Pins;
use galvatron_passes::segment::layers as layers_of;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A graph, the number of its cluster's devices, and how many layers of each kind follow one another.
type Case<'a> = (&'a str, u32, &'static [usize]);

/// The committed ones.
const COMMITTED: [Case<'static>; 2] = [("gpt3-1.3b.op23", 8, &[24]), ("t5-11b.op23", 64, &[24, 24])];

/// The others.
const OTHERS: [Case<'static>; 13] = [
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

/// Plans a graph; what is wrong, if anything is.
fn fault_of(model: &Path, case: Case<'_>) -> Option<String> {
    let batch = if case.1 > 256 { 1024 } else { 256 };
    let settings = [format!("batch.global={batch}"), "batch.sequence=512".into()];
    plan(model, case, &settings).err()
}

/// Plans a model, whose layers must be those.
fn plan(model: &Path, (name, n_devices, layers): Case<'_>, settings: &[String]) -> Result<Compiled, String> {
    let clusters = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/clusters");
    let cluster = std::fs::read_to_string(clusters.join(format!("a100-80gb-{n_devices}.toml"))).expect("it is there");
    let what = Compilation {
        model,
        cluster: &parse_cluster(&cluster).expect("the cluster is described well"),
        recipe: &parse_recipe("", settings).expect("the recipe is right"),
        pins: &Pins::default(),
        profile: None,
        retie: true,
        stop_after: None,
        verify_each: false,
    };
    match compile(&what, &mut |_, _| {}) {
        Err(CompileFault::Input(faults)) => Err(format!("{name}: {}", faults[0])),
        Err(CompileFault::Bug(fault)) => Err(format!("{name}: {fault}")),
        Err(CompileFault::NoPlan { stages, .. }) => Err(format!("{name}: {}", no_plan_message(&stages))),
        Ok(compiled) => {
            let found = layers_of(&compiled.segments);
            let fault = || format!("{name}: layers {found:?}, not {layers:?}");
            if found == layers { Ok(compiled) } else { Err(fault()) }
        }
    }
}

fn check(folder: &Path, cases: &[Case<'_>]) {
    let fault = |&case: &Case<'_>| {
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

/// The configurations of the examples with the layers that they have.
const CONFIGURATIONS: [(&str, &[usize]); 8] = [
    ("vit-huge", &[32]),
    ("bert-huge", &[32]),
    ("llama3-8b", &[32]),
    ("t5-11b", &[24, 24]),
    ("mixtral-8x7b", &[32]),
    ("llama2-70b", &[80]),
    ("gpt3-175b", &[96]),
    ("llama3-405b", &[126]),
];

/// Each row of the table of configurations says how the model is planned, and how many parameters it has.
#[test]
fn published_configurations_are_planned_as_their_table_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/configs");
    let table = std::fs::read_to_string(folder.join("README.md")).expect("the folder has one");
    let rows: Vec<Vec<&str>> = table.lines().filter(|line| line.starts_with("| [")).map(cells).collect();
    let entries = std::fs::read_dir(&folder).expect("the folder is there").flatten().map(|entry| entry.path());
    let n_files = entries.filter(|path| path.extension().is_some_and(|e| e == "json")).count();
    assert_eq!((rows.len(), CONFIGURATIONS.len()), (n_files, n_files));
    let faults: Vec<String> = rows.iter().filter_map(|row| fault_of_row(&folder, row).err()).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn cells(row: &str) -> Vec<&str> {
    row.trim_matches('|').split('|').map(str::trim).collect()
}

fn fault_of_row(folder: &Path, row: &[&str]) -> Result<(), String> {
    let [link, n_parameters, n_devices, reads, ..] = row else { return Err(format!("{row:?} is no row")) };
    let name = link.trim_start_matches('[').split(']').next().unwrap_or_default();
    let layers = CONFIGURATIONS.iter().find(|(known, _)| *known == name).ok_or(format!("{name} is not known"))?.1;
    let n_devices = n_devices.parse().map_err(|e| format!("{name}: {n_devices} devices: {e}"))?;
    let (batch, sequence) = reads.split_once(" × ").ok_or(format!("{name} reads {reads}"))?;
    // What an image consists of is not chosen.
    let sequence = (!sequence.ends_with("patches")).then(|| format!("batch.sequence={sequence}"));
    let settings = [format!("batch.global={batch}"), "precision.compute=bf16".into()].into_iter().chain(sequence);
    let model = folder.join(format!("{name}.json"));
    let compiled = plan(&model, (name, n_devices, layers), &settings.collect::<Vec<_>>())?;
    let found: u64 = compiled.module.initializers.iter().map(|i| i.ty.elements()).sum();
    let expected = n_parameters.replace(',', "");
    if found.to_string() == expected { Ok(()) } else { Err(format!("{name}: {found} parameters, not {n_parameters}")) }
}

#[test]
fn all_graphs_are_planned() {
    match std::env::var_os("GALVATRON_FIXTURES") {
        Some(folder) => check(&PathBuf::from(folder).join("planning"), &OTHERS),
        None => eprintln!("SKIPPED: GALVATRON_FIXTURES is not set, two graphs of fifteen are planned"),
    }
}

/// Lengths of the sequences of LLaMA-3 8B on two nodes.
const LENGTHS: [u64; 6] = [8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10];

/// As sequences grow the activations of one sample outgrow a device: samples over ranks give way to sequences over ranks.
#[test]
fn long_sequences_are_cut_over_ranks() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let cluster = std::fs::read_to_string(examples.join("clusters/h100-80gb-16.toml")).expect("it is there");
    let cluster = parse_cluster(&cluster).expect("the cluster is described well");
    let program = |sequence| {
        let sets = ["batch.global=16".into(), format!("batch.sequence={sequence}"), "precision.compute=bf16".into()];
        let what = Compilation {
            model: &examples.join("configs/llama3-8b.json"),
            cluster: &cluster,
            recipe: &parse_recipe("", &sets).expect("the recipe is right"),
            pins: &Pins::default(),
            profile: None,
            retie: true,
            stop_after: Some("attach-optimizer"),
            verify_each: false,
        };
        let trained = compile(&what, &mut |_, _| {}).unwrap_or_else(|_| panic!("{sequence} tokens are trained"));
        (sequence, Training { module: trained.module, segments: trained.segments })
    };
    let answer = Lengths::new(&LENGTHS.map(program), &cluster, None, &Pins::default());
    let strategy = |i: usize| answer.points[i].outcome.as_ref().map_or("none", |planned| &planned.strategy);
    let is_cut = |i| ["ulysses", "cp "].iter().any(|word| strategy(i).contains(word));
    assert!(!is_cut(0) && strategy(0).contains("zero"), "{}", strategy(0));
    assert!(is_cut(LENGTHS.len() - 1), "{}", strategy(LENGTHS.len() - 1));
    snapshot::check("lengths.llama3-8b", &answer.text());
}
