//! Runs every `filetests/FOLDER/*.gir`: a module, the pass that is run on it, and what comes out.
//!
//! The first line is `// pass: NAME`. Behind a line `// expect:` stands the module that the pass gives; a diagnostic stands as
//! `// error: CODE text` at the end of the line that it points at, or on a line of its own if it points nowhere. `// fires: RULE`
//! and `// leaves: RULE` name a rewrite rule that must apply, or must not. `UPDATE_EXPECT=1` writes what the passes give.

use galvatron_ir::recipe::{LossKind, Recipe};
use galvatron_ir::text::{parse_with_spans, print};
use galvatron_ir::{Diagnostic, Module, ValueId, verify};
use galvatron_passes::apply::{offload, overlap};
use galvatron_passes::canonicalize::canonicalize;
use galvatron_passes::pad::{Degrees, pad};
use galvatron_passes::rewrite::rewrite;
use galvatron_passes::rewrite::rules::{RuleSample, rule_misses, rule_names, rule_samples};
use galvatron_passes::segment::segment;
use galvatron_passes::strategy::Strategy;
use galvatron_passes::train::{attach_loss, differentiate};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::{env, fs};

/// What separates the input from the expected module.
const EXPECT: &str = "// expect:\n";
/// What a diagnostic starts with.
const ERROR: &str = "// error: ";

/// The line of a diagnostic, if it has a place, and its code and message.
type Spelled = (Option<usize>, String);

/// A file test taken apart.
struct Case {
    path: PathBuf,
    pass: String,
    /// Everything before `// expect:`, without the diagnostics.
    input: String,
    /// The diagnostics, with the index of the line of the input that each points at.
    errors: Vec<Spelled>,
    /// Everything behind `// expect:`.
    expected: Option<String>,
}

impl Case {
    fn read(path: PathBuf) -> Case {
        let text = fs::read_to_string(&path).expect("a file of this folder can be read");
        let (input, expected) = match text.split_once(EXPECT) {
            Some((input, expected)) => (input, Some(expected.to_string())),
            None => (text.as_str(), None),
        };
        let (mut lines, mut errors) = (Vec::new(), Vec::new());
        for line in input.lines() {
            let mut parts = line.split(ERROR);
            let code = parts.next().unwrap_or_default().trim_end();
            let at = (!code.is_empty()).then_some(lines.len());
            let found: Vec<_> = parts.map(|error| (at, error.trim().to_string())).collect();
            if found.is_empty() || at.is_some() {
                lines.push(code);
            }
            errors.extend(found);
        }
        let pass = lines[0].strip_prefix("// pass: ").unwrap_or_else(|| panic!("{}: no pass", path.display()));
        Case { pass: pass.to_string(), input: lines.join("\n") + "\n", path, errors, expected }
    }

    /// The words behind `// KEY: ` lines.
    fn words<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        let prefix = format!("// {key}: ");
        self.input.lines().filter_map(move |line| line.strip_prefix(&prefix))
    }

    /// The text that the pass gives, or the diagnostics.
    fn run(&self) -> Result<String, Vec<Diagnostic>> {
        let (mut module, spans) = parse_with_spans(&self.input)?;
        let found = verify::check(&module, Some(&spans));
        if !found.is_empty() && self.pass != "parse" {
            return Err(found);
        }
        self.apply(&mut module)?;
        let after = verify::check(&module, None);
        assert!(after.is_empty() || self.pass == "parse", "{}: after the pass {}", self.path.display(), after[0]);
        Ok(print(&module))
    }

    fn apply(&self, module: &mut Module) -> Result<(), Vec<Diagnostic>> {
        match self.pass.as_str() {
            "parse" | "verify" => {}
            "canonicalize" => canonicalize(module),
            "rewrite" => self.check_rules(&rewrite(module).applied.into_keys().collect()),
            "segment" => drop(segment(&mut module.program)),
            "attach-loss" => attach_loss(module, &self.recipe().loss).map_err(|fault| vec![fault])?,
            "pad" => drop(pad(&mut module.program, &self.degrees())),
            "offload" => offload(module, &self.offloaded(module)),
            "overlap" => overlap(module, &Strategy::default()),
            "differentiate" => drop(differentiate(&mut module.program)?),
            other => panic!("{}: no pass `{other}` in these tests", self.path.display()),
        }
        Ok(())
    }

    fn check_rules(&self, applied: &BTreeSet<String>) {
        let path = self.path.display();
        self.words("fires").for_each(|rule| assert!(applied.contains(rule), "{path}: `{rule}` does not fire"));
        self.words("leaves").for_each(|rule| assert!(!applied.contains(rule), "{path}: `{rule}` fires"));
    }

    /// What is to lie in host memory: `// states: WEIGHT` and `// activation: VALUE` of the program.
    fn offloaded(&self, module: &Module) -> Strategy {
        let graph = &module.program.graph;
        let all = || (0..graph.n_values()).map(|i| ValueId(i as u32));
        let named = |key| all().filter(|&v| self.words(key).any(|name| graph.value(v).name == name)).collect();
        Strategy { host_states: named("states"), host_activations: named("activation"), ..Strategy::default() }
    }

    /// What shall be divided: `// tp: DEGREE`.
    fn degrees(&self) -> Degrees {
        Degrees::all(self.words("tp").next().map_or(1, |degree| degree.parse().expect("a degree is a number")))
    }

    fn recipe(&self) -> Recipe {
        let mut recipe = Recipe::default();
        recipe.loss.kind = match self.words("loss").next() {
            Some("mse") => LossKind::Mse,
            Some("output") => LossKind::Output,
            _ => LossKind::CrossEntropy,
        };
        recipe
    }

    /// Diagnostics as they stand in a file.
    fn spelled(&self, faults: &[Diagnostic]) -> Vec<Spelled> {
        let line = |fault: &Diagnostic| Some(self.input[..fault.span.as_ref()?.start].matches('\n').count());
        let mut all: Vec<_> = faults.iter().map(|f| (line(f), format!("{} {}", f.code, f.message))).collect();
        all.sort_by_key(|(line, _)| *line);
        all
    }

    /// What is wrong, if anything.
    fn check(&self) -> Result<(), String> {
        let result = self.run();
        let found = self.spelled(result.as_ref().err().map_or(&[], |faults| faults));
        let agrees = |((line, error), (at, expected)): (&Spelled, &Spelled)| {
            let (code, text) = expected.split_once(' ').unwrap_or((expected, ""));
            line == at && error.strip_prefix(code).is_some_and(|message| message.contains(text))
        };
        if found.len() != self.errors.len() || !found.iter().zip(&self.errors).all(agrees) {
            return Err(format!("expected {:#?}\nfound {found:#?}", self.errors));
        }
        match (&result, &self.expected) {
            (Ok(text), Some(expected)) if text != expected => Err(format!("expected\n{expected}\nfound\n{text}")),
            (Ok(_), None) if self.pass != "verify" => Err("there is no `// expect:`".into()),
            (Err(_), Some(_)) => Err("there is an `// expect:` behind errors".into()),
            _ => Ok(()),
        }
    }

    /// Writes what the pass gives.
    fn update(&self) {
        let result = self.run();
        let found = self.spelled(result.as_ref().err().map_or(&[], |faults| faults));
        let mut text = String::new();
        for (i, line) in self.input.lines().enumerate() {
            text += line;
            let here = found.iter().filter(|(at, _)| *at == Some(i));
            here.for_each(|(_, error)| text += &format!(" {ERROR}{error}"));
            text += "\n";
            let nowhere = found.iter().filter(|(at, _)| i == 0 && at.is_none());
            nowhere.for_each(|(_, error)| text += &format!("{ERROR}{error}\n"));
        }
        if let Ok(module) = result.as_ref()
            && self.pass != "verify"
        {
            text += EXPECT;
            text += module;
        }
        fs::write(&self.path, text).expect("a file of this folder can be written");
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/filetests")
}

