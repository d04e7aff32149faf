//! What must never be: the fences between the rooms, and the measures of files and functions.

#[path = "tidy/source.rs"]
mod source;

use source::{Source, blank_literals, files, is_word, item_end, line_of, root, sources, words};
use std::collections::{BTreeMap, BTreeSet};

/// Lines that a file may have.
const MAX_FILE_LINES: usize = 800;
/// Lines that a function may have.
const MAX_FUNCTION_LINES: usize = 80;
/// Bytes that the whole repository may have.
const MAX_REPOSITORY_BYTES: u64 = 15_000_000;
/// Where `unsafe` may stand: kernels, memory and threads of the CPU ranks, shared memory between them, GPUs, memory maps,
/// and the allocator that a test counts with.
const UNSAFE_FILES: [&str; 16] = [
    "tests/allocations.rs",
    "backends/src/cpu/",
    "backends/src/comm/local/",
    "backends/src/cuda/arena.rs",
    "backends/src/cuda/blas.rs",
    "backends/src/cuda/comm.rs",
    "backends/src/cuda/context.rs",
    "backends/src/cuda/graph.rs",
    "backends/src/cuda/nccl.rs",
    "backends/src/cuda/nvrtc.rs",
    "backends/src/cuda/pinned.rs",
    "backends/src/cuda/probe.rs",
    "backends/src/cuda/stage.rs",
    "backends/src/cuda/staging.rs",
    "src/data/mod.rs",
    "src/import/onnx/reader.rs",
];
/// Modules that may name each other: a node holds its op, and an op that is asked for its gradient adds nodes.
const KNOTS: [(&str, &str, &str); 1] = [("ir", "graph", "op")];

