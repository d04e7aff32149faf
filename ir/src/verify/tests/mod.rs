//! Good modules verify; each corruption of one is found, under its code and at its site.

mod erasing;
mod fixture;
mod host;
mod memory;
mod phases;
mod program;
mod random;
mod sharding;
mod simulate;

use super::context::node_name;
use super::{Finding, Part, Site, verify};
use crate::graph::Graph;
use crate::id::NodeId;
use crate::module::{Level, Module};

/// Corrupts a good module and expects these findings, written `code site`.
fn check(module: Module, corrupt: impl FnOnce(&mut Module), expected: &[&str]) {
    let mut module = module;
    corrupt(&mut module);
    let findings = verify(&module);
    let found: Vec<String> = findings.iter().map(|f| format!("{} {}", f.code, spell(&module, &f.at))).collect();
    assert_eq!(found, expected, "{findings:#?}");
}

/// The one finding of a corrupted module, as `message; help`.
fn message(module: Module, corrupt: impl FnOnce(&mut Module)) -> String {
    let mut module = module;
    corrupt(&mut module);
    match verify(&module).as_slice() {
        [Finding { message, help: Some(help), .. }] => format!("{message}; {help}"),
        [Finding { message, help: None, .. }] => message.clone(),
        other => panic!("expected one finding: {other:#?}"),
    }
}

fn spell(module: &Module, site: &Site) -> String {
    let program = |v| format!("%{}", module.program.graph.value(v).name);
    match *site {
        Site::Module => "module".into(),
        Site::Stage(i) => format!("stage {i}"),
        Site::Arena(_) => "arena".into(),
        Site::Input(i) => format!("input {}", program(module.program.inputs[i].value)),
        Site::Weight(i) => format!("weight {}", program(module.program.weights[i].value)),
        Site::State(i) => format!("state {}", program(module.program.states[i].value)),
        Site::Update(i) => format!("update {}", program(module.program.updates[i].0)),
        Site::Output(i) => format!("output {}", module.program.outputs[i].0),
        Site::Schedule(_, i) => format!("schedule {i}"),
        Site::ProgramNode(node, part) => format!("program {}", spell_node(&module.program.graph, node, part)),
        Site::ChunkNode(c, node, part) => spell_node(&module.chunks[c as usize].graph, node, part),
        Site::Resident(c, i) => {
            let chunk = &module.chunks[c as usize];
            format!("resident %{}", chunk.graph.value(chunk.residents[i].value).name)
        }
    }
}

fn spell_node(graph: &Graph, node: NodeId, part: Part) -> String {
    let name = node_name(graph, node).replace('`', "");
    match part {
        Part::Whole => name,
        Part::Op => format!("{name} op"),
        Part::Arg(i) => format!("{name} arg {i}"),
        Part::Result(i) => format!("%{} result {i}", graph.value(graph.node(node).results[i]).name),
    }
}

#[test]
fn good_modules_verify_at_every_level() {
    for level in [Level::Training, Level::Sharded, Level::Plan] {
        check(fixture::mlp(level), |_| {}, &[]);
    }
}