/// With `UPDATE_EXPECT` set, writes the files of new rules and then what every pass gives.
static UPDATED: LazyLock<()> = LazyLock::new(|| {
    if env::var_os("UPDATE_EXPECT").is_some() {
        rule_samples().iter().for_each(|sample| write_sample(sample, "", "fires"));
        rule_misses().iter().for_each(|sample| write_sample(sample, ".miss", "leaves"));
        read_all().iter().for_each(Case::update);
    }
});

/// Every file, sorted by path.
fn cases() -> Vec<Case> {
    LazyLock::force(&UPDATED);
    read_all()
}

fn read_all() -> Vec<Case> {
    let entries = |folder: &Path| {
        let entries = fs::read_dir(folder).expect("the folder is there");
        let mut paths: Vec<PathBuf> = entries.map(|e| e.expect("the folder can be listed").path()).collect();
        paths.sort();
        paths
    };
    let folders = entries(&folder()).into_iter().filter(|path| path.is_dir());
    let files = folders.flat_map(|folder| entries(&folder)).filter(|path| path.extension().is_some_and(|e| e == "gir"));
    files.map(Case::read).collect()
}

#[test]
fn every_file_gives_what_it_expects() {
    let cases = cases();
    assert!(cases.len() > 100, "{} files", cases.len());
    let failed = cases.iter().filter_map(|case| Some(format!("{}: {}", case.path.display(), case.check().err()?)));
    let failed: Vec<String> = failed.collect();
    assert!(failed.is_empty(), "{} files fail:\n{}", failed.len(), failed.join("\n\n"));
}

/// Writes the file of a rule's sample unless it is there.
fn write_sample(sample: &RuleSample, suffix: &str, key: &str) {
    let path = folder().join(format!("rewrite/{}{suffix}.gir", sample.rule));
    if !path.exists() {
        let mut module = Module::new(sample.rule);
        module.program = sample.program.clone();
        let text = format!("// pass: rewrite\n// {key}: {}\n{}", sample.rule, print(&module));
        fs::write(&path, text).expect("a file of this folder can be written");
    }
}

#[test]
fn every_rule_has_a_file_where_it_fires_and_one_where_it_does_not() {
    let cases = cases();
    for rule in rule_names() {
        for key in ["fires", "leaves"] {
            let has = cases.iter().any(|case| case.words(key).any(|word| word == rule));
            assert!(has, "no file says `// {key}: {rule}`; UPDATE_EXPECT=1 writes one from the rule's sample");
        }
    }
}

#[test]
fn the_verifier_has_a_file_for_every_code() {
    let verify: Vec<Case> = cases().into_iter().filter(|case| case.pass == "verify").collect();
    // Types are read with the text, so G0202 is found in modules that were never text.
    for code in (1..=14).filter(|code| *code != 2) {
        let code = format!("G02{code:02}");
        assert!(verify.iter().any(|case| case.errors.iter().any(|(_, e)| e.starts_with(&code))), "no file has {code}");
    }
}