/// Fails with the whole list of faults.
fn assert_none(faults: Vec<String>) {
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// Words that may stand only in files whose path starts with one of these.
fn fence(word: &str, allowed: &[&str]) -> Vec<String> {
    let outside = |s: &Source| !allowed.iter().any(|a| s.path.starts_with(a)) && !s.path.starts_with("tests/tidy");
    let place = |s: &Source, at| format!("{}:{}: `{word}`", s.path, line_of(&s.code, at));
    let of = |s: Source| words(&s.code, word).map(|at| place(&s, at)).collect::<Vec<_>>();
    sources().into_iter().filter(outside).flat_map(of).collect()
}

/// Texts that may not stand in shipped code outside of these paths.
fn never(texts: &[&str], allowed: &[&str]) -> Vec<String> {
    let mut faults = Vec::new();
    for s in sources().iter().filter(|s| !allowed.iter().any(|a| s.path.starts_with(a))) {
        for text in texts {
            let found = s.shipped.match_indices(text).filter(|(at, _)| !s.shipped[..*at].ends_with(is_word));
            faults.extend(found.map(|(at, _)| format!("{}:{}: `{text}`", s.path, line_of(&s.shipped, at))));
        }
    }
    faults
}

#[test]
fn rooms_do_not_know_each_other() {
    let members = ["galvatron", "galvatron_ir", "galvatron_passes", "galvatron_backends"];
    let knows = |room: &str, other: &str| match room {
        "ir" => false,
        "passes" | "backends" => other == "galvatron_ir",
        _ => true,
    };
    let mut faults = Vec::new();
    for s in sources() {
        let room = s.path.split('/').next().unwrap_or_default();
        for member in members.iter().filter(|m| !knows(room, m)) {
            faults.extend(words(&s.code, member).map(|at| format!("{}:{}: {member}", s.path, line_of(&s.code, at))));
        }
    }
    for (room, other) in [("ir", "galvatron-"), ("passes", "galvatron-backends"), ("backends", "galvatron-passes")] {
        let manifest = std::fs::read_to_string(root().join(room).join("Cargo.toml")).unwrap();
        let depends = manifest.lines().any(|l| l.starts_with(other));
        faults.extend(depends.then(|| format!("{room}/Cargo.toml: {other}")));
    }
    assert_none(faults);
}

#[test]
fn libraries_stay_in_their_rooms() {
    let mut faults = fence("egg", &["passes/src/rewrite/"]);
    faults.extend(fence("good_lp", &["passes/src/search/"]));
    faults.extend(fence("cudarc", &["backends/src/cuda/"]));
    faults.extend(fence("prost", &["src/import/"]));
    for (library, home) in [("egg", "passes"), ("good_lp", "passes"), ("cudarc", "backends"), ("prost", ".")] {
        for room in ["ir", "passes", "backends", "."].into_iter().filter(|r| *r != home) {
            let manifest = std::fs::read_to_string(root().join(room).join("Cargo.toml")).unwrap();
            let named = manifest.lines().any(|l| l.split([' ', '=', '.']).next() == Some(library));
            faults.extend(named.then(|| format!("{room}/Cargo.toml: {library}")));
        }
    }
    assert_none(faults);
}

#[test]
fn the_engine_names_no_transport() {
    let transports = ["tcp", "TcpComm", "LocalComm", "TcpStream"];
    let names =
        |s: &Source, word: &str| words(&s.shipped, word).next().map(|at| (line_of(&s.shipped, at), s.path.clone()));
    let engine = |s: &Source| s.path.starts_with("backends/src/exec/") || s.path == "backends/src/device.rs";
    let all = sources();
    let found = all.iter().filter(|s| engine(s)).flat_map(|s| transports.iter().filter_map(|word| names(s, word)));
    assert_none(found.map(|(line, path)| format!("{path}:{line}")).collect());
}

#[test]
fn only_commands_print_and_exit() {
    let prints = ["print!", "println!", "eprint!", "eprintln!", "dbg!", "process::exit"];
    assert_none(never(&prints, &["src/cli/", "src/bin/", "examples/"]));
}

#[test]
fn shipped_code_does_not_unwrap_or_leave_gaps() {
    let mut faults = never(&["todo!", "unimplemented!"], &[]);
    for s in sources() {
        faults.extend(
            s.shipped
                .match_indices(".unwrap()")
                .map(|(at, _)| format!("{}:{}: unwrap", s.path, line_of(&s.shipped, at))),
        );
    }
    assert_none(faults);
}

#[test]
fn unsafe_code_is_fenced_and_says_why() {
    let mut faults = fence("unsafe", &UNSAFE_FILES);
    for s in sources() {
        let lines: Vec<&str> = s.text.lines().collect();
        for at in words(&s.code, "unsafe") {
            let rest = s.code[at + "unsafe".len()..].trim_start();
            let line = line_of(&s.code, at);
            let above = &lines[line.saturating_sub(9)..line];
            let says = above.iter().any(|l| l.contains("SAFETY:") || l.contains("# Safety"));
            let needs = rest.starts_with('{') || rest.starts_with("impl");
            faults.extend((needs && !says).then(|| format!("{}:{line}: no SAFETY note", s.path)));
        }
    }
    assert_none(faults);
}

#[test]
fn files_say_what_they_are_and_stay_small() {
    let mut faults = Vec::new();
    for s in sources() {
        let n_lines = s.text.lines().count();
        faults.extend((n_lines > MAX_FILE_LINES).then(|| format!("{}: {n_lines} lines", s.path)));
        faults.extend((!s.text.starts_with("//! ")).then(|| format!("{}: no `//!` line", s.path)));
        let vague = ["utils", "util", "common", "helpers", "misc"];
        let is_vague = s.path.trim_end_matches(".rs").split('/').any(|part| vague.contains(&part));
        faults.extend(is_vague.then(|| format!("{}: a name that says nothing", s.path)));
    }
    assert_none(faults);
}

#[test]
fn functions_stay_small() {
    let mut faults = Vec::new();
    for s in sources() {
        for at in words(&s.code, "fn").filter(|&at| s.code[at + 2..].trim_start().starts_with(is_word)) {
            let n_lines = line_of(&s.code, item_end(&s.code, at)) - line_of(&s.code, at) + 1;
            let line = line_of(&s.code, at);
            faults.extend((n_lines > MAX_FUNCTION_LINES).then(|| format!("{}:{line}: {n_lines} lines", s.path)));
        }
    }
    assert_none(faults);
}

/// The modules of a crate at its root, and which of the others each names; re-exports of the root count as their module.
fn module_graph(folder: &str, all: &[Source]) -> BTreeMap<String, BTreeSet<String>> {
    let prefix = format!("{folder}src/");
    let inside = || all.iter().filter(|s| s.path.starts_with(&prefix));
    let module = |s: &Source| s.path[prefix.len()..].split(['/', '.']).next().unwrap_or_default().to_string();
    let modules: BTreeSet<String> = inside().map(&module).collect();
    let lib = inside().find(|s| module(s) == "lib").map_or("", |s| &s.code);
    let mut named: BTreeMap<&str, &str> = BTreeMap::new();
    for statement in lib.split("pub use ").skip(1).filter_map(|s| s.split(';').next()) {
        let module = statement.split("::").next().unwrap_or_default();
        named.extend(statement.split(|c| !is_word(c)).skip(1).map(|name| (name, module)));
    }
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for s in inside().filter(|s| !["lib", "bin"].contains(&module(s).as_str())) {
        let from = module(s);
        for name in crate_names(&s.shipped) {
            let to = named.get(name.as_str()).map_or(name, |m| m.to_string());
            if to != from && modules.contains(&to) {
                graph.entry(from.clone()).or_default().insert(to);
            }
        }
    }
    graph
}

/// What follows `crate::` in code, also inside braces.
fn crate_names(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, prefix) in code.match_indices("crate::") {
        let rest = &code[at + prefix.len()..];
        let group = if rest.starts_with('{') { &rest[..item_end(rest, 0)] } else { rest };
        let mut depth = 0;
        let mut starts = vec![usize::from(rest.starts_with('{'))];
        for (i, c) in group.char_indices().filter(|_| rest.starts_with('{')) {
            depth += i32::from(c == '{') - i32::from(c == '}');
            starts.extend((c == ',' && depth == 1).then_some(i + 1));
        }
        let word = |&start: &usize| group[start..].trim_start().chars().take_while(|&c| is_word(c)).collect::<String>();
        names.extend(starts.iter().map(word));
    }
    names
}

#[test]
fn modules_of_a_crate_form_no_circle() {
    let all = sources();
    let mut faults = Vec::new();
    for (name, folder) in [("ir", "ir/"), ("passes", "passes/"), ("backends", "backends/"), ("galvatron", "")] {
        let mut graph = module_graph(folder, &all);
        for (_, one, other) in KNOTS.iter().filter(|(krate, ..)| *krate == name) {
            join(&mut graph, one, other);
        }
        // What names only modules that are gone goes too; a circle stays.
        loop {
            let open: BTreeSet<String> = graph.keys().cloned().collect();
            graph.retain(|_, to| to.iter().any(|t| open.contains(t)));
            if graph.len() == open.len() {
                break;
            }
        }
        faults.extend(graph.iter().map(|(from, to)| format!("{name}: `{from}` names {to:?}")));
    }
    assert_none(faults);
}

/// Makes two modules one.
fn join(graph: &mut BTreeMap<String, BTreeSet<String>>, one: &str, other: &str) {
    let moved = graph.remove(other).unwrap_or_default();
    graph.entry(one.to_string()).or_default().extend(moved);
    for to in graph.values_mut() {
        if to.remove(other) {
            to.insert(one.to_string());
        }
    }
    graph.get_mut(one).unwrap().remove(one);
}

#[test]
fn the_libraries_that_the_design_names_are_there() {
    let manifests = ["", "ir/", "passes/", "backends/"].map(|room| root().join(room).join("Cargo.toml"));
    let text: String = manifests.iter().map(|m| std::fs::read_to_string(m).unwrap()).collect();
    for library in ["petgraph", "egg", "good_lp", "cudarc", "serde", "insta", "clap"] {
        assert!(text.lines().any(|l| l.split([' ', '=', '.']).next() == Some(library)), "no `{library}`");
    }
}

#[test]
fn the_repository_is_small_and_its_folders_are_known() {
    let size = |path: &String| std::fs::metadata(root().join(path)).unwrap().len();
    let bytes: u64 = files().iter().map(size).sum();
    assert!(bytes < MAX_REPOSITORY_BYTES, "{bytes} bytes");
    let folders: BTreeSet<String> =
        files().iter().filter_map(|f| f.split_once('/')).map(|(folder, _)| folder.to_string()).collect();
    let known = ["backends", "examples", "ir", "passes", "snapshots", "src", "tests"];
    let unknown = folders.iter().filter(|f| !f.starts_with('.') && !known.contains(&f.as_str()));
    assert_none(unknown.cloned().collect());
    assert_none(known.iter().map(|f| format!("{f}/README.md")).filter(|f| !root().join(f).is_file()).collect());
}

#[test]
fn no_file_names_a_folder_of_one_machine() {
    let roots = ["work", "home", "root", "Users", "tmp"].map(|name| format!("/{name}/"));
    let mut faults = Vec::new();
    for path in files() {
        let Ok(text) = std::fs::read_to_string(root().join(&path)) else { continue };
        for (i, line) in text.lines().enumerate() {
            let starts = |at: usize| !line[..at].ends_with(|c: char| is_word(c) || "./-%}".contains(c));
            let named = |r: &String| line.match_indices(r.as_str()).any(|(at, _)| starts(at));
            faults.extend(roots.iter().any(named).then(|| format!("{path}:{}: {}", i + 1, line.trim())));
        }
    }
    assert_none(faults);
}

fn documents() -> Vec<(String, String)> {
    let is_ours = |f: &String| f.ends_with(".md");
    files().into_iter().filter(is_ours).map(|f| (f.clone(), std::fs::read_to_string(root().join(f)).unwrap())).collect()
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut faults = Vec::new();
    for (path, text) in documents() {
        let folder = root().join(&path).parent().unwrap().to_path_buf();
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|l| !l.contains("://") && !l.starts_with('#')) {
            let file = link.split('#').next().unwrap_or_default();
            faults.extend((!folder.join(file).exists()).then(|| format!("{path}: {link}")));
        }
    }
    assert_none(faults);
}

/// A paragraph with this mark says in its last sentence, after `Held by`, which tests hold it.
#[test]
fn every_invariant_of_the_architecture_names_tests_that_exist() {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let code: String = sources().into_iter().map(|s| s.code).collect();
    let mut faults = Vec::new();
    let mut n = 0;
    for paragraph in text.split("\n\n").filter(|p| p.contains("Architecture Invariant:")) {
        let paragraph = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
        for invariant in paragraph.split("Architecture Invariant:").skip(1) {
            let tests: Vec<&str> =
                invariant.split("Held by").nth(1).unwrap_or_default().split('`').skip(1).step_by(2).collect();
            let missing = |t: &&&str| !code.contains(&format!("fn {}(", t.rsplit("::").next().unwrap_or_default()));
            faults.extend(tests.iter().filter(missing).map(|t| format!("no test `{t}`")));
            faults.extend(tests.is_empty().then(|| format!("no test holds:{invariant}")));
            n += 1;
        }
    }
    assert_none(faults);
    assert!(n > 0, "no invariants");
}

#[test]
fn literals_and_comments_are_no_code() {
    let check = |text: &str, expected: &str| assert_eq!(blank_literals(text), expected);
    check("a /* b /* c */ d */ e // f\ng", "a                   e     \ng");
    check(r##"x("a\"b", r#"c"d"#, 'e', '\'', &'f g)"##, r#"x(      ,         ,    ,     , &'f g)"#);
    check("\"a\n b\" c", "  \n    c");
}
